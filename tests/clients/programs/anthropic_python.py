"""anthropic as an app uses it. The protocol is that of `openai_python.py`.

job     id, base_url, key, call ("messages.create"), positional, arguments, header (send the key in
        this header instead of the SDK's own way)
answer  id, value, error
"""

from __future__ import annotations

import json
import operator
import sys
from typing import Any

import anthropic

Json = dict[str, Any]
OUT, sys.stdout = sys.stdout, sys.stderr  # nothing but answers on the real one


def seen(job: Json) -> Json:
    """What the app saw, up to an error."""
    answer: Json = {"id": job["id"]}
    if job.get("header"):
        credential: Json = {"default_headers": {job["header"]: job["key"]}}
    else:
        credential = {"api_key": job["key"]}
    try:
        client = anthropic.Anthropic(
            base_url=job["base_url"], max_retries=0, timeout=60, **credential
        )
        method = operator.attrgetter(job["call"])(client)
        result = method(*job.get("positional", ()), **job.get("arguments", {}))
        answer["value"] = result.model_dump(mode="json")
    except Exception as error:  # an app sees every class of them
        answer["error"] = {
            "type": type(error).__name__,
            "is": [kind.__name__ for kind in type(error).__mro__],
            "message": str(getattr(error, "message", None) or error),
            "status": getattr(error, "status_code", None),
            "body": getattr(error, "body", None),
        }
    return answer


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(seen(json.loads(line))), file=OUT, flush=True)


if __name__ == "__main__":
    main()
