"""What a policy that loads may still get wrong, told with place, reason and fix. Pure.

An error says something that cannot be meant: a rule nobody can reach, a budget nothing fits in. A
warning says something that may be, a note what is worth knowing. No lint has rules of its own
about who may serve what: it asks the engine, route by route, for the smallest request of every
alias and class that gets there.

Every lint is a function from what it looks at to the problems it finds: `routes` has those of the
routing policy, `files` those of catalog and limits, `prices` those of the price book.

Not looked for: cycles. A route names backends and kinds, an alias names targets, and neither can
name a route or an alias, so there is nothing to go round in.
"""

from __future__ import annotations

from gateway.policy.lint.files import lint_files
from gateway.policy.lint.prices import lint_prices
from gateway.policy.lint.routes import lint_routes
from gateway.policy.lint.subject import ERROR, NOTE, WARNING, Sheet, Subject
from gateway.policy.source import Problem

__all__ = ["ERROR", "NOTE", "WARNING", "Sheet", "Subject", "lint"]


def lint(subject: Subject) -> list[Problem]:
    """All that is suspicious, in the order of the files and the lines."""
    found = {*lint_routes(subject), *lint_files(subject), *lint_prices(subject)}
    return sorted(found, key=lambda p: (p.source, p.line, p.column, p.message))
