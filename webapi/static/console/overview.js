// The overview: the document of /v1/overview, streamed field by field as it changes, put into the page.
import { chart } from "./charts.js";
import { call, count, make, span } from "./console.js";

const LATE = 12;
const POLL = 10000;
const FAILURES_EVERY = 15000;
const MOST_BATCHES = 12;
const CUT = { full: "it was full", waited: "it waited long enough", room: "an engine had room", cohort: "of a crash before" };

const part = (name) => document.getElementById(name);
const percent = (share) => (share === null || share === undefined ? "–" : `${Math.round(share * 100)} %`);
const sum = (rows, ...names) => rows.reduce((all, row) => all + names.reduce((some, name) => some + row[name], 0), 0);

let told = {};
let stream = null;
let heard = 0;
let away = false;
let asked = Date.now();
let failuresAt = 0;
let again = 0;

// What is shown of each field

const figure = (name, value, note = "") => {
  if (!part(name)) return;
  part(name).textContent = value;
  part(`${name}-note`).textContent = note || "\u00a0";
};

/** Fill a table: a row is a list of cells, text or element; the first names the row. */
function table(name, rows, note = "") {
  const found = part(name);
  if (!found) return;
  const heads = [...found.tHead.rows[0].cells];
  const cell = (value, n) => {
    const made = make(n ? "td" : "th", { className: heads[n].className }, value);
    if (n) made.dataset.label = heads[n].textContent;
    else made.scope = "row";
    return made;
  };
  found.tBodies[0].replaceChildren(...rows.map((row) => make("tr", {}, ...row.map(cell))));
  found.hidden = !rows.length;
  part(`${name}-loading`).hidden = true;
  part(`${name}-empty`).hidden = rows.length > 0;
  part(`${name}-note`).textContent = note;
}

const state = (name) => make("span", { className: `state ${name}` }, name);

function showQueue({ queue }) {
  const oldest = queue.reduce((most, row) => Math.max(most, row.oldest_seconds ?? -1), -1);
  const line = oldest < 0 ? "" : oldest < 1 ? "the first just came" : `the first for ${span(oldest)}`;
  figure("waiting", count(sum(queue, "queued", "delayed", "batched")), line);
  figure("running", count(sum(queue, "running")));
  figure("oldest", oldest < 0 ? "–" : span(oldest), "of what is queued now");
  const cells = (row) => [row.model, row.lane, ...["queued", "delayed", "batched", "running"].map((name) => count(row[name]))];
  table("queue", queue.map((row) => [...cells(row), span(row.oldest_seconds)]));
}

function showEngines({ engines }) {
  if (!engines) return;
  table("engines", engines.map((engine) => [
    engine.name,
    state(engine.state),
    engine.models.join(", ") || "–",
    percent(engine.busy),
    count(engine.slots),
    count(engine.running),
    `${engine.host} (${engine.kind})`,
    ["silent", "gone"].includes(engine.state) ? `silent ${span(engine.silent_seconds)}` : span(engine.age_seconds),
  ]));
  const upstreams = engines.flatMap((engine) => engine.upstreams);
  part("upstreams-card").hidden = !upstreams.length;
  table("upstreams", upstreams.map((one) => [
    one.url,
    one.healthy ? state("healthy") : make("span", {}, state("down"), ` ${one.why_down}`),
    one.models.join(", ") || "–",
    count(one.in_flight),
    count(one.limit),
    count(one.waiting),
    span(one.latency),
  ]));
}

function showBatches({ batches, batches_running: running, batches_ready: ready }) {
  if (!batches) return;
  const hidden = running > MOST_BATCHES ? `the ${MOST_BATCHES} that run longest of ${count(running)}` : "";
  table("batches", batches.slice(0, MOST_BATCHES).map((batch) => [
    batch.model,
    batch.lane,
    batch.engine,
    count(batch.jobs),
    CUT[batch.reason] ?? batch.reason,
    span(batch.seconds),
  ]), [ready ? `${count(ready)} ready for an engine` : "", hidden].filter(Boolean).join(" · "));
}

const SERIES = {
  rate: { of: ["jobs", "failed"], labels: ["ended", "failed"], colours: ["chart-2", "chart-1"], fill: true, top: 1 },
  "token-rate": { of: ["completion_tokens", "prompt_tokens"], labels: ["generated", "prompts"], colours: ["chart-3", "chart-4"], fill: true, top: 1 },
  wait: { of: ["wait.p50", "wait.p95"], labels: ["half within", "95 % within"], colours: ["chart-2", "chart-1"], format: span, log: true },
  latency: { of: ["latency.p50", "latency.p95"], labels: ["half within", "95 % within"], colours: ["chart-2", "chart-1"], format: span, log: true },
  busy: { of: ["busy"], labels: ["busy"], colours: ["chart-3"], format: percent, fill: true, top: 1 },
};
const charts = new Map();

function chartOf(name, { labels, colours, fill, ...how }) {
  if (!charts.has(name)) {
    const series = labels.map((label, n) => ({ label, colour: colours[n], fill }));
    charts.set(name, chart(part(name), { series, ...how }));
  }
  return charts.get(name);
}

function showSeries({ series }) {
  if (!series) return;
  for (const [name, how] of Object.entries(SERIES)) {
    const values = how.of.map((path) => path.split(".").reduce((found, key) => found[key], series));
    chartOf(name, how).show(series.at, values);
  }
}

