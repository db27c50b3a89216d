"""Every family of models against the logits that another library computed, its words against their meaning, and back."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirl.layouts import FAMILIES, architecture, family_of, read_config, write_config
from minirl.model import KVCache, PolicyWithValue, RewardModel, Transformer, TransformerConfig, last_token, rope_table
from minirl.pretrained import load_policy_with_value, load_pretrained, load_reward_model, save_pretrained
from minirl.rotary import RopeScaling, rope_frequencies

MODELS = Path(__file__).parent / "data" / "models"  # made by tests/data/make_models.py
NAMES = sorted(path.name for path in MODELS.iterdir())
each_model = pytest.mark.parametrize("name", NAMES)


def golden(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    stored = json.loads((MODELS / name / "golden.json").read_text())
    tokens, starts = torch.tensor(stored["tokens"]), torch.tensor(stored["starts"])
    return tokens, starts, torch.arange(tokens.shape[1]) >= starts[:, None], torch.tensor(stored["logits"])


def load(name: str) -> Transformer:
    return load_pretrained(MODELS / name)[0].requires_grad_(False)


def copied(name: str, folder: Path) -> Path:
    shutil.copytree(MODELS / name, folder / "model")
    return folder / "model"


def edit(folder: Path, change, **entries) -> None:
    """Tensors by a function from dict to dict; entries of config.json by value, None taking one out."""
    tensors = change({key: x.clone() for key, x in load_file(folder / "model.safetensors").items()})
    save_file({key: x.contiguous().clone() for key, x in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | entries
    kept = {name: entry for name, entry in config.items() if entry is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def same(tensors):
    return tensors


def close(a, b, atol=1e-4):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def assert_equal(a: torch.nn.Module, b: torch.nn.Module) -> None:
    assert a.config == b.config
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


# What another library computed


def test_every_family_has_a_stored_model():
    assert {family_of(load(name).config) for name in NAMES} == set(FAMILIES)
    assert sum(path.stat().st_size for path in MODELS.rglob("*.*")) < 150_000


@each_model
def test_logits_are_those_of_transformers(name):
    tokens, starts, real, logits = golden(name)
    model = load(name)
    close(model(tokens, starts=starts)[real], logits)
    for row, start, expected in zip(tokens, starts, logits.split(real.sum(1).tolist()), strict=True):
        close(model(row[None, start:])[0], expected)  # each row without the padding


@each_model
@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 1, 1, 1, 1, 1, 1], [3, 4, 5]])
def test_cached_logits_are_those_of_transformers(name, pieces):
    tokens, starts, real, logits = golden(name)
    model = load(name)
    cache = KVCache(model.config, *tokens.shape)
    seen = [model(piece, starts=starts, cache=cache) for piece in tokens.split(pieces, 1)]
    close(torch.cat(seen, 1)[real], logits)


@each_model
def test_every_tensor_of_a_file_matters(name):
    """The logits would notice a weight, a norm or a bias that is read and not used, or that is not read at all.

    One changes nothing for a reason: a key's bias, without a rotation, adds the same to all scores of a query.
    """
    tokens, starts, real, logits = golden(name)
    for wanted in load(name).state_dict():
        model = load(name)
        x = dict(model.named_parameters(remove_duplicate=False))[wanted]
        x.copy_(x.flip(0) + 0.3)
        difference = (model(tokens, starts=starts)[real] - logits).abs().max()
        assert difference > 1e-2 or (name == "gpt2" and "key.bias" in wanted), wanted


# There and back


@each_model
def test_a_model_is_saved_as_what_it_was(name, tmp_path):
    model = load(name)
    save_pretrained(model, None, tmp_path / "model")
    assert_equal(load_pretrained(tmp_path / "model")[0], model)
    before, after = (load_file(folder / "model.safetensors") for folder in (MODELS / name, tmp_path / "model"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (MODELS / name, tmp_path / "model"))
    assert new["architectures"] == old["architectures"] and new["model_type"] == old["model_type"]
    same_entries = [key for key in new.keys() & old.keys() if new[key] == old[key]]
    assert set(new) - set(same_entries) <= {  # said in another place, or by default, or of the tokenizer
        "head_dim", "rope_theta", "rope_scaling", "torch_dtype", "bos_token_id", "eos_token_id",
        "attn_pdrop", "embd_pdrop", "resid_pdrop",
    }  # fmt: skip


@each_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_come_back_bit_for_bit(name, dtype, tmp_path):
    model, _ = load_pretrained(MODELS / name, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    save_pretrained(model, None, tmp_path / "model")
    assert_equal(load_pretrained(tmp_path / "model")[0], model)


@each_model
def test_heads_of_every_family_come_back(name, tmp_path):
    policy = PolicyWithValue(load(name), load(name))
    torch.nn.init.normal_(policy.value_head.weight)
    save_pretrained(policy, None, tmp_path / "policy")
    assert_equal(load_policy_with_value(tmp_path / "policy")[0], policy)
    judge = RewardModel(load(name), last_token)
    torch.nn.init.normal_(judge.score.weight)
    save_pretrained(judge, None, tmp_path / "judge")
    assert_equal(load_reward_model(tmp_path / "judge")[0], judge)
    config = json.loads((tmp_path / "judge" / "config.json").read_text())
    assert config["architectures"] == [architecture(config["model_type"], scores=True)]
    with pytest.raises(ValueError, match="load_reward_model reads these"):
        load_pretrained(tmp_path / "judge")


def test_gpt2_as_the_hub_has_it(tmp_path):
    """Without the prefix, with the causal mask among the tensors, with the tied head a second time or not."""
    folder, (tokens, starts, real, logits) = copied("gpt2", tmp_path), golden("gpt2")
    mask = {f"h.{i}.attn.bias": torch.ones(1, 1, 24, 24).tril().byte() for i in range(2)}
    constant = {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    edit(folder, lambda t: {key.removeprefix("transformer."): x for key, x in t.items()} | mask | constant)
    close(load_pretrained(folder)[0](tokens, starts=starts)[real], logits)
    edit(folder, lambda t: t | {"lm_head.weight": t["wte.weight"]}, n_inner=None, n_ctx=24)
    with pytest.raises(ValueError, match=r"mlp.c_fc.weight: wanted shape \(16, 64\), got \(16, 24\)"):
        load_pretrained(folder)  # n_inner absent is four times the width
    edit(folder, lambda t: t | {"transformer.wte.weight": t["wte.weight"]}, n_inner=24)
    with pytest.raises(ValueError, match=r"the tensor transformer.wte.weight twice"):
        load_pretrained(folder)


def test_an_untied_gpt2(tmp_path):
    folder, model = copied("gpt2", tmp_path), load("gpt2")
    head = torch.randn(23, 16)
    edit(folder, lambda t: t | {"lm_head.weight": head}, tie_word_embeddings=False)
    untied, tokens = load_pretrained(folder)[0], golden("gpt2")[0]
    close(untied(tokens), model.hidden(tokens) @ head.T)
    save_pretrained(untied, None, tmp_path / "again")
    assert_equal(load_pretrained(tmp_path / "again")[0], untied)


def test_where_a_scaling_may_stand(tmp_path):
    model, scaling = load("llama3"), json.loads((MODELS / "llama3" / "config.json").read_text())["rope_parameters"]
    for kind in ("rope_type", "type"):  # newer, and as the first Llama 3.1 files have it
        folder = copied("llama3", tmp_path / kind)
        old = {key: x for key, x in scaling.items() if key not in ("rope_type", "rope_theta")} | {kind: "llama3"}
        edit(folder, same, rope_parameters=None, rope_scaling=old, rope_theta=10000.0)
        assert load_pretrained(folder)[0].config == model.config


# Rotary frequencies


def test_linear_scaling_is_a_position_divided():
    config = TransformerConfig(vocab_size=2, width=8, heads=1, max_length=40)
    slow = TransformerConfig(vocab_size=2, width=8, heads=1, max_length=40, rope_scaling=RopeScaling("linear", 4.0))
    close(rope_table(slow)[:, ::4], rope_table(config)[:, :10], 1e-6)


def test_llama3_scaling_by_hand():
    """Llama 3.1's own numbers: 64 pairs of base 500000, 8192 tokens, factor 8."""
    plain = rope_frequencies(128, 500000.0, None)
    scaled = rope_frequencies(128, 500000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))
    bands = set()
    for f, got in zip(plain.tolist(), scaled.tolist(), strict=True):
        wavelength = 2 * math.pi / f
        if wavelength < 8192 / 4:
            band, expected = "kept", f
        elif wavelength > 8192 / 1:
            band, expected = "divided", f / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            band, expected = "between", (1 - smooth) * f / 8 + smooth * f
        bands.add(band)
        assert got == pytest.approx(expected, rel=1e-12)
    assert bands == {"kept", "divided", "between"}


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"kind": "yarn"}, "kind"),
        ({"factor": 0.5}, "factor"),
        ({"low_freq_factor": 0.0}, "low_freq_factor"),
        ({"high_freq_factor": 1.0}, "high_freq_factor"),
        ({"original_max_length": 0}, "original_max_length"),
    ],
)
def test_bad_scalings_are_named(wrong, word, unhooked):
    with pytest.raises(ValueError, match=f"^{word}: "):
        RopeScaling(**({"kind": "llama3", "factor": 8.0} | wrong))


