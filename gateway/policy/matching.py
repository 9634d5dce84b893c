"""Does a route fit a request: each `match` made into the few conditions it sets, cheap ones first.

Pure. Owns the meaning of the keys of `match`; `aliases` is not among them, for the engine keeps
its routes by alias. A condition that fails (only an expression can) raises ExpressionFailed: that
is neither a yes nor a no.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from gateway.domain.decision import Facts
from gateway.policy.language import Match
from gateway.policy.windows import contains

Condition: TypeAlias = Callable[[Facts], bool]


def conditions(match: Match) -> tuple[Condition, ...]:
    """All must be true of the facts, but for `aliases`."""
    return tuple(
        made(wanted)
        for key, made in CONDITIONS.items()
        if (wanted := getattr(match, key)) != getattr(_ANY, key)
    )


def _tags(wanted: Mapping[str, frozenset[str]]) -> Condition:
    items = tuple(wanted.items())
    return lambda facts: all(facts.tags.get(name) in values for name, values in items)


_ANY = Match()
CONDITIONS: Mapping[str, Callable[[Any], Condition]] = {
    "endpoint": lambda endpoint: lambda facts: facts.endpoint is endpoint,
    "stream": lambda stream: lambda facts: facts.stream is stream,
    "privacy_at_least": lambda rank: lambda facts: facts.privacy >= rank,
    "privacy_at_most": lambda rank: lambda facts: facts.privacy <= rank,
    "prompt_tokens_min": lambda least: lambda facts: facts.prompt_tokens >= least,
    "prompt_tokens_max": lambda most: lambda facts: facts.prompt_tokens <= most,
    "keys": lambda keys: lambda facts: facts.key_id in keys,
    "needs": lambda needs: lambda facts: needs <= facts.needs,
    "spent": lambda limits: lambda facts: not limits.isdisjoint(facts.spent),
    "tags": _tags,
    "window": lambda window: lambda facts: contains(window, facts.at_us),
    "expression": lambda expression: expression.matches,
}
