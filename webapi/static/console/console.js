// What all pages of the console share: calls of the API, notices, numbers and times in words, the theme.

const csrf = document.querySelector('meta[name="csrf"]')?.content ?? "";

/** Call the API as the one who is logged in; return the answer's JSON. Throws an Error with the problem's words and `status`. */
export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { "X-CSRF-Token": csrf, ...headers };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method,
    headers: sent,
    signal,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.ok) return answer.json();
  throw Object.assign(new Error(await words(answer)), { status: answer.status });
}

/** Return what an answer that is an error says. */
export async function words(answer) {
  if (answer.status === 401) return "Your login has ended. Keep what you need of this page, then load it again to log in.";
  try {
    const told = await answer.json();
    return told.detail ?? told.error?.message ?? answer.statusText;
  } catch {
    return `${answer.status} ${answer.statusText}`;
  }
}

/** Show a notice above the page, read out by screen readers; `kind` is "good" or "bad". */
export function notice(text, kind = "good") {
  const shown = document.createElement("p");
  shown.className = `notice ${kind}`;
  shown.textContent = text;
  document.getElementById("notices").replaceChildren(shown);
}

/** Return a number in few digits: 12,345 or 1.23 M. */
export function count(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toFixed(size < 1e7 ? 2 : 1)} M`;
  return value.toLocaleString("en", { maximumFractionDigits: size < 10 ? 2 : size < 100 ? 1 : 0 });
}

/** Return seconds in words: 12 ms, 3.4 s, 5 min, 2.1 h, 3.5 d. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} d`;
}

/** Return a local time, to the second: 2026-05-01 12:34:56. */
export function when(date) {
  const local = new Date(date.getTime() - date.getTimezoneOffset() * 60000);
  return local.toISOString().slice(0, 19).replace("T", " ");
}

/** Return an element with properties and children: `make("td", { className: "number" }, "12")`. */
export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Make the times in a part of the page local; what they were is told when one points at them. */
export function localTimes(part) {
  for (const time of part.querySelectorAll("time[datetime]:not([title])")) {
    time.title = time.textContent;
    time.textContent = when(new Date(time.dateTime));
  }
}

localTimes(document);
document.addEventListener("htmx:after:swap", () => localTimes(document));

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("button");
  if (!button) return;
  if (button.dataset.opens) document.getElementById(button.dataset.opens).showModal();
  if (button.hasAttribute("data-closes")) button.closest("dialog").close();
  if (button.dataset.copies) {
    const said = button.textContent;
    const copied = document.getElementById(button.dataset.copies).textContent;
    // Only pages that came by https, or from this machine, may write to the clipboard.
    button.textContent = await navigator.clipboard?.writeText(copied).then(() => "Copied", () => "Not copied") ?? "Not copied";
    setTimeout(() => (button.textContent = said), 2000);
  }
});

// On a phone the pages are a line that scrolls: the present one is to be seen.
const present = document.querySelector('nav a[aria-current="page"]');
if (present) present.closest("nav").scrollLeft = present.offsetLeft - present.closest("nav").clientWidth / 2;

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

const theme = document.getElementById("theme");
theme?.setAttribute("aria-pressed", String(dark()));
theme?.addEventListener("click", () => {
  const chosen = dark() ? "light" : "dark";
  try {
    localStorage.setItem("stoker-theme", chosen);
  } catch {
    // A browser that keeps nothing for this site: it is chosen for this page.
  }
  document.documentElement.dataset.theme = chosen;
  theme.setAttribute("aria-pressed", String(chosen === "dark"));
  document.dispatchEvent(new CustomEvent("stoker:theme"));
});
