// The page: who we are, which room we are in, and what connects the parts.

import { Answers } from "./answers.js";
import { call } from "./api.js";
import { Feed, avatar, badge, make } from "./feed.js";
import { Live, Messages } from "./link.js";
import { Outbox } from "./outbox.js";
import { Rooms } from "./rooms.js";

const maxText = 1000; // characters, as the server counts them
const roomPattern = /^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$/;
const peopleAge = 12_000; // ms after which an instance that tells nothing counts as gone
const typingAge = 4000;

const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 46rem)");

let me = null;
let room = "";
let messages = null; // the stream of the room
let live = null;
let answers = null;
let missed = 0; // messages that came while nobody looked at the tab
let announcing = false;
let asking = false;
let storageTrouble = false;
let redisDown = false;
let linkState = "connecting";
const instances = new Map(); // people by instance
const typing = new Map(); // people by ID
let lastSpeaker = {};
let toldTyping = 0; // when we have told last that we are typing

const feed = new Feed($("log"), $("scroll"), () => me, {
  retry(key) {
    feed.mark(key, "sending");
    outbox.retry(key);
  },
  discard(key) {
    outbox.remove(key);
    feed.discard(key);
    $("text").focus();
  },
  stop() {
    answers?.stop().catch((failure) => ($("status").textContent = failure.message));
  },
  changed(atEnd, news) {
    $("empty").hidden = !feed.isEmpty;
    if (atEnd) $("newer").hidden = true;
    else if (news) $("newer").hidden = false;
  },
});

const outbox = new Outbox(() => me, {
  sent(item, id) {
    setTrouble(false);
    if (item.room === room) feed.mark(item.key, "sent", undefined, id);
  },
  waiting(item, failure) {
    if (failure.status >= 500) setTrouble(true);
    if (item.room === room) feed.mark(item.key, "waiting");
  },
  failed(item, reason) {
    item.reason = reason;
    if (item.room === room) feed.mark(item.key, "failed", reason);
    $("status").textContent = `A message was not sent. ${reason}`;
  },
  recover: (item) => enter(item.room),
});

const rooms = new Rooms($("rooms"), () => me, {
  open(name) {
    if (name === room) showSide(false);
    else open(name, true);
  },
  marked(any) {
    $("open-side").classList.toggle("unread", any);
    $("open-side").setAttribute("aria-label", `Rooms and people${any ? ", new messages in other rooms" : ""}`);
  },
  answered(instance) {
    setRedisDown(false);
    showInstance(instance);
  },
  failed(failure) {
    if (failure.status === 0 || failure.status >= 500) setRedisDown(linkState === "live");
  },
});

// ——— Who we are ———

async function begin() {
  $("name").value = localStorage.getItem("chat-name") ?? "";
  const known = sessionStorage.getItem("chat-me");
  if (known) {
    try {
      me = await call("GET", "session", known);
      return open(wantedRoom());
    } catch {
      // the form asks
    }
  }
  $("welcome").hidden = false;
  $("name").focus();
}

async function signIn(name, key) {
  me = await call("POST", "session", "", key ? { name, key } : { name });
  sessionStorage.setItem("chat-me", me.id);
  localStorage.setItem("chat-name", me.name);
}

$("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("sign-in-problem").textContent = "";
  try {
    await signIn($("name").value, $("key").value.trim());
  } catch (failure) {
    $("sign-in-problem").textContent = failure.message;
    $("name").focus();
    return;
  }
  $("key").value = "";
  $("welcome").hidden = true;
  await open(wantedRoom());
});

$("leave").addEventListener("click", async () => {
  messages?.close();
  live?.close();
  answers?.close();
  outbox.clear();
  sessionStorage.removeItem("chat-me");
  await call("DELETE", "session", me.id).catch(() => {});
  location.assign("/");
});

function showMe() {
  avatar($("my-avatar"), me);
  $("my-name").textContent = me.name;
  $("my-role").textContent = me.role === "admin" ? "Admin" : "Customer";
  $("announce").hidden = me.role !== "admin";
}

// ——— Rooms ———

function wantedRoom() {
  const wanted = new URLSearchParams(location.search).get("room") ?? "";
  return roomPattern.test(wanted) ? wanted : "lounge";
}

// enter makes sure that the server knows us and the room: it may have been started anew.
async function enter(name) {
  try {
    await call("POST", `rooms/${name}`, me.id, {});
  } catch (failure) {
    if (failure.status !== 401) throw failure;
    if (me.role === "admin") return location.reload(); // which asks for the key
    await signIn(me.name);
    showMe();
    live?.reopen();
    await call("POST", `rooms/${name}`, me.id, {});
  }
}

