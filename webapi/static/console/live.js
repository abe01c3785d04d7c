// Parts of a page that are asked for again by themselves: not while nobody looks, and it is said when they are old.

import { notice } from "./console.js";

let away = false;

/** Tell whether a request was made by the page itself, and not by who looks at it. */
function byItself(context) {
  const source = context?.sourceElement;
  return source === document.body || Boolean(source?.getAttribute("hx-trigger")?.startsWith("every"));
}

document.addEventListener("htmx:before:request", (event) => {
  if (document.hidden && byItself(event.detail?.ctx)) event.preventDefault();
});

document.addEventListener("htmx:error", (event) => {
  const { ctx } = event.detail ?? {};
  if (!ctx || ctx.response) return; // a mistake of the page, or an answer, which says itself what is wrong
  away = true;
  notice("The server does not answer: what is shown may be old.", "bad");
});

document.addEventListener("htmx:after:swap", (event) => {
  const { ctx } = event.detail ?? {};
  if (!ctx?.response?.raw?.ok) {
    away = true;
    return;
  }
  // What was said about something that the reader did stays; that the server was away is no longer true.
  if (away || !byItself(ctx)) document.getElementById("notices").replaceChildren();
  away = false;
});
