"""`policies/catalog.yaml`: which backends exist, what they serve, under which terms, and aliases.

Owns: the file's schema and its meaning. Pure: whether a secret reference resolves is asked of a
function. Knows nothing of prices, of policies, and of what was observed.

INVARIANTS
- A loaded Catalog has no dangling name.
- Terms that are not stated count as the worst: no `cleared_for` means the lowest privacy class.
- A secret is a reference. One written out is refused, and not repeated in the message.
- Plain http carries prompts in the clear: it is taken for private hosts only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field

from gateway.domain.catalog import (
    Alias,
    Backend,
    Catalog,
    DataTerms,
    Kind,
    Limits,
    Model,
    Target,
)
from gateway.domain.request import Capability, Endpoint
from gateway.policy.source import Findings, Path, Strict, digest, json_schema, nearest, read

_DEFAULT = Limits()
_MS_MAX = 3_600_000

Count = Annotated[int, Field(ge=1, le=100_000_000)]
Text = Annotated[str, Field(max_length=1000)]


class LimitsFile(Strict):
    """Bounds of one backend; times in milliseconds."""

    concurrency_max: int = Field(
        default=_DEFAULT.concurrency_max,
        ge=1,
        le=100_000,
        description="Requests in flight at once.",
    )
    connect_ms_max: int = Field(
        default=_DEFAULT.connect_ms_max,
        ge=1,
        le=60_000,
        description="To a connection, TLS included.",
    )
    first_chunk_ms_max: int = Field(
        default=_DEFAULT.first_chunk_ms_max,
        ge=1,
        le=_MS_MAX,
        description="To the first byte of content.",
    )
    first_chunk_ms_per_1k_prompt_tokens: int = Field(
        default=_DEFAULT.first_chunk_ms_per_1k_prompt_tokens,
        ge=0,
        le=60_000,
        description="Stretches first_chunk_ms_max for long prompts.",
    )
    idle_ms_max: int = Field(
        default=_DEFAULT.idle_ms_max, ge=1, le=_MS_MAX, description="Between two chunks."
    )
    total_ms_max: int = Field(
        default=_DEFAULT.total_ms_max, ge=1, le=24 * _MS_MAX, description="The whole request."
    )
    body_bytes_max: int = Field(
        default=_DEFAULT.body_bytes_max,
        ge=1,
        le=1 << 30,
        description="Of an answer that is not streamed.",
    )


class DataFile(Strict):
    """What the operator may do with what it is sent. What is left out counts as the worst."""

    region: Text | None = Field(default=None, description="Where it is processed.")
    retention_days: int | None = Field(
        default=None, ge=0, le=36_500, description="0 means not stored."
    )
    trains_on_data: bool | None = None
    subprocessors: list[Text] = Field(default=[], max_length=200)
    certifications: list[Text] = Field(default=[], max_length=50)
    source: Text | None = Field(default=None, description="Where these terms were read, and when.")


class ModelFile(Strict):
    """A model as this backend serves it."""

    context_tokens: Count | None = Field(default=None, description="Prompt plus output.")
    prompt_tokens_max: Count | None = Field(
        default=None,
        description="Prompt alone, where the vendor (or its price list) sets a lower bound.",
    )
    output_tokens_max: Count | None = None
    endpoints: frozenset[Endpoint] = Field(default=frozenset({Endpoint.CHAT}), min_length=1)
    capabilities: frozenset[Capability] = Field(
        default=frozenset(), description="What it can do beyond text in, text out."
    )


class BackendFile(Strict):
    """A place that serves models."""

    kind: Kind = Field(description="Who runs it: the axis of the build-vs-buy decision.")
    wire: Literal["openai_http", "litellm_sdk"] = Field(description="The protocol it speaks.")
    base_url: str = Field(
        default="",
        max_length=500,
        description="Up to the path above /chat/completions. Optional on litellm_sdk.",
    )
    enabled: bool = Field(default=True, description="false: listed, never routed to.")
    secret: str | None = Field(
        default=None, max_length=500, description="env:NAME or file:/path; never the secret itself."
    )
    cleared_for: str | None = Field(
        default=None,
        description="The highest privacy class it may receive. Left out: the lowest class.",
    )
    auth_header: str = Field(
        default="authorization",
        pattern=r"^[a-z0-9-]{1,64}$",
        description="Carries the secret: as 'Bearer ...' in authorization, bare in any other.",
    )
    headers: dict[str, Text] = Field(
        default={}, max_length=20, description="Sent with every request."
    )
    query: str = Field(
        default="",
        max_length=500,
        description="Appended to every URL: Azure's api-version, for one.",
    )
    vendor: str | None = Field(
        default=None, pattern=r"^[a-z0-9_]{1,64}$", description="litellm's name of the provider."
    )
    health_path: str | None = Field(
        default=None,
        pattern=r"^/",
        max_length=200,
        description="A free GET on the origin that answers 200.",
    )
    continuous_usage: bool = Field(
        default=False, description="Speaks vLLM's stream_options.continuous_usage_stats."
    )
    unsupported_parameters: frozenset[str] = Field(
        default=frozenset(),
        max_length=100,
        description="Left out of requests to it, and disclosed.",
    )
    simulated: bool = Field(default=False, description="A stand-in; labelled wherever it shows.")
    insecure_http: bool = Field(
        default=False, description="Take http:// to a public host all the same."
    )
    data: DataFile = DataFile()
    limits: LimitsFile = LimitsFile()
    models: dict[str, ModelFile] = Field(min_length=1, max_length=1000)


class AliasFile(Strict):
    """The model name an app asks for."""

    description: Text = ""
    privacy_floor: str | None = Field(
        default=None, description="No request for it is classed lower. Left out: the lowest class."
    )
    targets: list[str] = Field(
        min_length=1, max_length=100, description="backend/model, in order of preference."
    )


class CatalogFile(Strict):
    """Backends, the models they serve, under which terms; and aliases over them."""

    version: Literal[1]
    privacy_classes: list[str] = Field(
        min_length=1, max_length=16, description="From least to most strict."
    )
    aliases: dict[str, AliasFile] = Field(default={}, max_length=10_000)
    backends: dict[str, BackendFile] = Field(min_length=1, max_length=1000)


def load_catalog(text: str, *, source: str, secret_present: Callable[[str], bool]) -> Catalog:
    """The file as a Catalog. Raises ConfigErrors with everything that is wrong.

    `secret_present` tells whether `env:NAME` or `file:/path` resolves; a backend whose secret is
    absent is kept, marked unconfigured and why.
    """
    file, findings = read(CatalogFile, text, source)
    _check_names(file, findings)
    for name, backend in file.backends.items():
        _check_backend(backend, ("backends", name), file.privacy_classes, findings)
    for name, alias in file.aliases.items():
        _check_alias(alias, ("aliases", name), file, findings)
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
                description=alias.description,
            )
            for name, alias in file.aliases.items()
        },
        digest=digest(file),
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


def _check_backend(
    backend: BackendFile, path: Path, classes: list[str], findings: Findings
) -> None:
    if backend.cleared_for is not None and backend.cleared_for not in classes:
        findings.problem(
            (*path, "cleared_for"),
            f"unknown privacy class '{backend.cleared_for}'",
            nearest(backend.cleared_for, classes),
        )
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
    if backend.base_url or backend.wire == "openai_http":
        _check_url(backend, (*path, "base_url"), findings)


def _check_header(name: str, path: Path, findings: Findings) -> None:
    if not _HEADER.fullmatch(name):
        findings.problem(path, "a header's name is lower case letters, digits and -", key=True)
    if name in _SECRET_HEADERS:
        findings.problem(path, "carries a secret", "use secret and auth_header", key=True)


def _check_url(backend: BackendFile, path: Path, findings: Findings) -> None:
    try:
        url = urlsplit(backend.base_url)
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
        findings.problem(
            (*path, "privacy_floor"),
            f"unknown privacy class '{floor}'",
            nearest(floor, file.privacy_classes),
        )
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
        why = "switched off in the catalog (enabled: false)"
    elif file.secret is not None and not secret_present(file.secret):
        why = f"{file.secret} is not set"
    return Backend(
        name=name,
        kind=file.kind,
        wire=file.wire,
        base_url=file.base_url.rstrip("/"),
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
        data=DataTerms(
            region=file.data.region,
            retention_days=file.data.retention_days,
            trains_on_data=file.data.trains_on_data,
            subprocessors=tuple(file.data.subprocessors),
            certifications=tuple(file.data.certifications),
            source=file.data.source,
        ),
        limits=Limits(**file.limits.model_dump()),
        why_unconfigured=why,
    )


def _model(name: str, file: ModelFile) -> Model:
    return Model(
        name=name,
        context_tokens=file.context_tokens,
        prompt_tokens_max=file.prompt_tokens_max,
        output_tokens_max=file.output_tokens_max,
        endpoints=file.endpoints,
        capabilities=file.capabilities,
    )
