"""A ledger whose rows can be tampered with in the words in which they are read.

What is read of rows are views over facts and dimensions. Here each becomes a table of what it shows,
on either database: the audit sees no difference, and a test says `UPDATE requests SET ...`.
"""

from __future__ import annotations

THAW = ";".join(
    statement
    for view in ("requests", "attempts")
    for statement in (
        f"CREATE TABLE thawed AS SELECT * FROM {view}",
        f"DROP VIEW {view}",
        f"ALTER TABLE thawed RENAME TO {view}",
    )
)
