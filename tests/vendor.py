"""The scripted vendor from a test's side: in the test's loop, or in a process of its own.

Owns: starting and stopping it, one control object for either place (`scripts`, `log`, `hits`,
`url`), waiting for a condition, and `FAULTS`: one script for each way a vendor breaks, which the
contract and chaos tests walk through.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, replace

from gateway.demo.scripted_vendor import (
    DIALECTS,
    KATAN,
    LLAMA_CPP,
    OPENAI,
    VLLM,
    CanaryHit,
    Page,
    Script,
    ScriptedVendor,
    Seen,
)

__all__ = [
    "CANARY",
    "DIALECTS",
    "FAULTS",
    "KATAN",
    "LLAMA_CPP",
    "OPENAI",
    "VLLM",
    "CanaryHit",
    "Page",
    "Script",
    "ScriptedVendor",
    "Seen",
    "VendorProcess",
    "until",
    "vendor_in_loop",
    "vendor_process",
]


# In restricted requests of every load (`tests.chaos.load`): no vendor in a loop may ever see it.
CANARY = "canary-5b1f0c9e-that-must-not-leave"


@asynccontextmanager
async def vendor_in_loop(
    scripts: Mapping[str, Script] | None = None, **options: object
) -> AsyncIterator[ScriptedVendor]:
    """A vendor in this event loop; `options` are ScriptedVendor's. It must never see CANARY."""
    options["canaries"] = {CANARY.encode(), *options.get("canaries", ())}
    async with ScriptedVendor(scripts, **options) as vendor:
        yield vendor
    seen = [hit for hit in vendor.hits if hit.canary == CANARY.encode()]
    assert not seen, f"restricted data reached a vendor: {seen[:3]}"


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Waits until the condition holds; fails with its source line if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"did not hold within {timeout_s} s")
        await asyncio.sleep(0.002)


