"""What exists: backends, the models they serve, under which terms, and the aliases over them.

Values here are loaded from `policies/catalog.yaml` by `policy.catalog` and never change; a reload
builds a new Catalog. Names are resolved at load: no lookup here can meet a dangling one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.domain.request import Capability, Endpoint

PLUGIN_MS_MAX = 50  # what a detector plugin may take where the catalog does not say
SCAN_BYTES_MAX = 1024 * 1024


class Kind(StrEnum):
    """Who runs it: the axis of the build-vs-buy decision."""

    CLOSED_API = "closed_api"
    MANAGED = "managed"
    SELF_HOSTED = "self_hosted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one backend. Times in milliseconds.

    `first_chunk_ms_max` is stretched by `first_chunk_ms_per_1k_prompt_tokens` for long prompts.
    """

    concurrency_max: int = 256
    connect_ms_max: int = 2_000
    first_chunk_ms_max: int = 30_000
    first_chunk_ms_per_1k_prompt_tokens: int = 1_000
    idle_ms_max: int = 20_000
    total_ms_max: int = 600_000
    body_bytes_max: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DataTerms:
    """What the operator of a backend may do with what it is sent. None = unknown = the worst."""

    region: str | None = None
    retention_days: int | None = None
    trains_on_data: bool | None = None
    subprocessors: tuple[str, ...] = ()
    certifications: tuple[str, ...] = ()
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as one backend serves it. `context_tokens` bounds prompt plus output.

    `prompt_tokens_max` bounds the prompt alone: some vendors take less input than their context
    window, and some reprice a whole request above a prompt length we do not want to cross.
    `licence` is an SPDX identifier or the licence's own name, None where unknown.
    """

    name: str
    context_tokens: int | None = None
    prompt_tokens_max: int | None = None
    output_tokens_max: int | None = None
    endpoints: frozenset[Endpoint] = frozenset({Endpoint.CHAT})
    capabilities: frozenset[Capability] = frozenset()
    licence: str | None = None


class Speaks(StrEnum):
    """What an engine's `/metrics` and control endpoints look like."""

    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMACPP = "llamacpp"
    ROUTER = "router"  # vllm-router, production-stack, llm-d: one address before many engines


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """When an engine is full. It is never asked for more KV cache than `kv_used_max` of it.

    A request for which there is no room waits here: up to `queue_ms_max` while others could take
    it, up to `wait_ms_max` where nobody else can.
    """

    kv_used_max: float = 0.9
    queue_ms_max: int = 500
    wait_ms_max: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How long an engine takes to be ready, and how it comes back.

    `weights_gb` read at `read_gb_per_s` make the forecast until starts were seen. A start that
    takes longer than `ready_s_max` has failed. After it, traffic returns over `ramp_s`.
    """

    weights_gb: float | None = None
    read_gb_per_s: float | None = None
    ready_s_max: int = 1_200
    ramp_s: int = 60


class Waker(StrEnum):
    """How a sleeping engine is woken."""

    NONE = "none"
    VLLM = "vllm"  # POST /wake_up and /sleep of a vLLM started with sleep mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """`idle_s` without a request, outside of the hours a policy keeps it warm, puts it to sleep;
    None never does. `level` is vLLM's: 1 keeps the weights in host memory, 2 drops them."""

    wake: Waker = Waker.NONE
    idle_s: int | None = None
    level: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What stands behind a backend of our own, and how it is read.

    `kv_tokens` (of one replica) and `running_max` are for engines that do not say. `metrics_path`
    is on the origin of each replica; `metrics_url` where a port of its own has them.
    `cache_salt`: tenants never share a prefix cache.
    """

    speaks: Speaks = Speaks.VLLM
    metrics_path: str = "/metrics"
    metrics_url: str | None = None
    read_every_ms: int = 500
    kv_tokens: int | None = None
    running_max: int | None = None
    cache_salt: bool = False
    admission: Admission = Admission()
    start: Start = Start()
    sleep: Sleep = Sleep()


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A place that serves models.

    `secret` is a reference (`env:NAME`, `file:/path`) or None; never the secret itself.
    `configured` is False where the reference does not resolve: listed, never routed to.
    `clearance` is the rank of the highest privacy class it may receive.
    `continuous_usage`: it speaks vLLM's `stream_options.continuous_usage_stats`.
    `simulated`: a stand-in, labelled wherever it shows. `query` is appended to every URL
    (Azure's api-version). `vendor` is litellm's provider name on that wire, where an empty
    `base_url` means the vendor's own address. `health_path` is absolute on the origin.
    `replicas` are this backend once for each of its engines, with that one's `base_url` and name
    in `replica`; empty where there is but one place. `pool` names who pays for its GPUs.
    """

    name: str
    kind: Kind
    wire: str
    base_url: str
    models: Mapping[str, Model]
    clearance: int
    replica: str = ""
    replicas: tuple[Backend, ...] = ()
    engine: Engine | None = None
    pool: str | None = None
    secret: str | None = None
    configured: bool = True
    auth_header: str = "authorization"
    headers: tuple[tuple[str, str], ...] = ()
    query: str = ""
    vendor: str | None = None
    health_path: str | None = None
    continuous_usage: bool = False
    unsupported_parameters: frozenset[str] = frozenset()
    simulated: bool = False
    data: DataTerms = field(default_factory=DataTerms)
    limits: Limits = field(default_factory=Limits)
    why_unconfigured: str | None = None

    @property
    def places(self) -> tuple[Backend, ...]:
        """Where a request to it can be sent: its replicas, or itself."""
        return self.replicas or (self,)

    @property
    def seen_as(self) -> str:
        """The name what was observed of it goes by: `backend#replica`, or just `backend`."""
        return f"{self.name}#{self.replica}" if self.replica else self.name


