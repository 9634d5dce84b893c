"""`policies/catalog.yaml`: which backends exist, what they serve, under which terms, and aliases.

Owns: the file's meaning; its schema is `catalog_file`. Pure: whether a secret reference resolves is
asked of a function. Knows nothing of prices, of policies, and of what was observed.

INVARIANTS
- A loaded Catalog has no dangling name.
- Terms that are not stated count as the worst: no `cleared_for` means the lowest privacy class, and
  no backend is cleared for more than its stated terms bear out, where `clearance_terms` says what.
- A secret is a reference. One written out is refused, and not repeated in the message.
- Plain http carries prompts in the clear: it is taken for private hosts only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from gateway.domain.catalog import (
    Admission,
    Alias,
    Backend,
    Catalog,
    DataTerms,
    DetectorPlugin,
    Engine,
    Equivalence,
    Kind,
    Limits,
    Model,
    Sleep,
    StandIn,
    Start,
    Target,
)
from gateway.policy.catalog_file import (
    AliasFile,
    BackendFile,
    CatalogFile,
    ClearanceFile,
    DataFile,
    EngineFile,
    ModelFile,
)
from gateway.policy.detect import CONTENT
from gateway.policy.detectors import DETECTORS
from gateway.policy.language import Terms
from gateway.policy.source import Findings, Path, digest, json_schema, nearest, read
from gateway.policy.terms import unmet

SWITCHED_OFF = "switched off in the catalog (enabled: false)"  # Backend.why_unconfigured


def load_catalog(text: str, *, source: str, secret_present: Callable[[str], bool]) -> Catalog:
    """The file as a Catalog. Raises ConfigErrors with everything that is wrong.

    `secret_present` tells whether `env:NAME` or `file:/path` resolves; a backend whose secret is
    absent is kept, marked unconfigured and why.
    """
    file, findings = read(CatalogFile, text, source)
    _check_names(file, findings)
    for name, backend in file.backends.items():
        _check_backend(backend, ("backends", name), file, findings)
        _check_clearance(backend, name, file, findings)
    for name, alias in file.aliases.items():
        _check_alias(alias, ("aliases", name), file, findings)
    _check_detectors(file, findings)
    _check_groups(file, findings)
    findings.raise_if_any()
    rank = {name: index for index, name in enumerate(file.privacy_classes)}
    return Catalog(
        privacy_classes=tuple(file.privacy_classes),
        backends={
            name: _backend(name, backend, rank, secret_present)
            for name, backend in file.backends.items()
        },
        aliases={
            name: Alias(
                name=name,
                targets=tuple(map(target, alias.targets)),
                privacy_floor=rank[alias.privacy_floor] if alias.privacy_floor else 0,
                stand_in=StandIn(alias.stand_in),
                description=alias.description,
            )
            for name, alias in file.aliases.items()
        },
        digest=digest(file),
        equivalences=tuple(
            Equivalence(
                name=name,
                weights=group.weights,
                precision=group.precision,
                declared_by=group.declared_by,
                evidence=group.evidence,
                targets=frozenset(map(target, group.targets)),
            )
            for name, group in file.equivalence.items()
        ),
        detectors={name: rank[wanted] for name, wanted in file.detectors.items()},
        detector_plugins=tuple(
            DetectorPlugin(name=name, rank=rank[plugin.privacy_class], timeout_ms=plugin.timeout_ms)
            for name, plugin in file.detector_plugins.items()
        ),
        scan_bytes_max=file.scan_bytes_max,
    )


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    return json_schema(CatalogFile, "Weighbridge catalog")


def target(text: str) -> Target:
    """`backend/model`, split at the first slash: model names have slashes of their own."""
    backend, _, model = text.partition("/")
    return Target(backend, model)


# --- checks -----------------------------------------------------------------------------------

_CLASS = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_BACKEND = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_MODEL = re.compile(r"[!-~]{1,200}")
_SECRET = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/\S+")
_HEADER = re.compile(r"[a-z0-9-]{1,64}")
_SECRET_HEADERS = {"authorization", "proxy-authorization", "cookie", "api-key", "x-api-key"}
_SECRET_PARAMETERS = re.compile(r"key|token|secret|password|sig|signature|code", re.IGNORECASE)
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".svc", ".cluster.local", ".home.arpa")


def _check_names(file: CatalogFile, findings: Findings) -> None:
    seen: set[str] = set()
    path: Path
    for index, name in enumerate(file.privacy_classes):
        path = ("privacy_classes", index)
        if not _CLASS.fullmatch(name):
            findings.problem(path, f"'{name}' is no name for a class", "use a-z, 0-9, - and _")
        if name in seen:
            findings.problem(path, f"'{name}' is listed twice")
        seen.add(name)
    for name in file.clearance_terms:
        _check_class(name, ("clearance_terms", name), file, findings, key=True)
    for name, backend in file.backends.items():
        path = ("backends", name)
        if not _BACKEND.fullmatch(name):
            findings.problem(
                path, f"'{name}' is no name for a backend", "use a-z, 0-9, ., - and _", key=True
            )
        if name in {kind.value for kind in Kind}:
            findings.problem(
                path, f"'{name}' is a kind; policies mean all backends of it", key=True
            )
        for model in backend.models:
            if not _MODEL.fullmatch(model):
                findings.problem((*path, "models", model), "a model's name has no spaces", key=True)
    for name in file.aliases:
        if not _ALIAS.fullmatch(name):
            findings.problem(
                ("aliases", name),
                f"'{name}' is no name for an alias",
                "use letters, digits, ., _, :, / and -",
                key=True,
            )


def _check_backend(backend: BackendFile, path: Path, file: CatalogFile, findings: Findings) -> None:
    if backend.cleared_for is not None:
        _check_class(backend.cleared_for, (*path, "cleared_for"), file, findings)
    if backend.secret is not None and not _SECRET.fullmatch(backend.secret):
        findings.problem(
            (*path, "secret"), "a secret does not belong in this file", "use env:NAME or file:/path"
        )
    for name in backend.headers:
        _check_header(name, (*path, "headers", name), findings)
    for name, _ in parse_qsl(backend.query, keep_blank_values=True):
        if _SECRET_PARAMETERS.search(name):
            findings.problem(
                (*path, "query"), f"'{name}' looks like a secret", "use secret and auth_header"
            )
    if backend.wire == "litellm_sdk" and backend.vendor is None:
        findings.problem((*path, "wire"), "litellm_sdk needs 'vendor'", "for example anthropic")
    if backend.wire != "litellm_sdk" and backend.vendor is not None:
        findings.problem((*path, "vendor"), f"has no meaning on {backend.wire}", key=True)
    if backend.replicas:
        _check_replicas(backend, path, findings)
    elif backend.base_url or backend.wire == "openai_http":
        _check_url(backend.base_url, (*path, "base_url"), backend, findings)
    if backend.engine is not None:
        _check_engine(backend, backend.engine, path, findings)


def _check_engine(backend: BackendFile, engine: EngineFile, path: Path, findings: Findings) -> None:
    if backend.wire != "openai_http":
        findings.problem((*path, "engine"), f"has no meaning on {backend.wire}", key=True)
    if engine.metrics_url is not None:
        at = (*path, "engine", "metrics_url")
        _check_url(engine.metrics_url, at, backend, findings)
        if backend.replicas:
            findings.problem(at, "one page for several replicas", "set it for each replica")


def _check_replicas(backend: BackendFile, path: Path, findings: Findings) -> None:
    if backend.base_url:
        findings.problem(
            (*path, "base_url"), "stands beside replicas", "leave one of the two out", key=True
        )
    if backend.wire != "openai_http":
        findings.problem((*path, "replicas"), f"has no meaning on {backend.wire}", key=True)
    addresses: dict[str, str] = {}
    for name, replica in backend.replicas.items():
        at = (*path, "replicas", name)
        if not _BACKEND.fullmatch(name):
            findings.problem(
                at, f"'{name}' is no name for a replica", "use a-z, 0-9, ., - and _", key=True
            )
        _check_url(replica.base_url, (*at, "base_url"), backend, findings)
        if replica.metrics_url is not None:
            _check_url(replica.metrics_url, (*at, "metrics_url"), backend, findings)
        first = addresses.setdefault(replica.base_url.rstrip("/"), name)
        if first != name:
            findings.problem((*at, "base_url"), f"the same address as replica '{first}'")


def _check_clearance(
    backend: BackendFile, name: str, file: CatalogFile, findings: Findings
) -> None:
    """Whether the stated terms bear out what the backend is cleared for."""
    classes = file.privacy_classes
    cleared_for = backend.cleared_for or classes[0]
    if cleared_for not in classes:
        return
    shown = Backend(
        name=name,
        kind=backend.kind,
        wire=backend.wire,
        base_url="",
        models={},
        clearance=0,
        data=_data(backend.data),
    )
    for demanded in classes[: classes.index(cleared_for) + 1]:
        lacking = [list(_lacks(entry, shown)) for entry in file.clearance_terms.get(demanded, ())]
        if lacking and all(lacking):
            said = dict.fromkeys(", ".join(terms) for terms in lacking)
            findings.problem(
                ("backends", name, "cleared_for"),
                f"its terms do not bear out '{demanded}': {', or: '.join(said)}",
                "state it below data, with the source, or clear it for less",
            )
            return


def _lacks(entry: ClearanceFile, backend: Backend) -> Iterator[str]:
    """Every term of the entry that the backend does not state, in words."""
    for term in (
        Terms(regions=_set(entry.regions)),
        Terms(retention_days_max=entry.retention_days_max),
        Terms(no_training=entry.no_training),
        Terms(certifications=frozenset(entry.certifications)),
        Terms(subprocessors_allowed=_set(entry.subprocessors_allowed)),
    ):
        if (wrong := unmet(term, backend, Model(name=""))) is not None:
            yield wrong


def _set(names: list[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def _check_detectors(file: CatalogFile, findings: Findings) -> None:
    known = [*DETECTORS, *CONTENT]
    for name, wanted in file.detectors.items():
        if name not in known:
            findings.problem(
                ("detectors", name), f"no detector '{name}'", nearest(name, known), key=True
            )
        _check_class(wanted, ("detectors", name), file, findings)
    for name, plugin in file.detector_plugins.items():
        path: Path = ("detector_plugins", name)
        if not _CLASS.fullmatch(name) or name in known:
            findings.problem(path, f"'{name}' is no name for a plugin", key=True)
        _check_class(plugin.privacy_class, (*path, "class"), file, findings)


def _check_class(
    name: str, path: Path, file: CatalogFile, findings: Findings, *, key: bool = False
) -> None:
    if name not in file.privacy_classes:
        hint = nearest(name, file.privacy_classes)
        findings.problem(path, f"unknown privacy class '{name}'", hint, key=key)


def _check_groups(file: CatalogFile, findings: Findings) -> None:
    group_of: dict[str, str] = {}
    for name, group in file.equivalence.items():
        path: Path = ("equivalence", name)
        if not _BACKEND.fullmatch(name):
            findings.problem(path, f"'{name}' is no name for a group", key=True)
        for index, text in enumerate(group.targets):
            at = (*path, "targets", index)
            _check_target(text, at, file, findings)
            if text in group_of:
                findings.problem(at, f"'{text}' is in group '{group_of[text]}' already")
            group_of.setdefault(text, name)
    for name, alias in file.aliases.items():
        groups = [group_of[text] for text in alias.targets if text in group_of]
        if alias.stand_in == StandIn.GROUP.value and len(set(groups)) == len(groups):
            findings.problem(
                ("aliases", name, "stand_in"),
                "no two of its targets are in one group, so nothing ever stands in",
                "declare a group below equivalence, or leave stand_in out",
            )


def _check_header(name: str, path: Path, findings: Findings) -> None:
    if not _HEADER.fullmatch(name):
        findings.problem(path, "a header's name is lower case letters, digits and -", key=True)
    if name in _SECRET_HEADERS:
        findings.problem(path, "carries a secret", "use secret and auth_header", key=True)


def _check_url(address: str, path: Path, backend: BackendFile, findings: Findings) -> None:
    try:
        url = urlsplit(address)
        host, _ = url.hostname or "", url.port
    except ValueError as error:
        findings.problem(path, f"not a URL: {error}")
        return
    if url.username is not None or url.password is not None:
        findings.problem(path, "holds credentials", "use secret: env:NAME or file:/path")
    elif url.scheme not in ("http", "https") or not host:
        findings.problem(path, "not an http:// or https:// URL with a host")
    elif url.query or url.fragment:
        findings.problem(path, "has a query or a fragment", "use query")
    elif url.scheme == "http" and not (backend.insecure_http or _is_private(host)):
        findings.problem(
            path,
            f"http:// would carry prompts in the clear to {host}",
            "use https://, or set insecure_http: true",
        )


def _is_private(host: str) -> bool:
    """Loopback, private networks, and names that only a private resolver knows."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_SUFFIXES)
    return address.is_private or address.is_loopback


