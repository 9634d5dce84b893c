"""What an app sees of limits through OpenAI's SDKs, with the SDK's own retries on.

Where waiting helps within a minute the SDK waits as long as we say; where it does not, it asks once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.chaos.audit import prices
from tests.clients.client import Client, chat_job, client
from tests.gateway_process import GatewayProcess, gateway, vendor_catalog
from tests.vendor import Script, vendor_process

pytestmark = [pytest.mark.xdist_group("clients_limits"), pytest.mark.usefixtures("environments")]

SDKS = ("openai-python", "openai-node")
KINDS = {
    "daily": {"requests": 1, "every": "day"},
    "purse": {"usd": "0.000001", "every": "month"},
    "words": {"tokens": 10, "every": "minute"},
    "alone": {"concurrent": 1},
}


@pytest.fixture(scope="module")
def limited() -> Iterator[GatewayProcess]:
    aliases = {f"{kind}-{sdk}": ["a/m"] for kind in (*KINDS, "seen") for sdk in SDKS}
    limits = [
        {"name": alias, "per": "alias", "match": {"alias": [alias]}, **KINDS[alias.split("-")[0]]}
        for alias in aliases
        if not alias.startswith("seen")
    ]
    scripts = {"m": Script(tokens=12, itl_s=0.1)}
    with (
        vendor_process(scripts) as vendor,
        gateway(
            vendor_catalog({"a": f"{vendor.url}/v1"}, aliases=aliases),
            limits={"version": 1, "limits": limits},
            prices=prices("a"),
        ) as running,
    ):
        yield running


@pytest.fixture(scope="module", params=SDKS)
def app(request: pytest.FixtureRequest, limited: GatewayProcess) -> Iterator[Client]:
    with client(request.param, f"{limited.url}/v1", limited.key) as running:
        yield running


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("daily", "rate_limit_exceeded", "It starts anew on"),
        ("purse", "insufficient_quota", "This request alone may take"),
        ("words", "rate_limit_exceeded", "This request alone may take"),
    ],
)
def test_where_waiting_does_not_help_it_asks_once(
    app: Client, limited: GatewayProcess, kind: str, code: str, says: str
) -> None:
    alias = f"{kind}-{app.sdk}"
    for form in ("whole", "stream"):
        if kind == "daily" and form == "whole":
            assert "error" not in app.run(**chat_job(app.sdk, alias, form))
        error = app.run(**chat_job(app.sdk, alias, form), retries=2)["error"]
        assert (error["status"], error["code"]) == (429, code), error
        assert says in error["message"]
        assert error["type"] == "RateLimitError"
    # Rows are sent in order: with the row of a last request, those before it are there.
    last = app.run(**chat_job(app.sdk, f"seen-{app.sdk}", "whole"))["request_id"]
    deadline = time.monotonic() + 15
    rows = {row["id"]: row for row in limited.rows()}
    while last not in rows and time.monotonic() < deadline:
        rows = {row["id"]: row for row in limited.rows()}
    ended = Counter(r["outcome"] for r in rows.values() if r["alias"] == alias)
    assert ended == {"refused": 2, **({"ok": 1} if kind == "daily" else {})}


def test_a_permit_is_waited_for(app: Client) -> None:
    alias = f"alone-{app.sdk}"
    first = app.start(**chat_job(app.sdk, alias, "stream"))
    second = app.run(**chat_job(app.sdk, alias, "stream"), retries=4)
    assert "error" not in second, second
    assert "error" not in app.answer(first)
