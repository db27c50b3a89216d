"""Adapters to disk and back, by ourselves and by PEFT."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirl.adapters import load_adapter, save_adapter
from minirl.lora import adapted, add_lora, base_of, merged
from minirl.model import Transformer, TransformerConfig
from minirl.pretrained import load_pretrained, save_pretrained

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
GPT2 = {"norm": "layernorm", "positions": "learned", "activation": "gelu", "bias": True, "kv_heads": 4, "tied": True}
FAMILIES = {"llama": {}, "qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}, "gpt2": GPT2}


def make(family: str = "llama", seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    config = {"vocab_size": 13, "width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 20, "max_length": 32}
    return Transformer(TransformerConfig(**(config | FAMILIES[family])))


def adapt(model: Transformer, seed: int = 1, **knobs) -> Transformer:
    torch.manual_seed(seed)
    add_lora(model, **({"rank": 3, "alpha": 5.0} | knobs))
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_b.normal_(std=0.3)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [("query", "value"), ("query", "key", "value", "out", "up", "down")])
def test_what_is_saved_comes_back(tmp_path, family, targets):
    model = adapt(make(family), targets=targets)
    save_adapter(model, tmp_path)
    again = load_adapter(make(family), tmp_path)
    with torch.no_grad():
        logits = model(TOKENS)
        assert (logits - base_of(model)(TOKENS)).abs().max() > 0.01, "the corrections do nothing"
        torch.testing.assert_close(again(TOKENS), logits)
    trained = {name for name, p in again.named_parameters() if p.requires_grad}
    assert trained and all(name.endswith(("lora_a", "lora_b")) for name in trained)
    if family != "gpt2":  # there the three of a layer become one of three times the rank
        for (name, x), (other, y) in zip(adapted(model), adapted(again), strict=True):
            assert name == other and x.rank == y.rank and x.alpha == y.alpha
            assert torch.equal(x.lora_a, y.lora_a) and torch.equal(x.lora_b, y.lora_b)


def test_the_names_are_pefts(tmp_path):
    save_adapter(adapt(make(), targets=("query", "down")), tmp_path, base_model="here")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 5.0)
    assert config["target_modules"] == ["down_proj", "q_proj"] and config["base_model_name_or_path"] == "here"
    shapes = {name: tuple(x.shape) for name, x in load_file(tmp_path / "adapter_model.safetensors").items()}
    front = "base_model.model.model.layers.1"
    assert shapes[f"{front}.self_attn.q_proj.lora_A.weight"] == (3, 24)
    assert shapes[f"{front}.mlp.down_proj.lora_B.weight"] == (24, 3)
    assert len(shapes) == 8


def test_a_correction_of_one_layer_alone_is_named_in_full(tmp_path):
    model = make()
    adapt(model)
    for name in [name for name, _ in adapted(model) if not name.startswith("blocks.1.attention.query")]:
        parent, _, child = name.rpartition(".")
        layer = model.get_submodule(name)
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight = layer.weight
        setattr(model.get_submodule(parent), child, plain)
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    torch.testing.assert_close(load_adapter(make(), tmp_path)(TOKENS), model(TOKENS))


PROGRAM = """
import json, sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel

