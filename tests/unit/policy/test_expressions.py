"""CEL in policies: what it can ask, what is refused at load and where, and how it fails."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.decision import Facts
from gateway.domain.request import Capability, Endpoint
from gateway.policy.expressions import (
    VARIABLES,
    Expression,
    ExpressionError,
    ExpressionFailed,
    compile_expression,
)

CLASSES = ("public", "internal", "top-secret")
FACTS = Facts(
    alias="chat",
    endpoint=Endpoint.CHAT,
    privacy=1,
    needs=frozenset({Capability.TOOLS, Capability.IMAGES}),
    prompt_tokens=4000,
    output_tokens=300,
    stream=True,
    key_id="0h3k",
    tags={"team": "search", "cost-centre": "47"},
    spent=frozenset({"search-month"}),
)


def compiled(text: str) -> Expression:
    return compile_expression(
        text, classes=CLASSES, aliases={"chat", "embed"}, limits={"search-month"}
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('alias == "chat"', True),
        ('alias in ["embed", "chat"]', True),
        ('alias.startsWith("em")', False),
        ('alias.matches("^c.a")', True),
        ('endpoint != "embeddings"', True),
        ('key == "0h3k"', True),
        ('tags["team"] == "search"', True),
        ('tags.team == "search"', True),
        ('tags["cost-centre"] in ["46", "47"]', True),
        ('"app" in tags && tags["app"] == "crawler"', False),
        ("privacy == internal", True),
        ("privacy >= internal && privacy < top_secret", True),
        ("privacy > internal", False),
        ("prompt_tokens + output_tokens > 4200", True),
        ("prompt_tokens > 10 * output_tokens || !stream", True),
        ('"tools" in needs && size(needs) == 2', True),
        ('needs[0] == "images"', True),  # in order
        ('needs.exists(n, n in ["audio", "images"])', True),
        ('"search-month" in spent', True),
        ('stream ? prompt_tokens > 1 : tags["x"] == "never looked at"', True),
        ('stream // && "nonsense"', True),
        ("\n  stream\n  && prompt_tokens == 4000\n", True),
    ],
)
def test_what_can_be_asked(text, value):
    assert compiled(text).matches(FACTS) is value


REFUSED = [
    # (text, line, column, what is told, hint)
    ('aliass == "chat"', 1, 1, "unknown name 'aliass'", "did you mean 'alias'?"),
    ("stream &&\n  privacy > interna", 2, 13, "unknown name 'interna'", "did you mean 'internal'?"),
    ('"ü" == alia', 1, 8, "unknown name 'alia'", "did you mean 'alias'?"),
    ("lower(alias) == alias", 1, 6, "unknown name 'lower'", ""),
    ("alias == 3", 1, 7, "'==' does not take (string, int)", ""),
    ('privacy >= "internal"', 1, 9, "'>=' does not take (int, string)", ""),
    ("prompt_tokens > 1.5", 1, 15, "'>' does not take (int, double)", ""),
    ("tags[1] == 'x'", 1, 5, "'[]' does not take (map(string, string), int)", ""),
    ("!alias", 1, 1, "'!' does not take (string)", ""),
    ("1 in needs", 1, 3, "'in' does not take (int, list(string))", ""),
    ("alias.startsWith(3)", 1, 17, "'startsWith' does not take (string, int)", ""),
    ("prompt_tokens + 1", 1, 1, "gives int, not true or false", ""),
    ("alias", 1, 1, "gives string, not true or false", ""),
    ("null", 1, 1, "gives null, not true or false", ""),
    ("dyn(stream)", 1, 1, "gives dyn, not true or false", ""),
    ("alias ==", 1, 9, "Syntax error: mismatched input '<EOF>'", ""),
    ("stream; stream", 1, 7, "Syntax error: token recognition error at: ';'", ""),
    ("stream == \x1b[31m", 1, 11, "Syntax error: token recognition error at: '?'", ""),
    ("", 1, 1, "Syntax error: mismatched input '<EOF>'", ""),
    ("\ud800", 1, 1, "is not text", ""),
    ("(" * 40 + "stream" + ")" * 40, 1, 1, "Expression recursion limit exceeded. limit: 32", ""),
    ("1 < 2", 1, 1, "is the same for every request", f"use one of: {', '.join(VARIABLES)}"),
    ('"alias" == "alias"', 1, 1, "is the same for every request", f"use one of: {', '.join(VARIABLES)}"),
    ('alias == "chatt"', 1, 10, "no alias 'chatt'", "did you mean 'chat'?"),
    ('stream &&\n"chta" != alias', 2, 1, "no alias 'chta'", "did you mean 'chat'?"),
    ('alias in ["chat", "emebd"]', 1, 19, "no alias 'emebd'", "did you mean 'embed'?"),
    ("alias == '''ch\\u0061t2'''", 1, 10, "no alias 'chat2'", "did you mean 'chat'?"),
    ('endpoint == "chat"', 1, 13, "no endpoint 'chat'", "one of: chat/completions, completions, embeddings"),
    ('"tool" in needs', 1, 1, "no capability 'tool'", "did you mean 'tools'?"),
    ('"search-moth" in spent', 1, 1, "no limit 'search-moth'", "did you mean 'search-month'?"),
    ('stream && alias.matches("[")', 1, 25, "invalid regular expression: missing ]: [", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "column", "message", "hint"), REFUSED)
def test_what_is_refused_at_load_and_where(text, line, column, message, hint):
    with pytest.raises(ExpressionError) as caught:
        compiled(text)
    error = caught.value
    assert (error.line, error.column, error.message, error.hint) == (line, column, message, hint)


def test_only_comparisons_with_the_variables_themselves_are_looked_up():
    for text in ('tags.alias == "chatt"', 'key == "chatt"', 'tags["alias"] == "x" || stream'):
        compiled(text)
    # Without a list to look in, nothing is known to be wrong.
    compile_expression('alias == "chatt" || "day" in spent')


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('tags["app"] == "crawler"', 'Key not found in map : "app"'),
        ('tags.app == "crawler"', 'Key not found in map : "app"'),
        ("needs[2] == alias", "Index error: index=2 size=2"),
        ("prompt_tokens / (output_tokens - 300) > 1", "divide by zero"),
        ('int(tags["team"]) > 3', "cannot convert string to int"),
        ("prompt_tokens * 9223372036854775807 > 1", "integer overflow"),
        ('alias.matches(tags["team"] + "[")', "invalid regular expression"),
        (
            "".join(f"[1,2,3,4,5,6,7,8,9,10].all({name}, " for name in "abcde") + "stream)))))",
            "Iteration budget exceeded",
        ),
    ],
)
def test_what_has_no_value_raises_and_is_not_false(text, why):
    with pytest.raises(ExpressionFailed) as caught:
        compiled(text).matches(FACTS)
    assert why in str(caught.value)
    assert text in str(caught.value)


def test_facts_that_are_no_text_fail_too():
    facts = Facts(
        alias="\ud800",
        endpoint=Endpoint.CHAT,
        privacy=0,
        needs=frozenset(),
        prompt_tokens=0,
        output_tokens=0,
        stream=False,
    )
    with pytest.raises(ExpressionFailed):
        compiled('alias == "chat"').matches(facts)


def test_expressions_are_equal_by_their_text():
    assert compiled("stream") == compiled("stream")
    assert hash(compiled("stream")) == hash(compiled("stream"))
    assert compiled("stream") != compiled("!stream")
    assert repr(compiled("stream")) == "Expression(text='stream')"


def test_a_class_whose_name_is_taken_does_not_stand_in_the_way():
    classes = ("alias", "int", "internal")
    assert compile_expression("privacy < internal", classes=classes).matches(FACTS)
    with pytest.raises(ExpressionError, match="does not take"):
        compile_expression("privacy < alias", classes=classes)


def test_true_stays_true_however_often_it_is_asked():
    """The library's own values must not run out of references (null does, and is kept in there)."""
    expression = compiled('"tools" in needs && stream')
    before = sys.getrefcount(True), sys.getrefcount(FACTS.tags)
    for _ in range(5000):
        assert expression.matches(FACTS)
    after = sys.getrefcount(True), sys.getrefcount(FACTS.tags)
    assert all(abs(now - then) < 1000 for now, then in zip(after, before, strict=True))


def test_the_library_is_loaded_with_the_first_expression_and_not_before():
    code = (
        "import sys; from gateway.policy import expressions, language, routing_file;"
        "assert 'cel_expr_python' not in sys.modules;"
        "expressions.compile_expression('stream');"
        "assert 'cel_expr_python' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


PIECES = st.sampled_from(
    [*VARIABLES, "public", "x", "(", ")", "[", "]", "{", "}", ".", ",", "?", ":", "!", "-", "==", "in",
     "<", "&&", "||", "+", "true", "null", "1", "2u", "3.5", "'a'", '"chat"', "b'c'", "r'\\'", "'",
     '"""', "\\", "//", "\n", "size", "has(", ".all(", ".matches(", "é", "\x00", "`", "\ud800"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12), st.sampled_from(["", " "]), st.booleans())
def test_any_text_is_an_expression_or_refused(pieces, between, comparing):
    text = between.join(pieces)
    place = 1, 1
    try:
        compiled(f"stream && ({text}) == alias" if comparing else text).matches(FACTS)
    except ExpressionError as error:
        place = error.line, error.column
    except ExpressionFailed:
        pass
    assert min(place) >= 1
