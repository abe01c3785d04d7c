// The try form: a chat that is streamed, or a job that is queued, and the same request as code.
import { call, count, make, span, words } from "./console.js";

const form = document.getElementById("try");
const at = Object.fromEntries(
  ["stream", "stop", "queue", "answer", "reasoning", "thought", "told", "first", "pace", "tokens", "ended", "job", "code"].map(
    (id) => [id, document.getElementById(id)],
  ),
);
const csrf = document.querySelector('meta[name="csrf"]').content;
let running = null;

function request() {
  const { prompt, system, model, max_tokens: most, temperature } = form.elements;
  const messages = [{ role: "user", content: prompt.value }];
  if (system.value.trim()) messages.unshift({ role: "system", content: system.value });
  const body = { model: model.value, messages };
  if (most.value) body.max_tokens = Number(most.value);
  if (temperature.value) body.temperature = Number(temperature.value);
  return body;
}

const streamed = () => ({ ...request(), stream: true, stream_options: { include_usage: true } });
const queued = () => ({ ...request(), lane: form.elements.lane.value });

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && !at.stream.disabled) stream();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(at.stream);
});
at.stop.addEventListener("click", () => running?.abort());

async function stream() {
  const hangUp = (running = new AbortController());
  const seen = begin();
  try {
    const answer = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
      body: JSON.stringify(streamed()),
      signal: hangUp.signal,
    });
    if (!answer.ok) throw new Error(await words(answer));
    link(answer.headers.get("X-Stoker-Job"));
    for await (const event of events(answer.body)) take(event, seen);
    if (!seen.done) throw new Error("The answer was cut off: the service ended the stream early.");
    end(seen, "");
  } catch (error) {
    if (hangUp.signal.aborted) end(seen, "Stopped: its job is cancelled.");
    else end(seen, error instanceof TypeError ? "The connection to the service broke." : error.message, true);
  }
  running = null;
}

function begin() {
  at.stream.disabled = at.queue.disabled = true;
  at.stop.hidden = false;
  at.answer.setAttribute("aria-busy", "true");
  at.answer.replaceChildren();
  at.reasoning.replaceChildren();
  at.thought.hidden = true;
  for (const told of [at.first, at.pace, at.tokens]) told.textContent = "–";
  at.ended.textContent = "";
  at.job.replaceChildren();
  at.told.textContent = "Waiting for the first token…";
  return { started: performance.now(), first: null, last: null, pieces: 0, usage: null, reason: null, done: false };
}

/** Yield what each event of a stream has as JSON; null is the one that says it is done. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (held + value).split(/\r?\n\r?\n/);
    held = parts.pop();
    for (const part of parts) {
      const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data) yield data === "[DONE]" ? null : JSON.parse(data);
    }
  }
}

function take(event, seen) {
  if (event === null) {
    seen.done = true;
    return;
  }
  if (event.error) throw new Error(event.error.message ?? String(event.error));
  const choice = event.choices?.[0];
  const thought = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning;
  if (event.usage) seen.usage = event.usage;
  if (choice?.finish_reason) seen.reason = choice.finish_reason;
  if (thought) {
    at.thought.hidden = false;
    at.reasoning.append(thought);
  }
  if (choice?.delta?.content) at.answer.append(choice.delta.content);
  if (!thought && !choice?.delta?.content) return;
  seen.last = performance.now();
  seen.pieces += 1;
  if (seen.first === null) {
    seen.first = seen.last;
    at.first.textContent = span((seen.first - seen.started) / 1000);
    at.told.textContent = "Answering…";
  }
  figures(seen);
}

function figures(seen) {
  const tokens = seen.usage?.completion_tokens ?? seen.pieces;
  at.tokens.textContent = count(tokens);
  // The first token is where the time begins, so it is not among those that came in it.
  if (seen.last > seen.first) at.pace.textContent = count(((tokens - 1) * 1000) / (seen.last - seen.first));
}

const REASONS = { stop: "ended by itself", length: "cut off at max tokens", tool_calls: "calls a tool" };

function end(seen, said, isWrong = false) {
  if (seen.first !== null) figures(seen);
  if (seen.reason) at.ended.textContent = REASONS[seen.reason] ?? seen.reason;
  at.stream.disabled = at.queue.disabled = false;
  at.stop.hidden = true;
  at.told.textContent = said && !isWrong ? said : isWrong ? "Failed." : "Done.";
  if (isWrong) at.answer.append(make("span", { className: "wrong" }, `${seen.pieces ? "\n" : ""}${said}`));
  at.answer.setAttribute("aria-busy", "false");
}

function link(id) {
  if (id) at.job.replaceChildren("Job ", make("a", { href: `/dashboard/jobs/${encodeURIComponent(id)}` }, id));
}

at.queue.addEventListener("click", async () => {
  if (running || !form.reportValidity()) return;
  const seen = begin();
  at.stop.hidden = true;
  at.told.textContent = "";
  try {
    const job = await call("/v1/jobs", { method: "POST", body: queued() });
    end(seen, "Queued.");
    link(job.id);
  } catch (error) {
    end(seen, error instanceof TypeError ? "The service does not answer." : error.message, true);
  }
});

/** Return a text as one word of a shell. */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function curl(path, body, more = "") {
  return [
    `curl ${more}${quoted(location.origin + path)} \\`,
    `  -H "Authorization: Bearer $STOKER_API_KEY" \\`,
    `  -H 'Content-Type: application/json' \\`,
    `  -d ${quoted(JSON.stringify(body, null, 2))}`,
  ].join("\n");
}

/** Return a value as Python writes it; JSON's texts are Python's too. */
function python(value) {
  if (Array.isArray(value)) return `[\n${value.map((one) => `        ${python(one)},\n`).join("")}    ]`;
  if (value === true) return "True";
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one)}`).join(", ")}}`;
}

const CODE = {
  curl: () => curl("/v1/chat/completions", streamed(), "-N "),
  queued: () => curl("/v1/jobs", queued()),
  python: () => `import os

from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(`${location.origin}/v1`)}, api_key=os.environ["STOKER_API_KEY"])
stream = client.chat.completions.create(
${Object.entries({ ...request(), stream: true }).map(([name, value]) => `    ${name}=${python(value)},\n`).join("")})
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)`,
};

function showCode() {
  at.code.textContent = CODE[document.querySelector('input[name="code"]:checked').value]();
}

form.addEventListener("input", showCode);
for (const choice of document.querySelectorAll('input[name="code"]')) choice.addEventListener("change", showCode);
showCode();
