"""Models to disk and back: bit for bit with ourselves, and number for number with the library everybody else uses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirl import pretrained
from minirl.generate import generate
from minirl.model import PolicyWithValue, RewardModel, Transformer, TransformerConfig, last_token, summed
from minirl.pretrained import load_policy_with_value, load_pretrained, load_reward_model, save_pretrained
from minirl.tokenizer import character_tokenizer

STORIES = Path(__file__).parents[2] / "shared" / "data" / "stories260k"
needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason="the real model is not beside this repository")
STORED = Path(__file__).parent / "data" / "stories260k_logits.json"

CONFIG = TransformerConfig(
    vocab_size=13,
    width=24,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=20,
    max_length=50,
    rope_base=500.0,
    norm_eps=1e-3,
)
TOKENIZER = character_tokenizer("0123456789+=", eos="!")
TOKENS = torch.tensor([[0, 3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()


def make(seed: int = 0, **changes) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(**{**vars(CONFIG), **changes}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))  # norms and biases too must be seen to come back
    return model


def make_reward_model(pool=summed, **changes) -> RewardModel:
    model = RewardModel(make(**changes), pool)
    torch.nn.init.normal_(model.score.weight)
    return model


def assert_equal(a: torch.nn.Module, b: torch.nn.Module):
    assert a.config == b.config
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


# Round trips


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_model_comes_back_bit_for_bit(tmp_path, tied, bias, dtype):
    model = make(tied=tied, bias=bias).to(dtype)
    save_pretrained(model, TOKENIZER, tmp_path / "model")
    before = torch.get_rng_state()
    loaded, tokenizer = load_pretrained(str(tmp_path / "model"))
    assert torch.equal(before, torch.get_rng_state())  # loading draws nothing
    assert_equal(model, loaded)
    assert tokenizer.encode("3+4=7") == TOKENIZER.encode("3+4=7") and tokenizer.eos_id == TOKENIZER.eos_id
    assert loaded(TOKENS).dtype == dtype and torch.equal(model(TOKENS), loaded(TOKENS))
    assert torch.equal(model.float()(TOKENS), loaded.float()(TOKENS))


def test_a_loaded_model_trains_and_samples(tmp_path):
    save_pretrained(make(tied=True), None, tmp_path / "model")
    model, tokenizer = load_pretrained(tmp_path / "model")
    assert tokenizer is None
    assert model.head.weight is model.embed.weight
    assert len(list(model.parameters())) == len(list(make(tied=True).parameters()))
    generate(model, [[1, 2]], max_new_tokens=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(TOKENS).logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    assert_equal(load_pretrained(tmp_path / "model")[0], make(tied=True))  # the file is not written through


@pytest.mark.parametrize("critic", [None, {"width": 16, "seed": 1}])
def test_a_policy_with_its_values_comes_back(tmp_path, critic):
    model = PolicyWithValue(make(), None if critic is None else make(**critic))
    torch.nn.init.normal_(model.value_head.weight)
    torch.nn.init.normal_(model.value_head.bias)
    save_pretrained(model, TOKENIZER, tmp_path / "model")
    loaded, tokenizer = load_policy_with_value(tmp_path / "model")
    assert tokenizer.vocab_size == 13
    assert_equal(model, loaded)
    for ours, theirs in zip(model(TOKENS), loaded(TOKENS), strict=True):
        assert torch.equal(ours, theirs)
    assert_equal(model.policy, load_pretrained(tmp_path / "model")[0])  # and the policy alone, as a plain model


@pytest.mark.parametrize("pool", [last_token, summed])
@pytest.mark.parametrize("tied", [False, True])
def test_a_reward_model_comes_back(tmp_path, pool, tied):
    model = make_reward_model(pool, tied=tied)
    save_pretrained(model, TOKENIZER, tmp_path / "model")
    loaded, _ = load_reward_model(tmp_path / "model")
    assert loaded.pool is pool
    assert_equal(model, loaded)
    assert torch.equal(model(TOKENS, MASK), loaded(TOKENS, MASK))


def test_a_reward_model_of_another_library_has_no_vocabulary_head(tmp_path):
    model = make_reward_model(last_token)
    save_pretrained(model, TOKENIZER, tmp_path / "model")
    edit_tensors(tmp_path / "model", lambda tensors: tensors.pop("lm_head.weight"))
    edit_config(tmp_path / "model", minirl_pool=None)
    loaded, _ = load_reward_model(tmp_path / "model")
    assert torch.equal(model(TOKENS, MASK), loaded(TOKENS, MASK))


def test_shards(tmp_path):
    model = make()
    save_pretrained(model, TOKENIZER, tmp_path / "model")
    shard(tmp_path / "model")
    assert_equal(model, load_pretrained(tmp_path / "model")[0])
    (tmp_path / "model" / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b.safetensors: no such file"):
        load_pretrained(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_are_read_into_the_precision_asked_for(tmp_path, dtype, unhooked):
    model = PolicyWithValue(make(tied=True), make(seed=1))
    torch.nn.init.normal_(model.value_head.weight)
    save_pretrained(model, None, tmp_path / "model")
    loaded, _ = load_policy_with_value(tmp_path / "model", dtype=dtype)
    kept = torch.promote_types(dtype, torch.float32)  # of a head, which learns from nothing
    model.to(dtype).value_head.to(kept).load_state_dict(load_file(tmp_path / "model" / "value_head.safetensors"))
    assert_equal(loaded, model)
    judge = make_reward_model()
    save_pretrained(judge, None, tmp_path / "judge")
    score = judge.score.weight.detach().clone()
    judge.to(dtype).score.to(kept).load_state_dict({"weight": score})
    assert_equal(load_reward_model(tmp_path / "judge", dtype=dtype)[0], judge)
    edit_tensors(tmp_path / "model", lambda tensors: tensors.update({Q: tensors[Q].half()}))
    assert {p.dtype for p in load_pretrained(tmp_path / "model", dtype=dtype)[0].parameters()} == {dtype}  # mixed
    with pytest.raises(ValueError, match=r"^dtype: wanted one of torch.float32"):
        load_pretrained(tmp_path / "model", dtype=torch.int8)


def test_weights_go_to_the_device_asked_for(tmp_path):
    save_pretrained(make(tied=True), None, tmp_path / "model")
    model, _ = load_pretrained(tmp_path / "model", device="meta")
    assert {x.device.type for x in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert model.head.weight is model.embed.weight


MEASURE = """
import sys, torch
from minirl.pretrained import load_pretrained

