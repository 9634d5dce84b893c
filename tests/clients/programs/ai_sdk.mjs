// The Vercel AI SDK with its OpenAI-compatible provider, as an app uses it. The protocol is that of
// `openai_python.py`.
//
// job     id, base_url, key, call ("generateText" or "streamText"), model, messages, retries (0),
//         tools ({name: {description, parameters}}), leave_after (abort after so many text parts)
// answer  id, text, finish, usage, calls, parts (types, in order), error

import { createInterface } from "node:readline";
import { generateText, jsonSchema, streamText, tool } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

console.log = console.error; // nothing but answers on stdout
globalThis.AI_SDK_LOG_WARNINGS = false;

async function seen(job) {
  const answer = { id: job.id, text: "", finish: null, usage: null, calls: [], parts: [] };
  const left = new AbortController();
  const request = {
    model: createOpenAICompatible({
      name: "weighbridge", baseURL: job.base_url, apiKey: job.key, includeUsage: true,
    })(job.model),
    messages: job.messages,
    maxRetries: job.retries ?? 0,
    tools: tools(job.tools),
    abortSignal: left.signal,
  };
  try {
    if (job.call === "generateText") {
      const result = await generateText(request);
      answer.text = result.text;
      answer.finish = result.finishReason;
      answer.usage = usage(result.usage);
      answer.calls = result.toolCalls.map(called);
    } else {
      await stream(request, answer, job, left);
    }
  } catch (error) {
    answer.error = told(error);
  }
  return answer;
}

async function stream(request, answer, job, left) {
  const result = streamText({ ...request, onError() {} }); // an error is a part of the stream
  let heard = 0;
  for await (const part of result.fullStream) {
    answer.parts.push(part.type);
    if (part.type === "text-delta") {
      answer.text += part.text;
      if (++heard === job.leave_after) left.abort();
    } else if (part.type === "tool-call") {
      answer.calls.push(called(part));
    } else if (part.type === "error") {
      answer.error = told(part.error);
    } else if (part.type === "finish-step") {
      answer.finish = part.finishReason;
      answer.usage = usage(part.usage);
    }
  }
}

function tools(given) {
  return given && Object.fromEntries(Object.entries(given).map(([name, one]) =>
    [name, tool({ description: one.description, inputSchema: jsonSchema(one.parameters) })]));
}

const called = (one) => [one.toolCallId, one.toolName, JSON.stringify(one.input)];

const usage = (one) => one.outputTokens == null ? null : {
  prompt_tokens: one.inputTokens, completion_tokens: one.outputTokens, total_tokens: one.totalTokens,
};

function told(error) {
  const body = error?.data?.error ?? error; // an HTTP error, or the object out of an error event
  return {
    type: error?.name ?? "Object",
    is: [error?.name ?? "Object"],
    message: error?.message ?? String(error),
    status: error?.statusCode ?? null,
    code: body?.code ?? null,
    param: body?.param ?? null,
    kind: body?.type ?? null,
    request_id: error?.responseHeaders?.["x-request-id"] ?? null,
    retryable: error?.isRetryable ?? null,
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  seen(JSON.parse(line)).then((answer) => process.stdout.write(JSON.stringify(answer) + "\n"));
}