class VendorProcess:
    """A vendor in its own process, controlled over HTTP. Times in its log are this machine's
    `time.monotonic()`, so they compare with ours."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "gateway.demo.scripted_vendor", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            self.close()
            raise RuntimeError(f"the vendor did not start (exit status {self.process.returncode})")
        self.url = line.removeprefix("listening on ").strip()
        self.host, _, port = self.url.removeprefix("http://").rpartition(":")
        self.port = int(port)

    def control(self, document: dict[str, object] | None = None, path: str = "") -> object:
        """POSTs to the control plane, or GETs it if there is nothing to say."""
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"{self.url}/__control{path}", data=data)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def set(self, model: str, script: Script) -> None:
        self.control({"scripts": {model: asdict(script)}})

    def forbid(self, canaries: Iterable[bytes]) -> None:
        self.control({"canaries_hex": [canary.hex() for canary in canaries]})

    def page(self, path: str, page: Page) -> None:
        self.control({"pages": {path: [page.status, page.content_type, page.body.decode()]}})

    def clear(self) -> None:
        self.control({"clear": True})

    @property
    def log(self) -> list[Seen]:
        return [_seen(entry) for entry in self.control(path="/log")]

    @property
    def hits(self) -> list[CanaryHit]:
        hits = self.control()["hits"]
        return [CanaryHit(bytes.fromhex(hit["canary_hex"]), hit["at"]) for hit in hits]

    @property
    def received(self) -> int:
        return self.control()["received"]

    @property
    def concurrent(self) -> int:
        return self.control()["concurrent"] - 1  # without the question itself

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


def _seen(entry: dict[str, object]) -> Seen:
    headers = [
        (name.encode(), value.encode("latin-1")) for name, value in entry.pop("headers").items()
    ]
    return Seen(raw_headers=headers, **entry)


@contextmanager
def vendor_process(
    scripts: Mapping[str, Script] | None = None, *arguments: str
) -> Iterator[VendorProcess]:
    vendor = VendorProcess(*arguments)
    try:
        for model, script in (scripts or {}).items():
            vendor.set(model, script)
        yield vendor
    finally:
        vendor.close()


_STREAM = Script(tokens=6, itl_s=0.002)


def _but(**changes: object) -> Script:
    return replace(_STREAM, **changes)


# name -> how the vendor breaks. The name says what a client sees of a streamed answer of 6 tokens.
FAULTS: dict[str, Script] = {
    # Before the head: the attempt may move on.
    "hang_before_head": _but(fault="hang_before_head"),
    "close_before_head": _but(fault="close_before_head"),
    "reset_before_head": _but(fault="reset_before_head"),
    "status_400": _but(status=400),
    "status_401": _but(status=401),
    "status_404": _but(status=404),
    "status_429": _but(status=429, retry_after_s=2),
    "status_500": _but(status=500),
    "status_503_vllm": _but(status=503, error="vllm"),
    "status_400_context_openai": _but(status=400, error_code="context_length_exceeded"),
    "status_400_context_vllm": _but(
        status=400,
        error="vllm",
        error_param="input_text",
        error_message="This model's maximum context length is 1024 tokens. However, your prompt "
        "contains 24050 characters.",
    ),
    "status_400_context_llama_cpp": _but(
        status=400, error="llama_cpp", error_type="exceed_context_size_error"
    ),
    "status_422_fastapi": _but(status=422, error="fastapi"),
    "status_401_string": _but(status=401, error="string", error_message="Unauthorized"),
    "status_502_html": _but(status=502, error="html"),
    "status_500_text": _but(status=500, error="text"),
    "status_500_empty": _but(status=500, error="empty"),
    "status_200_html": _but(error="html"),
    # After the head, before the first token: still no content has reached the client.
    "stall_before_token": _but(fault="stall"),
    "stall_before_token_with_pings": _but(fault="stall", ping_every_s=0.02),
    "stall_after_role": _but(fault="stall", role="early"),
    "reset_before_token": _but(fault="reset"),
    "close_before_token": _but(fault="close"),
    "end_before_token": _but(fault="end"),
    "error_before_token": _but(fault="error_event"),
    "document_for_stream": _but(ignore_stream=True),
    # After content: the client must see that it failed.
    "stall_after_3": _but(fault="stall", fault_after=3),
    "stall_after_3_with_pings": _but(fault="stall", fault_after=3, ping_every_s=0.02),
    "reset_after_3": _but(fault="reset", fault_after=3),
    "close_after_3": _but(fault="close", fault_after=3),
    "end_after_3": _but(fault="end", fault_after=3),
    "half_event_after_3": _but(fault="half_event", fault_after=3),
    "error_after_3": _but(fault="error_event", fault_after=3),
    "error_after_3_vllm": _but(fault="error_event", fault_after=3, error="vllm"),
    "garbage_after_3": _but(fault="garbage_line", fault_after=3),
    "huge_line_after_3": _but(fault="huge_line", fault_after=3),
    # Odd, and to be understood all the same.
    "no_done": _but(done=False),
    "no_finish": _but(finish="absent"),
    "finish_on_last_chunk": _but(finish="on_last_chunk"),
    "usage_on_last_chunk": _but(usage="on_last_chunk"),
    "usage_twice": _but(usage="duplicate"),
    "usage_never": _but(usage="none"),
    "usage_unasked": _but(usage="final_chunk", usage_unasked=True),
    "usage_in_each_chunk": _but(usage="continuous", usage_unasked=True),
    "no_role": _but(role="absent"),
    "overrun": _but(overrun_factor=3),
    "crlf": _but(line_end="\r\n"),
    "cr": _but(line_end="\r"),
    "no_space": _but(data_space=False),
    "multiline": _but(multiline=True),
    "event_ids": _but(event_ids=True),
    "bom": _but(bom=True),
    "pings": _but(itl_s=0.02, ping_every_s=0.005),
    "split_utf8": _but(split_utf8=True),
    "sliced": _but(slice_bytes=7, slice_gap_s=0.0005, itl_s=0.0),
    "not_chunked": _but(chunked=False),
    "text_html": _but(content_type="text/html"),
    "closes_each": _but(keep_alive="close"),
    "keep_alive_lie": _but(keep_alive="lie"),
}
