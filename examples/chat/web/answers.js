// The answer of the assistant that is being written in a room, or was last. The browser reconnects
// by itself and resumes behind the last word that it has; behind the end the server answers 204,
// at which it gives up.

import { address, call, wait } from "./api.js";

export class Answers {
  #source;
  #timer;
  #open = false; // an answer has begun and has no end yet
  #question = "";
  #closed = false;

  // on has begins(question), word(question, text) and ends(question, status).
  constructor(room, me, on) {
    Object.assign(this, { room, me, on });
  }

  // look is for when there is a question: soon, since a history may bring many.
  look() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#follow(), 100);
  }

  #follow() {
    if (this.#closed || this.#source) return;
    const source = new EventSource(address(`rooms/${this.room}/answer`, { as: this.me().id }));
    this.#source = source;
    source.addEventListener("start", (event) => {
      this.#question = JSON.parse(event.data).metadata.question;
      this.#open = true;
      this.on.begins(this.#question);
    });
    source.onmessage = (event) => this.on.word(this.#question, JSON.parse(event.data));
    source.addEventListener("end", (event) => {
      this.#open = false;
      source.close();
      this.#source = null;
      this.on.ends(this.#question, JSON.parse(event.data).status);
    });
    source.onerror = async () => {
      if (source.readyState !== EventSource.CLOSED || source !== this.#source) return;
      this.#source = null;
      if (!this.#open) return; // there is no answer
      await wait(1000 + 1000 * Math.random());
      this.#follow(); // from the beginning
    };
  }

  stop() {
    return call("DELETE", `rooms/${this.room}/answer`, this.me().id);
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#source?.close();
  }
}
