"""The catalog: what it means, and every mistake in the exact words and place it is told."""

from __future__ import annotations

import json
import re

import pytest

from gateway.domain.catalog import DetectorPlugin, Kind, Limits, StandIn, Target
from gateway.domain.request import Capability, Endpoint
from gateway.policy.catalog import load_catalog, schema, target
from gateway.policy.source import ConfigErrors

GOOD = """\
version: 1
privacy_classes: [public, internal, restricted]
aliases:
  chat: {description: Small talk., targets: [api/a/b, home/m]}
  inner: {privacy_floor: restricted, targets: [api/a/b, home/m]}
backends:
  api:
    kind: closed_api
    wire: openai_http
    base_url: https://api.example.com/v1/
    secret: env:API_KEY
    cleared_for: internal
    headers: {x-team: ops}
    query: api-version=1
    limits: {concurrency_max: 7}
    data: {retention_days: 30, trains_on_data: false, certifications: [SOC 2]}
    models:
      a/b:
        context_tokens: 1000
        prompt_tokens_max: 800
        endpoints: [chat/completions, embeddings]
        capabilities: [tools]
  home:
    kind: self_hosted
    wire: openai_http
    base_url: http://127.0.0.1:8000/v1
    cleared_for: restricted
    models: {m: {}}
  sdk:
    kind: managed
    wire: litellm_sdk
    vendor: anthropic
    models: {m: {}}
"""


def load(text: str, present: bool = True):
    return load_catalog(text, source="c.yaml", secret_present=lambda _: present)


