// openai-node as an app uses it. The protocol is that of `openai_python.py`.
//
// job     id, base_url, key, call ("chat.completions.create"), positional, arguments, retries (0),
//         leave_after (abort a stream after so many chunks)
// answer  id, value, request_id, chunks, text, finish, usage, calls, error

import { createInterface } from "node:readline";
import OpenAI from "openai";

console.log = console.error; // nothing but answers on stdout

async function seen(job) {
  const answer = { id: job.id };
  try {
    await call(job, answer);
  } catch (error) {
    answer.error = told(error);
  }
  return answer;
}

async function call(job, answer) {
  const client = new OpenAI({
    baseURL: job.base_url, apiKey: job.key, maxRetries: job.retries ?? 0, timeout: 60_000,
  });
  const path = job.call.split(".");
  const owner = path.slice(0, -1).reduce((at, name) => at[name], client);
  const given = [...(job.positional ?? []), ...(job.arguments ? [job.arguments] : [])];
  const { data: result, request_id } = await owner[path.at(-1)](...given).withResponse();
  answer.request_id = request_id;
  if (!job.arguments?.stream) return whole(result, answer);
  Object.assign(answer, { chunks: [], text: "", finish: null, usage: null, calls: [] });
  for await (const chunk of result) {
    oneMore(chunk, answer);
    if (answer.chunks.length === job.leave_after) return result.controller.abort();
  }
}

function whole(result, answer) {
  answer.value = result;
  if (result.object !== "chat.completion") return;
  const choice = result.choices[0];
  answer.text = choice.message.content;
  answer.finish = choice.finish_reason;
  answer.usage = result.usage;
  answer.calls = (choice.message.tool_calls ?? [])
    .map((one) => [one.id, one.function.name, one.function.arguments]);
}

// The way the SDK's documentation reads a stream, without a net below it.
function oneMore(chunk, answer) {
  answer.chunks.push(chunk);
  for (const choice of chunk.choices) {
    answer.finish = choice.finish_reason ?? answer.finish;
    if (!choice.delta) {
      answer.text += choice.text;
      continue;
    }
    if (choice.index === 0) answer.text += choice.delta.content ?? "";
    for (const one of choice.delta.tool_calls ?? []) {
      if (one.id) answer.calls.push([one.id, one.function.name, ""]);
      answer.calls[one.index][2] += one.function.arguments ?? "";
    }
  }
  if (chunk.usage) answer.usage = chunk.usage;
}

function told(error) {
  const is = [];
  for (let at = error; at && at !== Object.prototype; at = Object.getPrototypeOf(at)) {
    if (Object.hasOwn(at, "constructor")) is.push(at.constructor.name);
  }
  return {
    type: error.constructor.name, is, message: error.message,
    status: error.status ?? null, code: error.code ?? null, param: error.param ?? null,
    kind: error.type ?? null, request_id: error.requestID ?? null,
    retry_after: error.headers?.get?.("retry-after") ?? null,
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  seen(JSON.parse(line)).then((answer) => process.stdout.write(JSON.stringify(answer) + "\n"));
}