@dataclass(frozen=True, slots=True)
class Target:
    """One model at one backend: what an attempt is sent to."""

    backend: str
    model: str

    def __str__(self) -> str:
        return f"{self.backend}/{self.model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivalence:
    """Targets declared to be the same model: same weights, at a stated precision.

    `declared_by` says who vouches for it, `evidence` on what grounds.
    """

    name: str
    weights: str
    precision: str
    declared_by: str
    targets: frozenset[Target]
    evidence: str = ""


class StandIn(StrEnum):
    """Who may take over from the first choice of an alias, as fallback or in a hedge."""

    ALIAS = "alias"  # any target of the alias: whoever wrote the list vouches for it
    GROUP = "group"  # only targets in a declared equivalence group with the first choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """The model name an app asks for, and the targets that may stand in for it, in file order.

    `privacy_floor` is the rank below which no request for it is classed.
    """

    name: str
    targets: tuple[Target, ...]
    privacy_floor: int = 0
    stand_in: StandIn = StandIn.ALIAS
    description: str = ""
    created: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorPlugin:
    """A detector installed beside the gateway, found by its entry point in `weighbridge.detectors`.

    What it finds calls for `rank`; an error, or no answer in `timeout_ms`, for the strictest class.
    """

    name: str
    rank: int
    timeout_ms: int = PLUGIN_MS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """The whole. `privacy_classes` is ordered from least to most strict; a rank is an index.

    `detectors` maps a detector of `policy.detect` to the rank that what it finds calls for. A
    request with more text than `scan_bytes_max` counts as the strictest class where any is on.
    """

    privacy_classes: tuple[str, ...]
    backends: Mapping[str, Backend]
    aliases: Mapping[str, Alias]
    digest: str
    equivalences: tuple[Equivalence, ...] = ()
    detectors: Mapping[str, int] = field(default_factory=dict)
    detector_plugins: tuple[DetectorPlugin, ...] = ()
    scan_bytes_max: int = SCAN_BYTES_MAX