# What is refused


def settings_of(name: str, **entries) -> dict:
    return json.loads((MODELS / name / "config.json").read_text()) | entries


REFUSED = [
    ("gpt2", {"activation_function": "gelu"}, "activation_function 'gelu'"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights False"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    ("gpt2", {"n_head": 3}, "width: wanted a multiple of heads"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_type 'linear' wants an entry factor"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 0.1}}, "factor"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' wants an entry low_freq_factor"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ("llama", {"attention_bias": True}, "mlp_bias False"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window True"),
    ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types 'sliding_attention'"),
    ("qwen3", {"attention_bias": True}, "attention_bias True"),
    ("qwen3", {"use_sliding_window": True}, "use_sliding_window True"),
    ("llama", {"model_type": "deepseek_v3"}, "wanted model_type 'gpt2', 'llama', 'qwen2', 'qwen3', got 'deepseek_v3'"),
]


@pytest.mark.parametrize(("name", "entries", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_would_change_the_numbers_is_refused(name, entries, message, unhooked):
    read_config(settings_of(name))
    with pytest.raises(ValueError, match=message):
        read_config(settings_of(name, **entries))


def test_a_sliding_window_that_is_switched_off_means_nothing():
    switched_off = settings_of("qwen2", sliding_window=4, use_sliding_window=False, max_window_layers=0)
    assert read_config(switched_off) == load("qwen2").config


@pytest.mark.parametrize(("family", "size"), [("llama", 4), ("qwen2", 4), ("qwen3", 128)])
def test_the_size_of_a_head_that_is_not_said(family, size):
    settings = settings_of("llama", model_type=family)
    del settings["head_dim"]
    assert read_config(settings).head_dim == size


@each_model
def test_config_and_settings_say_the_same(name):
    config = load(name).config
    assert read_config(write_config(config)) == config


GPT2 = {"norm": "layernorm", "positions": "learned", "activation": "gelu", "bias": True}


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"qk_norm": True, "qkv_bias": True}, "qkv_bias=False"),
        ({"qk_norm": True, "bias": True}, "bias=False"),
        (GPT2 | {"activation": "swiglu"}, "activation='gelu'"),
        (GPT2 | {"bias": False}, "bias=True"),
        (GPT2 | {"kv_heads": 2}, "kv_heads=4"),
        (GPT2 | {"head_dim": 5}, "head_dim=4"),
        (GPT2 | {"qk_norm": True}, "qk_norm=False"),
        ({"norm": "layernorm"}, "norm='rmsnorm'"),
    ],
)
def test_a_config_of_no_family_is_refused(fields, word):
    with pytest.raises(ValueError, match=f"^config: .*{word}"):
        family_of(TransformerConfig(vocab_size=5, width=16, **fields))


