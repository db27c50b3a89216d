"""Model folders, adapters, GGUF files and tokenizers by strangers, and calls of models with what does not belong there."""

import json
import math
import os
import shutil
import struct
import tracemalloc
from types import SimpleNamespace

import pytest
import torch
from hostile.tally import refused
from safetensors.torch import load_file, save_file

from minirl import chat
from minirl.adapters import load_adapter, save_adapter
from minirl.generate import generate, generate_greedy
from minirl.gguf_file import load_gguf
from minirl.layouts import LARGEST, read_config
from minirl.lora import add_lora
from minirl.model import PolicyWithValue, RewardModel, Transformer, TransformerConfig, last_token, summed
from minirl.pretrained import load_policy_with_value, load_pretrained, load_reward_model, save_pretrained
from minirl.rollout import (
    best_of,
    encode_examples,
    ensemble_scorer,
    join,
    lay_out,
    preference_pairs,
    roll_out,
    rule_scorer,
)
from minirl.rotary import RopeScaling
from minirl.tokenizer import Tokenizer, character_tokenizer, train_bpe, word_tokenizer

WORDS = character_tokenizer("0123456789+=", eos="!")
CONFIG = TransformerConfig(vocab_size=13, width=8, layers=2, heads=2, ffn=12, max_length=16)
Q = "model.layers.0.self_attn.q_proj.weight"


def make() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG)


