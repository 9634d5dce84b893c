"""Metrics: what a record adds, labels that stay bounded, workers added up."""

from __future__ import annotations

import os
from pathlib import Path

from gateway.domain.outcome import AttemptRecord, RequestRecord
from gateway.telemetry import SERIES_MAX, Telemetry


def record(**fields: object) -> RequestRecord:
    base: dict[str, object] = {
        "id": "r", "started_at_us": 1, "endpoint": "chat/completions", "alias": "chat",
        "backend": "b", "model": "m", "outcome": "ok", "uncached_tokens": 3, "cached_tokens": 1,
        "output_tokens": 5, "reasoning_tokens": 0, "cost_nano_usd": 1_500_000_000,
        "ttft_us": 30_000, "duration_us": 400_000, "overhead_us": 120,
        "priced": True,
        "attempts": [
            AttemptRecord(
                number=1, backend="b", model="m", started_at_us=1, outcome="ok",
                cost_nano_usd=1_500_000_000,
            )
        ],
    }  # fmt: skip
    return RequestRecord(**{**base, **fields})  # type: ignore[arg-type]


def page(telemetry: Telemetry) -> list[str]:
    return telemetry.render().decode().splitlines()


def test_a_request_shows_in_every_family() -> None:
    telemetry = Telemetry(aliases=frozenset({"chat"}))
    telemetry.record(record())
    lines = page(telemetry)
    for line in (
        'weighbridge_requests_total{alias="chat",backend="b",code="",model="m",outcome="ok",stream="false"} 1.0',
        'weighbridge_attempts_total{backend="b",outcome="ok"} 1.0',
        'weighbridge_tokens_total{backend="b",direction="cached_input",model="m"} 1.0',
        'weighbridge_cost_usd_total{backend="b",model="m"} 1.5',
        'weighbridge_unpriced_requests_total{backend="b",model="m"} 0.0',
        'weighbridge_ttft_seconds_bucket{backend="b",le="0.025",model="m"} 0.0',
        'weighbridge_ttft_seconds_bucket{backend="b",le="0.05",model="m"} 1.0',
        'weighbridge_ttft_seconds_sum{backend="b",model="m"} 0.03',
        "weighbridge_overhead_seconds_count 1.0",
    ):
        assert line in lines


def test_every_meter_is_counted_under_its_name_and_in_no_other() -> None:
    telemetry = Telemetry()
    meters = {"cache_write_1h": 70, "output_audio": 9, "search_call": 2}
    telemetry.record(record(other_meters=meters))
    telemetry.record(record(other_meters={"cache_write_1h": 30}))
    lines = page(telemetry)
    tokens = [line for line in lines if line.startswith("weighbridge_tokens_total{")]
    counted = {line.split('direction="')[1].split('"')[0]: line.split()[-1] for line in tokens}
    assert counted == {
        "uncached_input": "6.0",
        "cached_input": "2.0",
        "output": "10.0",
        "reasoning": "0.0",
        "cache_write_1h": "100.0",
        "output_audio": "9.0",
    }
    assert 'weighbridge_metered_total{backend="b",meter="search_call",model="m"} 2.0' in lines


def test_usage_that_does_not_add_up_is_counted_by_backend() -> None:
    telemetry = Telemetry()
    telemetry.usage_contradiction("b")
    telemetry.usage_contradiction("b")
    assert 'weighbridge_usage_contradictions_total{backend="b"} 2.0' in page(telemetry)


def test_an_unknown_price_is_counted_as_such_and_adds_no_cost() -> None:
    telemetry = Telemetry()
    attempt = AttemptRecord(number=1, backend="b", model="m", started_at_us=1, outcome="ok")
    telemetry.record(record(cost_nano_usd=None, priced=False, attempts=[attempt]))
    lines = page(telemetry)
    assert 'weighbridge_unpriced_requests_total{backend="b",model="m"} 1.0' in lines
    assert 'weighbridge_cost_usd_total{backend="b",model="m"} 0.0' in lines


def test_a_name_the_caller_made_up_is_no_label() -> None:
    telemetry = Telemetry(aliases=frozenset({"chat"}))
    telemetry.record(record(alias="rm -rf", backend=None, model=None))
    assert not any("rm -rf" in line for line in page(telemetry))


def test_series_are_bounded() -> None:
    telemetry = Telemetry()
    for number in range(SERIES_MAX + 50):
        telemetry.record(record(error_code=f"c{number}", backend=None, attempts=[]))
    rows = [line for line in page(telemetry) if line.startswith("weighbridge_requests_total{")]
    assert len(rows) == SERIES_MAX + 1


def test_workers_are_added_up_and_the_dead_still_count(tmp_path: Path) -> None:
    dead, living = (Telemetry(directory=tmp_path, worker=name) for name in ("0", "1"))
    dead.record(record(other_meters={"input_audio": 3}))
    dead.save()
    living.record(record(other_meters={"input_audio": 4}))
    living.save()
    audio = 'weighbridge_tokens_total{backend="b",direction="input_audio",model="m"} 7.0'
    assert audio in page(living)
    assert 'weighbridge_attempts_total{backend="b",outcome="ok"} 2.0' in page(living)


def test_the_cost_of_a_hedge_is_told_where_it_arose() -> None:
    telemetry = Telemetry()
    attempts = [
        AttemptRecord(
            number=number, backend=name, model="m", started_at_us=1, outcome=outcome,
            cost_nano_usd=500_000_000,
        )
        for number, (name, outcome) in enumerate([("a", "hedge_lost"), ("b", "ok")], 1)
    ]  # fmt: skip
    telemetry.record(record(cost_nano_usd=1_000_000_000, attempts=attempts))
    lines = page(telemetry)
    assert 'weighbridge_cost_usd_total{backend="a",model="m"} 0.5' in lines
    assert 'weighbridge_cost_usd_total{backend="b",model="m"} 0.5' in lines


def test_what_happens_seldom_is_counted() -> None:
    telemetry = Telemetry()
    telemetry.canary_reverted("d", "default")
    telemetry.limit_alert("team-day", "budget.share_reached", "0.8")
    telemetry.shadow(record())
    lines = page(telemetry)
    assert 'weighbridge_canary_reverts_total{route="default"} 1.0' in lines
    told = 'event="budget.share_reached",limit="team-day",share="0.8"'
    assert f"weighbridge_limit_alerts_total{{{told}}} 1.0" in lines
    assert 'weighbridge_shadow_requests_total{backend="b",outcome="ok"} 1.0' in lines
    assert not any(line.startswith("weighbridge_requests_total{") for line in lines)


def test_each_worker_tells_its_policy_version_and_what_did_not_load(tmp_path: Path) -> None:
    dead, next_one, other = (
        Telemetry(directory=tmp_path, worker=name) for name in ("0-11", "0-12", "1-13")
    )
    for worker, number in ((dead, 6), (next_one, 7)):
        worker.policy(number, "plain", "abcdef123456")
        worker.policy_failed("files")
        worker.save()
        os.utime(tmp_path / f"{worker._worker}.json", (number, number))
    other.policy(7, "plain", "abcdef123456")
    lines = page(other)
    assert 'weighbridge_policy_load_failures_total{what="files"} 2.0' in lines
    assert [line for line in lines if line.startswith("weighbridge_policy_version{")] == [
        f'weighbridge_policy_version{{digest="abcdef123456",policy="plain",worker="{slot}"}} 7.0'
        for slot in "01"
    ]
