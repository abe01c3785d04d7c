// What all pages of the console share: calls of the API, notices, numbers and times in words, the theme.

const csrf = document.querySelector('meta[name="csrf"]')?.content ?? "";

/** Call the API as the one who is logged in; return the answer's JSON. Throws an Error with the problem's words. */
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
  throw new Error(await words(answer));
}

/** Return what an answer that is an error says. */
export async function words(answer) {
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

/** Return a number in few digits: 12,345 or 1.2 M. */
export function count(value) {
  if (value === null || value === undefined) return "–";
  if (Math.abs(value) >= 1e6) return `${(value / 1e6).toFixed(value < 1e7 ? 2 : 1)} M`;
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 2 : value < 100 ? 1 : 0 });
}

/** Return seconds in words: 12 ms, 3.4 s, 5 min, 2.1 h. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

const theme = document.getElementById("theme");
theme?.setAttribute("aria-pressed", String(dark()));
theme?.addEventListener("click", () => {
  const chosen = dark() ? "light" : "dark";
  localStorage.setItem("stoker-theme", chosen);
  document.documentElement.dataset.theme = chosen;
  theme.setAttribute("aria-pressed", String(chosen === "dark"));
  document.dispatchEvent(new CustomEvent("stoker:theme"));
});
