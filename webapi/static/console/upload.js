// A file is looked into, sent with its parameters to /v1/bulks, and the bulk that came of it is shown as it goes on.

import { count, notice, span } from "./console.js";

const form = document.getElementById("upload");
const drop = document.getElementById("drop");
const input = document.getElementById("file");
const submit = form.querySelector('button[type="submit"]');
const stop = document.getElementById("stop");
const sent = document.getElementById("sent");
const HEAD = 65536;
const LAPSED = "Your login has ended, or you have another one by now. Load this page again, then upload the file.";

let file = null;
let key = "";
let sending = null;

/** Show a text in a place of its own, or hide the place. */
function say(id, text) {
  const place = document.getElementById(id);
  place.textContent = text;
  place.classList.toggle("hidden", !text);
}

function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${count(bytes / 1e3)} kB` : `${count(bytes / 1e6)} MB`;
}

/** A new key for a new request: the same file sent again after a broken connection makes no second bulk. */
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  key = `console-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** Return what can be said of a file by its beginning: [what it is, what is wrong with it]. */
async function look(chosen) {
  const most = Number(form.dataset.most);
  if (chosen.size === 0) return ["", "This file is empty."];
  if (chosen.size > most) return ["", `This file has ${size(chosen.size)}; at most ${size(most)} are taken.`];
  const told = `${chosen.name}, ${size(chosen.size)}`;
  if (/\.gz$/i.test(chosen.name)) return [`${told}, compressed.`, ""];
  const head = (await chosen.slice(0, HEAD).text()).replace(/^\uFEFF/, "");
  const csv = form.format.value ? form.format.value === "csv" : /\.csv$/i.test(chosen.name);
  return csv ? lookAtCsv(head, told) : lookAtLines(head, told, chosen.size);
}

function lookAtCsv(head, told) {
  const columns = head.split(/\r?\n/, 1)[0].split(",").map((name) => name.trim().replace(/^"|"$/g, ""));
  if (!columns.includes("prompt")) {
    return ["", `The first line must name the columns, one of them prompt. It names: ${columns.slice(0, 10).join(", ").slice(0, 200)}.`];
  }
  return [`${told}. Columns: ${columns.join(", ").slice(0, 200)}.`, ""];
}

function lookAtLines(head, told, whole) {
  const lines = head.split("\n");
  if (head.length < whole) lines.pop(); // it may go on behind what was read
  const first = lines.findIndex((line) => line.trim());
  if (first < 0) return [`${told}.`, ""];
  try {
    const line = JSON.parse(lines[first]);
    if (Array.isArray(line)) return ["", "This is one JSON array. Write one request a line, without commas between them."];
  } catch {
    return ["", `Line ${first + 1} is no JSON. If this is CSV, say so under “Written as”.`];
  }
  return [`${told}.`, ""];
}

async function choose(chosen) {
  file = null;
  submit.disabled = true;
  say("found", "");
  say("file-wrong", "");
  if (!chosen) return;
  const [told, wrong] = await look(chosen).catch(() => ["", "This cannot be read. Choose a file, not a folder."]);
  if (chosen !== input.files[0]) return; // another one was chosen while this was looked at
  say("found", told);
  say("file-wrong", wrong);
  input.setAttribute("aria-invalid", String(Boolean(wrong)));
  if (wrong) return;
  file = chosen;
  submit.disabled = sending !== null;
  newKey();
}

for (const kind of ["dragenter", "dragover"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length > 1) return notice("One file at a time.", "bad");
  input.files = event.dataTransfer.files;
  return choose(input.files[0]);
});
// A file that is dropped beside it would take the place of the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
input.addEventListener("change", () => choose(input.files[0]));
form.addEventListener("change", (event) => {
  newKey(); // another request, if it is sent again
  if (event.target === form.format) choose(input.files[0]);
});

/** Return what is sent: the parameters that were given, and behind them the file. */
function content() {
  const fields = new FormData();
  for (const field of form.elements) {
    const given = field.type === "checkbox" ? field.checked : field.value;
    if (field.name && field.type !== "file" && given) fields.append(field.name, field.value);
  }
  fields.append("file", file, file.name);
  return fields;
}

function tell(share, began) {
  const seconds = (performance.now() - began) / 1000;
  sent.querySelector("progress").value = 100 * share;
  const left = share > 0.02 && share < 1 ? `, ${span((seconds / share) * (1 - share))} left` : "";
  sent.querySelector("span").textContent = share < 1 ? `${Math.floor(100 * share)} %${left}` : "Sent; it is being stored.";
}

function busy(on) {
  submit.disabled = on || file === null;
  stop.classList.toggle("hidden", !on);
  sent.classList.toggle("hidden", !on);
}

/** Say what an answer that is an error says, line by line where it names fields. */
function refuse(answer) {
  let told = `The server answered ${answer.status}.`;
  try {
    const problem = JSON.parse(answer.responseText);
    const lapsed = answer.status === 401 || problem.code === "csrf";
    told = lapsed ? LAPSED : problem.errors?.length ? problem.errors.map((one) => `${one.field}: ${one.message}`).join("; ") : problem.detail;
  } catch {
    // Not ours: a proxy's page. The status has to do.
  }
  notice(told, "bad");
}

/** Say why sending broke off: browsers do not tell, but what was changed behind their back they cannot read. */
async function broken(chosen) {
  const readable = await chosen.slice(0, 1).arrayBuffer().then(() => true, () => false);
  if (!readable) return "The file was changed or moved after it was chosen: choose it again.";
  return "The connection broke. Upload it again: what was stored already is not stored twice.";
}

async function show(bulk) {
  const made = document.getElementById("made");
  const link = document.createElement("a");
  link.href = `/dashboard/bulks/${bulk.id}`;
  link.textContent = bulk.id;
  made.replaceChildren("Taken as ", link);
  document.getElementById("bulk").classList.remove("hidden");
  await window.htmx.ajax("GET", link.getAttribute("href"), { target: "#now", swap: "outerHTML" });
  notice("The file is stored: its lines are read now.");
  document.getElementById("bulk").focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!file || sending) return;
  const began = performance.now();
  sending = new XMLHttpRequest();
  sending.open("POST", form.action);
  sending.setRequestHeader("X-CSRF-Token", document.querySelector('meta[name="csrf"]').content);
  sending.setRequestHeader("Idempotency-Key", key);
  sending.upload.addEventListener("progress", ({ loaded, total }) => tell(total ? loaded / total : 0, began));
  sending.addEventListener("load", () => {
    if (sending.status === 202) show(JSON.parse(sending.responseText));
    else refuse(sending);
  });
  sending.addEventListener("error", async () => notice(await broken(file), "bad"));
  sending.addEventListener("abort", () => notice("Stopped. A file that was not sent whole is not stored.", "bad"));
  sending.addEventListener("loadend", () => {
    sending = null;
    busy(false);
  });
  document.getElementById("notices").replaceChildren();
  busy(true);
  tell(0, began);
  sending.send(content());
});
stop.addEventListener("click", () => sending?.abort());
window.addEventListener("beforeunload", (event) => {
  if (sending) event.preventDefault();
});
