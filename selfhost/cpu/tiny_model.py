#!/usr/bin/env python3
"""Build a tiny language model on the spot: real files, random weights, no download.

Owns: a folder that vLLM serves like any other checkpoint (Qwen2 shape, 0.8 million parameters, a
byte-level BPE tokenizer trained here, a ChatML template with tools). Run it with the engine's own
Python, which has numpy, tokenizers and safetensors: `.engines/vllm/bin/python
selfhost/cpu/tiny_model.py`.

Invariants: the same recipe builds the same bytes (fixed seed); a stamp is written last, so a
stamped folder is a whole one. The model knows nothing, but it behaves: it writes only plain
lower-case words, so that every token is valid text, and it never ends by itself, so that a request
gets exactly the `max_tokens` or the `stop` that it asked for. The template depends on the messages
alone (no date, no random id): the same opening messages are the same opening tokens, which is what
a prefix cache needs.

Sizes: 4 heads and 2 key-value heads of 32 (a size that vLLM's CPU attention takes) split over two
ranks; keys and values take 512 bytes a token in bfloat16, so 64 MiB hold 131,072 tokens.
"""

from __future__ import annotations

import argparse
import json
import random  # noqa: TID251  seeded below
import shutil
import sys
from pathlib import Path

RECIPE = "tiny qwen2, recipe 1\n"
DEFAULT_MODEL = Path(__file__).resolve().parents[2] / ".engines" / "tiny-model"

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 128, 384, 2, 4, 2, 32
VOCABULARY, CONTEXT, SEED = 2048, 4096, 0
# Logits of words spread over ±2; everything else lies this far below zero, beyond any temperature
# in use.
NEVER = -60.0

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [PAD, START, END, "<tool_call>", "</tool_call>"]

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string %}{{ content }}
{%- elif content %}
{%- for part in content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}
{%- endif -%}
{%- endmacro -%}
{%- if tools %}
{{- '<|im_start|>system\\nTools:\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}
{{- 'Call one with <tool_call>{"name": ..., "arguments": {...}}</tool_call>.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + text(message.content) }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

WORDS = """
a about above accept account across act add after again against age ago agree air all almost alone
along also always am among an and animal another answer any appear are area around arrive art as ask
at away back bad balance bank base be bear beat because become bed been before begin behind believe
below best better between big bird bit black blue boat body book both box boy branch bread break
bridge bright bring brother brown build burn business but buy by call came can car care carry case
catch cause center certain chair chance change check child choose circle city class clean clear
climb clock close cloud coast cold color come common company complete control cook cool copper corn
corner correct cost could count country course cover cross cry cut dance dark day deal decide deep
develop did differ dinner direct distance do does dog done door down draw dream drink drive drop dry
during each early earth ease east eat edge egg eight either else end engine enough enter equal even
evening ever every example expect eye face fact fall family far farm fast father feel few field
fight figure fill final find fine fire first fish five flat float floor flow flower fly follow food
foot for force forest form forward found four free fresh friend from front fruit full game garden
gate gave get girl give glass go gold good got grass great green ground group grow had half hand
happen happy hard has hat have he head hear heart heat heavy held help her here high hill him his
history hold home hope horse hot hour house how hundred hurry ice idea if imagine in inch include
interest iron is island it join jump just keep key kind king knew know lake land language large last
late laugh law lay lead learn least leave left length less let letter level life lift light like
line list listen little live long look lost lot love low machine made main make man many map mark
market matter may me mean measure meet metal middle might mile milk mind minute miss modern money
month moon more morning most mother mountain move much music must my name near need never new next
night nine no noise north nose not note nothing notice now number ocean of off offer office often
oil old on once one only open or orange order other our out over own page paint paper part party
pass past path pattern pay people perhaps person picture piece place plain plan plant play please
point poor possible power practice present press print problem produce proper protect proud pull
push put question quick quiet quite race rain raise ran reach read ready real reason record red
remember repeat reply rest result rich ride right ring rise river road rock room root rope rose
round row rule run safe said sail salt same sand saw say school science sea season seat second see
seed seem sell send sense serve set seven shade shall shape share she sheep ship shoe shop short
should shout show side sign silver simple since sing sister sit six size skin sky sleep slow small
smell smile snow so soft soil some song soon sound south space speak special speed spell spend spoke
spring square stand star start state station stay steel step still stone stop store storm story
straight stream street strong study such sudden sugar summer sun sure surface swim table take talk
tall teach team tell ten test than thank that the their them then there these they thick thin thing
think third this those though thought three through time tiny to together told tomorrow too took
tool top touch toward town track trade train travel tree true try turn twelve two under unit until
up us use usual valley very village visit voice wait walk wall want war warm was wash watch water
wave way we wear weather week weigh weight well went were west what wheel when where which while
white who whole why wide wild will win wind window winter wish with woman wonder wood word work
world would write wrong yard year yellow yes yet you young your
""".split()  # noqa: SIM905  a page of words reads better than a page of quotes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_MODEL)
    folder = parser.parse_args().folder.absolute()
    stamp = folder / "weighbridge-model.txt"
    if stamp.exists() and stamp.read_text() == RECIPE:
        print(f"[tiny-model] {folder} is built", flush=True)
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    vocabulary = write_tokenizer(folder)
    write_config(folder, vocabulary)
    parameters = write_weights(folder, vocabulary)
    stamp.write_text(RECIPE)
    print(f"[tiny-model] {folder}: {len(vocabulary)} tokens, {parameters:,} parameters", flush=True)
    return 0


def write_tokenizer(folder: Path) -> dict[str, int]:
    """Train a byte-level BPE on our words, with a little JSON and code; returns token -> id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return tokenizer.get_vocab()


def _corpus() -> list[str]:
    rng = random.Random(SEED)
    prose = [" ".join(rng.choices(WORDS, k=rng.randint(4, 16))) for _ in range(6000)]
    lines = [line[0].upper() + line[1:] + rng.choice([".", "?", "!", ",", ":"]) for line in prose]
    records = [
        json.dumps({"role": rng.choice(WORDS), "content": n, "ok": n % 2 == 0}) for n in range(400)
    ]
    return [*(" " + word for word in WORDS for _ in range(20)), *lines, *records]


def write_config(folder: Path, vocabulary: dict[str, int]) -> None:
    ends = {"bos_token_id": None, "eos_token_id": vocabulary[END], "pad_token_id": vocabulary[PAD]}
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **ends,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", ends)


def write_weights(folder: Path, vocabulary: dict[str, int]) -> int:
    """Random weights with one rule built in: no layer changes dimension 0 of the residual stream,
    and the output row of each token that is not a word reads it with the weight `NEVER`."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(SEED)

    def normal(rows: int, columns: int, spread: float) -> np.ndarray:
        return rng.normal(0.0, spread, (rows, columns)).astype(np.float32)

    def into_residual(columns: int) -> np.ndarray:
        weight = normal(HIDDEN, columns, columns**-0.5)
        weight[0] = 0.0
        return weight

    weights = {"model.embed_tokens.weight": normal(VOCABULARY, HIDDEN, 1.0)}
    weights["model.embed_tokens.weight"][:, 0] = 4.0
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            weights[f"{at}self_attn.{name}_proj.weight"] = normal(
                heads * HEAD, HIDDEN, HIDDEN**-0.5
            )
            weights[f"{at}self_attn.{name}_proj.bias"] = np.zeros(heads * HEAD, np.float32)
        weights[f"{at}self_attn.o_proj.weight"] = into_residual(HEADS * HEAD)
        weights[f"{at}mlp.gate_proj.weight"] = normal(INNER, HIDDEN, HIDDEN**-0.5)
        weights[f"{at}mlp.up_proj.weight"] = normal(INNER, HIDDEN, HIDDEN**-0.5)
        weights[f"{at}mlp.down_proj.weight"] = into_residual(INNER)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}{norm}.weight"] = np.ones(HIDDEN, np.float32)
    weights["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    head = normal(VOCABULARY, HIDDEN, 2.0 * HIDDEN**-0.5)
    words = {
        identity for token, identity in vocabulary.items() if token[1:] in WORDS and token[0] == "Ġ"
    }
    head[:, 0] = 0.0
    head[[token for token in range(VOCABULARY) if token not in words]] = 0.0
    head[[token for token in range(VOCABULARY) if token not in words], 0] = NEVER
    weights["lm_head.weight"] = head
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(weight.size for weight in weights.values())


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
