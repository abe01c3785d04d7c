// The stock openai package for Node: npm install, then node chat.mjs "Why is the sky blue?"
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.STOKER_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: process.env.STOKER_API_KEY ?? "none",
});
const model = (await client.models.list()).data[0].id;
const stream = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: process.argv[2] }],
  max_tokens: 40,
  stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0].delta.content ?? "");
console.log();