function showRates({ rates }) {
  if (!rates) return;
  figure("jobs", count(rates.jobs), rates.failed ? `${count(rates.failed)} failed` : "none failed");
  figure("tokens", count(rates.completion_tokens), `and ${count(rates.prompt_tokens)} of prompts`);
  figure("wait-now", span(rates.wait.p95), rates.wait.p95 === null ? "no job was taken" : "to an engine");
  figure("busy-now", percent(rates.busy), "of the last minute");
}

/** Batches by size in steps that double: 1, 2, 3–4, 5–8, … */
function showSizes({ sizes, padding }) {
  if (!sizes) return;
  const counts = [];
  for (const { jobs, batches } of sizes) {
    const step = jobs <= 1 ? 0 : Math.ceil(Math.log2(jobs));
    counts[step] = (counts[step] ?? 0) + batches;
  }
  const steps = Array.from({ length: Math.max(6, counts.length) }, (_, n) => n);
  const names = steps.map((n) => (n < 2 ? `${n + 1}` : `${2 ** (n - 1) + 1}–${2 ** n}`));
  const how = { labels: ["batches"], colours: ["chart-4"], bars: true, top: 1 };
  chartOf("sizes", how).show(steps, [steps.map((n) => counts[n] ?? 0)], names);
  const all = sizes.reduce((most, row) => most + row.batches, 0);
  const jobs = sizes.reduce((most, row) => most + row.batches * row.jobs, 0);
  const wasted = padding === null ? "" : ` · padding ${percent(padding)}`;
  part("sizes-note").textContent = all ? `${count(all)} batches of ${count(jobs / all)} jobs on average${wasted}` : "no batch in this time";
}

function showRest({ errors, owners, deliveries_pending: pending }) {
  if (errors) table("errors", errors.map((row) => [make("code", {}, row.code), count(row.jobs)]));
  if (owners) table("owners", owners.map((row) => [row.owner, count(row.waiting), count(row.running)]));
  figure("deliveries", count(pending));
}

function showFirst({ queue, series }) {
  const known = Boolean(series?.jobs.some((jobs) => jobs > 0));
  part("first").hidden = part("first-curl").hidden = known || queue.length > 0;
}

const SHOW = new Map([
  ["queue", [showQueue, showFirst]],
  ["engines", [showEngines]],
  ["batches", [showBatches]],
  ["batches_ready", [showBatches]],
  ["series", [showSeries, showFirst]],
  ["rates", [showRates]],
  ["sizes", [showSizes]],
  ["padding", [showSizes]],
  ["errors", [showRest]],
  ["owners", [showRest]],
  ["deliveries_pending", [showRest]],
]);

function show(changed) {
  Object.assign(told, changed);
  const shows = new Set(Object.keys(changed).flatMap((name) => SHOW.get(name) ?? []));
  for (const each of shows) each(told);
  heard = Date.now();
  trouble("");
  age();
  if (heard - failuresAt > FAILURES_EVERY) {
    if (failuresAt) part("failures").dispatchEvent(new Event("stoker:failures"));
    failuresAt = heard;
  }
}

// The link to the service

function link(words, kind) {
  if (part("link").textContent === words) return;
  part("link").textContent = words;
  part("link").className = `state ${kind}`;
}

function trouble(words) {
  away = words !== "";
  part("away").hidden = !away;
  if (part("away").textContent !== words) part("away").textContent = words;
}

function age() {
  const seconds = (Date.now() - (heard || asked)) / 1000;
  if (away) link("away", "down");
  else if (!heard && seconds < LATE) return;
  else if (!heard) link("no answer yet", "delayed");
  else if (seconds < LATE) link("live", "live");
  else link("reconnecting", "delayed");
  part("age").textContent = heard && (away || seconds >= LATE) ? `${span(seconds)} old` : "";
}

const minutes = () => document.querySelector('input[name="minutes"]:checked')?.value ?? 60;

function close() {
  stream?.close();
  stream = null;
  clearTimeout(again);
}

function open() {
  close();
  if (!heard) asked = Date.now();
  const mine = new EventSource(`/dashboard/live?minutes=${minutes()}`);
  stream = mine;
  mine.addEventListener("overview", (event) => show(JSON.parse(event.data)));
  mine.addEventListener("away", (event) => {
    trouble(JSON.parse(event.data).detail + (heard ? " What is shown is from before." : " This page goes on by itself when it does."));
    age();
  });
  mine.addEventListener("error", () => {
    // It comes back by itself, unless it was refused: then ask once, and try again later.
    if (mine.readyState === EventSource.CLOSED && stream === mine) refused();
  });
}

async function refused() {
  close();
  const chosen = minutes();
  // Meanwhile another window may have been chosen, or nobody looks any more: then there is another stream, or none.
  const isPast = () => stream || document.hidden || chosen !== minutes();
  try {
    const found = await call(`/v1/overview?minutes=${chosen}`);
    if (isPast()) return;
    show(found);
  } catch (error) {
    if (error.status === 401) return location.assign("/dashboard");
    if (isPast()) return;
    if (error.status) trouble(error.message);
  }
  again = setTimeout(open, POLL);
}

for (const one of document.querySelectorAll('input[name="minutes"]')) {
  one.addEventListener("change", open);
}
// A browser has six connections for a service: pages that nobody looks at keep none.
document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
window.addEventListener("pagehide", close);

if (part("first-curl")) {
  part("first-curl").textContent = part("first-curl").textContent.replace("ORIGIN", location.origin);
}
setInterval(age, 1000);
if (!document.hidden) open();
