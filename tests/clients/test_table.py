"""The compatibility table: upstream behaviour x client, through the real gateway.

`variants.py` says what must be seen; here each SDK is asked what it saw. A program gets all of its
rows at once; the tests then read their cells.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.client import HTTP_ERROR, QUESTION, STREAM_ERROR, Client, chat_job
from tests.clients.variants import (
    ALONE,
    ANSWER,
    BROKEN,
    CLIENTS,
    TEXT,
    TOKENS,
    VARIANTS,
    alias_of,
    missing_faults,
)
from tests.gateway_process import GatewayProcess
from tests.vendor import VendorProcess

pytestmark = [pytest.mark.clients, pytest.mark.xdist_group("clients")]

PROMPT_TOKENS = len(QUESTION) // 4  # as the scripted vendor counts
CELLS = [
    (variant, sdk, form)
    for variant, row in VARIANTS.items()
    for form, expected in (("stream", row.stream), ("whole", row.whole))
    for sdk in CLIENTS
    if expected is not None
]
Saw = dict[str, Any]


@pytest.fixture(scope="module")
def cells(clients: Callable[[str], Client]) -> Callable[[str, str, str], Saw]:
    """What a client saw of a row."""
    started = {
        (variant, sdk, form): clients(sdk).start(
            **chat_job(sdk, alias_of(variant, sdk, form), form)
        )
        for variant, sdk, form in CELLS
    }
    return lambda variant, sdk, form: clients(sdk).answer(started[variant, sdk, form])


@pytest.mark.parametrize(("variant", "sdk", "form"), CELLS)
def test_a_client_sees_the_answer_or_an_error(
    cells: Callable[[str, str, str], Saw], variant: str, sdk: str, form: str
) -> None:
    row = VARIANTS[variant]
    expected = row.stream if form == "stream" else row.whole
    saw = cells(variant, sdk, form)
    if expected == ANSWER:
        raises = form == "stream" and sdk in row.raised_by_the_sdk
        assert bool(saw.get("error")) == raises, saw
        _is_whole(saw, row.finish, sdk, raises=raises)
        assert _tokens(saw) == ((PROMPT_TOKENS, TOKENS) if row.usage else None)
    elif expected == BROKEN:
        _is_broken(saw, sdk, row.code)
    else:
        _is_refused(saw, sdk, expected, row.code)


def _is_whole(saw: Saw, finish: str | None, sdk: str, *, raises: bool) -> None:
    assert saw["text"] == TEXT
    if sdk == "ai-sdk" and finish is None:  # it has a word of its own for "none given"
        finish = "error" if raises else "other"
    assert saw["finish"] == finish


def _tokens(saw: Saw) -> tuple[int, int] | None:
    usage = saw.get("usage")
    return usage and (usage["prompt_tokens"], usage["completion_tokens"])


def _is_broken(saw: Saw, sdk: str, code: str | None) -> None:
    """Some of the text, then an error that says what happened and whose fault it was."""
    error = saw.get("error")
    assert error is not None, saw
    assert TEXT.startswith(saw["text"])
    assert 0 < len(saw["text"]) < len(TEXT)
    assert saw["finish"] == ("error" if sdk == "ai-sdk" else None)
    assert STREAM_ERROR[sdk] in error["is"], error
    assert (error["kind"], error["code"]) == ("upstream_error", code)
    _reads_well(error["message"])


def _is_refused(saw: Saw, sdk: str, status: Any, code: str | None) -> None:
    """No text, the true status, our object in the SDK's own class, an id to ask about."""
    error = saw.get("error")
    assert error is not None, saw
    assert not saw.get("text")
    assert HTTP_ERROR[sdk] in error["is"], error
    assert (error["status"], error["code"]) == (status, code), error
    assert error["request_id"].startswith("req_")
    _reads_well(error["message"])


def _reads_well(message: str) -> None:
    """Words for people: no dump of a body, no page."""
    assert len(message.split()) > 1, message
    assert not set("{<") & set(message), message


def test_the_ledger_says_what_the_clients_saw(
    cells: Callable[[str, str, str], Saw], served: GatewayProcess
) -> None:
    """One row each, whose outcome is the one in the table."""
    expected = {}
    for variant, sdk, form in CELLS:
        cells(variant, sdk, form)
        row = VARIANTS[variant]
        expected[alias_of(variant, sdk, form)] = _outcome(
            row.stream if form == "stream" else row.whole
        )
    deadline = time.monotonic() + 15
    rows: list[dict[str, Any]] = []
    while len(rows) < len(expected) and time.monotonic() < deadline:
        time.sleep(0.5)
        rows = [row for row in served.rows() if row["alias"] in expected]
    assert len(rows) == len(expected), "one row each"
    assert {row["alias"]: row["outcome"] for row in rows} == expected
    answered = [row for row in rows if row["outcome"] == "ok"]
    assert {r["output_tokens"] for r in answered if r["usage_source"] == "reported"} == {TOKENS}
    assert all(r["output_tokens"] > 0 for r in answered), "where the vendor never says, we count"


def _outcome(seen: Any) -> str:
    if seen == ANSWER:
        return "ok"
    if seen == BROKEN:
        return "failed_midstream"
    return "rejected" if seen in (400, 422) else "failed"


def test_every_fault_of_the_vendor_has_a_row() -> None:
    assert missing_faults() == set()


@pytest.mark.parametrize(("variant", "sdk"), ALONE)
def test_what_the_sdk_makes_of_it_alone(
    clients: Callable[[str], Client], vendor: VendorProcess, variant: str, sdk: str
) -> None:
    """The same request straight to the vendor: these rows would fail without the gateway."""
    saw = clients(sdk).run(**chat_job(sdk, variant, "stream"), base_url=vendor.url + "/v1")
    error = saw.get("error")
    match ALONE[variant, sdk]:
        case "took the half for the whole":
            assert error is None
            assert saw["text"] != TEXT
        case "counted too many tokens":
            tokens = _tokens(saw)
            assert tokens is not None
            assert tokens[1] > TOKENS
        case "failed on a sound stream":
            assert error is not None
            assert error["code"] is None, "not an error of the API"
        case "dumped the body as the message":
            assert set("{<") & set(error["message"])
        case other:
            pytest.fail(f"no test for {other!r}")