def test_tensors_are_named_as_the_file_names_them(tmp_path):
    name = "transformer.h.1.attn.c_attn.weight"
    folder = copied("gpt2", tmp_path)
    edit(folder, lambda t: t | {name: t[name].T})
    with pytest.raises(ValueError, match=rf"{name}: wanted shape \(16, 48\), got \(48, 16\)"):
        load_pretrained(folder)
    edit(folder, lambda t: {key: x for key, x in t.items() if ".h.1." not in key})
    with pytest.raises(ValueError, match=r"no tensor transformer.h.1.attn.c_attn.bias \(and 11 more\)"):
        load_pretrained(folder)
    folder = copied("qwen2", tmp_path / "qwen")
    edit(folder, lambda t: t | {"model.layers.0.self_attn.o_proj.bias": torch.ones(16)})
    with pytest.raises(ValueError, match=r"unexpected tensor model.layers.0.self_attn.o_proj.bias"):
        load_pretrained(folder)


# The library everybody else uses, where it is installed


MORE = {
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3 untied": ("qwen3", {"tie_word_embeddings": False}),
    "gpt2 untied": ("gpt2", {"tie_word_embeddings": False}),
}


@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_transformers_computes_the_same_and_reads_what_is_written(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    stored, changes = MORE.get(name, (name, {}))
    config = transformers.AutoConfig.from_pretrained(MODELS / stored, **changes)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.3) if p.dim() == 2 else p.add_(torch.randn_like(p) * 0.3)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    ours = load_pretrained(tmp_path / "theirs")[0].requires_grad_(False)
    tokens, starts, real, _ = golden(stored)
    positions = (torch.arange(tokens.shape[1]) - starts[:, None]).clamp(min=0)

    def logits(model):
        with torch.no_grad():
            return model(tokens, attention_mask=real.long(), position_ids=positions).logits[real]

    difference = (ours(tokens, starts=starts)[real] - logits(theirs)).abs().max()
    print(f"{name}: largest difference {difference:.1e} of logits up to {logits(theirs).abs().max():.1f}")
    assert difference < 1e-4
    save_pretrained(ours, None, tmp_path / "ours")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert type(again) is type(theirs)
    assert torch.equal(logits(again.eval()), logits(theirs))


@each_model
def test_transformers_reads_a_reward_model_of_every_family(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = RewardModel(load(name), last_token).requires_grad_(False)
    torch.nn.init.normal_(model.score.weight)
    save_pretrained(model, None, tmp_path / "model")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokens = golden(name)[0][:1]
    with torch.no_grad():
        close(model(tokens, torch.ones(1, 3).bool()), theirs(tokens).logits[:, 0])
