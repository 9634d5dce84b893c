"""Do a backend's data terms and a model's licence satisfy what a route requires? Pure.

Owns the meaning of `require`. What is not stated never satisfies. No sub-processors listed says
that there are none only on our own machines: elsewhere it says that nobody looked.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from gateway.domain.catalog import Backend, Kind, Model
from gateway.policy.language import Terms


def unmet(required: Terms, backend: Backend, model: Model) -> str | None:
    """The first term that is not satisfied, in words; None where all are."""
    data = backend.data
    if (wrong := _outside(required.regions, data.region)) is not None:
        return f"the region is {wrong}"
    days = required.retention_days_max
    if days is not None and data.retention_days is None:
        return f"how long it keeps data is not stated, at most {days} days are asked for"
    if days is not None and data.retention_days is not None and data.retention_days > days:
        return f"keeps data for {data.retention_days} days, at most {days} are asked for"
    if required.no_training and data.trains_on_data is not False:
        return (
            "trains on data" if data.trains_on_data else "whether it trains on data is not stated"
        )
    if lacking := sorted(required.certifications - set(data.certifications)):
        return f"not certified for {', '.join(lacking)}"
    allowed = required.subprocessors_allowed
    if allowed is not None and not data.subprocessors and backend.kind is not Kind.SELF_HOSTED:
        return "the sub-processors are not stated"
    if allowed is not None and (others := sorted(set(data.subprocessors) - allowed)):
        return f"passes data on to {', '.join(others)}"
    if (wrong := _outside(required.licences, model.licence)) is not None:
        return f"the licence is {wrong}"
    return None


def _outside(allowed: AbstractSet[str] | None, value: str | None) -> str | None:
    if allowed is None or value in allowed:
        return None
    asked = ", ".join(sorted(allowed))
    return f"not stated, asked for is {asked}" if value is None else f"{value}, not {asked}"
