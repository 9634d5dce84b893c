"""I-11: who leaves early is billed what was said until then: exactly where told, else flagged."""

from __future__ import annotations

from gateway.domain.request import Usage
from tests.promises import promise
from tests.unit.spine import ROLE, Script, begin, build, finish, said

WORDS = ["one", "two", "three", "four", "five", "six"]


def script(*, told: bool) -> Script:
    """A vendor that says with each word what it has metered so far, or never does."""
    usages = [Usage(10, 2, count) if told else None for count in range(1, len(WORDS) + 1)]
    return Script(pieces=[ROLE, *(said(w, usage=u) for w, u in zip(WORDS, usages, strict=True))])


async def left_after(words: int, *, told: bool) -> tuple[str, int | None, int | None]:
    dispatch, _, kept = build({"a": script(told=told)})
    _, answer = await begin(dispatch)
    if words < len(WORDS):
        for _ in range(words - 1):
            await answer.next()
        answer.abandon()
    else:
        await finish(answer)
    (row,) = kept.closed
    (attempt,) = row.attempts
    assert row.cost_nano_usd == attempt.cost_nano_usd
    assert (row.output_tokens, row.usage_source) == (attempt.output_tokens, attempt.usage_source)
    return attempt.usage_source, attempt.output_tokens, attempt.cost_nano_usd


async def test_what_was_said_until_then_is_billed() -> None:
    costs = []
    for words in range(1, len(WORDS) + 1):
        source, output, cost = await left_after(words, told=True)
        assert (source, output, cost) == ("reported", words, 12_000 + 2_000 * words)
        source, output, cost = await left_after(words, told=False)
        assert (source, output, cost) == ("estimated", words, 12_000 + 2_000 * words)
        costs.append(cost)
    assert costs == sorted(set(costs)), "more was said, more is due"
    promise(
        "I-11",
        f"exact in {len(WORDS)} of {len(WORDS)} where the vendor tells, "
        f"flagged in {len(WORDS)} of {len(WORDS)} where not",
    )
