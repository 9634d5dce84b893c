"""Long silences: comments that no SDK may stumble over, and failures behind a status 200.

The gateway sends its head after a while without content (25 s; 3 s here), because proxies between
cut silent connections; from then on a failure can only be an event. The waits are begun in
`conftest.py`.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import pytest

from tests.clients.client import MESSAGES, STREAM_ERROR
from tests.clients.variants import CLIENTS, TEXT
from tests.gateway_process import GatewayProcess

pytestmark = [pytest.mark.clients, pytest.mark.xdist_group("clients")]

Saw = dict[str, Any]
COMMENT = b": keepalive\n"


def test_comments_fill_a_silence_between_words(served: GatewayProcess) -> None:
    """The vendor pauses 1.3 s before each word; the gateway of these tests speaks after 1 s."""
    body = {"model": "quiet", "messages": MESSAGES, "stream": True}
    url = served.url + "/v1/chat/completions"
    answer = httpx.post(url, headers=served.auth, json=body, timeout=30)
    lines = answer.content.splitlines(keepends=True)
    assert lines.count(COMMENT) >= 3
    assert all(line in (COMMENT, b"\n") or line.startswith(b"data: ") for line in lines), "no ids"
    # A comment and an empty line would be an empty event: openai-python fails on one after ids.
    assert COMMENT + b"\n" not in answer.content


@pytest.mark.parametrize("sdk", CLIENTS)
@pytest.mark.parametrize("alias", ["quiet", "late"])
def test_no_sdk_stumbles_over_comments(
    waiting: Callable[[str, str], Saw], sdk: str, alias: str
) -> None:
    """`quiet`: between words, of an upstream that sends ids. `late`: before the first word."""
    saw = waiting(sdk, alias)
    assert saw.get("error") is None
    assert (saw["text"], saw["finish"]) == (TEXT, "stop")


@pytest.mark.parametrize("sdk", CLIENTS)
def test_a_failure_behind_the_head_is_raised(waiting: Callable[[str, str], Saw], sdk: str) -> None:
    saw = waiting(sdk, "late-failure")
    assert saw["text"] == ""
    assert STREAM_ERROR[sdk] in saw["error"]["is"]
    assert saw["error"]["status"] is None, "the status was 200"
    assert saw["error"]["code"] == "upstream_broken"


def test_a_client_that_reads_nothing_costs_nothing(
    served: GatewayProcess,
) -> None:
    """There is no use in comments for it: they wait in line with the rest."""
    body = json.dumps({"model": "flood", "messages": MESSAGES, "stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-length: {len(body)}\r\n"
        f"content-type: application/json\r\nauthorization: Bearer {served.key}\r\n\r\n"
    )
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", served.port))
        client.sendall(head.encode() + body)
        time.sleep(4)  # the buffers fill; comments are due
        before = psutil.Process(served.process.pid).cpu_times()
        time.sleep(2)
        after = psutil.Process(served.process.pid).cpu_times()
        assert client.recv(12) == b"HTTP/1.1 200"
    used_s = after.user + after.system - before.user - before.system
    assert used_s < 0.25
