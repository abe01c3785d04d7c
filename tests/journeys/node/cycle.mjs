// The whole life of files and batches with the stock openai package; prints one JSON report.
// node cycle.mjs BASE_URL MODEL INPUT.jsonl, the report is that of tests/journeys/openai_clients.py.
import fs from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI from "openai";

const [baseURL, model, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none" });
const endpoint = "/v1/chat/completions";

const upload = () =>
  client.files.create({
    file: fs.createReadStream(path),
    purpose: "batch",
    expires_after: { anchor: "created_at", seconds: 3600 },
  });
const create = (input_file_id, metadata) =>
  client.batches.create({ input_file_id, endpoint, completion_window: "24h", metadata });
const download = async (id) => (await client.files.content(id)).text();

async function end(batch) {
  const statuses = [batch.status];
  while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
    await sleep(200);
    batch = await client.batches.retrieve(batch.id);
    if (batch.status !== statuses.at(-1)) statuses.push(batch.status);
  }
  return [batch, statuses];
}

async function all(list) {
  let pages = 0;
  const ids = [];
  for await (const page of (await list).iterPages()) {
    pages += 1;
    ids.push(...page.getPaginatedItems().map((item) => item.id));
  }
  return { pages, ids };
}

async function walked(list) {
  const ids = [];
  for await (const item of list) ids.push(item.id);
  return ids;
}

async function refused(asked) {
  try {
    await asked;
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, message: error.error?.message ?? null };
  }
}

const file = await upload();
const processed = await client.files.waitForProcessing(file.id);
const [batch, statuses] = await end(await create(file.id, { client: "node" }));
const second = await create((await upload()).id, { client: "node", number: "2" });
const asked = await client.batches.cancel(second.id);
const third = await create((await upload()).id);
const [cancelled] = await end(asked);
await end(third);

const report = {
  model,
  file,
  processed,
  batch,
  statuses,
  input: await download(file.id),
  output: await download(batch.output_file_id),
  errors: await download(batch.error_file_id),
  made: { batches: [batch.id, second.id, third.id], files: [file.id, second.input_file_id, third.input_file_id] },
  asked: asked.status,
  cancelled: cancelled.status,
  cancelled_again: (await client.batches.cancel(second.id)).status,
  batches: await all(client.batches.list({ limit: 2 })),
  walked_batches: await walked(client.batches.list({ limit: 2 })),
  files: await all(client.files.list({ limit: 2, purpose: "batch" })),
  walked_files: await walked(client.files.list({ limit: 2, purpose: "batch", order: "asc" })),
  too_late: await refused(client.batches.cancel(batch.id)),
  deleted: await client.files.delete(file.id),
  gone: await refused(client.files.retrieve(file.id)),
  gone_content: await refused(client.files.content(file.id)),
};
console.log(JSON.stringify(report));