def _check_alias(alias: AliasFile, path: Path, file: CatalogFile, findings: Findings) -> None:
    floor = alias.privacy_floor
    if floor is not None and floor not in file.privacy_classes:
        _check_class(floor, (*path, "privacy_floor"), file, findings)
        floor = None
    cleared: list[str | None] = []
    for index, text in enumerate(alias.targets):
        at = (*path, "targets", index)
        if text in alias.targets[:index]:
            findings.problem(at, f"'{text}' is listed twice")
        backend = _check_target(text, at, file, findings)
        cleared.append((backend.cleared_for or file.privacy_classes[0]) if backend else None)
    classes = {name: rank for rank, name in enumerate(file.privacy_classes)}
    ranks = [classes.get(name, -1) for name in cleared if name]
    # With a name in doubt nothing can be said about the whole.
    if floor is not None and len(ranks) == len(cleared) and -1 not in ranks:
        best = max(ranks)
        if best < classes[floor]:
            findings.problem(
                (*path, "targets"),
                f"none may receive '{floor}', the floor of this alias",
                f"the best is cleared for '{file.privacy_classes[best]}'",
            )


def _check_target(
    text: str, path: Path, file: CatalogFile, findings: Findings
) -> BackendFile | None:
    name = target(text)
    if not name.model:
        findings.problem(path, f"'{text}' is not backend/model")
        return None
    backend = file.backends.get(name.backend)
    if backend is None:
        findings.problem(path, f"no backend '{name.backend}'", nearest(name.backend, file.backends))
        return None
    if name.model not in backend.models:
        findings.problem(
            path,
            f"backend '{name.backend}' has no model '{name.model}'",
            nearest(name.model, backend.models),
        )
        return None
    return backend


