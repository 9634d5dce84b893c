"""What ships below `policies/`: it loads, its schemas are in step, and it does what it says."""

from __future__ import annotations

import datetime as dt
import json
import re
from decimal import Decimal
from pathlib import Path

import jsonschema
import pytest
import yaml

from gateway.bundle import TESTS, routing_files
from gateway.cli.policy.check import Report, look
from gateway.domain.catalog import Kind, Target
from gateway.domain.decision import Facts
from gateway.domain.money import Meter
from gateway.domain.request import Endpoint
from gateway.ledger import prices
from gateway.ledger.price_file import instant
from gateway.policy import cases, language
from gateway.policy import catalog as catalog_module
from gateway.policy import limits as limits_module
from gateway.policy.catalog import load_catalog
from gateway.policy.engine import Router
from gateway.policy.language import load_policy

POLICIES = Path(__file__).parents[3] / "policies"
DAY = dt.date(2026, 11, 23)
TODAY = instant(DAY)  # when the shipped figures were read
ROUTING = routing_files(POLICIES)
FILES = sorted(POLICIES.rglob("*.yaml"))
SCHEMAS = {
    "catalog": catalog_module.schema,
    "limits": limits_module.schema,
    "policy-tests": cases.schema,
    "prices": prices.schema,
    "routing": language.schema,
}


@pytest.fixture(scope="module")
def catalog():
    text = (POLICIES / "catalog.yaml").read_text()
    return load_catalog(text, source="catalog.yaml", secret_present=lambda _: True)


@pytest.fixture(scope="module")
def book():
    files = sorted(POLICIES.glob("prices/*.yaml"))
    return prices.load_prices([(file.name, file.read_text()) for file in files])


def router(name: str, catalog, book) -> Router:
    text = (POLICIES / "routing" / f"{name}.yaml").read_text()
    policy = load_policy(text, source=name, catalog=catalog)
    return Router.build(policy, catalog, book.in_force(TODAY))


def ask(alias: str, privacy: int = 0, endpoint: Endpoint = Endpoint.CHAT) -> Facts:
    return Facts(
        alias=alias,
        endpoint=endpoint,
        privacy=privacy,
        needs=frozenset(),
        prompt_tokens=1000,
        output_tokens=300,
        stream=True,
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_first_line_names_the_schema_and_the_schema_takes_the_file(file):
    text = file.read_text()
    line = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert line, "editors need the schema in the first line"
    schema = json.loads((file.parent / line[1]).read_text())
    # Dates are text to the schema, as they are to our own reader.
    document = json.loads(json.dumps(yaml.safe_load(text), default=str))
    jsonschema.Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schemas_are_in_step_with_the_code(name):
    written = json.loads((POLICIES / "schema" / f"{name}.schema.json").read_text())
    assert written == SCHEMAS[name](), "run: weighbridge policy schema --write"


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_key_of_a_schema_that_needs_words_has_them(name):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name]())
    for title, part in SCHEMAS[name]()["$defs"].items():
        assert part.get("description") or "enum" in part, title


@pytest.mark.parametrize("file", ROUTING, ids=lambda file: file.stem)
def test_a_policy_is_named_as_its_file_and_says_whom_it_is_for(file, catalog):
    policy = load_policy(file.read_text(), source=file.name, catalog=catalog)
    assert policy.name == file.stem
    assert policy.description
    assert "\n# For " in file.read_text()


def test_the_shipped_policies():
    assert [file.stem for file in ROUTING] == [
        "balanced",
        "cheapest",
        "closed-only-fallback",
        "eu-only",
        "fastest",
        "private-first",
        "self-host-with-spill",
    ]


@pytest.fixture(scope="module")
def report() -> Report:
    return look([], POLICIES, DAY)


def test_they_are_without_error_and_nearly_without_warning(report):
    told = [str(problem) for problem in report.problems if problem.severity != "note"]
    assert [line.partition(": ")[0].rpartition("routing/")[2] for line in told] == [
        "cheapest.yaml:14:7"  # own machines have no price until someone declares one
    ]


@pytest.mark.parametrize("name", [file.stem for file in ROUTING])
def test_each_has_tests_that_pass_and_show_its_point_and_what_it_refuses(name, report):
    verdicts = [verdict for verdict in report.verdicts if verdict.decision.policy == name]
    assert len(verdicts) >= 4
    assert [problem for verdict in verdicts for problem in verdict.problems] == []
    expected = [verdict.case.expect for verdict in verdicts]
    assert any(expect.first or expect.order for expect in expected)
    assert any(expect.refused or expect.never or expect.excluded for expect in expected)
    text = (POLICIES / "routing" / f"{name}.yaml").read_text()
    for route in re.findall(r"- name: (\S+)", text):
        assert route in {verdict.decision.route for verdict in verdicts}, "each route has a test"


