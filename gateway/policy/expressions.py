"""CEL where the plain keys of `match` do not reach: compiled and type-checked at load. Pure.

    tags["team"] in ["search", "ads"] && prompt_tokens > 4000
    "batch" in tags || privacy >= confidential && !stream

Owns the variables an expression may use (`VARIABLES`; `docs/policies.md` has them for people) and
what counts as a mistake in one. Knows nothing of files and of routes. The language is Google's
cel-cpp (`docs/decisions/0008-cel.md`); it is loaded with the first expression, not before.

INVARIANTS
- Refused at load: an unknown name, a wrong type, a result that is not boolean, a broken regular
  expression, an expression that no request can change, and a comparison of `alias`, `endpoint`,
  `needs` or `spent` with a name that there is none of.
- An expression gives true or false or raises ExpressionFailed; what failed never counts as false.
- An expression ends: the library allows 32 levels and 10,000 steps, and its patterns are RE2's.
- Only a boolean is ever taken out of the library: 0.1.3 hands out null without counting it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from gateway.domain.decision import Facts
from gateway.domain.request import Capability, Endpoint
from gateway.policy.source import nearest

TEXT_MAX = 2000  # characters


class Variable(NamedTuple):
    """What a name in an expression stands for."""

    type: str
    get: Callable[[Facts], Any]


VARIABLES: Mapping[str, Variable] = {
    "alias": Variable("string", lambda facts: facts.alias),
    "endpoint": Variable("string", lambda facts: facts.endpoint.value),
    "key": Variable("string", lambda facts: facts.key_id),
    "tags": Variable("map<string, string>", lambda facts: dict(facts.tags)),
    "privacy": Variable("int", lambda facts: facts.privacy),
    "prompt_tokens": Variable("int", lambda facts: facts.prompt_tokens),
    "output_tokens": Variable("int", lambda facts: facts.output_tokens),
    "stream": Variable("bool", lambda facts: facts.stream),
    # In order, since an expression may ask for the first.
    "needs": Variable("list<string>", lambda facts: sorted(need.value for need in facts.needs)),
    "spent": Variable("list<string>", lambda facts: sorted(facts.spent)),
}
_TYPE_NAMES = frozenset(
    ("bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint")
)


class ExpressionError(ValueError):
    """A text that is no expression. `line` and `column` count from 1, inside the text."""

    def __init__(self, message: str, *, hint: str = "", line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.message, self.hint, self.line, self.column = message, hint, line, column


class ExpressionFailed(Exception):
    """An expression that has no value for a request: a tag it reads is not there, say."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A boolean CEL expression over a request's facts, made by `compile_expression`.

    Two of the same text are equal.
    """

    text: str
    _run: Callable[[Facts], object] = field(compare=False, repr=False)

    def matches(self, facts: Facts) -> bool:
        """Whether it is true of a request. Raises ExpressionFailed where it is neither."""
        try:
            value = self._run(facts)
        except Exception as error:  # whatever went wrong in there, it is not `false`
            raise ExpressionFailed(f"{self.text!r}: {_plain(str(error))}") from error
        if value is True or value is False:
            return value
        raise ExpressionFailed(f"{self.text!r}: {_plain(str(value))}")


def compile_expression(
    text: str,
    *,
    classes: tuple[str, ...] = (),
    aliases: Collection[str] | None = None,
    limits: Collection[str] | None = None,
) -> Expression:
    """Check a text and make it ready. Raises ExpressionError.

    `classes` are the privacy classes in order: each is a number that `privacy` compares with, its
    hyphens written as underscores. With `aliases` and `limits`, no others may be named.
    """
    cel, env, constants = _environment(classes)
    try:
        program = env.compile(text)
    except RuntimeError as error:
        raise _refusal(str(error), constants) from error
    except TypeError as error:
        raise ExpressionError("is not text") from error
    if (gives := program.return_type()) != cel.Type.BOOL:
        raise ExpressionError(f"gives {gives.name().lower()}, not true or false")
    tokens = tuple(_tokens(text))
    words = {token.text.lstrip(". \t\r\n") for token in tokens if token.kind != "string"}
    getters = tuple((name, VARIABLES[name].get) for name in VARIABLES if name in words)
    if not getters:
        raise ExpressionError(
            "is the same for every request", hint=f"use one of: {', '.join(VARIABLES)}"
        )
    known = {
        "alias": aliases,
        "endpoint": [endpoint.value for endpoint in Endpoint],
        "needs": [need.value for need in Capability],
        "spent": limits,
    }
    _check_literals(text, tokens, known, env)
    fixed = {name: rank for name, rank in constants.items() if name in words}

    def run(facts: Facts) -> object:
        data = fixed.copy()
        for name, get in getters:
            data[name] = get(facts)
        return program.eval(data=data).value()

    return Expression(text, run)


@lru_cache(maxsize=8)
def _environment(classes: tuple[str, ...]) -> tuple[Any, Any, dict[str, Any]]:
    """The library, its environment with our variables, and the privacy classes as numbers."""
    from cel_expr_python import cel

    constants = {name.replace("-", "_"): rank for rank, name in enumerate(classes)}
    for taken in constants.keys() & (VARIABLES.keys() | _TYPE_NAMES):
        del constants[taken]
    types = {name: cel.Type(variable.type) for name, variable in VARIABLES.items()}
    env = cel.NewEnv(variables={**types, **dict.fromkeys(constants, cel.Type.INT)})
    return cel, env, constants


# --- the library's errors in our words --------------------------------------------------------

_PLACE = re.compile(r"ERROR: [^\n]*?:(-?\d+):(-?\d+): ([^\n]*)")
_UNKNOWN = re.compile(r"undeclared reference to '(.*?)'")
_OVERLOAD = re.compile(r"found no matching overload for '(.*?)' applied to '\((.*)\)'")
_OPERAND = re.compile(r"@|(?<![A-Za-z])_(?![A-Za-z])")  # `_==_`, `@in`, `_?_:_`


def _refusal(error: str, constants: Collection[str]) -> ExpressionError:
    found = _PLACE.search(error)
    if found is None:
        return ExpressionError(_plain(error))
    line, column = (max(1, int(number)) for number in found.groups()[:2])
    message, hint = _plain(found[3]), ""
    if unknown := _UNKNOWN.search(message):
        message = f"unknown name '{unknown[1]}'"
        hint = nearest(unknown[1], [*VARIABLES, *constants])
    elif overload := _OVERLOAD.search(message):
        message = f"'{_OPERAND.sub('', overload[1])}' does not take ({overload[2]})"
    else:
        message = message.split(" expecting ")[0]
    return ExpressionError(message, hint=hint, line=line, column=column)


def _plain(error: str) -> str:
    """The first line of the library's message, without its codes and what a terminal obeys."""
    line = re.sub(r"^[A-Z_]+: | \[[A-Z_]+\]$", "", error.partition("\n")[0])
    return "".join(char if char.isprintable() else "?" for char in line)[:200]


