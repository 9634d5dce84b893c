"""openai-python as an app uses it: jobs come in, what the app saw goes out.

One JSON object a line, both ways; answers bear their job's `id` and come in any order.

job     id, base_url, key, call ("chat.completions.create"), positional, arguments, retries (0),
        asynchronous (false), leave_after (stop reading a stream after so many chunks)
answer  id, and of what the app saw: value, request_id, chunks, text, finish, usage, calls, error
"""

from __future__ import annotations

import asyncio
import functools
import json
import operator
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

Json = dict[str, Any]
CONCURRENT = 8
OUT, sys.stdout = sys.stdout, sys.stderr  # nothing but answers on the real one


@functools.cache
def client(base_url: str, key: str, retries: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key=key, max_retries=retries, timeout=60)


def seen(job: Json) -> Json:
    """What the app saw, up to an error."""
    answer: Json = {"id": job["id"]}
    try:
        if job.get("asynchronous"):
            asyncio.run(_call_async(job, answer))
        else:
            _call(job, answer)
    except Exception as error:  # an app sees every class of them
        answer["error"] = told(error)
    return answer


def _call(job: Json, answer: Json) -> None:
    method = operator.attrgetter(job["call"])(
        client(job["base_url"], job["key"], job.get("retries", 0))
    )
    result = method(*job.get("positional", ()), **job.get("arguments", {}))
    if not isinstance(result, openai.Stream):
        _whole(result, answer)
        return
    _stream_begins(answer, result.response.headers)
    for chunk in result:
        _one_more(chunk, answer)
        if len(answer["chunks"]) == job.get("leave_after"):
            result.close()
            return


async def _call_async(job: Json, answer: Json) -> None:
    async with openai.AsyncOpenAI(
        base_url=job["base_url"], api_key=job["key"], max_retries=job.get("retries", 0), timeout=60
    ) as asynchronous:
        method = operator.attrgetter(job["call"])(asynchronous)
        result = await method(*job.get("positional", ()), **job.get("arguments", {}))
        if not isinstance(result, openai.AsyncStream):
            _whole(result, answer)
            return
        _stream_begins(answer, result.response.headers)
        async for chunk in result:
            _one_more(chunk, answer)


def _whole(result: Any, answer: Json) -> None:
    answer["request_id"] = getattr(result, "_request_id", None)
    answer["value"] = document = result.model_dump(mode="json")
    if document.get("object") == "chat.completion":
        choice = document["choices"][0]
        answer["text"] = choice["message"]["content"]
        answer["finish"], answer["usage"] = choice["finish_reason"], document["usage"]
        answer["calls"] = [
            [call["id"], call["function"]["name"], call["function"]["arguments"]]
            for call in choice["message"]["tool_calls"] or ()
        ]


def _stream_begins(answer: Json, headers: Any) -> None:
    answer.update(chunks=[], text="", finish=None, usage=None, calls=[])
    answer["request_id"] = headers.get("x-request-id")


def _one_more(chunk: Any, answer: Json) -> None:
    """The way the SDK's documentation reads a stream, without a net below it."""
    answer["chunks"].append(chunk.model_dump(mode="json"))
    for choice in chunk.choices:
        answer["finish"] = choice.finish_reason or answer["finish"]
        if not hasattr(choice, "delta"):
            answer["text"] += choice.text
            continue
        if choice.index == 0:
            answer["text"] += choice.delta.content or ""
        for call in choice.delta.tool_calls or ():
            if call.id:
                answer["calls"].append([call.id, call.function.name, ""])
            answer["calls"][call.index][2] += call.function.arguments or ""
    if chunk.usage is not None:
        answer["usage"] = chunk.usage.model_dump(mode="json")


def told(error: Exception) -> Json:
    response = getattr(error, "response", None)
    return {
        "type": type(error).__name__,
        "is": [kind.__name__ for kind in type(error).__mro__],
        "message": str(getattr(error, "message", None) or error),
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "param": getattr(error, "param", None),
        "kind": getattr(error, "type", None),
        "request_id": getattr(error, "request_id", None),
        "retry_after": response.headers.get("retry-after") if response is not None else None,
    }


def main() -> None:
    with ThreadPoolExecutor(CONCURRENT) as pool:
        for line in sys.stdin:
            answer = pool.submit(seen, json.loads(line))
            answer.add_done_callback(lambda a: print(json.dumps(a.result()), file=OUT, flush=True))


if __name__ == "__main__":
    main()