for folder in sys.argv[1:]:
    base = AutoModelForCausalLM.from_pretrained(folder + "/base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder + "/ours").eval()
    with torch.no_grad():
        logits = [model(torch.tensor(TOKENS)).logits.tolist()]
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.mul_(-0.5).add_(0.01)
        logits.append(model(torch.tensor(TOKENS)).logits.tolist())
    model.save_pretrained(folder + "/theirs")
    print(json.dumps(logits))
"""


def test_peft_loads_ours_and_we_load_pefts(tmp_path):
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    models = {}
    for family in FAMILIES:
        models[family] = model = make(family)
        save_pretrained(model, None, tmp_path / family / "base")
        save_adapter(adapt(model), tmp_path / family / "ours", base_model=str(tmp_path / family / "base"))
    program = PROGRAM.replace("TOKENS", str(TOKENS.tolist()))
    command = [sys.executable, "-W", "ignore", "-c", program, *[str(tmp_path / family) for family in FAMILIES]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for (family, model), line in zip(models.items(), done.stdout.splitlines()[-len(FAMILIES) :], strict=True):
        before, after = map(torch.tensor, json.loads(line))
        with torch.no_grad():
            torch.testing.assert_close(model(TOKENS), before, atol=1e-4, rtol=1e-4)
            again = load_adapter(load_pretrained(tmp_path / family / "base")[0], tmp_path / family / "theirs")
            torch.testing.assert_close(again(TOKENS), after, atol=1e-4, rtol=1e-4)


def test_a_merged_model_needs_no_adapter(tmp_path):
    model = adapt(make("qwen2"))
    save_pretrained(merged(model), None, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(load_pretrained(tmp_path)[0](TOKENS), model(TOKENS), atol=1e-5, rtol=1e-5)


@pytest.fixture
def folder(tmp_path):
    save_adapter(adapt(make()), tmp_path)
    return tmp_path


def edit(folder, **entries):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"use_dora": True}, "use_dora True is not supported, wanted False"),
        ({"use_rslora": True}, "use_rslora True"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported, wanted 'LORA'"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_we_do_not_have_is_named(folder, entries, message):
    edit(folder, **entries)
    model = make()
    with pytest.raises(ValueError, match=message):
        load_adapter(model, folder)
    assert not list(adapted(model)) and all(p.requires_grad for p in model.parameters())


def test_another_models_adapter_is_refused_and_changes_nothing(folder):
    torch.manual_seed(0)
    wide = Transformer(TransformerConfig(vocab_size=13, width=32, layers=2, heads=4, ffn=20, max_length=32))
    with pytest.raises(
        ValueError, match=r"down_proj: wanted lora_A \(rank, 20\) and lora_B \(32, rank\), got \(3, 20\)"
    ):
        load_adapter(wide, folder)
    shallow = Transformer(
        TransformerConfig(vocab_size=13, width=24, layers=1, heads=4, kv_heads=2, ffn=20, max_length=32)
    )
    with pytest.raises(ValueError, match=r"no layer model\.layers\.1\.mlp\.down_proj in this model"):
        load_adapter(shallow, folder)
    for model in (wide, shallow):
        assert not list(adapted(model)) and all(p.requires_grad for p in model.parameters())


def test_damaged_files_are_named(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    save_file({key: x for key, x in tensors.items() if key != name}, path)
    with pytest.raises(ValueError, match="has only lora_A"):
        load_adapter(make(), folder)
    save_file(tensors | {"odd": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"odd \(2,\) is no correction of a linear layer"):
        load_adapter(make(), folder)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: "):
        load_adapter(make(), folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"folder: no adapter_model\.safetensors in "):
        load_adapter(make(), folder)


def test_there_has_to_be_something_to_save_and_nothing_in_the_way(folder):
    with pytest.raises(ValueError, match="model: has no LoRA to save"):
        save_adapter(make(), folder)
    with pytest.raises(ValueError, match="model: has LoRA already"):
        load_adapter(adapt(make()), folder)


def test_patterns_mean_what_they_mean_to_peft(folder):
    """alpha_pattern names the ends of layers; corrections scale with it."""
    with torch.no_grad():
        before = load_adapter(make(), folder)
        edit(folder, alpha_pattern={r"layers\.1\.mlp\.down_proj": 10.0})
        after = load_adapter(make(), folder)
    alphas = {name: layer.alpha for name, layer in adapted(after)}
    assert alphas.pop("blocks.1.ffn.down") == 10.0 and set(alphas.values()) == {5.0}
    assert {layer.alpha for _, layer in adapted(before)} == {5.0}
