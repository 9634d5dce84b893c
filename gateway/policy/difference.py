"""The difference between two sets of policy files, in meaning and in words. Pure.

It compares what the files mean, not their texts: comments, order of keys and spelling make no
difference, a moved route does. It goes over the fields of the frozen values, so a field that is
added later is compared without a word here; only what needs words of its own has them below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum, StrEnum
from typing import Any, NamedTuple, Protocol

from gateway.domain.catalog import Catalog, Target
from gateway.domain.limit import Limit, Unit
from gateway.domain.money import usd
from gateway.policy import price_words
from gateway.policy.expressions import Expression
from gateway.policy.language import Policy, Slo, Window


class Row(Protocol):
    """A row of a price book (`ledger.prices.Dated`): when it starts, and all of it as written."""

    @property
    def since(self) -> str: ...
    @property
    def terms(self) -> Mapping[str, Any]: ...


class GpuHour(Protocol):
    """What an hour of one GPU costs at a provider (`ledger.price_file.GpuHour`)."""

    provider: str
    gpu: str
    commitment: Any
    region: str | None
    from_: Any
    usd_per_gpu_hour: str


class Exchange(Protocol):
    """What a dollar is in a currency (`ledger.price_file.Exchange`)."""

    currency: str
    per_usd: str
    from_: Any


class Book(Protocol):
    """A price book: the rows of each target, ascending by their start, and what goes with them."""

    @property
    def rows(self) -> Mapping[Target, tuple[Row, ...]]: ...
    @property
    def gpu_hours(self) -> Sequence[GpuHour]: ...
    @property
    def currencies(self) -> Sequence[Exchange]: ...


class Files(Protocol):
    """A loaded set of policy files (`gateway.bundle.Bundle`)."""

    @property
    def policy(self) -> Policy: ...
    @property
    def catalog(self) -> Catalog: ...
    @property
    def prices(self) -> Book: ...
    @property
    def limits(self) -> tuple[Limit, ...]: ...


class What(StrEnum):
    """What happened to a thing; the values are the marks people know."""

    ADDED = "+"
    REMOVED = "-"
    CHANGED = "~"
    MOVED = ">"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: `~ route default: by: cheapest, was order`. `name` may be empty."""

    what: What
    section: str
    name: str
    words: str

    def __str__(self) -> str:
        thing = f"{self.section} {self.name}".strip()
        return f"{self.what} {thing}" + (f": {self.words}" if self.words else "")


class _Said(NamedTuple):
    """A value in words; lists are kept as such. `usual`: it is the default, so goes unsaid."""

    words: str | tuple[str, ...]
    usual: bool = False


_Things = Mapping[str, Mapping[str, _Said]]  # name -> label -> value


def changes(old: Files, new: Files) -> list[Change]:
    """Everything that means something else in `new`, in the order of the files."""
    sections: tuple[tuple[str, Callable[[Files], _Things]], ...] = (
        ("policy", _about),
        ("behaviour", _behaviour),
        ("route", _routes),
        ("privacy classes", _classes),
        ("detector", _detectors),
        ("alias", _aliases),
        ("backend", _backends),
        ("model", _models),
        ("equivalence", _equivalences),
        ("price", _prices),
        ("GPU", _gpu_hours),
        ("currency", _currencies),
        ("limit", _limits),
    )
    found: list[Change] = []
    for section, things in sections:
        found += _compared(section, things(old), things(new))
        if section == "route":
            found += _moved(old.policy, new.policy)
    return found


# --- comparing ----------------------------------------------------------------------------------


def _compared(section: str, old: _Things, new: _Things) -> Iterator[Change]:
    renamed = _renamed(old, new) if section == "route" else {}
    for name, things in new.items():
        before = old.get(renamed.get(name, name))
        if name in renamed:
            yield Change(What.CHANGED, section, name, f"was called {renamed[name]}")
        if before is None:
            yield Change(What.ADDED, section, name, _summary(things))
            continue
        for label in dict.fromkeys((*before, *things)):
            words = _said(label, before.get(label), things.get(label))
            if words:
                yield Change(What.CHANGED, section, name, words)
    for name, things in old.items():
        if name not in new and name not in renamed.values():
            yield Change(What.REMOVED, section, name, _summary(things))


def _renamed(old: _Things, new: _Things) -> dict[str, str]:
    """New name -> old name of what is the same under another name."""
    gone = [name for name in old if name not in new]
    found: dict[str, str] = {}
    for name, things in new.items():
        if name not in old:
            match = next((g for g in gone if old[g] == things and g not in found.values()), None)
            if match is not None:
                found[name] = match
    return found


