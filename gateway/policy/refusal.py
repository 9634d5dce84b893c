"""Why nobody may serve a request, in words for its caller. Pure."""

from __future__ import annotations

from gateway.domain.caller import Caller
from gateway.domain.decision import Decision, Rule, Snapshot
from gateway.domain.errors import (
    ContextTooLong,
    GatewayError,
    NoEligibleBackend,
    UnsupportedParameter,
)
from gateway.domain.request import ModelRequest

# What goes by without anybody's doing.
_PASSING = {Rule.COOLING, Rule.CIRCUIT_OPEN, Rule.UNHEALTHY, Rule.CAPACITY}


def no_route(
    decision: Decision, snapshot: Snapshot, request: ModelRequest, caller: Caller, privacy: str
) -> GatewayError:
    """The caller's doing where it is, else ours, with the exclusions.

    Names of backends are for keys of scope debug; others learn the rules only.
    """
    rules = {e.rule for e in decision.excluded}
    if rules and rules <= {Rule.CAPABILITY, Rule.ENDPOINT}:
        needs = ", ".join(sorted(n.value for n in request.needs)) or request.endpoint.value
        return UnsupportedParameter(
            f"No model behind {request.alias!r} supports what this request needs: {needs}."
        )
    if rules and rules <= {Rule.CONTEXT, Rule.CAPABILITY, Rule.ENDPOINT}:
        return ContextTooLong(
            f"About {request.prompt_tokens} prompt tokens plus the output asked for exceed the "
            f"context of every model behind {request.alias!r}.",
            param="messages",
        )
    # Waiting helps where a backend cools or its circuit is open, and nowhere else.
    waits = [
        wait
        for e in decision.excluded
        if e.rule in {Rule.COOLING, Rule.CIRCUIT_OPEN}
        and (wait := snapshot[e.target.backend].retry_after_s) is not None
    ]
    return NoEligibleBackend(
        f"No backend is eligible for {request.alias!r} with {privacy} data: "
        + (
            "; ".join(f"{e.target} {e.rule.value}" for e in decision.excluded) + "."
            if caller.debug
            else ", ".join(sorted(rule.value for rule in rules)) + "."
        ),
        exclusions=tuple((str(e.target), e.rule.value, e.detail) for e in decision.excluded),
        retry_after_s=min(waits) if waits else None,
        busy=rules & _PASSING == {Rule.COOLING},
    )