def told(text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(text)
    return str(caught.value).splitlines()


def test_what_is_written_is_what_is_loaded():
    catalog = load(GOOD)
    assert catalog.privacy_classes == ("public", "internal", "restricted")
    assert catalog.aliases["chat"].targets == (Target("api", "a/b"), Target("home", "m"))
    assert catalog.aliases["chat"].privacy_floor == 0
    assert catalog.aliases["inner"].privacy_floor == 2
    api = catalog.backends["api"]
    assert (api.kind, api.wire, api.base_url) == (
        Kind.CLOSED_API,
        "openai_http",
        "https://api.example.com/v1",
    )
    assert (api.clearance, api.secret, api.configured) == (1, "env:API_KEY", True)
    assert (api.headers, api.query) == ((("x-team", "ops"),), "api-version=1")
    assert api.limits == Limits(concurrency_max=7)
    assert (api.data.retention_days, api.data.trains_on_data, api.data.region) == (30, False, None)
    model = api.models["a/b"]
    assert (model.context_tokens, model.prompt_tokens_max, model.output_tokens_max) == (
        1000,
        800,
        None,
    )
    assert model.endpoints == {Endpoint.CHAT, Endpoint.EMBEDDINGS}
    assert model.capabilities == {Capability.TOOLS}
    assert catalog.backends["sdk"].vendor == "anthropic"


def test_terms_that_are_not_stated_are_the_worst():
    assert load(GOOD).backends["sdk"].clearance == 0


def test_a_backend_without_its_secret_is_listed_and_says_why():
    api = load(GOOD, present=False).backends["api"]
    assert (api.configured, api.why_unconfigured) == (False, "env:API_KEY is not set")
    assert load(GOOD, present=False).backends["home"].configured


def test_a_backend_can_be_switched_off():
    home = load(
        GOOD.replace("cleared_for: restricted", "cleared_for: restricted\n    enabled: false")
    )
    assert home.backends["home"].why_unconfigured == "switched off in the catalog (enabled: false)"


def test_the_digest_is_of_the_content_and_not_of_what_is_configured():
    assert load(GOOD).digest == load("# x\n" + GOOD, present=False).digest
    assert load(GOOD).digest != load(GOOD.replace("Small", "Large")).digest


def test_a_target_splits_at_the_first_slash():
    assert target("a/b/c") == Target("a", "b/c")


REPLACED = [
    # (what is replaced, by what, the one line that is told)
    ("kind: managed", "kind: manged", "30:11: backends.sdk.kind: unknown value 'manged'; did you mean 'managed'?"),
    ("wire: litellm_sdk", "wire: litelm_sdk", "31:11: backends.sdk.wire: unknown value 'litelm_sdk'; did you mean 'litellm_sdk'?"),
    ("[api/a/b, home/m]}\n  inner", "[aip/a/b, home/m]}\n  inner", "4:46: aliases.chat.targets[0]: no backend 'aip'; did you mean 'api'?"),
    ("[api/a/b, home/m]}\n  inner", "[api/a/c, home/m]}\n  inner", "4:46: aliases.chat.targets[0]: backend 'api' has no model 'a/c'; did you mean 'a/b'?"),
    ("[api/a/b, home/m]}\n  inner", "[api, home/m]}\n  inner", "4:46: aliases.chat.targets[0]: 'api' is not backend/model"),
    ("[api/a/b, home/m]}\n  inner", "[home/m, home/m]}\n  inner", "4:54: aliases.chat.targets[1]: 'home/m' is listed twice"),
    ("privacy_floor: restricted, targets: [api/a/b, home/m]", "privacy_floor: restricted, targets: [api/a/b, sdk/m]", "5:47: aliases.inner.targets: none may receive 'restricted', the floor of this alias; the best is cleared for 'internal'"),
    ("privacy_floor: restricted", "privacy_floor: strict", "5:26: aliases.inner.privacy_floor: unknown privacy class 'strict'; did you mean 'restricted'?"),
    ("cleared_for: internal", "cleared_for: internl", "12:18: backends.api.cleared_for: unknown privacy class 'internl'; did you mean 'internal'?"),
    ("secret: env:API_KEY", "secret: sk-abcdef", "11:13: backends.api.secret: a secret does not belong in this file; use env:NAME or file:/path"),
    ("secret: env:API_KEY", "secret: 'env:'", "11:13: backends.api.secret: a secret does not belong in this file; use env:NAME or file:/path"),
    ("x-team: ops", "authorization: Bearer sk-abcdef", "13:15: backends.api.headers.authorization: carries a secret; use secret and auth_header"),
    ("x-team: ops", "X-Team: ops", "13:15: backends.api.headers.X-Team: a header's name is lower case letters, digits and -"),
    ("query: api-version=1", "query: api-version=1&api_key=sk-abcdef", "14:12: backends.api.query: 'api_key' looks like a secret; use secret and auth_header"),
    ("https://api.example.com/v1/", "https://user:sk-abcdef@api.example.com/v1", "10:15: backends.api.base_url: holds credentials; use secret: env:NAME or file:/path"),
    ("https://api.example.com/v1/", "http://api.example.com/v1", "10:15: backends.api.base_url: http:// would carry prompts in the clear to api.example.com; use https://, or set insecure_http: true"),
    ("https://api.example.com/v1/", "ftp://api.example.com/v1", "10:15: backends.api.base_url: not an http:// or https:// URL with a host"),
    ("https://api.example.com/v1/", "https://", "10:15: backends.api.base_url: not an http:// or https:// URL with a host"),
    ("https://api.example.com/v1/", "https://api.example.com/v1?key=x", "10:15: backends.api.base_url: has a query or a fragment; use query"),
    ("https://api.example.com/v1/", "https://api.example.com:port/v1", "10:15: backends.api.base_url: not a URL: Port could not be cast to integer value as 'port'"),
    ("vendor: anthropic", "region: eu", "31:11: backends.sdk.wire: litellm_sdk needs 'vendor'; for example anthropic"),
    ("query: api-version=1", "vendor: openai", "14:5: backends.api.vendor: has no meaning on openai_http"),
    ("[public, internal, restricted]", "[public, internal, restricted, internal]", "2:49: privacy_classes[3]: 'internal' is listed twice"),
    ("[public, internal, restricted]", "[public, internal, restricted, Très]", "2:49: privacy_classes[3]: 'Très' is no name for a class; use a-z, 0-9, - and _"),
    ("  sdk:", "  self_hosted:", "29:3: backends.self_hosted: 'self_hosted' is a kind; policies mean all backends of it"),
    ("  sdk:", "  a/b:", "29:3: backends.a/b: 'a/b' is no name for a backend; use a-z, 0-9, ., - and _"),
    ("  inner:", "  in ner:", "5:3: aliases.in ner: 'in ner' is no name for an alias; use letters, digits, ., _, :, / and -"),
    ("a/b:\n", '"a b":\n', "18:7: backends.api.models.a b: a model's name has no spaces"),
    ("endpoints: [chat/completions, embeddings]", "endpoints: []", "21:20: backends.api.models.a/b.endpoints: must not be empty"),
    ("models: {m: {}}\n  sdk", "models: {}\n  sdk", "28:13: backends.home.models: must not be empty"),
    ("concurrency_max: 7", "concurrency_max: 100001", "15:31: backends.api.limits.concurrency_max: must be at most 100000"),
    ("concurrency_max: 7", "concurency_max: 7", "15:14: backends.api.limits.concurency_max: unknown key 'concurency_max'; did you mean 'concurrency_max'?"),
    ("retention_days: 30", 'retention_days: "30"', "16:28: backends.api.data.retention_days: expected a whole number, not '30'"),
    ("trains_on_data: false", "trains_on_data: no", "16:48: backends.api.data.trains_on_data: unquoted no is not text to all readers; write true, false or null, or quote it if it is text"),
    ("version: 1\np", "version: 2\np", "1:10: version: unknown value the number 2; one of: 1"),
    ("  home:\n", "  home: &h\n", "23:9: backends.home: an anchor (&h) is not allowed here; write the value out"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), REPLACED)
def test_a_mistake_is_told_with_its_place_and_the_nearest_name(old, new, line):
    assert GOOD.count(old) == 1, "the test replaces exactly one place"
    text = GOOD.replace(old, new)
    found = told(text)
    assert f"c.yaml:{line}" in found
    assert "sk-abcdef" not in "".join(found)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/v1",
        "http://10.1.2.3/v1",
        "http://192.168.0.9:8000/v1",
        "http://[::1]:8000/v1",
        "http://[fd00::1]/v1",
        "http://vllm:8000/v1",
        "http://vllm.models.svc.cluster.local/v1",
        "http://gpu1.internal/v1",
    ],
)
def test_plain_http_is_for_private_hosts(url):
    assert load(GOOD.replace("https://api.example.com/v1/", url)).backends["api"].base_url == url