def _said(label: str, old: _Said | None, new: _Said | None) -> str:
    """One label's difference in words, "" where there is none."""
    if old is not None and new is not None and old.words == new.words:
        return ""
    if old is None or new is None:
        if new is None:
            assert old is not None
            return f"{label} no longer set, was {_one(old)}"
        return f"{label}: {_one(new)}, was not set"
    if isinstance(old.words, tuple) and isinstance(new.words, tuple) and old.words and new.words:
        gains = [word for word in new.words if word not in old.words]
        loses = [word for word in old.words if word not in new.words]
        parts = [f"gains {', '.join(gains)}"] if gains else []
        parts += [f"loses {', '.join(loses)}"] if loses else []
        if [w for w in new.words if w in old.words] != [w for w in old.words if w in new.words]:
            parts.append(f"order is now {', '.join(new.words)}")
        return f"{label}: {'; '.join(parts)}"
    return f"{label}: {_one(new)}, was {_one(old)}"


def _one(said: _Said) -> str:
    if isinstance(said.words, str):
        return said.words
    return ", ".join(said.words) or "none"


def _summary(things: Mapping[str, _Said]) -> str:
    return "; ".join(f"{label}: {_one(said)}" for label, said in things.items() if not said.usual)


def _moved(old: Policy, new: Policy) -> Iterator[Change]:
    """Routes whose place among those that stayed is another: as few as explain the new order."""
    before = {route.name: place for place, route in enumerate(old.routes)}
    kept = [route.name for route in new.routes if route.name in before]
    still = _longest_ascending([before[name] for name in kept])
    for index, name in enumerate(kept):
        if before[name] not in still:
            place = f"now before {kept[index + 1]}" if index + 1 < len(kept) else "now the last"
            yield Change(What.MOVED, "route", name, place)


def _longest_ascending(places: list[int]) -> set[int]:
    best: list[list[int]] = [[]]
    for place in places:
        before = max((run for run in best if not run or run[-1] < place), key=len)
        best.append([*before, place])
    longest = max(best, key=len)
    return set(longest)


# --- what there is ------------------------------------------------------------------------------


def _about(files: Files) -> _Things:
    return {"": {"name": _Said(files.policy.name)}}


def _behaviour(files: Files) -> _Things:
    return {"": dict(_flat(files.policy.behaviour, files.catalog))}


def _routes(files: Files) -> _Things:
    """Of a route's behaviour only what it does not have from the file."""
    whole = dict(_flat(files.policy.behaviour, files.catalog))
    found = {}
    for route in files.policy.routes:
        own = dict(_flat(route, files.catalog, skip=frozenset({"name", "behaviour"})))
        for label, said in _flat(route.behaviour, files.catalog):
            if whole.get(label) != said:
                own[label] = said._replace(usual=False)
        for label in whole.keys() - dict(_flat(route.behaviour, files.catalog)).keys():
            own[label] = _Said("none")
        found[route.name] = own
    return found


def _classes(files: Files) -> _Things:
    return {"": {"least to most strict": _Said(files.catalog.privacy_classes)}}


def _detectors(files: Files) -> _Things:
    classes = files.catalog.privacy_classes
    return {n: {"calls for": _Said(classes[r])} for n, r in files.catalog.detectors.items()}


def _aliases(files: Files) -> _Things:
    skip = frozenset({"name", "created", "description"})
    return {n: dict(_flat(a, files.catalog, skip)) for n, a in files.catalog.aliases.items()}


def _backends(files: Files) -> _Things:
    skip = frozenset({"name", "models", "headers"})
    found = {}
    for name, backend in files.catalog.backends.items():
        found[name] = dict(_flat(backend, files.catalog, skip))
        # Their names alone: a value may be a secret.
        found[name]["headers"] = _Said(tuple(sorted(h for h, _ in backend.headers)), usual=True)
    return found


def _models(files: Files) -> _Things:
    skip = frozenset({"name"})
    return {
        str(Target(name, model.name)): dict(_flat(model, files.catalog, skip))
        for name, backend in files.catalog.backends.items()
        for model in backend.models.values()
    }


def _equivalences(files: Files) -> _Things:
    skip = frozenset({"name"})
    return {e.name: dict(_flat(e, files.catalog, skip)) for e in files.catalog.equivalences}


def _prices(files: Files) -> _Things:
    """A label for each part of each row: one that is gone, or new, says so by itself."""
    return {
        str(target): {
            f"from {row.since}" + (f", {when}" if when else ""): _Said(words)
            for row in rows
            for when, words in price_words.parts(row.terms)
        }
        for target, rows in files.prices.rows.items()
    }


