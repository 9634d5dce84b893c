"""What a vendor's usage figures mean: every token in exactly one meter. Pure, for every wire.

Owns the table of usage shapes: which field of whose JSON counts what, and where that is written.
Must not know prices, nor which vendor a backend is: the figures say it themselves.

Vendors agree on names and not on meanings. OpenAI's `prompt_tokens` holds what was read from a
cache, Anthropic's `input_tokens` does not; OpenAI's `completion_tokens` holds the reasoning, xAI's
does not. Where a vendor states a total, the reading that adds up to it is the right one. Where none
does, the reading is taken that leaves nothing out which may be billed, and `Usage.contradiction`
says so, for a counter: a figure is never made to fit in silence.

INVARIANTS
- A token is in exactly one count of a Usage: the counts are made by taking parts from a whole.
- Any JSON gives a Usage or None, never an exception. No count is negative or beyond `COUNT_MAX`.
- Without a contradiction the counts of a Usage add up to the vendor's total, where it stated one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple

from gateway.domain.money import Meter
from gateway.domain.request import Usage

COUNT_MAX: Final = (1 << 31) - 1
"""Beyond this a figure is a mistake: no request has so many tokens."""

Count = Literal[
    "prompt",
    "output",
    "total",
    "cached",  # read from a cache
    "missed",  # the rest of the prompt, as DeepSeek says it
    "written",  # written to a cache, for however long
    "written_5m",
    "written_1h",
    "audio",  # of the prompt
    "cached_audio",  # of what was read from a cache
    "image",  # of the prompt
    "fetched",  # by the vendor's own tools; in the total, in the prompt only where billed
    "reasoning",
    "output_audio",
    "output_image",
    "searches",
    "searches_x",
    "seconds",  # of audio in the prompt, which is billed beside its tokens
]


class Field(NamedTuple):
    """`path` in the vendor's JSON states `counts`; `source` is where that is documented."""

    path: str
    counts: Count
    source: str


class Shape(NamedTuple):
    """One way to state usage, known by a field that it always has.

    `apart`: what was read from or written to a cache is not in the prompt's count.
    """

    name: str
    known_by: str
    apart: bool
    fields: tuple[Field, ...]


_OPENAI = "https://developers.openai.com/api/docs/api-reference/chat/object#usage"
_OPENAI_CACHE = "https://developers.openai.com/api/docs/guides/prompt-caching"
_OPENAI_REALTIME = "https://developers.openai.com/api/docs/guides/realtime-costs"
_ANTHROPIC = "https://platform.claude.com/docs/en/api/messages#usage"
_ANTHROPIC_CACHE = "https://platform.claude.com/docs/en/build-with-claude/prompt-caching"
_LITELLM = "litellm.types.utils.Usage"  # Anthropic, Bedrock, Gemini and the rest, translated
_LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md"
_DEEPSEEK = "https://api-docs.deepseek.com/guides/kv_cache"
_MOONSHOT = "https://platform.moonshot.ai/docs/api/chat"  # Together states it so, too
_SGLANG = "sglang.srt.entrypoints.openai.protocol.UsageInfo"
_XAI = "https://docs.x.ai/developers/advanced-api-usage/prompt-caching/usage-and-pricing"
_XAI_TOOLS = "https://docs.x.ai/developers/tools/overview"
_MISTRAL = "mistralai.models.UsageInfo"  # {} where there is no audio
_OPENROUTER = "https://openrouter.ai/docs/use-cases/usage-accounting"
_DASHSCOPE = "https://www.alibabacloud.com/help/en/model-studio/context-cache"

