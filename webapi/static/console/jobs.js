// An open job is looked at again whenever something happens to it.

import { notice } from "/static/console/console.js";
import "/static/console/live.js";

const EVERY = 4000;

const now = () => document.getElementById("now");

function look() {
  return window.htmx.ajax("GET", `/dashboard/jobs/${now().dataset.job}`, { target: "#now", swap: "outerMorph" });
}

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

function follow(job) {
  const events = new EventSource(`/v1/jobs/${job}/events`);
  events.addEventListener("state", look);
  events.addEventListener("chunk", add);
  events.addEventListener("restart", clear);
  events.addEventListener("end", () => {
    events.close();
    clear();
    look();
  });
  events.addEventListener("error", () => {
    if (events.readyState === EventSource.CLOSED) notice("What happens to this job is not followed any more: load the page again.", "bad");
  });
}

if (now()?.hasAttribute("data-open")) follow(now().dataset.job);
if (now()?.hasAttribute("data-live")) {
  // What it waits for changes without an event; so do the tries of its webhook, behind its end.
  const timer = setInterval(() => {
    if (!now().hasAttribute("data-live")) clearInterval(timer);
    else if (!document.hidden) look();
  }, EVERY);
}
