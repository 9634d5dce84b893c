"""What may stand in `policies/catalog.yaml`: the schema, with the words editors show. Pure.

Owns names, types and bounds of keys. What they mean together, and what they become, is `catalog`'s.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway.domain.catalog import (
    PLUGIN_MS_MAX,
    SCAN_BYTES_MAX,
    Admission,
    Engine,
    Kind,
    Limits,
    Sleep,
    Speaks,
    StandIn,
    Start,
    Waker,
)
from gateway.domain.request import Capability, Endpoint
from gateway.policy.detect import CONTENT
from gateway.policy.detectors import DETECTORS
from gateway.policy.source import Strict

_DEFAULT = Limits()
_ENGINE, _ADMISSION, _START, _SLEEP = Engine(), Admission(), Start(), Sleep()
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
    licence: Text | None = Field(
        default=None,
        description="Of the weights: its SPDX identifier, else its own name. Left out: unknown.",
    )


class AdmissionFile(Strict):
    """When an engine is full, and how long a request waits for room."""

    kv_used_max: float = Field(
        default=_ADMISSION.kv_used_max,
        gt=0,
        le=1,
        description="Share of the KV cache we fill; the rest is for answers that grow longer.",
    )
    queue_ms_max: int = Field(
        default=_ADMISSION.queue_ms_max,
        ge=0,
        le=_MS_MAX,
        description="A request waits here so long for room while another backend could take it.",
    )
    wait_ms_max: int = Field(
        default=_ADMISSION.wait_ms_max,
        ge=0,
        le=_MS_MAX,
        description="The same where nobody else can; then it is refused, with Retry-After.",
    )


class StartFile(Strict):
    """How long an engine takes to be ready, and how traffic comes back to it."""

    weights_gb: float | None = Field(
        default=None, gt=0, le=100_000, description="On disk; for the forecast of a first start."
    )
    read_gb_per_s: float | None = Field(
        default=None, gt=0, le=1_000, description="What its storage reads a second."
    )
    ready_s_max: int = Field(
        default=_START.ready_s_max, ge=1, le=86_400, description="A longer start has failed."
    )
    ramp_s: int = Field(
        default=_START.ramp_s, ge=0, le=86_400, description="Traffic returns over so long."
    )


class SleepFile(Strict):
    """vLLM's sleep mode."""

    wake: Waker = Field(
        default=_SLEEP.wake,
        description="vllm: woken by the first request that wants it. Needs vLLM's sleep mode and "
        "its development endpoints, on a private address.",
    )
    idle_s: int | None = Field(
        default=None, ge=1, le=86_400 * 7, description="Put to sleep after so long idle."
    )
    level: Literal[1, 2] = Field(
        default=1, description="1 keeps the weights in host memory, 2 drops them."
    )


class EngineFile(Strict):
    """What stands behind a backend of our own, and how it is read."""

    speaks: Speaks = Field(
        default=_ENGINE.speaks,
        description="What its metrics look like. router: one address before many engines.",
    )
    metrics_path: str = Field(
        default=_ENGINE.metrics_path,
        pattern=r"^/",
        max_length=200,
        description="On the origin of each replica.",
    )
    metrics_url: str | None = Field(
        default=None, max_length=500, description="Where a port of its own has the metrics."
    )
    read_every_ms: int = Field(default=_ENGINE.read_every_ms, ge=50, le=60_000)
    kv_tokens: Count | None = Field(
        default=None, description="KV cache of one replica, where the engine does not say."
    )
    running_max: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="Its --max-num-seqs, where the engine does not say."
    )
    cache_salt: bool = Field(
        default=False, description="Tenants never share a prefix cache (vLLM's cache_salt)."
    )
    admission: AdmissionFile = AdmissionFile()
    start: StartFile = StartFile()
    sleep: SleepFile = SleepFile()


class ReplicaFile(Strict):
    """One of several engines of a backend."""

    base_url: str = Field(min_length=1, max_length=500)
    metrics_url: str | None = Field(default=None, max_length=500)


