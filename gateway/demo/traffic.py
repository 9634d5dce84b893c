"""Sends the workload to the gateway as an app would, and notes what a client sees of it.

Owns: the HTTP of an OpenAI client (SSE included) and its stopwatch. Knows nothing of how the
gateway decides; what it cost and why is read from the ledger afterwards, by request id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from gateway.demo.workload import Stage, Work

REQUEST_S_MAX = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One answer as the client saw it. Times in seconds; None where it cannot be known.

    `output_tokens` is what the answer's own usage says. `total_s` runs to the last byte, `last_s`
    to the last text of a stream.
    """

    work: Work
    turn: int
    request_id: str
    status: int
    text: str
    error: str | None
    total_s: float
    ttft_s: float | None = None
    last_s: float | None = None
    output_tokens: int | None = None

    @property
    def tps(self) -> float | None:
        """Output tokens per second after the first one."""
        if self.ttft_s is None or self.last_s is None or self.last_s <= self.ttft_s:
            return None
        return max(0, (self.output_tokens or 0) - 1) / (self.last_s - self.ttft_s)


class Client:
    """An app with a key."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {key}"},
            timeout=REQUEST_S_MAX,
            trust_env=False,  # loopback: no proxy of the environment has a part in it
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def play(self, stage: Stage, heard: Callable[[Heard], None]) -> None:
        """Send a stage's work; `heard` gets each answer as it is complete.

        Raises httpx.HTTPError when the gateway does not answer.
        """
        room = asyncio.Semaphore(stage.at_once)

        async def one(work: Work) -> None:
            async with room:
                async for answer in self._converse(work):
                    heard(answer)

        try:
            async with asyncio.TaskGroup() as group:
                for work in stage.works:
                    group.create_task(one(work))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _converse(self, work: Work) -> AsyncIterator[Heard]:
        messages = [{"role": "system", "content": work.system}] if work.system else []
        for turn, text in enumerate(work.turns, start=1):
            messages.append({"role": "user", "content": text})
            answer = await self._ask(work, turn, messages)
            messages.append({"role": "assistant", "content": answer.text})
            yield answer

    async def _ask(self, work: Work, turn: int, messages: list[dict[str, str]]) -> Heard:
        document: dict[str, Any] = {
            "model": work.alias,
            "messages": messages,
            "max_completion_tokens": work.output_tokens_max,
        }
        headers = {"content-type": "application/json"}
        if work.stream:
            document |= {"stream": True, "stream_options": {"include_usage": True}}
        if work.privacy is not None:
            headers["x-weighbridge-privacy"] = work.privacy
        if work.session is not None:
            headers["x-weighbridge-session"] = work.session
        content, started = orjson.dumps(document), time.monotonic()
        async with self._http.stream(
            "POST", "/v1/chat/completions", content=content, headers=headers
        ) as response:
            request_id = response.headers.get("x-request-id", "")
            if work.stream and response.status_code == 200:
                said = await _stream(response, started)
            else:
                said = _whole(await response.aread())
        return Heard(
            work=work,
            turn=turn,
            request_id=request_id,
            status=response.status_code,
            total_s=time.monotonic() - started,
            **said,
        )


async def _stream(response: httpx.Response, started: float) -> dict[str, Any]:
    """The text, usage and first token's time of an event stream, or the error that ended it."""
    said: dict[str, Any] = {"text": "", "error": None}
    async for line in response.aiter_lines():
        if not line.startswith("data:") or line == "data: [DONE]":
            continue
        event = orjson.loads(line[5:])
        if "error" in event:
            said["error"] = event["error"]["message"]
        if event.get("usage"):
            said["output_tokens"] = event["usage"]["completion_tokens"]
        for choice in event.get("choices", ()):
            text = choice["delta"].get("content")
            if text:
                said["last_s"] = time.monotonic() - started
                said.setdefault("ttft_s", said["last_s"])
                said["text"] += text
    return said


def _whole(body: bytes) -> dict[str, Any]:
    document = orjson.loads(body)
    if "error" in document:
        return {"text": "", "error": document["error"]["message"]}
    return {
        "text": document["choices"][0]["message"]["content"] or "",
        "error": None,
        "output_tokens": document.get("usage", {}).get("completion_tokens"),
    }
