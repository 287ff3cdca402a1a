// The two event streams of a room.

import { address, wait } from "./api.js";

// Messages follows the stream of messages. The browser itself reconnects and tells the server
// the last event's ID; where it has given up, because the server answered with an error, this
// does the same.
export class Messages {
  #source;
  #pause;
  #failures = 0;
  #closed = false;

  // on has enter (async: makes sure that the server knows us and the room), message(id, value),
  // gap(), and state("connecting" | "live" | "reconnecting"). position returns the last ID.
  constructor(room, me, position, on) {
    Object.assign(this, { room, me, position, on });
    on.state("connecting");
    this.#open();
  }

  #open() {
    if (this.#closed) return;
    this.#source?.close();
    const source = new EventSource(
      address(`rooms/${this.room}/events`, { as: this.me().id, lastEventId: this.position() }));
    this.#source = source;
    source.onopen = () => {
      this.#failures = 0;
      this.on.state("live");
    };
    source.onmessage = (event) => this.on.message(event.lastEventId, JSON.parse(event.data));
    source.addEventListener("gap", () => this.on.gap());
    source.onerror = () => {
      if (source !== this.#source || this.#closed) return;
      this.on.state("reconnecting");
      if (source.readyState === EventSource.CLOSED) this.#again();
    };
  }

  async #again() {
    const longest = Math.min(500 * 2 ** this.#failures++, 5000);
    this.#pause = wait(longest * (0.5 + Math.random() / 2));
    await this.#pause;
    if (this.#closed) return;
    try {
      await this.on.enter();
    } catch {
      return this.#again();
    }
    this.#open();
  }

  // hurry tries at once, for example when the network is back.
  hurry() {
    if (this.#source.readyState === EventSource.CLOSED) this.#pause?.wake();
    else this.#open();
  }

  close() {
    this.#closed = true;
    this.#source.close();
    this.#pause?.wake();
  }
}

// Live tells who is there and who is typing. Browsers open only six connections to a server, for
// all tabs together, so of the tabs in one room one has the stream and tells the others.
export class Live {
  #source;
  #channel;
  #abort = new AbortController();

  // on has people(value) and typing(value).
  constructor(room, me, on) {
    this.on = on;
    this.url = () => address(`rooms/${room}/live`, { as: me().id });
    if (!navigator.locks) return this.#open(); // not over plain HTTP from another machine
    this.#channel = new BroadcastChannel(`chat-live-${room}`);
    this.#channel.onmessage = ({ data }) => this.on[data.kind](data.value);
    const signal = this.#abort.signal;
    navigator.locks
      .request(`chat-live-${room}`, { signal }, () => {
        this.#open();
        return new Promise((done) => signal.addEventListener("abort", done));
      })
      .catch(() => {}); // closed before it was our turn
  }

  #open() {
    if (this.#abort.signal.aborted) return;
    const source = new EventSource(this.url());
    this.#source = source;
    for (const kind of ["people", "typing"]) {
      source.addEventListener(kind, (event) => {
        const value = JSON.parse(event.data);
        this.on[kind](value);
        this.#channel?.postMessage({ kind, value });
      });
    }
    source.onerror = async () => {
      if (source.readyState !== EventSource.CLOSED) return;
      await wait(3000);
      if (source === this.#source) this.#open();
    };
  }

  // reopen is for when who we are has changed.
  reopen() {
    if (!this.#source) return;
    this.#source.close();
    this.#open();
  }

  close() {
    this.#abort.abort();
    this.#source?.close();
    this.#source = null;
    this.#channel?.close();
  }
}