# --- to the domain ----------------------------------------------------------------------------


def _backend(
    name: str, file: BackendFile, rank: dict[str, int], secret_present: Callable[[str], bool]
) -> Backend:
    why = None
    if not file.enabled:
        why = SWITCHED_OFF
    elif file.secret is not None and not secret_present(file.secret):
        why = f"{file.secret} is not set"
    whole = Backend(
        name=name,
        kind=file.kind,
        wire=file.wire,
        base_url=file.base_url.rstrip("/"),
        engine=None if file.engine is None else _engine(file.engine),
        pool=file.pool,
        models={model: _model(model, entry) for model, entry in file.models.items()},
        clearance=rank[file.cleared_for] if file.cleared_for else 0,
        secret=file.secret,
        configured=why is None,
        auth_header=file.auth_header,
        headers=tuple(file.headers.items()),
        query=file.query,
        vendor=file.vendor,
        health_path=file.health_path,
        continuous_usage=file.continuous_usage,
        unsupported_parameters=file.unsupported_parameters,
        simulated=file.simulated,
        data=_data(file.data),
        limits=Limits(**file.limits.model_dump()),
        why_unconfigured=why,
    )
    return replace(whole, replicas=tuple(_replicas(whole, file)))


def _replicas(whole: Backend, file: BackendFile) -> Iterator[Backend]:
    for name, entry in file.replicas.items():
        engine = whole.engine
        if engine is not None and entry.metrics_url is not None:
            engine = replace(engine, metrics_url=entry.metrics_url)
        yield replace(whole, replica=name, base_url=entry.base_url.rstrip("/"), engine=engine)


def _engine(file: EngineFile) -> Engine:
    plain = file.model_dump(exclude={"admission", "start", "sleep"})
    return Engine(
        **plain,
        admission=Admission(**file.admission.model_dump()),
        start=Start(**file.start.model_dump()),
        sleep=Sleep(**file.sleep.model_dump()),
    )


def _data(file: DataFile) -> DataTerms:
    return DataTerms(
        region=file.region,
        retention_days=file.retention_days,
        trains_on_data=file.trains_on_data,
        subprocessors=tuple(file.subprocessors),
        certifications=tuple(file.certifications),
        source=file.source,
    )


def _model(name: str, file: ModelFile) -> Model:
    return Model(
        name=name,
        context_tokens=file.context_tokens,
        prompt_tokens_max=file.prompt_tokens_max,
        output_tokens_max=file.output_tokens_max,
        endpoints=file.endpoints,
        capabilities=file.capabilities,
        licence=file.licence,
    )