def peak(which):
    line = next(line for line in open("/proc/self/status") if line.startswith(which))
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
load_pretrained(sys.argv[2])  # a small one first: what the libraries take for themselves is not the question
before = peak("VmRSS")
model, _ = load_pretrained(sys.argv[1], dtype=torch.float32)
print((peak("VmHWM") - before) / sum(p.numel() * 4 for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is measured as Linux counts it")
@pytest.mark.parametrize("shards", [False, True])
def test_loading_takes_the_memory_of_the_model_and_little_more(tmp_path, shards):
    """96 MB in float32 from a file of 48 MB: a file that is held whole gives 1.5, one that is copied first gives 2."""
    config = TransformerConfig(vocab_size=64, width=512, layers=6, heads=8, ffn=1920, max_length=8)
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to_empty(device="cpu").bfloat16()
    for p in model.parameters():
        p.data.zero_()
    save_pretrained(model, None, tmp_path / "large")
    if shards:
        shard(tmp_path / "large")
    save_pretrained(make(), None, tmp_path / "small")
    script = [sys.executable, "-c", MEASURE, str(tmp_path / "large"), str(tmp_path / "small")]
    # glibc moves its limit between heap and mapping as blocks are freed, and holes in the heap then depend on addresses
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    share = float(subprocess.run(script, capture_output=True, text=True, check=True, env=env).stdout)
    assert 0.9 < share < 1.15


def test_a_name_is_fetched_from_the_hub(tmp_path, monkeypatch):
    save_pretrained(make(), TOKENIZER, tmp_path / "model")
    asked = []

    def snapshot_download(name, **given):
        asked.append((name, given["revision"], sorted(given["allow_patterns"]), given["ignore_patterns"]))
        return str(tmp_path / "model")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    for name in ("gpt2", "deepseek-ai/deepseek-llm-7b-base"):
        assert_equal(load_pretrained(name, revision="abc")[0], make())
    patterns = ["*.json", "chat_template.jinja", "model*.safetensors"]
    assert asked == [(name, "abc", patterns, ["*/*"]) for name in ("gpt2", "deepseek-ai/deepseek-llm-7b-base")]


def test_what_is_no_name_is_not_asked_for(tmp_path, monkeypatch):
    def snapshot_download(name, **given):
        raise ConnectionError("no way out\nand more")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(
        FileNotFoundError, match=r"^a/b: no such folder, and the Hugging Face hub gave none: .*way out$"
    ):
        load_pretrained("a/b")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for folder in ("nowhere", "runs/final", "a/b/c", "../a", str(tmp_path / "model"), Path("a/b")):
        with pytest.raises(FileNotFoundError, match=r": no such folder \(nothing is downloaded"):
            load_pretrained(folder)
    with pytest.raises(ValueError, match=r"model.gguf: a GGUF file; minirl.gguf_file.load_gguf reads these"):
        load_pretrained("model.gguf")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # an import of it fails
    with pytest.raises(FileNotFoundError, match=r"^gpt2: no such folder; pip install huggingface_hub"):
        load_pretrained("gpt2")


# Tokenizers as other libraries leave them


def test_the_end_of_a_text_may_stand_in_the_model_s_config(tmp_path):
    """GPT-2's tokenizer_config.json names no token at all."""
    folder = tmp_path / "model"
    save_pretrained(make(), TOKENIZER, folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    edit_config(folder, eos_token_id=12)
    assert load_pretrained(folder)[1].eos == TOKENIZER.backend.id_to_token(12)
    (folder / "tokenizer_config.json").write_text('{"eos_token": null}')
    assert load_pretrained(folder)[1].eos_id is None


def test_a_token_in_front_that_the_config_asks_for(tmp_path):
    """DeepSeek-LLM's tokenizer.json leaves it to the class that reads it."""
    folder = tmp_path / "model"
    save_pretrained(make(), TOKENIZER, folder)
    asked = {"eos_token": "!", "bos_token": "=", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(asked))
    tokenizer = load_pretrained(folder)[1]
    bare = TOKENIZER.encode("1+2")
    assert tokenizer.encode("1+2") == [tokenizer.bos_id, *bare] and tokenizer.encode_continuation("1+2") == bare
    save_pretrained(make(), tokenizer, tmp_path / "again")
    path = tmp_path / "again" / "tokenizer_config.json"
    path.write_text(json.dumps(asked))  # asked for twice, put there once
    assert load_pretrained(tmp_path / "again")[1].encode("1+2") == [tokenizer.bos_id, *bare]


def test_what_is_written_is_the_layout_others_read(tmp_path):
    save_pretrained(make(), TOKENIZER, tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    assert (config["head_dim"], config["rope_theta"], config["eos_token_id"]) == (8, 500.0, 0)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (16, 24)
    assert {name.split(".")[0] for name in tensors} == {"model", "lm_head"}


# Older and newer ways to say the same


def test_where_the_rope_base_may_stand(tmp_path):
    save_pretrained(make(), TOKENIZER, tmp_path / "model")
    edit_config(tmp_path / "model", rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert load_pretrained(tmp_path / "model")[0].config.rope_base == 500.0
    edit_config(tmp_path / "model", rope_theta=None, rope_parameters=None)
    assert load_pretrained(tmp_path / "model")[0].config.rope_base == 10000.0


def test_entries_that_may_be_absent(tmp_path):
    model = make(kv_heads=4, head_dim=6)
    save_pretrained(model, TOKENIZER, tmp_path / "model")
    absent = ("num_key_value_heads", "head_dim", "hidden_act", "tie_word_embeddings", "attention_bias", "architectures")
    edit_config(tmp_path / "model", **dict.fromkeys(absent))
    assert_equal(model, load_pretrained(tmp_path / "model")[0])


def test_old_files_hold_a_constant_and_a_tied_head_twice(tmp_path):
    model = make(tied=True)
    save_pretrained(model, TOKENIZER, tmp_path / "model")

    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_tensors(tmp_path / "model", add)
    assert_equal(model, load_pretrained(tmp_path / "model")[0])


# Damage


def edit_config(folder: Path, **entries):
    """None takes an entry out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({name: entry for name, entry in config.items() if entry is not None}))


def edit_tensors(folder: Path, edit, name: str = "model.safetensors"):
    tensors = {key: x.clone() for key, x in load_file(folder / name).items()}
    edit(tensors)
    save_file(tensors, folder / name)


def shard(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    where = {key: "ab"[i % 2] + ".safetensors" for i, key in enumerate(tensors)}
    for file in ("a.safetensors", "b.safetensors"):
        save_file({key: tensors[key].clone() for key in tensors if where[key] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def shrink_vocabulary(folder: Path, size: int):
    edit_tensors(folder, lambda t: t.update({name: t[name][:size] for name in t if len(t[name]) == CONFIG.vocab_size}))
    edit_config(folder, vocab_size=size)


def truncate(path: Path, size: int):
    path.write_bytes(path.read_bytes()[:size])


Q = "model.layers.0.self_attn.q_proj.weight"
DAMAGE = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model: no model.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "model: no config.json"),
    "half a file": (lambda f: truncate(f / "model.safetensors", 5000), "model.safetensors: not a whole safetensors"),
    "an empty file": (lambda f: truncate(f / "model.safetensors", 0), "model.safetensors: not a whole safetensors"),
    "half a config": (lambda f: truncate(f / "config.json", 50), "config.json: not a JSON file"),
    "a list as config": (lambda f: (f / "config.json").write_text("[1]"), "config.json: wanted a JSON object"),
    "half a tokenizer": (lambda f: truncate(f / "tokenizer.json", 50), "model: the tokenizer cannot be read"),
    "another model type": (
        lambda f: edit_config(f, model_type="mamba"),
        "config.json: .*model_type 'gpt2', 'llama', 'qwen2', 'qwen3', got 'mamba'",
    ),
    "no model type": (lambda f: edit_config(f, model_type=None), "config.json: .*got None"),
    "another architecture": (
        lambda f: edit_config(f, architectures=["LlamaForTokenClassification"]),
        "config.json: wanted architectures .*LlamaForTokenClassification",
    ),
    "a reward model": (
        lambda f: edit_config(f, architectures=["LlamaForSequenceClassification"]),
        "config.json: .*load_reward_model reads",
    ),
    "no width": (lambda f: edit_config(f, hidden_size=None), "config.json: no entry hidden_size"),
    "a bad width": (lambda f: edit_config(f, hidden_size="64"), "config.json: width"),
    "bad heads": (lambda f: edit_config(f, num_key_value_heads=3), "config.json: kv_heads"),
    "another activation": (lambda f: edit_config(f, hidden_act="gelu"), "config.json: hidden_act 'gelu'"),
    "scaled positions": (
        lambda f: edit_config(f, rope_scaling={"rope_type": "llama3"}),
        "config.json: rope_type 'llama3'",
    ),
    "scaled positions, old": (
        lambda f: edit_config(f, rope_scaling={"type": "linear"}),
        "config.json: rope_type 'linear'",
    ),
    "rope as a word": (lambda f: edit_config(f, rope_parameters="x"), "config.json: .*rope_parameters"),
    "half the biases": (lambda f: edit_config(f, attention_bias=True), "config.json: mlp_bias"),
    "a tensor less": (lambda f: edit_tensors(f, lambda t: t.pop(Q)), f"model.safetensors: no tensor {Q}"),
    "a tensor more": (
        lambda f: edit_tensors(f, lambda t: t.update(extra=torch.ones(1))),
        "model.safetensors: unexpected tensor extra",
    ),
    "a score": (
        lambda f: edit_tensors(f, lambda t: t.update({"score.weight": torch.ones(1, 24)})),
        "model.safetensors: unexpected tensor score.weight",
    ),
    "a tensor of the wrong shape": (
        lambda f: edit_tensors(f, lambda t: t.update({Q: t[Q].T.contiguous()})),
        rf"model.safetensors: {Q}: wanted shape \(32, 24\), got \(24, 32\)",
    ),
    "integers": (lambda f: edit_tensors(f, lambda t: t.update({Q: t[Q].int()})), f"model.safetensors: {Q}: .*int32"),
    "mixed precision": (
        lambda f: edit_tensors(f, lambda t: t.update({Q: t[Q].half()})),
        f"model.safetensors: {Q}: .*float16",
    ),
    "a layer less": (
        lambda f: edit_config(f, num_hidden_layers=1),
        "model.safetensors: unexpected tensor model.layers.1",
    ),
    "a layer more": (lambda f: edit_config(f, num_hidden_layers=3), "model.safetensors: no tensor model.layers.2"),
    "a smaller vocabulary": (lambda f: shrink_vocabulary(f, 9), "model: tokenizer: has 13 tokens, the model has 9"),
    "an index of files elsewhere": (
        lambda f: (
            shard(f) or (f / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../x.safetensors"}}')
        ),
        "index.json: wanted a weight_map",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line(tmp_path, damage, unhooked):
    break_it, message = DAMAGE[damage]
    folder = tmp_path / "model"
    save_pretrained(make(), TOKENIZER, folder)
    break_it(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        load_pretrained(folder)
    assert str(raised.value).startswith(str(folder)) and "\n" not in str(raised.value)


def test_damage_to_heads_is_named(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(FileNotFoundError, match=r"no such folder"):
        load_pretrained(folder)
    save_pretrained(make(), TOKENIZER, folder)
    with pytest.raises(FileNotFoundError, match=r"value_head.safetensors: no such file"):
        load_policy_with_value(folder)
    with pytest.raises(ValueError, match=r"load_pretrained reads these"):
        load_reward_model(folder)
    save_pretrained(PolicyWithValue(make()), TOKENIZER, folder)
    edit_tensors(folder, lambda t: t.update(weight=torch.ones(1, 3)), "value_head.safetensors")
    with pytest.raises(ValueError, match=r"value_head.safetensors: weight: wanted shape \(1, 24\), got \(1, 3\)"):
        load_policy_with_value(folder)
    save_pretrained(make_reward_model(), TOKENIZER, folder)
    edit_config(folder, minirl_pool="mean")
    with pytest.raises(ValueError, match=r"config.json: minirl_pool: .*'mean'"):
        load_reward_model(folder)
    edit_config(folder, minirl_pool=None)
    edit_tensors(folder, lambda t: t.pop("score.weight"))
    with pytest.raises(ValueError, match=r"no tensor score.weight"):
        load_reward_model(folder)
    edit_tensors(folder, lambda t: t.update({"score.weight": torch.ones(2, 24)}))
    with pytest.raises(ValueError, match=r"weight: wanted shape \(1, 24\), got \(2, 24\)"):
        load_reward_model(folder)


# Saving


@pytest.mark.parametrize(("name", "value"), [("norm", "layernorm"), ("positions", "learned"), ("activation", "gelu")])
def test_a_config_without_words_in_the_layout_is_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"^config: .*{name}="):
        save_pretrained(make(**{name: value}), TOKENIZER, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_a_file_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"pools last_token, summed"):
        save_pretrained(make_reward_model(lambda scores, mask: scores.amax(1)), TOKENIZER, tmp_path / "model")
    with pytest.raises(ValueError, match=r"tokenizer: has 13 tokens, the model has 5"):
        save_pretrained(make(vocab_size=5), TOKENIZER, tmp_path / "model")
    model = make()
    model.blocks[0].attention.query.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"a difference in blocks.0.attention.query.adapter"):
        save_pretrained(model, TOKENIZER, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["_write_tensors", "_write_transformer"])
def test_an_interrupted_save_leaves_the_old_model(tmp_path, monkeypatch, moment):
    folder = tmp_path / "model"
    save_pretrained(make(seed=0), TOKENIZER, folder)
    write = getattr(pretrained, moment)

    def die(*args):
        write(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, moment, die)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(make(seed=1), TOKENIZER, folder)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert_equal(load_pretrained(folder)[0], make(seed=0))
    (tmp_path / "model.aside").mkdir()  # as a killed process leaves it
    (tmp_path / "model.aside" / "value_head.safetensors").write_text("half")
    save_pretrained(make(seed=1), TOKENIZER, folder)
    assert_equal(load_pretrained(folder)[0], make(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_earlier_model_is_replaced_whole_and_nothing_else_is(tmp_path):
    folder = tmp_path / "run" / "final"
    save_pretrained(PolicyWithValue(make(), make(seed=1)), TOKENIZER, folder)
    save_pretrained(make(), None, folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(ValueError, match=r"holds final"):
        save_pretrained(make(), None, folder.parent)  # a run's folder
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.txt"):
        save_pretrained(make(), None, folder)
    with pytest.raises(ValueError, match=r"is a file"):
        save_pretrained(make(), None, folder / "notes.txt")
    assert (folder / "notes.txt").read_text() == "mine"


# Against the library everybody else uses


@needs_stories
def test_the_real_model_computes_what_transformers_computed():
    stored = json.loads(STORED.read_text())
    model, tokenizer = load_pretrained(STORIES)
    assert tokenizer.encode(stored["text"]) == stored["ids"]
    with torch.no_grad():
        logits = model(torch.tensor([stored["ids"]]))[0, stored["positions"]]
    close = lambda a, b: torch.testing.assert_close(a, torch.tensor(b), atol=1e-4, rtol=0)  # noqa: E731
    close(logits[:, stored["vocabulary"]], stored["logits"])
    close(logits.logsumexp(-1), stored["logsumexp"])
    assert logits.argmax(-1).tolist() == stored["argmax"]


@needs_stories
def test_the_real_model_round_trips(tmp_path):
    model, tokenizer = load_pretrained(STORIES)
    save_pretrained(model, tokenizer, tmp_path / "model")
    again, tokenizer_again = load_pretrained(tmp_path / "model")
    assert_equal(model, again)
    text = "Once upon a time, there was a café."
    assert tokenizer.encode(text) == tokenizer_again.encode(text)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", STORIES))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


COMMON = """a about after again all am an and angry animals are around as ask asked at away back bad ball be bear became because
bed before being best better big bird blue book books box boy bright brought but buy by cake called came can can't
car careful cars cat clean close cold come could couldn't dad daddy dark day decided did didn't do dog dogs doing
don't door down eat every everyone excited favorite fell felt find first fish flower flowers food for found friend
friends from fun funny garden gave get girl give go going good got grass great ground had happy have he hear heard
help her him his home house how hungry hurt i idea if in inside into is it jack kind knew learned left like lily
listen little lived long look looked lot loudly love loved made make many max me mom mommy money more much mum my
name named near never new next nice night no not of okay old on once one open or other out outside over own park
people pick play played playing pretty proud put ran red remembered room run sad said saw say scared see share she
shiny show sky small smile smiled so some someone something soon sorry special started stop strong sun sunny sure
take tall tasty than that the their them then there they thing things this time timmy tired to together too took top
toy toys tree tried tries truck trying two under until up upon very walk walking want wanted was water way we went
were what when where while who will wind with would yes you your yummy""".split()


@needs_stories
def test_the_real_model_writes_english():
    model, tokenizer = load_pretrained(STORIES)
    prompt = tokenizer.encode("Once upon a time")
    rollout = generate(
        model,
        [prompt],
        max_new_tokens=100,
        temperature=0.7,
        group_size=16,
        eos=tokenizer.eos_id,
        generator=torch.Generator().manual_seed(0),
    )
    words = [word for row in rollout.response for word in re.findall(r"[\w']+", tokenizer.decode(row).lower())[:-1]]
    assert len(words) > 700
    assert sum(word in COMMON for word in words) / len(words) > 0.83  # 0.9; with the rotation reversed 0.7
    assert len(set(words)) > 100


@needs_stories
def test_transformers_computes_the_same_from_the_real_files():
    transformers = pytest.importorskip("transformers")
    model, tokenizer = load_pretrained(STORIES)
    ids = torch.tensor([tokenizer.encode("Tom and Sam went to the park to play with a big red ball.")])
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(STORIES)(ids).logits
        torch.testing.assert_close(model(ids), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"bias": True}, {"kv_heads": 4, "head_dim": 6}])
def test_transformers_reads_what_is_written(tmp_path, changes):
    transformers = pytest.importorskip("transformers")
    model = make(**changes)
    save_pretrained(model, TOKENIZER, tmp_path / "model")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("3+4=7").input_ids == TOKENIZER.encode("3+4=7")
    theirs.save_pretrained(tmp_path / "back")
    again, _ = load_pretrained(tmp_path / "back")
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), again(TOKENS), atol=1e-6, rtol=0)


def test_transformers_reads_a_reward_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = make_reward_model(last_token, tied=True)
    save_pretrained(model, TOKENIZER, tmp_path / "model")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokens = torch.tensor([[9, 3, 1, 4, 1, 5]])
    with torch.no_grad():
        ours = model(tokens, torch.ones(1, 3).bool())
        torch.testing.assert_close(ours, theirs(tokens).logits[:, 0], atol=1e-4, rtol=0)