SHAPES: Final = (
    # vLLM, SGLang, Fireworks, Together, Baseten and most others state the first six only.
    Shape(
        "openai",
        "prompt_tokens",
        apart=False,
        fields=(
            Field("prompt_tokens", "prompt", _OPENAI),
            Field("completion_tokens", "output", _OPENAI),
            Field("total_tokens", "total", _OPENAI),
            Field("prompt_tokens_details.cached_tokens", "cached", _OPENAI),
            Field("prompt_tokens_details.audio_tokens", "audio", _OPENAI),
            Field("completion_tokens_details.reasoning_tokens", "reasoning", _OPENAI),
            Field("completion_tokens_details.audio_tokens", "output_audio", _OPENAI),
            Field("prompt_tokens_details.cache_write_tokens", "written", _OPENAI_CACHE),
            Field(
                "prompt_tokens_details.cached_tokens_details.audio_tokens",
                "cached_audio",
                _OPENAI_REALTIME,
            ),
            Field("prompt_tokens_details.image_tokens", "image", _XAI),
            Field("completion_tokens_details.image_tokens", "output_image", _OPENROUTER),
            Field("reasoning_tokens", "reasoning", _SGLANG),
            Field("cached_tokens", "cached", _MOONSHOT),
            Field("prompt_cache_hit_tokens", "cached", _DEEPSEEK),
            Field("prompt_cache_miss_tokens", "missed", _DEEPSEEK),
            Field("prompt_audio_seconds", "seconds", _MISTRAL),
            Field("server_side_tool_usage_details.web_search_calls", "searches", _XAI_TOOLS),
            Field("server_side_tool_usage_details.x_search_calls", "searches_x", _XAI_TOOLS),
            Field("prompt_tokens_details.cache_creation_input_tokens", "written", _DASHSCOPE),
            Field(
                "prompt_tokens_details.cache_creation.ephemeral_5m_input_tokens",
                "written_5m",
                _DASHSCOPE,
            ),
            Field("cache_read_input_tokens", "cached", _LITELLM),
            Field("cache_creation_input_tokens", "written", _LITELLM),
            Field("prompt_tokens_details.cache_creation_tokens", "written", _LITELLM),
            Field(
                "prompt_tokens_details.cache_creation_token_details.ephemeral_5m_input_tokens",
                "written_5m",
                _LITELLM,
            ),
            Field(
                "prompt_tokens_details.cache_creation_token_details.ephemeral_1h_input_tokens",
                "written_1h",
                _LITELLM,
            ),
            Field("prompt_tokens_details.tool_use_tokens", "fetched", _LITELLM),
            Field("prompt_tokens_details.web_search_requests", "searches", _LITELLM),
            Field("server_tool_use.web_search_requests", "searches", _LITELLM),
        ),
    ),
    Shape(
        "anthropic",
        "input_tokens",
        apart=True,
        fields=(
            Field("input_tokens", "prompt", _ANTHROPIC),
            Field("output_tokens", "output", _ANTHROPIC),
            Field("cache_read_input_tokens", "cached", _ANTHROPIC),
            Field("cache_creation_input_tokens", "written", _ANTHROPIC),
            Field("cache_creation.ephemeral_5m_input_tokens", "written_5m", _ANTHROPIC_CACHE),
            Field("cache_creation.ephemeral_1h_input_tokens", "written_1h", _ANTHROPIC_CACHE),
            Field("output_tokens_details.thinking_tokens", "reasoning", _ANTHROPIC),
            Field("server_tool_use.web_search_requests", "searches", _ANTHROPIC),
        ),
    ),
    Shape(
        "llama.cpp timings",
        "prompt_n",
        apart=True,
        fields=(
            Field("prompt_n", "prompt", _LLAMA_CPP),
            Field("cache_n", "cached", _LLAMA_CPP),
            Field("predicted_n", "output", _LLAMA_CPP),
        ),
    ),
)
_NOTHING: Final = frozenset({int, dict, type(None)})
"""Of these what is empty states nothing; an empty text or list would be a mistake."""
_PLAIN: Final = frozenset({"prompt", "output", "total", "cached", "reasoning"})
_STANDARD: Final = frozenset({"default", "standard", "auto", "on_demand", ""})
"""How vendors call the tier that everybody gets."""


def _tree(shape: Shape) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for field in shape.fields:
        *way, name = field.path.split(".")
        at = tree
        for step in way:
            at = at.setdefault(step, {})
        at[name] = field.counts
    return tree


_TREES: Final = tuple((shape, _tree(shape)) for shape in SHAPES)


# ---- reading ---------------------------------------------------------------------------------


def usage_of(raw: object) -> Usage | None:
    """A vendor's usage object. None where it is absent or states no count of the prompt."""
    if not isinstance(raw, dict):
        return None
    prompt, output = raw.get("prompt_tokens"), raw.get("completion_tokens")
    if (
        len(raw) == 3  # of most, and of each chunk where usage runs along
        and type(prompt) is int
        and type(output) is int
        and 0 <= prompt <= COUNT_MAX >= output >= 0
        and raw.get("total_tokens") == prompt + output
    ):
        return Usage(prompt, 0, output)
    for shape, tree in _TREES:
        if _is_count(raw.get(shape.known_by)):
            told = _Told()
            told.read(tree, raw)
            if told.lost_output:
                return None
            tier = tier_of(raw)
            plain = None
            if tier is None and not told.wrong and not shape.apart:
                plain = _plain(told.counts)
            return plain or told.usage(shape, tier)
    return None


def _plain(counts: Mapping[str, int]) -> Usage | None:
    """The short way of what most say: text, perhaps cached, perhaps thought, and it adds up."""
    if not counts.keys() <= _PLAIN:
        return None
    get = counts.get
    prompt, output = get("prompt", 0), get("output", 0)
    cached, hidden = get("cached", 0), get("reasoning", 0)
    if cached > prompt or hidden > output or get("total") != prompt + output:
        return None
    return Usage(prompt - cached, cached, output, hidden)


