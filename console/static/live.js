// The page without this script is complete; the script keeps it up to date, and adds keys.
"use strict";
(() => {
  const main = document.querySelector("main"), state = document.getElementById("state");
  const show = (name, text) => { state.className = name; state.textContent = text; };

  // A part is replaced only where the person does nothing: what they type, select or open stays.
  const busy = part => part.contains(document.activeElement) && document.activeElement !== document.body ||
    part.querySelector("details[open], input:checked") !== null;

  const latest = new Map();
  const update = () => {
    for (const [id, html] of latest) {
      const part = document.getElementById(id);
      if (part && busy(part)) continue;
      latest.delete(id);
      if (part) part.innerHTML = html;
    }
  };

  if (main.dataset.live) {
    const source = new EventSource(main.dataset.live);
    source.onopen = () => show("live", "live");
    source.onerror = () => show("lost", "connection lost");
    source.addEventListener("part", e => {
      const { id, html } = JSON.parse(e.data);
      latest.set(id, html);
      update();
    });
    document.addEventListener("focusout", () => setTimeout(update));
    source.addEventListener("fine", () => show("live", "live"));
    source.addEventListener("problem", e => show("lost", JSON.parse(e.data)));
  }

  document.addEventListener("keydown", e => {
    if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) return;
    const links = [...document.querySelectorAll("td.name a")], at = links.indexOf(document.activeElement);
    const go = link => { if (link) { link.focus(); e.preventDefault(); } };
    switch (e.key) {
      case "j": go(links[at + 1] || links[0]); break;
      case "k": go(links[at - 1] || links[links.length - 1]); break;
      case "u": document.querySelector(".crumbs a:last-of-type")?.click(); break;
      case "t": document.querySelector("header nav a")?.click(); break;
      case "d": document.querySelector("header nav a:nth-of-type(2)")?.click(); break;
      case "/": go(document.querySelector("input[type=search]")); break;
      case "?": document.getElementById("keys").showModal(); break;
    }
  });
})();