@pytest.mark.parametrize(
    "url", ["http://8.8.8.8/v1", "http://[2606:4700::1]/v1", "http://evil.com/.local"]
)
def test_plain_http_to_a_public_host_must_be_asked_for(url):
    text = GOOD.replace("https://api.example.com/v1/", url)
    assert "in the clear" in told(text)[0]
    allowed = text.replace("query: api-version=1", "insecure_http: true")
    assert load(allowed).backends["api"].base_url == url


def test_a_whole_file_of_mistakes_is_told_at_once():
    text = GOOD.replace("kind: managed", "kind: x").replace("home/m]}\n  inner", "hme/m]}\n  inner")
    text = text.replace("secret: env:API_KEY", "secret: sk-abcdef\n    secrte: x")
    assert told(text) == [
        "c.yaml:4:55: aliases.chat.targets[1]: no backend 'hme'; did you mean 'home'?",
        "c.yaml:11:13: backends.api.secret: a secret does not belong in this file; use env:NAME or file:/path",
        "c.yaml:12:5: backends.api.secrte: unknown key 'secrte'; did you mean 'secret'?",
        "c.yaml:31:11: backends.sdk.kind: unknown value 'x'; one of: closed_api, managed, self_hosted",
    ]


# --- privacy, equivalence, licences: at the end of the good file ---------------------------------

PRIVACY = (
    GOOD.replace("{description: Small talk.,", "{stand_in: group,")
    + """\
clearance_terms:
  internal:
    - {retention_days_max: 0}
    - {retention_days_max: 60, no_training: true}
  restricted:
    - {retention_days_max: 0, no_training: true, regions: [here], certifications: [SOC 2]}
detectors: {card_number: restricted, email: internal, token_ids: public}
detector_plugins: {names: {class: internal, timeout_ms: 20}}
scan_bytes_max: 2048
equivalence:
  same:
    weights: a/b, published
    precision: FP8
    declared_by: ops
    targets: [api/a/b, home/m]
"""
)
PRIVACY = PRIVACY.replace(
    "models: {m: {}}",
    """\
data: {region: here, retention_days: 0, trains_on_data: false, certifications: [SOC 2, X]}
    models: {m: {licence: Apache-2.0}}""",
    1,
)


def test_detectors_groups_and_licences_as_they_are_written():
    catalog = load(PRIVACY)
    assert catalog.detectors == {"card_number": 2, "email": 1, "token_ids": 0}
    assert catalog.detector_plugins == (DetectorPlugin(name="names", rank=1, timeout_ms=20),)
    assert catalog.scan_bytes_max == 2048
    [group] = catalog.equivalences
    assert (group.name, group.weights, group.precision, group.declared_by, group.evidence) == (
        "same",
        "a/b, published",
        "FP8",
        "ops",
        "",
    )
    assert group.targets == {Target("api", "a/b"), Target("home", "m")}
    assert (catalog.aliases["chat"].stand_in, catalog.aliases["inner"].stand_in) == (
        StandIn.GROUP,
        StandIn.ALIAS,
    )
    assert catalog.backends["home"].models["m"].licence == "Apache-2.0"
    assert catalog.backends["api"].models["a/b"].licence is None
    assert load(GOOD).detectors == {}
    assert load(GOOD).equivalences == ()