def tier_of(document: Mapping[str, Any]) -> str | None:
    """The service tier a vendor says it served; None for the standard one.

    OpenAI states it beside the usage, Anthropic inside; Anthropic's fast mode is its `speed`.
    """
    tier = document.get("service_tier")
    if tier is None and document.get("speed") == "fast":
        return "fast"
    if type(tier) is not str or len(tier) > 40:
        return None
    tier = tier.lower()
    return None if tier in _STANDARD else tier


def merged(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Usage that comes in parts (Anthropic: the prompt first, the output last).

    Figures only grow. Where the parts differ, the total is theirs no longer: it is made anew.
    """
    both = _grown(known, new)
    prompt, output = both.get("prompt_tokens"), both.get("completion_tokens")
    if type(prompt) is int and type(output) is int and "total_tokens" in both:
        newest = (new.get("prompt_tokens"), new.get("completion_tokens"))
        both["total_tokens"] = (
            new["total_tokens"]
            if newest == (prompt, output) and "total_tokens" in new
            else prompt + output
        )
    return both


def _grown(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(known)
    for name, value in new.items():
        before = both.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            both[name] = _grown(before, value)
        elif type(before) is not int or (type(value) is int and value > before):
            both[name] = before if value is None else value
    return both


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= COUNT_MAX


class _Told:
    """The counts that one usage object states, and what is wrong with them."""

    __slots__ = ("counts", "lost_output", "wrong")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.wrong: list[str] = []
        self.lost_output = False

    def read(self, tree: Mapping[str, Any], raw: Mapping[str, Any]) -> None:
        counts = self.counts
        for name, value in raw.items():
            count = tree.get(name)
            if count is None:
                continue
            if not value and type(value) in _NOTHING:
                if count == "total" and value == 0:  # it may belie the parts
                    counts.setdefault(count, 0)
                continue
            if type(count) is dict:
                if type(value) is dict:
                    self.read(count, value)
            elif type(value) is not int or not 0 < value <= COUNT_MAX:
                self.wrong.append(f"{name} is no count")
                self.lost_output = self.lost_output or count == "output"
            elif counts.setdefault(count, value) != value:
                self.wrong.append(f"{count} is {counts[count]} and {value}")
                # Less from a cache, more of anything else: what may be billed is not left out.
                choose = min if count == "cached" else max
                counts[count] = choose(counts[count], value)

    def usage(self, shape: Shape, tier: str | None) -> Usage:
        get = self.counts.get
        cached, written = get("cached", 0), self._written()
        prompt, output, hidden = self._whole(shape.apart, cached + sum(written))
        missed = get("missed")
        if missed is not None and missed + cached != prompt:
            self.wrong.append(f"missed {missed} + cached {cached} is not prompt {prompt}")
        uncached, cached, others = self._prompt(prompt, cached, written)
        for meter, count in (
            (Meter.OUTPUT_AUDIO, get("output_audio", 0)),
            (Meter.OUTPUT_IMAGE, get("output_image", 0)),
        ):
            if count:
                others[meter] = count
                output -= count
        if output < hidden:
            self.wrong.append(f"the parts of the output are {hidden - output} more than it")
            output = hidden
        if searches := get("searches", 0) + get("searches_x", 0):
            others[Meter.SEARCH_CALL] = searches
        if seconds := get("seconds"):
            others[Meter.SECOND] = seconds
        return Usage(
            uncached,
            cached,
            output,
            hidden,
            others=others,
            service_tier=tier,
            contradiction="; ".join(self.wrong) or None,
        )

    def _written(self) -> tuple[int, int]:
        """Written for five minutes, and for an hour. What has no life time has the usual one."""
        get = self.counts.get
        short, long = get("written_5m", 0), get("written_1h", 0)
        whole = get("written", short + long)
        if whole < short + long or (whole > short + long > 0):
            self.wrong.append(f"written {whole} is not {short} for 5m + {long} for 1h")
        return max(whole - long, short), long

    def _whole(self, apart: bool, beside: int) -> tuple[int, int, int]:
        """Prompt, output with all that is in it, and reasoning, as the total says they add up.

        `beside` were read from or written to a cache: in the prompt's count, or not.
        """
        get = self.counts.get
        prompt, output, total = get("prompt", 0), get("output", 0), get("total")
        hidden = get("reasoning", 0)
        said = output - get("output_audio", 0) - get("output_image", 0)
        if apart:
            prompt += beside
        # (an addition to the prompt, one to the output), the likelier first
        readings = [(0, 0)]
        if hidden:
            readings.append((0, hidden))
        if beside and not apart:
            readings += [(beside, more) for _, more in tuple(readings)]
        possible = [
            (cache, thought)
            for cache, thought in readings
            if (cache or apart or beside <= prompt) and (thought or hidden <= max(said, 0))
        ] or readings[-1:]
        if total is None:
            if possible[0] != (0, 0):
                self.wrong.append("a part is more than its whole")
            cache, thought = possible[0]
            return prompt + cache, output + thought, hidden
        # A total without the cache is a dialect; one without the output, or the reasoning, is none.
        without = 0 if apart or beside in (output, hidden) else -beside
        unbilled = (0, get("fetched", 0), without)
        for cache, thought in possible:
            for more in unbilled[: 2 if cache else 3]:
                if prompt + cache + output + thought + more == total:
                    return prompt + cache, output + thought, hidden
        self.wrong.append(
            f"prompt {prompt}, output {output}, of a cache {beside}, reasoning {hidden}"
            f" do not make the total {total}"
        )
        cache = possible[0][0]
        sizes = sorted(thought for other, thought in possible if other == cache)
        thought = next((t for t in sizes if prompt + cache + output + t >= total), sizes[-1])
        # What a total has beyond all that is stated was generated, and not shown.
        rest = max(0, total - prompt - cache - output - thought)
        return prompt + cache, output + thought + rest, hidden + rest

    def _prompt(
        self, prompt: int, cached: int, written: tuple[int, int]
    ) -> tuple[int, int, dict[Meter, int]]:
        """What of the prompt is in no other meter, what was read from a cache, and the others.

        Where sounds and pictures do not fit beside what was cached, they were cached: pictures
        first, for sounds cost more.
        """
        get = self.counts.get
        audio, image, cached_audio = get("audio", 0), get("image", 0), get("cached_audio", 0)
        if cached_audio > min(audio, cached):
            self.wrong.append(f"cached audio {cached_audio} of audio {audio}, cached {cached}")
            cached_audio = min(audio, cached)
        audio, cached = audio - cached_audio, cached - cached_audio
        uncached = prompt - cached - cached_audio - sum(written) - audio - image
        if uncached < 0:
            seen = min(-uncached, image, cached)
            heard = min(-uncached - seen, audio, cached - seen)
            image, audio, uncached = image - seen, audio - heard, uncached + seen + heard
            cached, cached_audio = cached - heard, cached_audio + heard
        if uncached < 0:
            self.wrong.append(f"the parts of the prompt are {-uncached} more than it")
            uncached = 0
        meters = {
            Meter.CACHE_WRITE_5M: written[0],
            Meter.CACHE_WRITE_1H: written[1],
            Meter.INPUT_AUDIO: audio,
            Meter.CACHE_READ_AUDIO: cached_audio,
            Meter.INPUT_IMAGE: image,
        }
        return uncached, cached, {meter: count for meter, count in meters.items() if count}


# ---- a stream --------------------------------------------------------------------------------


class Heard:
    """What a stream has told of its usage so far: figures and tier, in any order, perhaps early.

    Figures that come before the end are a part (Anthropic's prompt; the first of many): the Usage
    made of them says `reported=False`, unless they are vouched to be right at each moment.
    """

    __slots__ = ("_new", "_prompt_tokens", "_tier", "_usage", "_vouched", "_whole")

    def __init__(self, prompt_tokens: int, *, vouched: bool = False) -> None:
        """`prompt_tokens`: our estimate, for a stream that tells its tier and no more."""
        self._prompt_tokens = prompt_tokens
        self._vouched = vouched
        self._usage: Usage | None = None
        self._tier: str | None = None
        self._new = self._whole = False

    def read(self, document: Mapping[str, Any]) -> None:
        """A chunk, or a whole answer, of OpenAI's wire."""
        raw = document.get("usage")
        if raw is not None:
            self.figures(usage_of(raw))
        elif "timings" in document:
            self.figures(usage_of(document["timings"]))
        if "service_tier" in document:
            self.tier(document)

    def figures(self, usage: Usage | None) -> None:
        if usage is not None:
            self._usage, self._new = usage, True

    def tier(self, document: Mapping[str, Any]) -> None:
        tier = tier_of(document)
        if tier is not None and tier != self._tier:
            self._tier, self._new = tier, True

    def news(self, *, whole: bool) -> Usage | None:
        """All that is known, if there is more of it than at the last call.

        `whole`: the stream has said that it ended; later figures still count.
        """
        if whole and not self._whole:
            self._whole, self._new = True, self._new or self._usage is not None
        if not self._new:
            return None
        self._new, usage = False, self._usage
        if usage is None:
            if self._tier is None:
                return None
            usage = Usage(self._prompt_tokens, 0, 0, reported=False)
            return replace(usage, service_tier=self._tier)
        reported = whole or self._vouched
        if self._tier is None and reported:
            return usage
        tier = usage.service_tier or self._tier
        return replace(usage, reported=reported, service_tier=tier)
