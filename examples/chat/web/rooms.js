// The list of rooms, with a mark at those that have messages which this person has not seen. The server
// is asked every few seconds, by tabs that are seen; so the page also learns which instance serves it,
// and whether Redis answers, while its event streams only wait.

import { call } from "./api.js";
import { compare, make } from "./feed.js";

const every = 2000; // ms between two requests
const patience = 4000; // ms after which Redis or the server counts as down
const storage = "chat-seen";

export class Rooms {
  #list;
  #me;
  #open = ""; // the room that is shown
  #known = []; // as the server has listed them last
  #shown = "";
  #isNew = !sessionStorage.getItem(storage); // has seen nothing, and need not see what was there before
  #seen = JSON.parse(sessionStorage.getItem(storage)) ?? {}; // ID of the last message, by room
  #asking = null;

  // on has open(name), marked(whether any room is), answered(instance) and failed(failure).
  constructor(list, me, on) {
    this.#list = list;
    this.#me = me;
    this.on = on;
    setInterval(() => {
      if (this.#open && !document.hidden) this.look();
    }, every);
  }

  // enter is for when a room is opened, which removes its mark.
  enter(name) {
    this.#open = name;
    this.#show();
  }

  // see takes note that a message needs no mark.
  see(name, id) {
    if (!this.#seen[name] || compare(id, this.#seen[name]) > 0) this.#seen[name] = id;
  }

  // look asks the server, once at a time.
  look() {
    this.#asking ??= this.#ask().finally(() => (this.#asking = null));
    return this.#asking;
  }

  async #ask() {
    try {
      const { rooms, ...instance } = await call("GET", "rooms", this.#me().id, undefined, patience);
      this.#known = rooms;
      if (this.#isNew) for (const { name, last } of rooms) this.see(name, last ?? "0-0");
      this.#isNew = false;
      sessionStorage.setItem(storage, JSON.stringify(this.#seen));
      this.#show();
      const stream = rooms.find(({ name }) => name === this.#open)?.stream ?? "";
      this.on.answered({ ...instance, stream });
    } catch (failure) {
      this.on.failed(failure); // the list stays as it is
    }
  }

  #isUnread({ name, last }) {
    return name !== this.#open && Boolean(last) && compare(last, this.#seen[name] ?? "0-0") > 0;
  }

  #show() {
    const rooms = this.#known.some(({ name }) => name === this.#open) ? this.#known : [...this.#known, { name: this.#open }];
    const shown = JSON.stringify([this.#open, ...rooms.map((room) => [room.name, this.#isUnread(room)])]);
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.on.marked(rooms.some((room) => this.#isUnread(room)));
    const focused = this.#list.contains(document.activeElement) ? document.activeElement.href : "";
    this.#list.replaceChildren(...rooms.map((room) => this.#item(room)));
    [...this.#list.querySelectorAll("a")].find(({ href }) => href === focused)?.focus();
  }

  #item(room) {
    const link = make("a", "", room.name);
    link.href = `/?room=${room.name}`;
    if (room.name === this.#open) link.setAttribute("aria-current", "page");
    if (this.#isUnread(room)) {
      link.classList.add("unread");
      link.append(make("span", "unseen", ", new messages"));
    }
    link.addEventListener("click", (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      this.on.open(room.name);
    });
    const item = make("li");
    item.append(link);
    return item;
  }
}
