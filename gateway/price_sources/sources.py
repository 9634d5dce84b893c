"""Sources by their names: the packages that are installed, and files.

Owns which there are and what to install for one that is not there.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.domain.catalog import Backend, Target
from gateway.price_sources import genai, litellm_map, sheet
from gateway.price_sources.offers import Offer
from gateway.price_sources.providers import names

PACKAGES: Final = (genai.NAME, litellm_map.NAME)


class NotInstalled(Exception):
    """A package that is not there; says what to install."""


class NoSuchSource(Exception):
    """Neither a package nor a file."""


@dataclass(frozen=True, slots=True)
class Source:
    """What one source says, in our words.

    `provider` is what it calls the vendor behind a backend, None where it cannot be known. A sheet
    names our backends itself; `targets` are those in it.
    """

    label: str
    provider: Callable[[Backend], str | None]
    of: Callable[[Target, str, dt.date], Offer | None]
    targets: tuple[Target, ...] = ()

    def offer(self, target: Target, backend: Backend | None, day: dt.date) -> Offer | None:
        """What it says of a target, None where it says nothing."""
        if self.targets:
            return self.of(target, "", day)
        provider = None if backend is None else self.provider(backend)
        return None if provider is None else self.of(target, provider, day)


def opened(name: str, override: Mapping[str, str], *, zero: bool = False) -> Source:
    """A source by its name, or the file of that name. `zero` takes its prices of 0 as meant.

    Raises NotInstalled, NoSuchSource, ConfigErrors with all that is wrong with a file.
    """
    if name == genai.NAME:
        try:
            package = genai.GenaiPrices(zero=zero)
        except ImportError:
            raise NotInstalled(_install(genai.NAME, genai.EXTRA)) from None
        return Source(package.label, lambda b: names(b, override).genai, package.offer)
    if name == litellm_map.NAME:
        try:
            table = litellm_map.LitellmMap(zero=zero)
        except ImportError:
            raise NotInstalled(_install(litellm_map.NAME, litellm_map.EXTRA)) from None
        return Source(table.label, lambda b: names(b, override).litellm, table.offer)
    file = Path(name)
    if not file.is_file():
        raise NoSuchSource(f"{name}: no such file; a source is {', '.join(PACKAGES)} or a file")
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    found = {offer.target: offer for offer in sheet.offers(text, str(file))}
    return Source(str(file), lambda _: None, lambda t, _, __: found.get(t), tuple(found))


def _install(package: str, extra: str) -> str:
    return f"{package} is not installed: pip install 'weighbridge[{extra}]'"
