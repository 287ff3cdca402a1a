// The list of messages. All text is set as text: nothing that anybody has typed is ever parsed as
// HTML. Addresses of the web in it become links.

const most = 500; // messages on the page
const sameBreath = 5 * 60_000; // ms between messages of one person that are shown as one group

// compare orders entry IDs, "milliseconds-sequence".
export function compare(a, b) {
  const [x, y] = [a, b].map((id) => id.split("-").map(BigInt));
  for (const i of [0, 1]) {
    if (x[i] !== y[i]) return x[i] < y[i] ? -1 : 1;
  }
  return 0;
}

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// avatar fills an element with the initials of a person, on a colour that goes with the name.
export function avatar(element, person) {
  const words = person.name.split(" ").filter(Boolean);
  const letters = words.length > 1 ? [words[0], words.at(-1)] : words;
  element.textContent = letters.map((word) => [...word][0].toUpperCase()).join("");
  let sum = 0;
  for (const c of person.name) sum = (sum * 31 + c.codePointAt(0)) % 9973;
  element.dataset.tone = sum % 8;
  return element;
}

// An address, without the punctuation of the sentence behind it.
const addresses = /(?<![\p{L}\p{N}])https?:\/\/[^\s<>"]*[^\s<>"'.,;:!?)\]}…]/giu;

// linked returns the parts of a text, with links where it has addresses of the web.
export function linked(text) {
  const parts = [];
  let end = 0;
  for (const { 0: address, index } of text.matchAll(addresses)) {
    const link = toLink(address);
    if (!link) continue;
    parts.push(text.slice(end, index), link);
    end = index + address.length;
  }
  return [...parts, text.slice(end)].filter((part) => part !== "");
}

// toLink shows the address as it was typed. One with a user before the host, by which another host
// could be feigned, stays text.
function toLink(address) {
  const url = URL.parse(address);
  if (!url || !["http:", "https:"].includes(url.protocol) || url.username || url.password) return null;
  const link = make("a", "", address);
  link.href = url.href;
  link.target = "_blank";
  link.rel = "noopener noreferrer nofollow";
  return link;
}

export function badge() {
  return make("span", "badge", "Admin");
}

const assistant = { id: "assistant", name: "Assistant", role: "assistant" };
const answerEnds = {
  done: "",
  stopped: "Stopped",
  failed: "The assistant has failed",
  lost: "The assistant was interrupted. Ask again, please.",
};

// Answer is one that is being written.
class Answer {
  #text;
  #state;

  constructor(element, stop) {
    this.element = element;
    this.#text = element.querySelector(".text");
    this.#state = make("p", "progress");
    this.#state.setAttribute("role", "status");
    element.querySelector(".body").append(this.#state);
    this.stop = stop;
  }

  begin() {
    this.#text.textContent = "";
    this.element.dataset.answering = "running";
    const button = make("button", "", "Stop");
    button.type = "button";
    button.onclick = this.stop;
    this.#state.replaceChildren(make("span", "", "Answering…"), " ", button);
  }

  add(text) {
    this.#text.append(text);
  }

  end(status) {
    this.element.dataset.answering = status;
    this.#state.textContent = answerEnds[status];
  }
}

const states = {
  sending: ["Sending", ""],
  waiting: ["Waiting to be sent", ""],
  sent: ["Sent", "✓"],
  delivered: ["Delivered", "✓✓"],
  failed: ["Not sent", "!"],
};

export class Feed {
  lastID = ""; // of what the stream has brought
  #log;
  #scroll;
  #own = new Map(); // elements of our own messages that the stream has not brought yet, by key
  #keys = new Set(); // of messages that are shown, to know the ones that were sent twice
  #me;
  #answers = new Map(); // of the assistant that are not messages yet, by the key of the question
  #follows = true; // the reader is at the end
  #size = ""; // for which that was found

  // actions has stop(), retry(key), discard(key) and changed(atEnd, isNews).
  constructor(log, scroll, me, actions) {
    this.#log = log;
    this.#scroll = scroll;
    this.#me = me;
    this.actions = actions;
    // The end stays in view when the keyboard of a phone opens, or the phone is turned.
    new ResizeObserver(() => {
      this.#size = this.#sizeNow;
      if (this.#follows) this.toEnd();
    }).observe(scroll);
    scroll.addEventListener("scroll", () => {
      if (this.#size === this.#sizeNow) this.#follows = this.atEnd; // else the observer is about to be called
    });
  }

  get #sizeNow() {
    return `${this.#scroll.clientWidth} ${this.#scroll.clientHeight}`;
  }

  clear() {
    this.#log.replaceChildren();
    this.#own.clear();
    this.#keys.clear();
    this.#answers.clear();
    this.lastID = "";
    this.#follows = true;
  }

  get isEmpty() {
    return this.#log.childElementCount === 0;
  }

  // show adds a message that the stream has brought, and reports whether it is a new one of
  // somebody else. A stream has its entries in the order of their IDs, so what does not come
  // after the last one was here before.
  show(id, message) {
    if (this.lastID && compare(id, this.lastID) <= 0) return false;
    this.lastID = id;
    const mine = message.from.id === this.#me().id;
    const key = `${message.from.id} ${message.key}`;
    if (this.#keys.has(key)) return false; // sent twice: the first answer got lost
    this.#keys.add(key);
    if (message.from.role === assistant.role) this.#answered(message.key.replace("answer-", ""));
    if (this.#keys.size > 2 * most) this.#keys.delete(this.#keys.values().next().value);

    const atEnd = this.atEnd;
    const time = new Date(Number(id.split("-")[0]));
    let element = mine ? this.#own.get(message.key) : undefined;
    const pending = this.#firstPending();
    if (element) {
      this.#own.delete(message.key);
      if (element !== pending) this.#log.insertBefore(element, pending);
    } else {
      element = this.#make(message, mine);
      this.#log.insertBefore(element, pending);
    }
    element.dataset.id = id;
    this.#setTime(element, time);
    this.#group(element, message, time);
    if (mine) this.#setState(element, "delivered");
    this.#trim();
    this.#settle(atEnd, !mine);
    return !mine;
  }

  // add shows a message of ours that is on its way.
  add(item) {
    const element = this.#make({ key: item.key, from: this.#me(), text: item.text, announcement: item.announcement }, true);
    this.#own.set(item.key, element);
    this.#log.append(element);
    this.#setTime(element, new Date());
    this.#group(element, { from: this.#me(), announcement: item.announcement }, new Date());
    this.#setState(element, item.state, item.reason);
    this.#settle(true, false);
  }

  // answer returns the one to a question, which is shown at the end until it is a message.
  answer(question) {
    const known = this.#answers.get(question);
    if (known) return known;
    const followed = this.atEnd;
    const element = this.#make({ key: `writing-${question}`, from: assistant, text: "" }, false);
    const answer = new Answer(element, () => this.actions.stop());
    const add = answer.add.bind(answer);
    answer.add = (text) => {
      const follow = this.atEnd;
      add(text);
      if (follow) this.toEnd();
    };
    this.#answers.set(question, answer);
    if (this.#keys.has(`${assistant.id} answer-${question}`)) return answer; // it is a message already
    this.#log.insertBefore(element, this.#firstPending());
    this.#setTime(element, new Date());
    this.#group(element, { from: assistant }, new Date());
    this.#settle(followed, true);
    return answer;
  }

  // answered removes what was written of an answer that is a message now.
  #answered(question) {
    this.#answers.get(question)?.element.remove();
  }

  // mark shows what has become of a message of ours.
  mark(key, state, reason) {
    const element = this.#own.get(key);
    if (element) this.#setState(element, state, reason);
  }

  discard(key) {
    this.#own.get(key)?.remove();
    this.#own.delete(key);
    this.actions.changed(this.atEnd, false);
  }

  gap() {
    const note = make("li", "note", "Some earlier messages are no longer kept.");
    this.#log.insertBefore(note, this.#firstPending());
  }

  get atEnd() {
    const s = this.#scroll;
    return s.scrollHeight - s.scrollTop - s.clientHeight < 80;
  }

  toEnd() {
    this.#follows = true;
    this.#scroll.scrollTop = this.#scroll.scrollHeight;
  }

  #settle(follow, news) {
    if (follow) this.toEnd();
    this.actions.changed(follow, news);
  }

  #firstPending() {
    return this.#own.values().next().value ?? null;
  }

  #make(message, mine) {
    const element = make("li", `message ${mine ? "own" : "other"}`);
    if (message.announcement) element.classList.add("announcement");
    element.dataset.key = message.key;
    element.dataset.from = message.from.id;

    const face = avatar(make("span", "avatar"), message.from);
    face.setAttribute("aria-hidden", "true");
    const body = make("div", "body");
    const meta = make("p", "meta");
    meta.append(make("bdi", "name", mine ? "You" : message.from.name));
    if (message.from.role === "admin") meta.append(" ", badge());
    if (message.announcement) meta.append(" ", make("span", "kind", "Announcement"));
    const text = make("p", "text");
    text.append(...linked(message.text));
    text.dir = "auto";
    body.append(meta, text);
    const time = make("time", "time");
    if (mine) {
      const foot = make("p", "foot");
      foot.append(time, make("span", "state"));
      body.append(foot);
    } else meta.append(" ", time);
    element.append(face, body);
    return element;
  }

  #setTime(element, time) {
    const shown = element.querySelector("time");
    shown.dateTime = time.toISOString();
    shown.textContent = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  }

  // group joins a message to the one before, or begins a new day.
  #group(element, message, time) {
    let before = element.previousElementSibling;
    if (before?.classList.contains("day") && before.dataset.key === element.dataset.key) {
      before.remove();
      before = element.previousElementSibling;
    }
    const last = before?.querySelector("time")?.dateTime;
    const sameDay = last && new Date(last).toDateString() === time.toDateString();
    if (!sameDay) {
      const day = make("li", "day", dayName(time));
      day.dataset.key = element.dataset.key;
      element.before(day);
    }
    element.classList.toggle("follow", Boolean(
      sameDay && before.dataset.from === message.from.id && time - new Date(last) < sameBreath &&
        !message.announcement && !before.classList.contains("announcement")));
  }

  #setState(element, state, reason) {
    const [words, sign] = states[state];
    element.dataset.state = state;
    const shown = element.querySelector(".state");
    const mark = make("span", "sign", sign);
    mark.setAttribute("aria-hidden", "true");
    const loud = state === "failed" || state === "waiting";
    const label = make("span", loud ? "" : "unseen", reason ? `${words}: ${reason}` : words);
    shown.replaceChildren(mark, label);
    shown.title = words;
    if (state !== "failed") return;
    const key = element.dataset.key;
    for (const [name, action] of [["Try again", "retry"], ["Discard", "discard"]]) {
      const button = make("button", "", name);
      button.type = "button";
      button.onclick = () => this.actions[action](key);
      shown.append(" ", button);
    }
  }

  #trim() {
    while (this.#log.childElementCount > most) this.#log.firstElementChild.remove();
  }
}

function dayName(time) {
  const today = new Date();
  const yesterday = new Date(today.getFullYear(), today.getMonth(), today.getDate() - 1);
  if (time.toDateString() === today.toDateString()) return "Today";
  if (time.toDateString() === yesterday.toDateString()) return "Yesterday";
  return time.toLocaleDateString([], { weekday: "long", day: "numeric", month: "long" });
}