PRIVACY_REPLACED = [
    # (what is replaced, by what, the line without its position that is told)
    ("data: {retention_days: 30, trains_on_data: false,", "data: {", "backends.api.cleared_for: its terms do not bear out 'internal': how long it keeps data is not stated, at most 0 days are asked for, or: how long it keeps data is not stated, at most 60 days are asked for, whether it trains on data is not stated; state it below data, with the source, or clear it for less"),
    ("retention_days: 30, trains", "retention_days: 61, trains", "backends.api.cleared_for: its terms do not bear out 'internal': keeps data for 61 days, at most 0 are asked for, or: keeps data for 61 days, at most 60 are asked for; state it below data, with the source, or clear it for less"),
    ("days: 30, trains_on_data: false", "days: 30, trains_on_data: true", "backends.api.cleared_for: its terms do not bear out 'internal': keeps data for 30 days, at most 0 are asked for, or: trains on data; state it below data, with the source, or clear it for less"),
    ("cleared_for: internal", "cleared_for: restricted", "backends.api.cleared_for: its terms do not bear out 'restricted': the region is not stated, asked for is here, keeps data for 30 days, at most 0 are asked for; state it below data, with the source, or clear it for less"),
    ("{region: here, ", "{region: there, ", "backends.home.cleared_for: its terms do not bear out 'restricted': the region is there, not here; state it below data, with the source, or clear it for less"),
    ("certifications: [SOC 2, X]", "certifications: [X]", "backends.home.cleared_for: its terms do not bear out 'restricted': not certified for SOC 2; state it below data, with the source, or clear it for less"),
    ("  internal:\n    - {retention_days_max: 0}", "  public:\n    - {retention_days_max: 0}", "backends.sdk.cleared_for: its terms do not bear out 'public': how long it keeps data is not stated, at most 0 days are asked for, or: how long it keeps data is not stated, at most 60 days are asked for, whether it trains on data is not stated; state it below data, with the source, or clear it for less"),
    ("  internal:\n    - {ret", "  intern:\n    - {ret", "clearance_terms.intern: unknown privacy class 'intern'; did you mean 'internal'?"),
    ("{card_number: restricted", "{card_nr: restricted", "detectors.card_nr: no detector 'card_nr'; did you mean 'card_number'?"),
    ("{card_number: restricted", "{card_number: strict", "detectors.card_number: unknown privacy class 'strict'; did you mean 'restricted'?"),
    ("class: internal", "class: intern", "detector_plugins.names.class: unknown privacy class 'intern'; did you mean 'internal'?"),
    ("{names: {", "{email: {", "detector_plugins.email: 'email' is no name for a plugin"),
    ("timeout_ms: 20", "timeout_ms: 0", "detector_plugins.names.timeout_ms: must be at least 1"),
    ("targets: [api/a/b, home/m]\n", "targets: [api/a/b, home/n]\n", "equivalence.same.targets[1]: backend 'home' has no model 'n'; one of: m"),
    ("    declared_by: ops\n", "", "equivalence.same.declared_by: missing key 'declared_by'"),
    ("targets: [api/a/b, home/m]\n", "targets: [home/m, home/m]\n", "equivalence.same.targets[1]: 'home/m' is in group 'same' already"),
    ("targets: [api/a/b, home/m]\n", "targets: [sdk/m, home/m]\n", "aliases.chat.stand_in: no two of its targets are in one group, so nothing ever stands in; declare a group below equivalence, or leave stand_in out"),
    ("stand_in: group", "stand_in: grup", "aliases.chat.stand_in: unknown value 'grup'; did you mean 'group'?"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), PRIVACY_REPLACED)
def test_a_claim_without_its_terms_is_refused_with_what_is_missing(old: str, new: str, line: str):
    assert old in PRIVACY
    shown = [re.sub(r"^c\.yaml:\d+:\d+: ", "", told) for told in told(PRIVACY.replace(old, new))]
    assert line in shown


def test_the_place_of_an_unproven_clearance():
    [line] = told(PRIVACY.replace("{region: here, ", "{"))
    assert line.startswith("c.yaml:27:18: backends.home.cleared_for: ")


def test_the_json_schema_takes_the_good_file_and_refuses_an_unknown_key():
    import jsonschema
    import yaml

    document = json.loads(json.dumps(yaml.safe_load(GOOD)))
    jsonschema.validate(document, schema())
    document["backends"]["api"]["typo"] = 1
    with pytest.raises(jsonschema.ValidationError, match="typo"):
        jsonschema.validate(document, schema())
