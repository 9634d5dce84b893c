"""LangChain's ChatOpenAI as an app uses it. The protocol is that of `openai_python.py`.

job     id, base_url, key, call ("invoke" or "stream"), model, messages, tools, retries (0),
        options (arguments of ChatOpenAI)
answer  id, text, finish, usage, calls, response_model, error
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from langchain_openai import ChatOpenAI

Json = dict[str, Any]
CONCURRENT = 8
OUT, sys.stdout = sys.stdout, sys.stderr  # nothing but answers on the real one


def seen(job: Json) -> Json:
    """What the app saw, up to an error."""
    answer: Json = {"id": job["id"], "text": "", "finish": None, "usage": None, "calls": []}
    try:
        model = ChatOpenAI(
            base_url=job["base_url"],
            api_key=job["key"],
            model=job["model"],
            max_retries=job.get("retries", 0),
            timeout=60,
            stream_usage=True,
            **job.get("options", {}),
        )
        runnable = model.bind_tools(job["tools"]) if job.get("tools") else model
        if job["call"] == "invoke":
            _note(runnable.invoke(job["messages"]), answer)
        else:
            whole = None
            for chunk in runnable.stream(job["messages"]):
                whole = chunk if whole is None else whole + chunk
                _note(whole, answer)
    except Exception as error:  # an app sees every class of them
        answer["error"] = told(error)
    return answer


def _note(message: Any, answer: Json) -> None:
    metadata = message.response_metadata
    answer["text"] = message.content
    answer["finish"] = metadata.get("finish_reason")
    answer["response_model"] = metadata.get("model_name")
    answer["calls"] = [[c["id"], c["name"], json.dumps(c["args"])] for c in message.tool_calls]
    if message.usage_metadata is not None:
        answer["usage"] = {
            "prompt_tokens": message.usage_metadata["input_tokens"],
            "completion_tokens": message.usage_metadata["output_tokens"],
            "total_tokens": message.usage_metadata["total_tokens"],
        }


def told(error: Exception) -> Json:
    return {
        "type": type(error).__name__,
        "is": [kind.__name__ for kind in type(error).__mro__],
        "message": str(getattr(error, "message", None) or error),
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "param": getattr(error, "param", None),
        "kind": getattr(error, "type", None),
        "request_id": getattr(error, "request_id", None),
    }


def main() -> None:
    with ThreadPoolExecutor(CONCURRENT) as pool:
        for line in sys.stdin:
            answer = pool.submit(seen, json.loads(line))
            answer.add_done_callback(lambda a: print(json.dumps(a.result()), file=OUT, flush=True))


if __name__ == "__main__":
    main()
