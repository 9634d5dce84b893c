"""`policy explain REQUEST_ID` on both databases: the recorded decision, made again bit for bit."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import orjson
import pytest
from typer.testing import CliRunner

from gateway.bundle import load, read_folder
from gateway.cli.policy import app
from gateway.domain.catalog import Target
from gateway.domain.decision import BackendView, Facts, Tails, record
from gateway.domain.outcome import AttemptRecord, RequestRecord
from gateway.domain.request import Endpoint
from gateway.ledger import recorded
from gateway.ledger.store import Store
from gateway.ledger.versions import Change, Origin, Versions
from gateway.policy.engine import Router
from tests.gateway_process import gateway_beside, vendor_catalog
from tests.vendor import Script, vendor_in_loop

pytest_plugins = ("tests.servers",)
pytestmark = pytest.mark.xdist_group("explain")

POLICIES = Path(__file__).parents[2] / "policies"
NOON_US = 1_795_435_200_000_000  # 2026-11-23, noon UTC
FACTS = Facts(
    alias="gpt-oss-120b",
    endpoint=Endpoint.CHAT,
    privacy=0,
    needs=frozenset(),
    prompt_tokens=1234,
    output_tokens=256,
    stream=True,
    at_us=NOON_US,
    pinned=Target("together", "openai/gpt-oss-120b"),
    cached_tokens=1000,
    tie_break=7,
)
SNAPSHOT = {
    "vllm": BackendView(
        ttft_ms=81.30000000000001,
        tpot_ms=9.7,
        ttft_tails=Tails(100.1, 0.1 + 0.2, 1e16),
        in_flight=3,
        queue=20,
        kv_used=0.30000000000000004,
    ),
    "baseten": BackendView(ttft_ms=300.0, tpot_ms=5.0, healthy=False),
    "together": BackendView(ttft_ms=1 / 3, tpot_ms=2e-17),
}


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(POLICIES, tmp_path / "policies"))


class Place:
    """A ledger with the settings that lead to it, and the bundle of its rows."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.files = read_folder(folder, "self-host-with-spill")
        # Then, only some secrets were set.
        self.bundle = load(self.files, secret_present=lambda name: "TOGETHER" in name)

    def row(self, request_id: str, facts: Facts = FACTS, **changes) -> RequestRecord:
        rates = self.bundle.prices.in_force(facts.at_us)
        router = Router.build(self.bundle.policy, self.bundle.catalog, rates)
        decision = router.decide(facts, SNAPSHOT)
        values = {
            "id": request_id,
            "started_at_us": facts.at_us,
            "endpoint": "chat/completions",
            "alias": facts.alias,
            "privacy_class": "public",
            "policy": self.bundle.policy.name,
            "policy_digest": self.bundle.digest,
            "route": decision.route,
            "decision": record(decision, facts, SNAPSHOT),
            "outcome": "ok",
            **changes,
        }
        return RequestRecord(**values)

    def keep(self, *rows: RequestRecord, versions: bool = True) -> None:
        async def write() -> None:
            store = await Store.connect(self.url)
            if rows:
                await store.append([orjson.dumps(row) for row in rows])
            if versions:
                change = Change(
                    digest=self.bundle.digest,
                    policy=self.bundle.policy.name,
                    origin=Origin.START,
                    author="t",
                    files=self.files,
                )
                await Versions(store).put(change, expected=0)
            await store.close()

        asyncio.run(write())

    def explain(self, request_id: str, *options: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["explain", request_id, "--dir", str(self.folder), *options])
        return done.exit_code, done.output


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path, folder, monkeypatch):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    monkeypatch.setenv("WEIGHBRIDGE_DATABASE_URL", url)
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "home"))
    # Today others are: what was configured then is in the record.
    monkeypatch.setenv("BASETEN_API_KEY", "x")
    return Place(url, folder)


