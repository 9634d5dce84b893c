"""Why nobody may serve a request, in the terms its caller can act on."""

from __future__ import annotations

import pytest

from gateway.api.errors import error_object, retry_after_s, status_of
from gateway.domain.caller import Caller
from gateway.domain.catalog import Target
from gateway.domain.decision import BackendView, Decision, Exclusion, Rule
from gateway.domain.errors import GatewayError
from gateway.domain.request import Endpoint, ModelRequest
from gateway.policy.refusal import no_route

CALLER = Caller(key_id="k", name="k")
VIEWS = {
    Rule.COOLING: BackendView(cooling=True, retry_after_s=7.0),
    Rule.CIRCUIT_OPEN: BackendView(circuit="open", retry_after_s=3.0),
}


def refused(*rules: Rule) -> GatewayError:
    targets = [Target(f"b{n}", "m") for n in range(len(rules))]
    decision = Decision(
        policy="p",
        policy_digest="d",
        route="r",
        order=(),
        excluded=tuple(
            Exclusion(target, rule, "") for target, rule in zip(targets, rules, strict=True)
        ),
    )
    snapshot = {
        target.backend: VIEWS.get(rule, BackendView())
        for target, rule in zip(targets, rules, strict=True)
    }
    request = ModelRequest(
        endpoint=Endpoint.CHAT,
        alias="chat",
        document={},
        stream=False,
        usage_wanted=False,
        prompt_tokens=1,
        output_tokens_max=None,
        needs=frozenset(),
    )
    return no_route(decision, snapshot, request, CALLER, "internal")


@pytest.mark.parametrize(
    ("rules", "status", "wait_s"),
    [
        ([Rule.COOLING], 429, 7.0),
        ([Rule.COOLING, Rule.PRIVACY, Rule.NOT_CONFIGURED], 429, 7.0),
        ([Rule.COOLING, Rule.CIRCUIT_OPEN], 503, 3.0),
        ([Rule.COOLING, Rule.UNHEALTHY], 503, 7.0),
        ([Rule.CIRCUIT_OPEN], 503, 3.0),
        ([Rule.PRIVACY], 503, None),
        ([Rule.CAPACITY], 503, None),
    ],
)
def test_where_all_that_is_left_asked_us_to_wait_it_is_429(
    rules: list[Rule], status: int, wait_s: float | None
) -> None:
    error = refused(*rules)
    assert (status_of(error), retry_after_s(error)) == (status, wait_s)
    kind = error_object(error)["error"]["type"]
    assert kind == ("rate_limit_error" if status == 429 else "server_error")