async function open(name, asked = false) {
  messages?.close();
  live?.close();
  answers?.close();
  room = name;
  instances.clear();
  typing.clear();
  feed.clear();
  $("chat").hidden = false;
  $("title").textContent = name;
  $("newer").hidden = true;
  $("empty").hidden = true;
  showMe();
  showPeople();
  showTyping();
  missed = 0;
  showTitle();
  showSide(false);
  rooms.enter(name);
  history[asked ? "pushState" : "replaceState"](null, "", `/?room=${name}`);

  $("log").setAttribute("aria-busy", "true"); // the history is not read out
  for (const item of outbox.of(name)) feed.add(item);
  setLink("connecting");
  answers = new Answers(name, () => me, {
    begins: (question) => feed.answer(question).begin(),
    word: (question, text) => feed.answer(question).add(text),
    ends: (question, status) => feed.answer(question).end(status),
  });
  const entered = await enter(name).then(() => true, () => false);
  if (room !== name) return;
  messages = new Messages(name, () => me, () => feed.lastID, {
    enter: () => enter(name),
    message: show,
    gap: () => feed.gap(),
    state(state) {
      setLink(state);
      if (state !== "live") return;
      rooms.look(); // perhaps this is another instance
      outbox.hurry();
      readOutSoon();
    },
  });
  live = new Live(name, () => me, { people: tellPeople, typing: tellTyping });
  if (entered) await rooms.look();
  outbox.run();
  $(narrow.matches ? "title" : "text").focus(); // on a phone the keyboard would cover half of it
}

$("new-room").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("room-name").value.trim().toLowerCase().replace(/[\s_]+/g, "-");
  if (!roomPattern.test(name)) {
    $("room-problem").textContent = "Letters a to z, digits and hyphens, please.";
    return;
  }
  $("room-problem").textContent = "";
  $("room-name").value = "";
  open(name, true);
});

addEventListener("popstate", () => {
  if (room && wantedRoom() !== room) open(wantedRoom());
});

// ——— Messages ———

function show(id, message) {
  const isNews = feed.show(id, message);
  rooms.see(room, id);
  if (message.from.id === me.id) outbox.remove(message.key);
  if (message.question) answers.look();
  typing.delete(message.from.id);
  lastSpeaker = { id: message.from.id, until: Date.now() + 1000 };
  showTyping();
  if ($("log").getAttribute("aria-busy") === "true") readOutSoon();
  else if (isNews && document.hidden) {
    missed++;
    showTitle();
  }
}

// readOutSoon ends the history when nothing has come for a moment: from then on screen readers
// read what comes.
let quiet;
function readOutSoon() {
  clearTimeout(quiet);
  quiet = setTimeout(() => {
    $("log").setAttribute("aria-busy", "false");
    $("empty").hidden = !feed.isEmpty;
  }, 500);
}

function showTitle() {
  document.title = `${missed ? `(${missed}) ` : ""}${room} · Chat`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || [...text].length > maxText) return;
  feed.add(outbox.add(room, text, announcing, asking));
  $("text").value = "";
  setAnnouncing(false);
  setAsking(false);
  toldTyping = 0; // the next word is news
  measure();
  $("text").focus();
});

$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});

$("text").addEventListener("input", () => {
  measure();
  if ($("text").value.trim()) tellThatWeType();
});