def attempts() -> list[AttemptRecord]:
    first = AttemptRecord(
        number=1,
        backend="together",
        model="openai/gpt-oss-120b",
        started_at_us=NOON_US,
        why="spill",
        outcome="hedge_lost",
        uncached_tokens=1234,
        output_tokens=3,
        usage_source="estimated",
        cost_nano_usd=186_900,
        duration_us=812_000,
    )
    second = replace(
        first,
        number=2,
        backend="vllm",
        why="hedge",
        outcome="ok",
        output_tokens=55,
        usage_source="reported",
        cost_nano_usd=None,
        ttft_us=40_100,
    )
    return [first, second]


def test_a_request_is_decided_again_bit_for_bit(place):
    place.keep(place.row("r1", attempts=attempts()))
    # Today's files are others; the database has those of then.
    (place.folder / "catalog.yaml").write_text("version: 1\n")
    code, output = place.explain("r1")
    assert code == 0, output
    assert "request r1, 2026-11-23 12:00:00 UTC: ok" in output
    assert "session at together/openai/gpt-oss-120b" in output
    assert "not route batch: tags work batch: this is none of these" in output
    assert "decided again from its record: identical, bit for bit" in output
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert "baseten/openai/gpt-oss-120b not_configured env:BASETEN_API_KEY is not set" in lines
    assert any(line.startswith("1 together/openai/gpt-oss-120b") for line in lines)
    assert "1 together/openai/gpt-oss-120b spill hedge_lost 812 ms 1234 + 3 $0.0001869" in lines, (
        "who lost is paid for, and says so"
    )
    assert "2 vllm/openai/gpt-oss-120b hedge ok 40 ms 812 ms 1234 + 55" in lines


def test_as_json(place):
    place.keep(place.row("r1", attempts=attempts()))
    code, output = place.explain("r1", "--json")
    told = json.loads(output)
    assert (code, told["identical"], told["differences"]) == (0, True, [])
    assert [attempt["why"] for attempt in told["attempts"]] == ["spill", "hedge"]
    assert told["decision"]["lines"][0]["target"] == "together/openai/gpt-oss-120b"


def test_a_record_that_says_something_else_is_told_and_fails(place):
    row = place.row("r1")
    assert row.decision is not None
    row.decision["order"][0][3] += 1  # one nano-dollar
    place.keep(row)
    code, output = place.explain("r1")
    assert code == 1
    assert "decided again from its record: NOT the same" in output
    assert "  order: recorded [[" in output


def test_prices_are_those_of_the_day_of_the_request(place):
    before = replace(FACTS, at_us=NOON_US - 40 * 86_400_000_000)  # in October most had none
    place.keep(place.row("r1", before), place.row("r2"))
    assert place.explain("r1")[0] == 0
    assert place.row("r1", before).decision["order"] != place.row("r2").decision["order"]
    just_after_midnight = replace(FACTS, at_us=1_793_491_200_000_000 + 500_000)  # 1 November
    late = place.row("r3", replace(just_after_midnight, at_us=just_after_midnight.at_us - 900_000))
    late = replace(late, started_at_us=just_after_midnight.at_us)
    place.keep(late, versions=False)
    code, output = place.explain("r3")
    assert code == 0, "a worker takes the new day's prices a second late"
    assert "identical" in output


def test_files_that_nobody_kept(place):
    place.keep(place.row("r1"), versions=False)
    code, output = place.explain("r1")
    assert code == 0
    assert "identical" in output, "the folder's are the same"
    prices = place.folder / "prices" / "managed.yaml"
    prices.write_text(prices.read_text() + "\n")
    code, output = place.explain("r1")
    assert code == 0
    assert (
        f"not decided again: the files of then (self-host-with-spill@{place.bundle.digest[:12]})"
        in output
    )
    assert "1  together/openai/gpt-oss-120b" in output, "what was recorded is shown all the same"


