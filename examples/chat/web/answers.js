// The answer of the assistant that is being written in a room, or was last. The browser reconnects
// by itself and resumes behind the last word that it has; behind the end the server answers 204,
// at which it gives up. Of the tabs in one room one has the stream and sends the others what it knows,
// as with Live.

import { address, call, wait } from "./api.js";

export class Answers {
  #source;
  #timer;
  #channel;
  #abort = new AbortController();
  #leads = false; // this tab has the stream, or opens it
  #wanted = false; // there is a question, and nothing is known of its answer
  #known = { question: "", text: "", status: "" }; // by the stream of this tab; without a status there is no end yet
  #shown = this.#known;

  // on has begins(question), word(question, text) and ends(question, status).
  constructor(room, me, on) {
    Object.assign(this, { room, me, on });
    if (!navigator.locks) { // plain HTTP from another machine
      this.#leads = true;
      return;
    }
    this.#channel = new BroadcastChannel(`chat-answer-${room}`);
    this.#channel.onmessage = ({ data }) => {
      if (data !== "look") this.#show(data);
      else if (this.#leads) this.#look();
    };
    const signal = this.#abort.signal;
    navigator.locks
      .request(`chat-answer-${room}`, { signal }, () => {
        this.#leads = true;
        if (this.#wanted || (this.#shown.question && !this.#shown.status)) this.#follow();
        return new Promise((done) => signal.addEventListener("abort", done));
      })
      .catch(() => {}); // closed before it was our turn
  }

  // look is for when there is a question: soon, since a history may bring many.
  look() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#wanted = true;
      if (this.#leads) this.#look();
      else this.#channel.postMessage("look");
    }, 100);
  }

  #look() {
    if (this.#source) this.#channel?.postMessage(this.#known);
    else this.#follow();
  }

  #follow() {
    if (this.#abort.signal.aborted || this.#source) return;
    const source = new EventSource(address(`rooms/${this.room}/answer`, { as: this.me().id }));
    this.#source = source;
    source.addEventListener("start", (event) => {
      this.#learn({ question: JSON.parse(event.data).metadata.question, text: "", status: "" });
    });
    source.onmessage = (event) => this.#learn({ ...this.#known, text: this.#known.text + JSON.parse(event.data) });
    source.addEventListener("end", (event) => {
      source.close();
      this.#source = null;
      this.#learn({ ...this.#known, status: JSON.parse(event.data).status });
    });
    source.onerror = async () => {
      if (source.readyState !== EventSource.CLOSED || source !== this.#source) return;
      this.#source = null;
      if (!this.#known.question || this.#known.status) return; // there is no answer
      await wait(1000 + 1000 * Math.random());
      this.#follow(); // from the beginning
    };
  }

  // learn takes note of what the stream of this tab says, for all tabs.
  #learn(answer) {
    this.#known = answer;
    this.#channel?.postMessage(answer);
    this.#show(answer);
  }

  // show brings the page up to an answer. It may be behind, where another tab follows from the beginning.
  #show(answer) {
    this.#wanted = false;
    const { question, text, status } = answer;
    const shown = this.#shown;
    const same = shown.question === question;
    if (same && !status && shown.text.startsWith(text)) return;
    if (!same || !text.startsWith(shown.text)) this.on.begins(question);
    const more = same && text.startsWith(shown.text) ? text.slice(shown.text.length) : text;
    if (more) this.on.word(question, more);
    if (status && !(same && shown.status)) this.on.ends(question, status);
    this.#shown = answer;
  }

  stop() {
    return call("DELETE", `rooms/${this.room}/answer`, this.me().id);
  }

  close() {
    clearTimeout(this.#timer);
    this.#abort.abort();
    this.#source?.close();
    this.#channel?.close();
  }
}