// measure fits the field to its text and counts what may still be typed.
function measure() {
  const field = $("text");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, 160)}px`;
  const left = maxText - [...field.value.trim()].length;
  $("left").textContent = left < 100 ? String(left) : "";
  $("left").classList.toggle("over", left < 0);
  $("send").disabled = left < 0;
}

function setAnnouncing(on) {
  announcing = on;
  $("announce").setAttribute("aria-pressed", String(on));
  showPurpose();
}

function setAsking(on) {
  asking = on;
  $("ask").setAttribute("aria-pressed", String(on));
  showPurpose();
}

function showPurpose() {
  $("text").placeholder = asking ? "Ask the assistant" : announcing ? "Write an announcement" : "Write a message";
}

$("announce").addEventListener("click", () => {
  setAsking(false);
  setAnnouncing(!announcing);
  $("text").focus();
});

$("ask").addEventListener("click", () => {
  setAnnouncing(false);
  setAsking(!asking);
  $("text").focus();
});

$("scroll").addEventListener("scroll", () => {
  if (feed.atEnd) $("newer").hidden = true;
});

$("newer").addEventListener("click", () => {
  feed.toEnd();
  $("newer").hidden = true;
  $("text").focus();
});

// ——— Who is there, who is typing ———

function tellPeople({ instance, people }) {
  instances.set(instance, { people: people ?? [], until: Date.now() + peopleAge });
  showPeople();
}

function tellTyping({ typing: person }) {
  // The two transports have no order among them: this may be about what has been said by now.
  if (person.id === me.id || (person.id === lastSpeaker.id && Date.now() < lastSpeaker.until)) return;
  typing.set(person.id, { name: person.name, until: Date.now() + typingAge });
  showTyping();
}

function tellThatWeType() {
  if (Date.now() - toldTyping < typingAge / 2) return;
  toldTyping = Date.now();
  call("POST", `rooms/${room}/typing`, me.id, {}).catch(() => {}); // it matters only now
}

function showPeople() {
  const people = new Map([[me.id, me]]);
  for (const { people: theirs } of instances.values()) {
    for (const person of theirs) people.set(person.id, person);
  }
  const sorted = [...people.values()].sort((a, b) => (b.id === me.id) - (a.id === me.id) || a.name.localeCompare(b.name));
  const face = (person) => {
    const element = avatar(make("span", "avatar"), person);
    element.setAttribute("aria-hidden", "true");
    return element;
  };
  for (const id of ["people-count", "here-count"]) $(id).textContent = String(sorted.length);
  $("here-word").textContent = sorted.length === 1 ? " person here" : " people here";
  $("people").replaceChildren(...sorted.map((person) => {
    const item = make("li");
    const name = make("span", "who");
    name.append(make("bdi", "", person.name));
    if (person.id === me.id) name.append(make("span", "quiet", " (you)"));
    item.append(face(person), name);
    if (person.role === "admin") item.append(badge());
    return item;
  }));
  $("faces").replaceChildren(...sorted.slice(0, 4).map(face));
}

function showTyping() {
  const names = [...typing.values()].map((person) => person.name);
  const line = $("typing");
  line.classList.toggle("on", names.length > 0);
  if (names.length === 0) return line.replaceChildren();
  const dots = make("span", "dots");
  dots.append(make("i"), make("i"), make("i"));
  dots.setAttribute("aria-hidden", "true");
  line.replaceChildren(dots, make("bdi", "", names.slice(0, 2).join(" and ")),
    names.length > 2 ? " and others are typing…" : names.length > 1 ? " are typing…" : " is typing…");
}

setInterval(() => {
  const now = Date.now();
  let gone = false;
  for (const all of [instances, typing]) {
    for (const [key, { until }] of all) {
      if (until < now) gone = all.delete(key);
    }
  }
  if (gone && me) {
    showPeople();
    showTyping();
  }
}, 1000);

// ——— The connection, for all to see ———

// setLink is for how the event stream stands, which lives on while Redis is down.
function setLink(state) {
  linkState = state;
  setRedisDown(redisDown && state === "live");
}

function setRedisDown(is) {
  redisDown = is;
  showLink();
}

function setTrouble(on) {
  storageTrouble = on;
  showLink();
}

const linkWords = { connecting: "Connecting…", live: "Live", reconnecting: "Reconnecting…", waiting: "Redis is down" };

function showLink() {
  const state = redisDown ? "waiting" : linkState;
  $("link").dataset.state = state;
  $("link-text").textContent = linkWords[state];
  let text = "";
  if (state === "reconnecting") {
    text = navigator.onLine
      ? "Connection lost. Reconnecting… What you write is kept and sent afterwards."
      : "You are offline. What you write is kept and sent when you are back.";
  } else if (redisDown) {
    text = "Redis does not answer at the moment. What you write is kept and sent afterwards.";
  } else if (storageTrouble) {
    text = "The chat cannot store messages at the moment. What you write is kept and sent afterwards.";
  }
  if ($("banner").textContent !== text) $("banner").textContent = text;
}

// showInstance says which process serves this page, and what happens when it is killed.
function showInstance({ instance, process, embedded, stream }) {
  $("instance").textContent = instance;
  $("stream").textContent = stream;
  for (const element of document.querySelectorAll(".process")) element.textContent = process;
  $("embedded").hidden = !embedded;
  $("real").hidden = embedded;
  $("about").hidden = false;
}

addEventListener("online", () => {
  messages?.hurry();
  outbox.hurry();
});
addEventListener("offline", () => {
  if (messages) setLink("reconnecting");
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  missed = 0;
  if (!room) return;
  showTitle();
  rooms.look();
});

// ——— The side, which covers the room on a phone ———

function showSide(on) {
  const side = $("side");
  const covered = narrow.matches;
  side.classList.toggle("open", on && covered);
  side.inert = covered && !on;
  $("room").inert = covered && on;
  $("shade").hidden = !(covered && on);
  $("open-side").setAttribute("aria-expanded", String(on && covered));
}

$("open-side").addEventListener("click", () => {
  showSide(true);
  $("close-side").focus();
  rooms.look();
});
function closeSide() {
  if (!$("side").classList.contains("open")) return;
  showSide(false);
  $("open-side").focus();
}
$("close-side").addEventListener("click", closeSide);
$("shade").addEventListener("click", closeSide);
addEventListener("keydown", (event) => {
  if (event.key === "Escape") closeSide();
});
narrow.addEventListener("change", () => showSide(false));

begin();
