"""A client program in its own environment, beside the tests: jobs in, what the app saw out.

Owns: starting the program of each SDK and talking to it. Must not know: what the jobs mean (the
programs' own texts say) and what is expected. Invariants: a program serves any number of jobs at
once; it inherits no proxy and no setting of an SDK from this machine; a program that dies or stays
silent fails the test with what it wrote on stderr.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.clients.environments import node, node_env, python_env

PROGRAMS = Path(__file__).parent / "programs"
Json = dict[str, Any]

# SDK -> (its environment, its program)
SDKS = {
    "openai-python": ("openai", "openai_python.py"),
    "openai-node": ("node", "openai_node.mjs"),
    "langchain": ("langchain", "chat_openai.py"),
    "ai-sdk": ("node", "ai_sdk.mjs"),
    "anthropic": ("anthropic", "anthropic_python.py"),
}
# What an app catches. LangChain's classes are subclasses of openai-python's.
HTTP_ERROR = {
    "openai-python": "APIStatusError",
    "openai-node": "APIError",
    "langchain": "APIStatusError",
    "ai-sdk": "AI_APICallError",
}
STREAM_ERROR = {
    "openai-python": "APIError",
    "openai-node": "APIError",
    "langchain": "APIError",
    "ai-sdk": "AI_StreamProviderError",
}

_FOREIGN = ("OPENAI_", "ANTHROPIC_", "LANGCHAIN_", "LANGSMITH_", "NODE_", "PYTHON", "AI_")


QUESTION = "What does the scale say?"
MESSAGES = [{"role": "user", "content": QUESTION}]


def chat_job(sdk: str, model: str, form: str) -> Json:
    """One chat request, said in the SDK's own way; usage is wanted."""
    if sdk == "langchain":
        call = "stream" if form == "stream" else "invoke"
        return {"call": call, "model": model, "messages": MESSAGES}
    if sdk == "ai-sdk":
        call = "streamText" if form == "stream" else "generateText"
        return {"call": call, "model": model, "messages": MESSAGES}
    arguments: Json = {"model": model, "messages": MESSAGES}
    if form == "stream":
        arguments |= {"stream": True, "stream_options": {"include_usage": True}}
    return {"call": "chat.completions.create", "arguments": arguments}


class ClientDied(AssertionError):
    """The program ended, or did not answer in time."""


class Client:
    """One running program. `start` a job, take its `answer` later; `run` does both."""

    def __init__(self, sdk: str, base_url: str, key: str) -> None:
        self.sdk = sdk
        self._common = {"base_url": base_url, "key": key}
        self._numbers = itertools.count(1)
        self._answers: dict[int, Json] = {}
        self._news = threading.Condition()
        self._over = False
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        command, folder = _command(sdk)
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, **job: Any) -> int:
        """Hand in a job; `base_url` and `key` are the gateway's unless given."""
        number = next(self._numbers)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**self._common, **job, "id": number}) + "\n")
        self._process.stdin.flush()
        return number

    def answer(self, number: int, timeout_s: float = 60.0) -> Json:
        """What the app saw of job `number`. Raises ClientDied."""
        with self._news:
            heard = self._news.wait_for(lambda: number in self._answers or self._over, timeout_s)
            if number in self._answers:
                return self._answers[number]
        why = "ended" if heard else f"did not answer within {timeout_s} s"
        self._errors.seek(0)
        raise ClientDied(f"the program of {self.sdk} {why}:\n{self._errors.read()[-4000:]}")

    def run(self, **job: Any) -> Json:
        return self.answer(self.start(**job))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._reader.join(5)
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                answer = json.loads(line)
                with self._news:
                    self._answers[answer["id"]] = answer
                    self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()


@contextmanager
def client(sdk: str, base_url: str, key: str) -> Iterator[Client]:
    running = Client(sdk, base_url, key)
    try:
        yield running
    finally:
        running.close()


def _command(sdk: str) -> tuple[Sequence[str | Path], Path]:
    environment, program = SDKS[sdk]
    if environment == "node":
        # ES modules look for packages beside the script; evaluated text has the working directory.
        script = (PROGRAMS / program).read_text(encoding="utf-8")
        return [node(), "--input-type=module", "--eval", script], node_env()
    return [python_env(environment), "-I", PROGRAMS / program], PROGRAMS


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(_FOREIGN) and not name.lower().endswith("_proxy")
    }