class BackendFile(Strict):
    """A place that serves models."""

    kind: Kind = Field(description="Who runs it: the axis of the build-vs-buy decision.")
    wire: Literal["openai_http", "litellm_sdk"] = Field(description="The protocol it speaks.")
    base_url: str = Field(
        default="",
        max_length=500,
        description="Up to the path above /chat/completions. Optional on litellm_sdk.",
    )
    replicas: dict[str, ReplicaFile] = Field(
        default={},
        max_length=256,
        description="Several engines with the same model and terms, by name; instead of base_url.",
    )
    engine: EngineFile | None = Field(
        default=None,
        description="An engine of our own: its metrics are read, and it is never overfilled.",
    )
    pool: str | None = Field(default=None, description="Who pays for its GPUs; below `pools`.")
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
    stand_in: Literal["alias", "group"] = Field(
        default=StandIn.ALIAS.value,
        description="Who may take over from the first choice: any target of the alias, or only "
        "one of the same group below `equivalence`.",
    )
    targets: list[str] = Field(
        min_length=1, max_length=100, description="backend/model, in order of preference."
    )


class ClearanceFile(Strict):
    """What the data terms of a backend must say. What is not stated does not do."""

    regions: list[Text] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="One of these, as data.region has it. Left out: anywhere.",
    )
    retention_days_max: Annotated[int, Field(ge=0, le=36_500)] | None = Field(
        default=None, description="0: not stored. Left out: however long."
    )
    no_training: bool = Field(default=False, description="Known not to train on what it is sent.")
    certifications: list[Text] = Field(default=[], max_length=50, description="All of these.")
    subprocessors_allowed: list[Text] | None = Field(
        default=None,
        max_length=200,
        description="No others than these; an empty list allows none. Left out: whoever.",
    )


class EquivalenceFile(Strict):
    """Targets that someone vouches are the same model: the same weights, at one precision."""

    weights: Text = Field(description="Which, and where they were published.")
    precision: Text = Field(description="In which they are served.")
    declared_by: Text = Field(description="Who vouches for it.")
    evidence: Text = Field(default="", description="On what grounds.")
    targets: list[str] = Field(min_length=2, max_length=100, description="backend/model.")


class DetectorPluginFile(Strict):
    """A detector from the entry points `weighbridge.detectors`, under its name there."""

    privacy_class: str = Field(alias="class", description="What its finding raises a request to.")
    timeout_ms: int = Field(
        default=PLUGIN_MS_MAX,
        ge=1,
        le=10_000,
        description="No answer in this time, an error, no free thread: the strictest class.",
    )


_DETECTORS = "; ".join(
    f"{name}: {about}"
    for name, about in ({n: d.about for n, d in DETECTORS.items()} | dict(CONTENT)).items()
)


class CatalogFile(Strict):
    """Backends, the models they serve, under which terms; and aliases over them."""

    version: Literal[1]
    privacy_classes: list[str] = Field(
        min_length=1, max_length=16, description="From least to most strict."
    )
    clearance_terms: dict[str, Annotated[list[ClearanceFile], Field(min_length=1)]] = Field(
        default={},
        max_length=16,
        description="By privacy class: what a backend must state to be cleared for it or for a "
        "stricter one, all of one entry of the list. Left out: cleared_for is believed.",
    )
    detectors: dict[str, str] = Field(
        default={},
        max_length=100,
        description="By detector: the class a request is raised to where it finds something. "
        f"Left out: it is off. {_DETECTORS}",
    )
    detector_plugins: dict[str, DetectorPluginFile] = Field(
        default={}, max_length=20, description="Heavier detectors, installed beside the gateway."
    )
    scan_bytes_max: int = Field(
        default=SCAN_BYTES_MAX,
        ge=1024,
        le=64 * 1024 * 1024,
        description="More text than this is not looked at: the strictest class, if any detector "
        "is on.",
    )
    equivalence: dict[str, EquivalenceFile] = Field(
        default={}, max_length=1000, description="Groups of targets that are the same model."
    )
    aliases: dict[str, AliasFile] = Field(default={}, max_length=10_000)
    backends: dict[str, BackendFile] = Field(min_length=1, max_length=1000)
