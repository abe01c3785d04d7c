// An open job is looked at again whenever something happens to it.

import "./live.js";

const EVERY = 4000;

const now = () => document.getElementById("now");

let looking = false;
let again = false;

/** Ask for what is shown once more: one at a time, so that no older answer comes behind a newer one. */
async function look() {
  again = true;
  if (looking) return;
  looking = true;
  while (again) {
    again = false;
    try {
      await window.htmx.ajax("GET", `/dashboard/jobs/${now().dataset.job}`, { target: "#now", swap: "outerMorph" });
    } catch {
      // The server is away, which live.js says; the next look is by the clock.
    }
  }
  looking = false;
}

document.addEventListener("htmx:after:swap", (event) => {
  // It was deleted: what is shown is the last that was known of it, and the notice above says so.
  if (event.detail?.ctx?.response?.raw?.status === 404) now()?.removeAttribute("data-live");
});

/** Show the words of a streamed answer as they come; the page is told of the whole by itself. */
function add(event) {
  let words = "";
  try {
    const choice = JSON.parse(event.data).choices?.[0];
    words = choice?.delta?.content ?? choice?.text ?? "";
  } catch {
    return; // not of a chat or a completion, or the end of one
  }
  const shown = document.getElementById("answer");
  if (!words || !shown) return;
  shown.classList.remove("hidden");
  shown.querySelector("pre").append(words);
}

function clear() {
  document.querySelector("#answer pre")?.replaceChildren();
  document.getElementById("answer")?.classList.add("hidden");
}

let events = null;

function follow() {
  if (events || document.hidden || !now()?.hasAttribute("data-open")) return;
  events = new EventSource(`/v1/jobs/${now().dataset.job}/events`);
  events.addEventListener("state", look);
  events.addEventListener("chunk", add);
  events.addEventListener("restart", clear);
  events.addEventListener("end", () => {
    leave();
    look();
  });
  events.addEventListener("error", () => {
    if (events?.readyState === EventSource.CLOSED) leave(); // the page is looked at all the same
  });
}

function leave() {
  events?.close();
  events = null;
  clear();
}

follow();
// A browser has six connections to a server: pages that nobody looks at would take them all.
document.addEventListener("visibilitychange", () => (document.hidden ? leave() : follow()));
if (now()?.hasAttribute("data-live")) {
  // What it waits for changes without an event; so do the tries of its webhook, behind its end.
  const timer = setInterval(() => {
    if (!now().hasAttribute("data-live")) clearInterval(timer);
    else if (!document.hidden) look();
  }, EVERY);
}