MODEL = make()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Good folders, to be copied and then damaged."""
    folder = tmp_path_factory.mktemp("whole models")
    save_pretrained(MODEL, WORDS, folder / "model")
    save_pretrained(PolicyWithValue(make()), WORDS, folder / "policy")
    save_pretrained(RewardModel(make(), summed), WORDS, folder / "judge")
    adapted = add_lora(make(), rank=2)
    save_adapter(adapted, folder / "adapter")
    return folder


def edit(path, **changes):
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


def tensors(path, change):
    found = load_file(path)
    change(found)
    save_file(found, path)


def replaced(path, content: bytes | str):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def as_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def sharded(folder, weight_map):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    text = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


DEEP = "[" * 100_000 + "]" * 100_000
GARBAGE = bytes(range(256)) * 4_000  # 1 MB


# config.json, entry by entry

NUMBERS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NUMBERS += ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta")
VALUES = {
    "negative": -1,
    "text": "64",
    "fraction": 2.5,
    "list": [64],
    "object": {"a": 1},
    "true": True,
    "nan": math.nan,
    "inf": math.inf,
    "huge": 2**40,
    "many digits": 10**400,
    "deep": [[[[[]]]]],
}
ENTRIES = {
    f"{name} is {how}": {name: value}
    for name in NUMBERS
    for how, value in VALUES.items()
    if (name, how)
    not in {("rms_norm_eps", "fraction"), ("rope_theta", "fraction"), ("rope_theta", "huge"), ("rms_norm_eps", "huge")}
}
ENTRIES |= {
    f"{name} is {value!r:.20}": {name: value}
    for name, values in {
        "model_type": [None, 5, ["llama"], {}, "LLAMA", "../llama", "x" * 1000],
        "architectures": ["LlamaForCausalLM", [], 5, [["LlamaForCausalLM"]], ["a", "b"]][2:],
        "hidden_act": [None, 5, ["silu"], "gelu"],
        "tie_word_embeddings": ["yes", [], 2, "false"],
        "attention_bias": ["yes", [True], 3],
        "rope_scaling": [
            5,
            "linear",
            [1],
            {"rope_type": ["linear"], "factor": 2.0},
            {"rope_type": "linear", "factor": "2"},
        ],
        "rope_parameters": [
            {"rope_type": "linear", "factor": -1.0},
            {"rope_type": "yarn"},
            {"rope_type": "linear", "factor": 10**400},
        ],
    }.items()
    for value in values
}


@pytest.mark.parametrize("changes", ENTRIES.values(), ids=ENTRIES)
def test_an_entry_of_config_json_that_cannot_be(whole, tmp_path, changes, unhooked, request):
    """Refused before anything large is made: a table of a million million positions would be 8 TB."""
    folder = shutil.copytree(whole / "model", tmp_path / "a módel")
    edit(folder / "config.json", **changes)
    tracemalloc.start()
    try:
        refused(request, lambda: load_pretrained(folder), "a módel")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "qwen3"])
@pytest.mark.parametrize("settings", [{}, {"vocab_size": 13}, {"n_embd": "8", "n_inner": None}, {"hidden_size": None}])
def test_a_config_without_its_entries(family, settings, unhooked, request):
    refused(request, lambda: read_config({"model_type": family} | settings))


def test_the_largest_shape_is_named(unhooked, request):
    settings = json.loads(json.dumps({"model_type": "gpt2", "vocab_size": 13, "n_embd": 8, "n_layer": 1, "n_head": 2}))
    refused(request, lambda: read_config(settings | {"n_positions": LARGEST + 1}), "max_length", f"{LARGEST:,}")


# The other files

DAMAGE = {
    "no folder": (lambda f: shutil.rmtree(f), "model"),
    "a file in its place": (lambda f: (shutil.rmtree(f), f.write_text("x")), "model"),
    "an empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "config.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config a folder": (lambda f: as_folder(f / "config.json"), "config.json"),
    "config empty": (lambda f: replaced(f / "config.json", ""), "config.json"),
    "config garbage": (lambda f: replaced(f / "config.json", 10 * GARBAGE), "config.json"),
    "config deep": (lambda f: replaced(f / "config.json", DEEP), "config.json"),
    "config deep objects": (lambda f: replaced(f / "config.json", '{"a":' * 50_000), "config.json"),
    "config a list": (lambda f: replaced(f / "config.json", "[]"), "config.json"),
    "config null": (lambda f: replaced(f / "config.json", "null"), "config.json"),
    "config NaN": (lambda f: replaced(f / "config.json", "NaN"), "config.json"),
    "config in UTF-16": (lambda f: replaced(f / "config.json", "{}".encode("utf-16")), "config.json"),
    "config of half a character": (lambda f: replaced(f / "config.json", b'{"a": "\xc3"}'), "config.json"),
    "config of endless digits": (
        lambda f: replaced(f / "config.json", '{"vocab_size": ' + "9" * 100_000 + "}"),
        "config.json",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "weights a folder": (lambda f: as_folder(f / "model.safetensors"), "model.safetensors"),
    "weights empty": (lambda f: replaced(f / "model.safetensors", b""), "model.safetensors"),
    "weights garbage": (lambda f: replaced(f / "model.safetensors", 10 * GARBAGE), "model.safetensors"),
    "weights a text": (lambda f: replaced(f / "model.safetensors", "version https://git-lfs"), "model.safetensors"),
    "a header of 2^60": (
        lambda f: replaced(f / "model.safetensors", struct.pack("<Q", 2**60) + b"{}" * 50),
        "model.safetensors",
    ),
    "a header of 2^64 - 1": (lambda f: replaced(f / "model.safetensors", b"\xff" * 100), "model.safetensors"),
    "a header of brackets": (
        lambda f: replaced(f / "model.safetensors", struct.pack("<Q", len(DEEP)) + DEEP.encode()),
        "model.safetensors",
    ),
    "offsets beyond the end": (
        lambda f: replaced(f / "model.safetensors", header(a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]})),
        "model.safetensors",
    ),
    "offsets that overlap": (
        lambda f: replaced(
            f / "model.safetensors",
            header(
                b"\0" * 8,
                a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                b={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            ),
        ),
        "model.safetensors",
    ),
    "a shape that overflows": (
        lambda f: replaced(
            f / "model.safetensors",
            header(b"\0" * 8, a={"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 8]}),
        ),
        "model.safetensors",
    ),
    "an unknown dtype": (
        lambda f: replaced(
            f / "model.safetensors", header(b"\0" * 8, a={"dtype": "X9", "shape": [8], "data_offsets": [0, 8]})
        ),
        "model.safetensors",
    ),
    "a tensor less": (lambda f: tensors(f / "model.safetensors", lambda t: t.pop(Q)), Q),
    "a tensor more": (lambda f: tensors(f / "model.safetensors", lambda t: t.update(x=torch.ones(1))), "tensor x"),
    "transposed": (
        lambda f: tensors(f / "model.safetensors", lambda t: t.update({Q: t[Q][:, :4].clone()})),
        f"{Q}: wanted shape",
    ),
    "a scalar": (lambda f: tensors(f / "model.safetensors", lambda t: t.update({Q: torch.tensor(1.0)})), Q),
    "integers": (lambda f: tensors(f / "model.safetensors", lambda t: t.update({Q: t[Q].int()})), Q),
    "bools": (lambda f: tensors(f / "model.safetensors", lambda t: t.update({Q: t[Q] > 0})), Q),
    "complex": (lambda f: tensors(f / "model.safetensors", lambda t: t.update({Q: t[Q].to(torch.complex64)})), Q),
    "float8": (lambda f: tensors(f / "model.safetensors", lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)})), Q),
    "mixed": (lambda f: tensors(f / "model.safetensors", lambda t: t.update({Q: t[Q].half()})), Q),
    "NaN": (
        lambda f: tensors(f / "model.safetensors", lambda t: t[Q].fill_(math.nan)),
        "not finite",
    ),
    "one inf": (lambda f: tensors(f / "model.safetensors", lambda t: t[Q].view(-1)[:1].fill_(math.inf)), "not finite"),
    "inf and -inf": (
        lambda f: tensors(
            f / "model.safetensors", lambda t: t[Q].view(-1)[:2].copy_(torch.tensor([math.inf, -math.inf]))
        ),
        "not finite",
    ),
    "an index to elsewhere": (lambda f: sharded(f, {Q: "../../etc/passwd"}), "index.json"),
    "an absolute index": (lambda f: sharded(f, {Q: "/etc/passwd"}), "index.json"),
    "an index to a folder above": (lambda f: sharded(f, {Q: ".."}), "model"),
    "an index to nothing": (lambda f: sharded(f, {Q: ""}), "model"),
    "an index to a number": (lambda f: sharded(f, {Q: 5}), "index.json"),
    "an index to a list": (lambda f: sharded(f, {Q: ["part.safetensors"]}), "index.json"),
    "an index of null": (lambda f: sharded(f, None), "index.json"),
    "an index that is empty": (lambda f: sharded(f, {}), "index.json"),
    "a shard that is missing": (lambda f: sharded(f, {Q: "part2.safetensors"}), "part2.safetensors"),
    "an index of garbage": (
        lambda f: ((f / "model.safetensors").unlink(), replaced(f / "model.safetensors.index.json", GARBAGE)),
        "index.json",
    ),
    "a dangling link": (
        lambda f: ((f / "model.safetensors").unlink(), os.symlink("/nowhere/at/all", f / "model.safetensors")),
        "model.safetensors",
    ),
    "a link to itself": (
        lambda f: ((f / "config.json").unlink(), os.symlink("config.json", f / "config.json")),
        "config.json",
    ),
    "tokenizer empty": (lambda f: replaced(f / "tokenizer.json", ""), "tokenizer.json"),
    "tokenizer garbage": (lambda f: replaced(f / "tokenizer.json", GARBAGE), "tokenizer.json"),
    "tokenizer deep": (lambda f: replaced(f / "tokenizer.json", DEEP), "tokenizer.json"),
    "tokenizer an object": (lambda f: replaced(f / "tokenizer.json", "{}"), "tokenizer.json"),
    "tokenizer of a number": (lambda f: edit(f / "tokenizer.json", model=5), "tokenizer.json"),
    "negative ids": (
        lambda f: edit(f / "tokenizer.json", model={"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}),
        "tokenizer.json",
    ),
    "no tokenizer_config": (lambda f: (f / "tokenizer_config.json").unlink(), "tokenizer_config.json"),
    "tokenizer_config a list": (lambda f: replaced(f / "tokenizer_config.json", "[]"), "tokenizer_config.json"),
    "tokenizer_config deep": (lambda f: replaced(f / "tokenizer_config.json", DEEP), "tokenizer_config.json"),
    "eos a number": (lambda f: edit(f / "tokenizer_config.json", eos_token=5), "eos_token"),
    "eos a list": (lambda f: edit(f / "tokenizer_config.json", eos_token=["!"]), "eos_token"),
    "eos an object of nothing": (lambda f: edit(f / "tokenizer_config.json", bos_token={"content": 5}), "bos_token"),
    "eos unknown": (lambda f: edit(f / "tokenizer_config.json", eos_token="<none>"), "eos"),
    "template a number": (lambda f: edit(f / "tokenizer_config.json", chat_template=5), "chat_template"),
    "template half a character": (lambda f: replaced(f / "chat_template.jinja", b"\xc3"), "chat_template.jinja"),
    "a larger vocabulary": (lambda f: edit(f / "config.json", vocab_size=12), "model.safetensors"),
}


def header(data: bytes = b"", **entries) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_folder(whole, tmp_path, damage, unhooked, request):
    folder = shutil.copytree(whole / "model", tmp_path / "model")
    break_it, named = DAMAGE[damage]
    break_it(folder)
    said = refused(request, lambda: load_pretrained(folder), named)
    assert str(folder) in said


HEADS = {
    "value head garbage": (
        "policy",
        load_policy_with_value,
        lambda f: replaced(f / "value_head.safetensors", GARBAGE),
        "value_head",
    ),
    "value head of integers": (
        "policy",
        load_policy_with_value,
        lambda f: tensors(f / "value_head.safetensors", lambda t: t.update(weight=t["weight"].int())),
        "value_head",
    ),
    "value head of NaN": (
        "policy",
        load_policy_with_value,
        lambda f: tensors(f / "value_head.safetensors", lambda t: t["bias"].fill_(math.nan)),
        "value_head",
    ),
    "a pool in a list": (
        "judge",
        load_reward_model,
        lambda f: edit(f / "config.json", minirl_pool=["summed"]),
        "minirl_pool",
    ),
    "a score of NaN": (
        "judge",
        load_reward_model,
        lambda f: tensors(f / "model.safetensors", lambda t: t["score.weight"].fill_(math.nan)),
        "model.safetensors",
    ),
    "two scores": (
        "judge",
        load_reward_model,
        lambda f: tensors(f / "model.safetensors", lambda t: t.update({"score.weight": torch.ones(2, 8)})),
        "model.safetensors",
    ),
    "a critic that is empty": ("policy", load_policy_with_value, lambda f: (f / "critic").mkdir(), "critic"),
}


@pytest.mark.parametrize("damage", HEADS)
def test_a_damaged_head(whole, tmp_path, damage, unhooked, request):
    kind, load, break_it, named = HEADS[damage]
    folder = shutil.copytree(whole / kind, tmp_path / "model")
    break_it(folder)
    refused(request, lambda: load(folder), named, str(folder))


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
CONFIG_OF, WEIGHTS_OF = "adapter_config.json", "adapter_model.safetensors"
ADAPTERS = {
    "no config": (lambda f: (f / CONFIG_OF).unlink(), CONFIG_OF),
    "config garbage": (lambda f: replaced(f / CONFIG_OF, GARBAGE), CONFIG_OF),
    "config a list": (lambda f: replaced(f / CONFIG_OF, "[]"), CONFIG_OF),
    "config deep": (lambda f: replaced(f / CONFIG_OF, DEEP), CONFIG_OF),
    "alpha a word": (lambda f: edit(f / CONFIG_OF, lora_alpha="16"), "lora_alpha"),
    "alpha NaN": (lambda f: edit(f / CONFIG_OF, lora_alpha=math.nan), "lora_alpha"),
    "alpha 0": (lambda f: edit(f / CONFIG_OF, lora_alpha=0), "lora_alpha"),
    "alpha a list": (lambda f: edit(f / CONFIG_OF, lora_alpha=[16]), "lora_alpha"),
    "patterns a list": (lambda f: edit(f / CONFIG_OF, alpha_pattern=["x"]), CONFIG_OF),
    "a pattern that is none": (lambda f: edit(f / CONFIG_OF, alpha_pattern={"(": 1}), CONFIG_OF),
    "another kind": (lambda f: edit(f / CONFIG_OF, peft_type=["LORA"]), "peft_type"),
    "weights garbage": (lambda f: replaced(f / WEIGHTS_OF, GARBAGE), WEIGHTS_OF),
    "weights empty": (lambda f: replaced(f / WEIGHTS_OF, b""), WEIGHTS_OF),
    "only one side": (lambda f: tensors(f / WEIGHTS_OF, lambda t: t.pop(FIRST)), WEIGHTS_OF),
    "integers": (lambda f: tensors(f / WEIGHTS_OF, lambda t: t.update({FIRST: t[FIRST].int()})), WEIGHTS_OF),
    "NaN": (lambda f: tensors(f / WEIGHTS_OF, lambda t: t[FIRST].fill_(math.nan)), WEIGHTS_OF),
    "rank 0": (lambda f: tensors(f / WEIGHTS_OF, lambda t: t.update({FIRST: t[FIRST][:0].clone()})), WEIGHTS_OF),
    "rank 1000": (lambda f: tensors(f / WEIGHTS_OF, high_rank), WEIGHTS_OF),
    "another model's": (lambda f: tensors(f / WEIGHTS_OF, lambda t: t.update(x=torch.ones(1, 1))), WEIGHTS_OF),
}


def high_rank(t):
    t[FIRST] = torch.ones(1000, 8)
    t[FIRST.replace("lora_A", "lora_B")] = torch.ones(8, 1000)


@pytest.mark.parametrize("damage", ADAPTERS)
def test_a_damaged_adapter(whole, tmp_path, damage, unhooked, request):
    folder = shutil.copytree(whole / "adapter", tmp_path / "adapter")
    break_it, named = ADAPTERS[damage]
    break_it(folder)
    model = make()
    before = {name: p.clone() for name, p in model.named_parameters()}
    refused(request, lambda: load_adapter(model, folder), named, str(folder))
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(x, after[name]) for name, x in before.items())
    assert all(p.requires_grad for p in model.parameters())


# Good ones in unusual clothes


def test_marks_line_ends_and_names_that_are_no_damage(whole, tmp_path):
    folder = shutil.copytree(whole / "model", tmp_path / "ein Módell 模型")
    for name in ("config.json", "tokenizer_config.json"):
        text = (folder / name).read_text().replace("\n", "\r\n")
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "elsewhere").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "elsewhere" / "blob")
    os.symlink(tmp_path / "elsewhere" / "blob", folder / "model.safetensors")  # as the hub's own cache has it
    model, tokenizer = load_pretrained(str(folder) + "/")
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), MODEL.parameters(), strict=True))
    assert tokenizer.decode(tokenizer.encode("1+1=2")) == "1+1=2"


# GGUF, whose lengths and counts are a stranger's


LLAMA = ((b"general.architecture", 8, struct.pack("<Q", 5) + b"llama"),)


def gguf_bytes(*, tensors=0, entries=LLAMA, count=None) -> bytes:
    data = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(entries) if count is None else count)
    for key, kind, value in entries:
        data += struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
    return data


GGUFS = {
    "empty": b"",
    "garbage": GARBAGE[:10_000],
    "only magic": b"GGUF",
    "nothing in it": gguf_bytes(entries=()),
    "only a family": gguf_bytes(),
    "2^60 entries": gguf_bytes(count=2**60),
    "2^60 tensors": gguf_bytes(tensors=2**60),
    "a text of 2^60": gguf_bytes(entries=((b"a", 8, struct.pack("<Q", 2**60)),)),
    "a text of 2^64 - 1": gguf_bytes(entries=((b"a", 8, b"\xff" * 8),)),
    "a list of 2^60 bytes": gguf_bytes(entries=((b"a", 9, struct.pack("<IQ", 0, 2**60)),)),
    "a list of 2^60 texts": gguf_bytes(entries=((b"a", 9, struct.pack("<IQ", 8, 2**60)),)),
    "a list of lists of 2^60": gguf_bytes(entries=((b"a", 9, struct.pack("<IQIQ", 9, 2**60, 9, 2**60)),)),
    "a kind that is none": gguf_bytes(entries=((b"a", 99, b"\0" * 8),)),
    "a family of numbers": gguf_bytes(entries=((b"general.architecture", 4, struct.pack("<I", 5)),)),
    "a family twice": gguf_bytes(entries=((b"a", 4, b"\0" * 4), (b"a", 4, b"\0" * 4))),
    "a key of half a character": gguf_bytes(entries=((b"\xc3", 4, b"\0" * 4),)),
    "version 9": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "the other byte order": b"GGUF" + struct.pack(">IQQ", 3, 0, 1),
    "no heads": gguf_bytes(
        entries=(
            (b"general.architecture", 8, struct.pack("<Q", 5) + b"llama"),
            (b"llama.attention.head_count", 4, struct.pack("<I", 0)),
            (b"llama.embedding_length", 4, struct.pack("<I", 8)),
        )
    ),
    "heads of a word": gguf_bytes(
        entries=(
            (b"general.architecture", 8, struct.pack("<Q", 5) + b"llama"),
            (b"llama.attention.head_count", 8, struct.pack("<Q", 1) + b"4"),
            (b"llama.embedding_length", 4, struct.pack("<I", 8)),
        )
    ),
}


@pytest.mark.parametrize("content", GGUFS.values(), ids=GGUFS)
def test_a_damaged_gguf_file(tmp_path, content, unhooked, request):
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").write_bytes(content)
    refused(request, lambda: load_gguf(tmp_path / "a.gguf"), "a.gguf")


# Calls

ROLLOUT = generate(MODEL, [[1, 2], [3]], max_new_tokens=3, eos=0, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(2, 3, dtype=torch.bool)
TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
JUDGE = RewardModel(make(), last_token)
CHATTY = Tokenizer(WORDS.backend, eos="!", chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")


def told(template: str):
    spoken = Tokenizer(WORDS.backend, eos="!", chat_template=template)
    return lambda: chat.render(spoken, [{"role": "user", "content": "1"}])


CALLS = {
    "forward: a list": (lambda: MODEL([[1, 2]]), "tokens"),
    "forward: None": (lambda: MODEL(None), "tokens"),
    "forward: one row": (lambda: MODEL(TOKENS[0]), "tokens"),
    "forward: floats": (lambda: MODEL(TOKENS.float()), "tokens"),
    "forward: bools": (lambda: MODEL(TOKENS > 3), "tokens"),
    "forward: no rows": (lambda: MODEL(TOKENS[:0]), "tokens"),
    "forward: no columns": (lambda: MODEL(TOKENS[:, :0]), "tokens"),
    "forward: negative": (lambda: MODEL(-TOKENS), "tokens"),
    "forward: beyond": (lambda: MODEL(TOKENS + 100), "tokens"),
    "forward: overflow": (lambda: MODEL(TOKENS + 2**62), "tokens"),
    "forward: too long": (lambda: MODEL(TOKENS.repeat(1, 5)), "max_length"),
    "forward: starts of one row": (lambda: MODEL(TOKENS, starts=torch.tensor([0])), "starts"),
    "forward: negative starts": (lambda: MODEL(TOKENS, starts=torch.tensor([-1, 0])), "starts"),
    "forward: starts a list": (lambda: MODEL(TOKENS, starts=[0, 0]), "starts"),
    "judge: a mask of floats": (lambda: JUDGE(TOKENS, MASK.float()), "mask"),
    "judge: a mask too long": (lambda: JUDGE(TOKENS, torch.ones(2, 9).bool()), "mask"),
    "judge: nothing counted": (lambda: JUDGE(TOKENS, ~MASK), "mask"),
    "judge: None": (lambda: JUDGE(TOKENS, None), "mask"),
    "scaling: kind": (lambda: RopeScaling("yarn", 2.0), "kind"),
    "scaling: factor": (lambda: RopeScaling("linear", "2"), "factor"),
    "scaling: nan": (lambda: RopeScaling("linear", math.nan), "factor"),
    "generate: no prompts": (lambda: generate(MODEL, [], max_new_tokens=2), "prompts"),
    "generate: an empty prompt": (lambda: generate(MODEL, [[]], max_new_tokens=2), "prompts"),
    "generate: a token beyond": (lambda: generate(MODEL, [[99]], max_new_tokens=2), "prompts"),
    "generate: a negative token": (lambda: generate(MODEL, [[-1]], max_new_tokens=2), "prompts"),
    "generate: no room": (lambda: generate(MODEL, [[1]], max_new_tokens=16), "max_length"),
    "generate: 10^12 tokens": (lambda: generate(MODEL, [[1]], max_new_tokens=10**12), "max_new_tokens"),
    "generate: 10^30 tokens": (lambda: generate(MODEL, [[1]], max_new_tokens=10**30), "max_new_tokens"),
    "generate: prompts None": (lambda: generate(MODEL, None, max_new_tokens=2), "prompts"),
    "generate: a text": (lambda: generate(MODEL, "1", max_new_tokens=2), "prompts"),
    "generate: a text in a list": (lambda: generate(MODEL, ["1"], max_new_tokens=2), "prompts"),
    "generate: one row": (lambda: generate(MODEL, [1, 2], max_new_tokens=2), "prompts"),
    "generate: floats": (lambda: generate(MODEL, [[1.5]], max_new_tokens=2), "prompts"),
    "generate: bools": (lambda: generate(MODEL, [[True]], max_new_tokens=2), "prompts"),
    "generate: a tensor": (lambda: generate(MODEL, torch.tensor([[1]]), max_new_tokens=2), "prompts"),
    "generate: eos of a word": (lambda: generate(MODEL, [[1]], max_new_tokens=2, eos="!"), "eos"),
    "generate: eos 1.5": (lambda: generate(MODEL, [[1]], max_new_tokens=2, eos=1.5), "eos"),
    "greedy: no prompts": (lambda: generate_greedy(MODEL, [], max_new_tokens=2), "prompts"),
    "generate: length 0": (lambda: generate(MODEL, [[1]], max_new_tokens=0), "max_new_tokens"),
    "generate: length 2.5": (lambda: generate(MODEL, [[1]], max_new_tokens=2.5), "max_new_tokens"),
    "generate: length True": (lambda: generate(MODEL, [[1]], max_new_tokens=True), "max_new_tokens"),
    "generate: length of a word": (lambda: generate(MODEL, [[1]], max_new_tokens="2"), "max_new_tokens"),
    "generate: temperature 0": (lambda: generate(MODEL, [[1]], max_new_tokens=2, temperature=0), "temperature"),
    "generate: temperature nan": (
        lambda: generate(MODEL, [[1]], max_new_tokens=2, temperature=math.nan),
        "temperature",
    ),
    "generate: temperature inf": (
        lambda: generate(MODEL, [[1]], max_new_tokens=2, temperature=math.inf),
        "temperature",
    ),
    "generate: temperature None": (lambda: generate(MODEL, [[1]], max_new_tokens=2, temperature=None), "temperature"),
    "generate: top_p 0": (lambda: generate(MODEL, [[1]], max_new_tokens=2, top_p=0), "top_p"),
    "generate: top_p 1.1": (lambda: generate(MODEL, [[1]], max_new_tokens=2, top_p=1.1), "top_p"),
    "generate: top_p of a word": (lambda: generate(MODEL, [[1]], max_new_tokens=2, top_p="1"), "top_p"),
    "generate: group 0": (lambda: generate(MODEL, [[1]], max_new_tokens=2, group_size=0), "group_size"),
    "generate: group -1": (lambda: generate(MODEL, [[1]], max_new_tokens=2, group_size=-1), "group_size"),
    "generate: group 1.5": (lambda: generate(MODEL, [[1]], max_new_tokens=2, group_size=1.5), "group_size"),
    "generate: eos beyond": (lambda: generate(MODEL, [[1]], max_new_tokens=2, eos=13), "eos"),
    "generate: eos negative": (lambda: generate(MODEL, [[1]], max_new_tokens=2, eos=-1), "eos"),
    "greedy: length 0": (lambda: generate_greedy(MODEL, [[1]], max_new_tokens=0), "max_new_tokens"),
    "roll_out: a nucleus": (lambda: roll_out(MODEL, WORDS, ["1"], max_new_tokens=2, top_p=0.9), "top_p"),
    "roll_out: a strange word": (lambda: roll_out(MODEL, WORDS, ["x"], max_new_tokens=2), "'x'"),
    "rule: one score": (lambda: rule_scorer(lambda p, r: [1.0], WORDS)(["1", "2"], ROLLOUT), "rule"),
    "rule: None": (lambda: rule_scorer(lambda p, r: None, WORDS)(["1", "2"], ROLLOUT), "rule"),
    "rule: words": (lambda: rule_scorer(lambda p, r: ["a", "b"], WORDS)(["1", "2"], ROLLOUT), "rule"),
    "rule: ragged": (lambda: rule_scorer(lambda p, r: [[1.0], [1.0, 2.0]], WORDS)(["1", "2"], ROLLOUT), "rule"),
    "rule: raises": (lambda: rule_scorer(lambda p, r: {}["x"], WORDS)(["1", "2"], ROLLOUT), "rule"),
    "rule: nan": (lambda: rule_scorer(lambda p, r: [math.nan] * 2, WORDS)(["1", "2"], ROLLOUT), "scores"),
    "ensemble: one": (lambda: ensemble_scorer([None]), "scorers"),
    "ensemble: caution": (lambda: ensemble_scorer([None, None], caution=-1), "caution"),
    "lay_out: uneven": (lambda: lay_out([[1]], []), "responses"),
    "lay_out: nothing": (lambda: lay_out([], []), "responses"),
    "encode_examples: uneven": (lambda: encode_examples(WORDS, ["1"], []), "responses"),
    "pairs: uneven": (lambda: preference_pairs(ROLLOUT, torch.tensor([True, False])), "first_is_better"),
    "best_of: no divisor": (lambda: best_of(ROLLOUT, torch.zeros(2), 3), "group_size"),
    "best_of: nan": (lambda: best_of(ROLLOUT, torch.tensor([math.nan, 0]), 2), "scores"),
    "config: width": (lambda: TransformerConfig(vocab_size=13, width=9, heads=2), "width"),
    "config: vocabulary": (lambda: TransformerConfig(vocab_size=0), "vocab_size"),
    "config: layers": (lambda: TransformerConfig(vocab_size=13, layers=2.0), "layers"),
    "config: heads": (lambda: TransformerConfig(vocab_size=13, heads="4"), "heads"),
    "config: bool": (lambda: TransformerConfig(vocab_size=True), "vocab_size"),
    "config: norm": (lambda: TransformerConfig(vocab_size=13, norm="batchnorm"), "norm"),
    "config: eps": (lambda: TransformerConfig(vocab_size=13, norm_eps=math.nan), "norm_eps"),
    "config: scaling": (lambda: TransformerConfig(vocab_size=13, rope_scaling={"factor": 2}), "rope_scaling"),
    "lora: rank 0": (lambda: add_lora(make(), rank=0), "rank"),
    "lora: rank 2.5": (lambda: add_lora(make(), rank=2.5), "rank"),
    "lora: rank True": (lambda: add_lora(make(), rank=True), "rank"),
    "lora: rank None": (lambda: add_lora(make(), rank=None), "rank"),
    "lora: alpha nan": (lambda: add_lora(make(), rank=2, alpha=math.nan), "alpha"),
    "lora: no targets": (lambda: add_lora(make(), rank=2, targets=()), "targets"),
    "lora: targets a word": (lambda: add_lora(make(), rank=2, targets="query"), "targets"),
    "lora: unknown target": (lambda: add_lora(make(), rank=2, targets=["head"]), "targets"),
    "lora: twice": (lambda: add_lora(add_lora(make(), rank=2), rank=2), "model"),
    "save: no model": (lambda: save_pretrained(5, WORDS, "x"), "model"),
    "save: no tokenizer": (lambda: save_pretrained(MODEL, "tokenizer", "x"), "tokenizer"),
    "save: None": (lambda: save_pretrained(MODEL, WORDS, None), "folder"),
    "save: an empty name": (lambda: save_pretrained(MODEL, WORDS, ""), "folder"),
    "save: no adapter": (lambda: save_adapter(MODEL, "x"), "model"),
    "load: None": (lambda: load_pretrained(None), "name_or_folder"),
    "load: a number": (lambda: load_pretrained(5), "name_or_folder"),
    "load: nothing": (lambda: load_pretrained(""), "name_or_folder"),
    "load: a zero in the name": (lambda: load_pretrained("a\0b"), "a\0b"),
    "load: policy of None": (lambda: load_policy_with_value(None), "folder"),
    "load: judge of None": (lambda: load_reward_model(None), "folder"),
    "load: gguf of None": (lambda: load_gguf(None), "path"),
    "load: no gguf": (lambda: load_gguf("/nowhere.gguf"), "/nowhere.gguf"),
    "load: a gguf as a folder": (lambda: load_pretrained("x.gguf"), "x.gguf"),
    "load: adapter of None": (lambda: load_adapter(MODEL, None), "folder"),
    "tokenizer: None": (lambda: Tokenizer.load(None), "folder"),
    "tokenizer: no folder": (lambda: Tokenizer.load("/nowhere"), "/nowhere"),
    "tokenizer: unknown eos": (lambda: Tokenizer(WORDS.backend, eos="?"), "eos"),
    "tokenizer: a strange word": (lambda: WORDS.encode("1+x"), "'x'"),
    "tokenizer: a number": (lambda: WORDS.encode(5), "text"),
    "tokenizer: None as text": (lambda: WORDS.encode(None), "text"),
    "tokenizer: bytes": (lambda: WORDS.encode(b"1"), "text"),
    "tokenizer: a lone surrogate": (lambda: WORDS.encode("\ud800"), "text"),
    "tokenizer: two rows": (lambda: WORDS.decode(TOKENS), "ids"),
    "tokenizer: negative": (lambda: WORDS.decode([-1]), "ids"),
    "tokenizer: overflow": (lambda: WORDS.decode([2**40]), "ids"),
    "tokenizer: a word as ids": (lambda: WORDS.decode("12"), "ids"),
    "tokenizer: floats": (lambda: WORDS.decode([1.5]), "ids"),
    "tokenizer: None as ids": (lambda: WORDS.decode(None), "ids"),
    "tokenizer: twice a word": (lambda: word_tokenizer(["a", "a"], eos="<end>"), "words"),
    "tokenizer: end among words": (lambda: word_tokenizer(["a"], eos="a"), "words"),
    "tokenizer: two words": (lambda: word_tokenizer(["a b"], eos="<end>"), "words"),
    "tokenizer: a word of a number": (lambda: word_tokenizer([5], eos="<end>"), "words"),
    "tokenizer: two characters": (lambda: character_tokenizer(["ab"], eos="!"), "words"),
    "bpe: size 0": (lambda: train_bpe(["a"], 0, eos="!"), "vocab_size"),
    "bpe: size of a word": (lambda: train_bpe(["a"], "300", eos="!"), "vocab_size"),
    "bpe: size 2.5": (lambda: train_bpe(["a"], 300.5, eos="!"), "vocab_size"),
    "chat: no template": (lambda: chat.render(WORDS, [{"role": "user", "content": "1"}]), "template"),
    "chat: no messages": (lambda: chat.render(CHATTY, []), "messages"),
    "chat: a word": (lambda: chat.render(CHATTY, "hello"), "messages"),
    "chat: None": (lambda: chat.render(CHATTY, None), "messages"),
    "chat: a message of a word": (lambda: chat.render(CHATTY, ["hello"]), "messages"),
    "chat: no role": (lambda: chat.render(CHATTY, [{"content": "1"}]), "messages"),
    "chat: a role of a number": (lambda: chat.render(CHATTY, [{"role": 1}]), "messages"),
    "chat: an object": (lambda: chat.render(CHATTY, [{"role": "user", "content": object()}]), "messages"),
    "chat: variables a list": (lambda: chat.render(CHATTY, [{"role": "user"}], variables=["x"]), "variables"),
    "chat: a tokenizer of None": (lambda: chat.render(None, [{"role": "user"}]), "folder"),
    "chat: half a template": (told("{% for"), "chat_template"),
    "chat: division by 0": (told("{{ 1 / 0 }}"), "chat_template"),
    "chat: outside the sandbox": (told("{{ messages.__class__.__mro__[1].__subclasses__() }}"), "chat_template"),
    "chat: an import": (told("{{ cycler.__init__.__globals__.os.system('touch /tmp/x') }}"), "chat_template"),
    "chat: an include": (told("{% include '/etc/passwd' %}"), "chat_template"),
    "chat: a range of 10^12": (told("{% for i in range(1000000000000) %}{% endfor %}"), "chat_template"),
    "chat: a refusal": (told("{{ raise_exception('no') }}"), "messages"),
    "chat: endless calls": (told("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "chat_template"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_cannot_be(call, tmp_path, monkeypatch, unhooked, request):
    monkeypatch.chdir(tmp_path)
    function, named = CALLS[call]
    refused(request, function, named)
    assert not list(tmp_path.iterdir())  # nothing was written


def test_join_of_nothing(unhooked, request):
    refused(request, lambda: join([]), "rollouts")


def test_an_object_that_only_looks_like_a_model(unhooked, request, tmp_path):
    refused(request, lambda: save_pretrained(SimpleNamespace(config=CONFIG), None, tmp_path / "x"), "model")
    assert not list(tmp_path.iterdir())