def _gpu_hours(files: Files) -> _Things:
    found: dict[str, dict[str, _Said]] = {}
    for hour in files.prices.gpu_hours:
        where = "" if hour.region is None else f" in {hour.region}"
        kind = str(hour.commitment).replace("_", " ")
        price = _Said(f"{price_words.dollars(hour.usd_per_gpu_hour)} an hour")
        found.setdefault(f"{hour.gpu} at {hour.provider}{where}", {})[
            f"{kind} from {hour.from_}"
        ] = price
    return found


def _currencies(files: Files) -> _Things:
    found: dict[str, dict[str, _Said]] = {}
    for rate in files.prices.currencies:
        labels = found.setdefault(rate.currency, {})
        labels[f"from {rate.from_}"] = _Said(f"{rate.per_usd} a dollar")
    return found


def _limits(files: Files) -> _Things:
    found = {}
    for limit in files.limits:
        found[limit.name] = dict(_flat(limit, files.catalog, frozenset({"name", "amount"})))
        amount = f"${usd(limit.amount)}" if limit.unit is Unit.USD else f"{limit.amount:,}"
        found[limit.name]["amount"] = _Said(amount)
    return found


# --- values in words ----------------------------------------------------------------------------


def _flat(
    thing: Any, catalog: Catalog, skip: frozenset[str] = frozenset()
) -> Iterator[tuple[str, _Said]]:
    """The fields of a frozen value as label and words; parts that are not there say nothing."""
    for field in fields(thing):
        value = getattr(thing, field.name)
        if field.name in skip or not field.init:  # what is worked out from the others
            continue
        if is_dataclass(value) and not isinstance(value, type | Expression | Window | Target):
            inside = _flat(value, catalog)
            yield from (
                (f"{_label(field.name)} {label}", said)
                if field.name not in _INLINE
                else (label, said)
                for label, said in inside
            )
        elif value is not None:
            factory = field.default_factory
            default = field.default if factory is MISSING else factory()
            said = _value(field.name, value, catalog)
            yield _label(field.name), _Said(said, usual=value == default)


_INLINE = frozenset({"match", "behaviour"})
_RANKS = frozenset({"privacy_at_least", "privacy_at_most", "clearance", "privacy_floor"})
_UNITS = {"ms": "ms", "s": "s", "bytes": "bytes", "days": "days"}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def _label(name: str) -> str:
    """`first_chunk_ms_max` is "first chunk at most"; the unit stands with the value."""
    words = name.removesuffix("_nano_usd").split("_")
    bound = {"max": " at most", "min": " at least"}.get(words[-1], "")
    if bound:
        words.pop()
    if words[-1] in _UNITS and len(words) > 1:
        words.pop()
    return " ".join(words) + bound


def _unit(name: str) -> str:
    words = [word for word in name.split("_") if word not in {"max", "min"}]
    return _UNITS.get(words[-1], "") if len(words) > 1 else ""


def _value(name: str, value: Any, catalog: Catalog) -> str | tuple[str, ...]:
    if name in _RANKS:
        return str(catalog.privacy_classes[value])
    if name.endswith("_nano_usd"):
        return f"${usd(value)}"
    if name in {"prefer", "privacy_classes"}:
        return " > ".join(" or ".join(sorted(map(_text, tier))) for tier in value) or "none"
    if isinstance(value, Mapping):
        return tuple(f"{key}={_joined(inner)}" for key, inner in sorted(value.items()))
    if isinstance(value, frozenset | set):
        return tuple(sorted(map(_text, value)))
    if isinstance(value, tuple):
        return tuple(map(_text, value))
    unit = _unit(name)
    return f"{_text(value)} {unit}".strip()


def _joined(value: Any) -> str:
    return "|".join(sorted(map(_text, value))) if isinstance(value, frozenset) else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Expression):
        return value.text
    if isinstance(value, Slo):
        metric = value.metric.value.removesuffix("_ms").replace("_", " ")
        return f"{metric} p{value.percentile} at most {value.ms_max:g} ms"
    if isinstance(value, Window):
        days = " ".join(_DAYS[day] for day in sorted(value.days))
        times = [f"{m // 60:02d}:{m % 60:02d}" for m in (value.start_minute, value.end_minute)]
        return f"{days} {times[0]}-{times[1]} {value.zone}"
    if is_dataclass(value) and not isinstance(value, type) and not isinstance(value, Target):
        return " ".join(f"{_text(getattr(value, f.name))}" for f in fields(value))
    return f"{value:,}" if isinstance(value, int) else str(value)
