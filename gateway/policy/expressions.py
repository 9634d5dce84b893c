"""CEL where the plain keys of `match` do not reach: compiled and type-checked at load. Pure.

Owns the variables an expression may use. Knows nothing of files and of routes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Expression:
    """A boolean CEL expression over a request's facts."""

    text: str