def test_every_test_belongs_to_a_policy():
    tested = {file.name.removesuffix(TESTS) for file in POLICIES.glob(f"routing/*{TESTS}")}
    assert tested == {file.stem for file in ROUTING}


def test_every_vendor_model_has_a_price_and_no_price_is_of_nothing(catalog, book):
    vendors = {
        Target(name, model)
        for name, backend in catalog.backends.items()
        if backend.kind is not Kind.SELF_HOSTED
        for model in backend.models
    }
    assert set(book.in_force(TODAY)) == vendors == set(book.rows)


def test_no_price_is_of_nothing_or_from_nowhere(book):
    for rows in book.rows.values():
        for row in rows:
            assert not any(rates.free for rates in row.every())
            assert row.terms["source"]
            assert dt.date.fromisoformat(row.terms["read_on"]) <= dt.date(2026, 11, 24)


def test_long_prompts_cache_writes_and_service_tiers_have_their_prices(book):
    sol = book.rates(Target("openai", "gpt-6-sol"), TODAY)
    assert set(sol.service_tiers) == {"batch", "flex", "priority", "fast"}
    for rates in (sol, *sol.service_tiers.values()):
        (tier,) = rates.tiers
        assert tier.above == 272_000
        assert tier.rates.input == 2 * rates.input
        assert tier.rates.output == rates.output * Decimal("1.5")
    sonnet = book.rates(Target("anthropic", "claude-sonnet-5-5"), TODAY)
    assert sonnet.price(Meter.CACHE_WRITE_5M) == Decimal("2.50")
    assert sonnet.price(Meter.CACHE_WRITE_1H) == Decimal("4.00")


def test_what_is_announced_is_in_the_book(book):
    flash, later = Target("google", "gemini-3.8-flash"), instant(dt.date(2027, 1, 1))
    assert book.rates(flash, later - 1).input == Decimal("0.75")
    assert book.rates(flash, later).input == Decimal("1.50")


def test_hours_of_gpus_are_dated_sourced_and_said_once(book):
    rows = book.gpu_hours
    assert len({(r.provider, r.gpu, r.commitment, r.region, r.note, r.from_) for r in rows}) == 81
    assert all(r.source and r.read_on == r.from_ <= dt.date(2026, 11, 24) for r in rows)
    dedicated = {r.provider for r in rows if r.commitment == "dedicated"}
    assert dedicated == {"Fireworks", "Simplismart", "Together"}
    h100 = [Decimal(r.usd_per_gpu_hour) for r in rows if r.gpu == "H100-SXM-80GB"]
    assert (min(h100), max(h100)) == (Decimal("2.4024"), Decimal("12.29"))


def test_examples_of_other_currencies_are_dated(book):
    assert book.per_usd("EUR", dt.date(2026, 5, 7)) is None
    assert book.per_usd("EUR", dt.date(2026, 5, 8)) == Decimal("0.850267835")


def test_own_tokens_are_unpriced_until_someone_declares_a_price(book):
    assert book.rates(Target("vllm", "openai/gpt-oss-120b"), TODAY) is None


def test_no_vendor_is_cleared_beyond_internal(catalog):
    """More needs a contract, which only the operator has."""
    internal = catalog.privacy_classes.index("internal")
    for backend in catalog.backends.values():
        if backend.kind is Kind.SELF_HOSTED:
            assert backend.clearance == len(catalog.privacy_classes) - 1
        else:
            assert backend.clearance <= internal
            stored = backend.data.retention_days != 0
            known = backend.data.retention_days is not None and not (
                stored and backend.data.trains_on_data is not False
            )
            assert backend.clearance == (internal if known else 0), backend.name


def test_what_needs_no_secret_is_our_own():
    text = (POLICIES / "catalog.yaml").read_text()
    bare = load_catalog(text, source="catalog.yaml", secret_present=lambda _: False)
    ready = {name for name, backend in bare.backends.items() if backend.configured}
    assert ready == {"vllm", "llamacpp", "ollama"}


@pytest.mark.parametrize("name", [file.stem for file in ROUTING])
@pytest.mark.parametrize("privacy", [2, 3])
def test_confidential_stays_at_home_under_every_policy(name, privacy, catalog, book):
    for alias in catalog.aliases:
        for candidate in router(name, catalog, book).decide(ask(alias, privacy), {}).order:
            assert catalog.backends[candidate.target.backend].kind is Kind.SELF_HOSTED


def test_each_kind_has_an_entry_to_start_from(catalog):
    assert {backend.kind for backend in catalog.backends.values()} == set(Kind)