# --- what the type checker cannot see ---------------------------------------------------------


class _Token(NamedTuple):
    kind: str  # string | name | member | mark
    text: str
    at: int


_TOKEN = re.compile(
    r"""
      //[^\n]* | \s+ | [0-9][\w.]*
    | (?P<string>
          (?: [rR][bB]? | [bB][rR] ) (?: \"{3}.*?\"{3} | '{3}.*?'{3} | "[^"\n]*" | '[^'\n]*' )
        | [bB]? (?: \"{3}(?:\\.|.)*?\"{3} | '{3}(?:\\.|.)*?'{3}
                  | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' )
      )
    | (?P<name> [A-Za-z_]\w* )
    | (?P<member> \.\s*[A-Za-z_]\w* )
    | (?P<mark> [=!]= | . )
    """,
    re.VERBOSE | re.DOTALL,
)


def _tokens(text: str) -> Iterator[_Token]:
    for found in _TOKEN.finditer(text):
        if found.lastgroup is not None:
            yield _Token(found.lastgroup, found[0], found.start())


def _check_literals(
    text: str,
    tokens: tuple[_Token, ...],
    known: Mapping[str, Collection[str] | None],
    env: Any,
) -> None:
    """Refuse names that there are none of, and patterns that do not compile."""

    def value(expression: str) -> object:
        return env.compile(expression).eval(data={}).value()

    for variable, literal in _compared(tokens):
        valid, name = known[variable], str(value(literal.text))
        if valid is not None and name not in valid:
            raise _at(text, literal, f"no {_NOUNS[variable]} '{name}'", nearest(name, valid))
    for word, (bracket, literal) in zip(tokens, pairwise(tokens[1:]), strict=False):
        if (word.text, bracket.text, literal.kind) == (".matches", "(", "string"):
            outcome = value(f'"".matches({literal.text})')
            if not isinstance(outcome, bool):
                raise _at(text, literal, _plain(str(outcome)))


_NOUNS = {"alias": "alias", "endpoint": "endpoint", "needs": "capability", "spent": "limit"}


def _compared(tokens: tuple[_Token, ...]) -> Iterator[tuple[str, _Token]]:
    """`alias == "x"`, `"x" != alias`, `alias in ["x", "y"]` and `"x" in needs`."""
    for index, (first, middle) in enumerate(pairwise(tokens)):
        rest = tokens[index + 2 :]
        if not rest or middle.text not in ("==", "!=", "in"):
            continue
        if first.kind == "string" and rest[0].text in _NOUNS:
            yield rest[0].text, first
        elif first.text in _NOUNS and rest[0].kind == "string":
            yield first.text, rest[0]
        elif first.text in _NOUNS and rest[0].text == "[":
            for token in rest[1:]:
                if token.kind == "string":
                    yield first.text, token
                elif token.text != ",":
                    break


def _at(text: str, token: _Token, message: str, hint: str = "") -> ExpressionError:
    before = text[: token.at]
    return ExpressionError(
        message,
        hint=hint,
        line=before.count("\n") + 1,
        column=token.at - before.rfind("\n"),
    )
