// Messages on their way to the server: one after the other, in the order in which they were
// written, and as often as it takes. A message has one key for all tries, by which pages know
// repeats. What is on its way survives a reload of the page.

import { call, wait } from "./api.js";

const patience = 60_000; // ms until a message counts as failed
const storage = "chat-outbox";

export class Outbox {
  #items = [];
  #pause;
  #running = false;

  // on has sent(item, id), waiting(item, failure), failed(item, reason) and recover(item) (async:
  // makes sure that the server knows us and the room).
  constructor(me, on) {
    Object.assign(this, { me, on });
    try {
      const kept = JSON.parse(sessionStorage.getItem(storage)) ?? [];
      this.#items = kept.map((item) => ({ ...item, since: Date.now() }));
    } catch {
      // nothing that could be sent
    }
  }

  // of returns what is on its way to a room, or has failed to get there.
  of(room) {
    return this.#items.filter((item) => item.room === room);
  }

  add(room, text, announcement, question) {
    const key = Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
    const item = { key, room, text, announcement, question, state: "sending", since: Date.now() };
    this.#items.push(item);
    this.#keep();
    this.run();
    return item;
  }

  retry(key) {
    const item = this.#items.find((item) => item.key === key);
    if (!item) return;
    item.state = "sending";
    item.since = Date.now();
    this.#pause?.wake();
    this.run();
  }

  // remove is for what has come back through the stream, and so has arrived, or is given up.
  remove(key) {
    this.#items = this.#items.filter((item) => item.key !== key);
    this.#keep();
  }

  // hurry tries at once, for example when the network is back.
  hurry() {
    this.#pause?.wake();
  }

  clear() {
    this.#items = [];
    this.#keep();
    this.#pause?.wake();
  }

  async run() {
    if (this.#running) return;
    this.#running = true;
    for (let tries = 0, item; (item = this.#items.find((item) => item.state !== "failed")); ) {
      try {
        const { key, text, announcement } = item;
        const { id } = item.question
          ? await call("POST", `rooms/${item.room}/questions`, this.me().id, { key, text })
          : await call("POST", `rooms/${item.room}/messages`, this.me().id, { key, text, announcement });
        tries = 0;
        this.remove(key);
        this.on.sent(item, id);
        continue;
      } catch (failure) {
        if (!this.#items.includes(item)) continue; // it has arrived all the same
        const late = Date.now() - item.since > patience;
        if (late || (!failure.passing && !failure.forgotten)) {
          item.state = "failed";
          this.#keep();
          this.on.failed(item, failure.message);
          continue;
        }
        item.state = "waiting";
        this.on.waiting(item, failure);
        const longest = Math.min(300 * 2 ** tries++, 3000);
        this.#pause = wait(Math.max(failure.after, longest * (0.5 + Math.random() / 2)));
        await this.#pause;
        if (failure.forgotten) await this.on.recover(item).catch(() => {});
      }
    }
    this.#running = false;
  }

  #keep() {
    sessionStorage.setItem(storage, JSON.stringify(this.#items));
  }
}