def test_rows_without_a_decision(place):
    copy = place.row("s1", decision=None, shadow_of="r1", attempts=attempts()[1:])
    refused = place.row("q1", decision=None, outcome="refused", error_code="model_not_found")
    place.keep(copy, refused)
    code, output = place.explain("s1")
    assert code == 0
    assert "a copy of r1, sent for comparison: its answer was thrown away and nobody is" in output
    assert "hedge" in output
    code, output = place.explain("q1")
    assert code == 0
    assert "refused (model_not_found)" in output
    assert "no decision was made: it ended before there was one" in output


def test_an_unknown_request(place):
    place.keep()
    code, output = place.explain("nonesuch")
    assert code == 1
    assert "no request nonesuch in the ledger" in output
    assert "about a second after the answer" in output


async def test_a_request_of_a_real_gateway(tmp_path, postgres_url, monkeypatch):
    """Real traffic, a failed attempt and its fallback: the answer's id explains it."""
    scripts = {"bad": Script(status=500), "good": Script(tokens=3)}
    async with vendor_in_loop(scripts) as vendor:
        catalog = vendor_catalog(dict.fromkeys(scripts, f"{vendor.url}/v1"))
        for name, backend in catalog["backends"].items():
            backend["models"] = {name: backend["models"]["m"]}
        catalog["aliases"]["chat"] = {"targets": ["bad/bad", "good/good"]}
        environment = {"WEIGHBRIDGE_DATABASE_URL": postgres_url}
        home = tmp_path / "home"
        async with (
            gateway_beside(catalog, environment=environment, home=home) as running,
            httpx.AsyncClient(base_url=running.url, headers=running.auth, timeout=30) as http,
        ):
            body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
            ids = [
                (await http.post("/v1/chat/completions", json=body)).headers["x-request-id"]
                for _ in range(3)
            ]
            await running.ledger(count=3)
            for name, value in running.environment.items():
                if name.startswith("WEIGHBRIDGE_"):
                    monkeypatch.setenv(name, value)
            invoke = CliRunner().invoke
            told = [
                await asyncio.to_thread(invoke, app, ["explain", request_id]) for request_id in ids
            ]
        for done in told:
            assert done.exit_code == 0, done.output
            assert "decided again from its record: identical, bit for bit" in done.output
        lines = [" ".join(line.split()) for line in told[0].output.splitlines()]
        assert any(line.startswith("1 bad/bad preferred failed (upstream") for line in lines)
        assert any(line.startswith("2 good/good fallback ok") for line in lines)


REFUSED = {
    "limit": "team-month",
    "per": "team",
    "holder": "search",
    "unit": "usd",
    "every": "month",
    "amount": 500 * 10**9,
    "left": 10**9,
    "asked": 2 * 10**9,
    "unchecked": False,
}


def test_a_request_that_a_limit_refused_names_the_limit(place):
    ended = {"outcome": "refused", "error_code": "insufficient_quota", "http_status": 429}
    place.keep(place.row("req_limited", route=None, decision=REFUSED, **ended))
    code, said = place.explain("req_limited")
    assert code == 0
    assert (
        "refused by the limit 'team-month' for team 'search', $500.00 per month: $1.00 left, the "
        "request may take $2.00\nno decision was made: limits come before it\n"
    ) in said
    code, said = place.explain("req_limited", "--json")
    assert json.loads(said)["limit"] == REFUSED
    assert json.loads(said)["decision"] is None


def test_what_a_limit_refused_was_not_decided(place):
    place.keep(place.row("req_limited", route=None, decision=REFUSED), place.row("req_fine"))

    async def asked():
        store = await Store.connect(place.url)
        try:
            pages = [page async for page in recorded.pages(store, 0, 2**53)]
            return await recorded.counts(store, 0, 2**53), len(pages[0])
        finally:
            await store.close()

    counts, rows = asyncio.run(asked())
    assert (counts.decided, counts.undecided, rows) == (1, 1, 1)
