"""Models on disk in the Hugging Face layout, so that any library can read what this one wrote, and the other way round.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json

A Transformer is a LlamaForCausalLM. A PolicyWithValue is its policy in the same form, with value_head.safetensors beside
it (and a separate critic in a folder of that name). A RewardModel is a LlamaForSequenceClassification with one label.
Only safetensors and JSON are read; nothing is unpickled.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from minirl.model import PolicyWithValue, RewardModel, Transformer, TransformerConfig, last_token, summed
from minirl.tokenizer import Tokenizer
from minirl.types import Tensor

LANGUAGE_MODEL, REWARD_MODEL = "LlamaForCausalLM", "LlamaForSequenceClassification"
POOLS = {"last_token": last_token, "summed": summed}  # the ones a file can name
TEXT = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")

LLAMA = {  # our name of a part, and Llama's
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}


# Loading


def load_pretrained(folder: str | Path) -> tuple[Transformer, Tokenizer | None]:
    """A language model and its tokenizer (None where the folder has none), from a folder in the Llama layout.

    Weights keep the precision of the file: call `.float()` to train bfloat16 weights on a CPU. FileNotFoundError or
    ValueError, naming the file and what is wrong with it, for anything that is not such a folder; nothing is downloaded.
    """
    folder = Path(folder)
    settings = _read_config(folder, LANGUAGE_MODEL)
    trunk, _ = _read_transformer(folder, settings)
    return trunk, _read_tokenizer(folder, trunk.config)


def load_policy_with_value(folder: str | Path) -> tuple[PolicyWithValue, Tokenizer | None]:
    """What `save_pretrained` made of a PolicyWithValue. Errors as in `load_pretrained`."""
    folder = Path(folder)
    policy, tokenizer = load_pretrained(folder)
    model = PolicyWithValue(policy, load_pretrained(folder / "critic")[0] if (folder / "critic").is_dir() else None)
    path = folder / "value_head.safetensors"
    _fill(model.value_head, _read_tensors(path), path)
    return model, tokenizer


def load_reward_model(folder: str | Path) -> tuple[RewardModel, Tokenizer | None]:
    """A reward model and its tokenizer. One that another library wrote scores the last token, as they all do.

    Such a file has no head over the vocabulary, which a reward model does not use; it is then 0.
    """
    folder = Path(folder)
    settings = _read_config(folder, REWARD_MODEL)
    pool = settings.get("minirl_pool", "last_token")
    if pool not in POOLS:
        raise ValueError(f"{folder / 'config.json'}: minirl_pool: wanted one of {', '.join(POOLS)}, got {pool!r}")
    trunk, score = _read_transformer(folder, settings)
    model = RewardModel(trunk, POOLS[pool])
    _fill(model.score, {"weight": score}, folder)
    return model, _read_tokenizer(folder, trunk.config)


def _read_config(folder: Path, architecture: str) -> dict:
    path = folder / "config.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (nothing is downloaded)")
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no config.json, so this is no model in the Hugging Face layout")
    settings = _read_json(path)
    if settings.get("model_type") != "llama":
        raise ValueError(f"{path}: wanted model_type 'llama', got {settings.get('model_type')!r}")
    found = settings.get("architectures") or [LANGUAGE_MODEL]
    if found != [architecture]:
        reader = {LANGUAGE_MODEL: "load_pretrained", REWARD_MODEL: "load_reward_model"}.get(found[0])
        hint = f"; {reader} reads these" if reader else ""
        raise ValueError(f"{path}: wanted architectures ['{architecture}'], got {found}{hint}")
    return settings


def _read_transformer(folder: Path, settings: dict) -> tuple[Transformer, Tensor | None]:
    """The Transformer, and a reward model's score.weight beside it."""
    config = _from_llama(settings, folder / "config.json")
    path = folder / "model.safetensors"
    tensors = _read_tensors(path) if path.is_file() else _read_shards(folder)
    for name in [name for name in tensors if name.endswith("rotary_emb.inv_freq")]:
        del tensors[name]  # a constant that old files hold
    score = None
    if settings.get("architectures") == [REWARD_MODEL]:
        if "score.weight" not in tensors:
            raise ValueError(f"{path}: no tensor score.weight")
        score = tensors.pop("score.weight")
        tensors.setdefault("lm_head.weight", score.new_zeros(config.vocab_size, config.width))
    if config.tied:
        tensors.pop("lm_head.weight", None)
    with torch.device("meta"):  # shapes without memory: no time and no random numbers go into weights that are replaced
        model = Transformer(config)
    ours = {_llama_name(name): name for name, _ in model.named_parameters()}
    _fill(model, {ours.get(name, name): x for name, x in tensors.items()}, path, {v: k for k, v in ours.items()})
    if config.tied:
        model.head.weight = model.embed.weight
    return model, score


def _from_llama(settings: dict, path: Path) -> TransformerConfig:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}  # newer and older files
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: wanted rope_parameters to be an object, got {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    bias = settings.get("attention_bias", False)
    for name, got, wanted in (
        ("hidden_act", settings.get("hidden_act", "silu"), "silu"),
        ("rope_type", kind, "default"),
        ("mlp_bias", settings.get("mlp_bias", False), bias),
    ):
        if got != wanted:
            raise ValueError(f"{path}: {name} {got!r} is not supported, wanted {wanted!r}")
    try:
        return TransformerConfig(
            vocab_size=settings["vocab_size"],
            width=settings["hidden_size"],
            layers=settings["num_hidden_layers"],
            heads=settings["num_attention_heads"],
            kv_heads=settings.get("num_key_value_heads"),
            head_dim=settings.get("head_dim"),
            ffn=settings["intermediate_size"],
            max_length=settings["max_position_embeddings"],
            norm_eps=settings["rms_norm_eps"],
            rope_base=settings.get("rope_theta") or rope.get("rope_theta", 10000.0),
            bias=bias,
            tied=settings.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ValueError(f"{path}: no entry {error.args[0]}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _llama_name(name: str) -> str:
    """blocks.3.attention.query.weight -> model.layers.3.self_attn.q_proj.weight"""
    *block, kind = name.split(".")
    if block[0] == "blocks":
        return f"model.layers.{block[1]}.{LLAMA['.'.join(block[2:])]}.{kind}"
    return f"{LLAMA['.'.join(block)]}.{kind}"


def _fill(module: nn.Module, tensors: dict[str, Tensor], path: Path, names: dict[str, str] | None = None) -> None:
    """Puts the tensors in the place of the module's parameters. `names`: what the file calls them, for messages."""
    wanted = dict(module.named_parameters())
    called = lambda name: (names or {}).get(name, name)  # noqa: E731
    for name in wanted:
        if name not in tensors:
            raise ValueError(f"{path}: no tensor {called(name)}")
    for name, x in tensors.items():
        if name not in wanted:
            raise ValueError(f"{path}: unexpected tensor {name}")
        if x.shape != wanted[name].shape:
            raise ValueError(f"{path}: {called(name)}: wanted shape {tuple(wanted[name].shape)}, got {tuple(x.shape)}")
        if not x.is_floating_point() or x.dtype != next(iter(tensors.values())).dtype:
            raise ValueError(f"{path}: {called(name)}: wanted floating point, all alike, got {x.dtype}")
    module.load_state_dict(tensors, strict=False, assign=True)


def _read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON, or no text at all
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: wanted a JSON object, got {type(found).__name__}")
    return found


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (only safetensors are read, nothing pickled)")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from None


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise FileNotFoundError(f"{folder}: no model.safetensors (only safetensors are read, nothing pickled)")
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(Path(str(shard)).name == shard for shard in weight_map.values()):
        raise ValueError(f"{index}: wanted a weight_map from tensors to files of this folder")
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        tensors |= _read_tensors(folder / shard)
    return tensors


def _read_tokenizer(folder: Path, config: TransformerConfig) -> Tokenizer | None:
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        tokenizer = Tokenizer.load(folder)
    except Exception as error:  # what the backend raises has no type of its own
        raise ValueError(f"{folder}: the tokenizer cannot be read: {error}") from error
    _check_vocabulary(tokenizer, config, folder)
    return tokenizer


def _check_vocabulary(tokenizer: Tokenizer, config: TransformerConfig, where: Path | str) -> None:
    if tokenizer.vocab_size > config.vocab_size:  # fewer is common: embeddings are padded to a round number
        sizes = f"{tokenizer.vocab_size} tokens, the model has {config.vocab_size}"
        raise ValueError(f"{where}: tokenizer: has {sizes}")


# Saving


def save_pretrained(
    model: Transformer | PolicyWithValue | RewardModel, tokenizer: Tokenizer | None, folder: str | Path
) -> None:
    """Writes the model, and the tokenizer unless it is None, as a folder that `load_pretrained`, `load_policy_with_value`
    or `load_reward_model` reads back bit for bit.

    The folder is written under another name and renamed when it is whole. An earlier model there is replaced.
    ValueError: a config that Llama's layout has no words for, a pool of one's own, a parameter that the config does not
    account for, a folder that holds something other than a model.
    """
    with _renamed_when_whole(Path(folder).resolve()) as aside:
        if isinstance(model, RewardModel):
            if model.pool not in POOLS.values():
                raise ValueError(f"model: a file can only name the pools {', '.join(POOLS)}, got {model.pool}")
            pool = next(name for name, function in POOLS.items() if function is model.pool)
            extra = {"architectures": [REWARD_MODEL], "num_labels": 1, "minirl_pool": pool}
            _write_transformer(model.trunk, tokenizer, aside, extra, {"score.weight": model.score.weight})
        elif isinstance(model, PolicyWithValue):
            _write_transformer(model.policy, tokenizer, aside, {"architectures": [LANGUAGE_MODEL]}, {})
            _write_tensors(dict(model.value_head.named_parameters()), aside / "value_head.safetensors")
            if model.critic is not None:
                (aside / "critic").mkdir()
                _write_transformer(model.critic, None, aside / "critic", {"architectures": [LANGUAGE_MODEL]}, {})
        else:
            _write_transformer(model, tokenizer, aside, {"architectures": [LANGUAGE_MODEL]}, {})


def _write_transformer(
    model: Transformer, tokenizer: Tokenizer | None, folder: Path, extra: dict, beside: dict[str, Tensor]
) -> None:
    config = model.config
    for name, wanted in (("norm", "rmsnorm"), ("positions", "rope"), ("activation", "swiglu")):
        if getattr(config, name) != wanted:
            raise ValueError(f"config: Llama's layout wants {name}={wanted!r}, got {getattr(config, name)!r}")
    with torch.device("meta"):
        known = {name for name, _ in Transformer(config).named_parameters()}
    tensors = dict(model.named_parameters())
    for name in sorted(known ^ tensors.keys()):
        raise ValueError(f"model: wanted the parameters of its config and no others, got a difference in {name}")
    if tokenizer is not None:
        _check_vocabulary(tokenizer, config, "save_pretrained")
        tokenizer.save(folder)
    settings = {
        **extra,
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "bos_token_id": tokenizer and tokenizer.bos_id,
        "eos_token_id": tokenizer and tokenizer.eos_id,
        "pad_token_id": tokenizer and tokenizer.pad_id,
        "torch_dtype": str(model.embed.weight.dtype).removeprefix("torch."),
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8", newline="\n")
    _write_tensors({_llama_name(name): x for name, x in tensors.items()} | beside, folder / "model.safetensors")


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, path, metadata={"format": "pt"})


@contextlib.contextmanager
def _renamed_when_whole(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` at the end, and only if nothing went wrong.

    A folder cannot be replaced in one step. Killed between the two renames, the old model is whole as NAME.before.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: {folder} is a file")
    for path in sorted(folder.glob("*")):
        if not (path.name in TEXT or path.name == "critic" or path.name.endswith((".safetensors", ".index.json"))):
            raise ValueError(f"folder: {folder} would be replaced and holds {path.name}, which is no part of a model")
    aside, before = (folder.with_name(f"{folder.name}.{end}") for end in ("aside", "before"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in aside.rglob("*.*"):
            with open(path, "r+b") as file:
                os.fsync(file.fileno())  # on the disk before the name is
        if folder.exists():
            shutil.rmtree(before, ignore_errors=True)
            folder.rename(before)
        aside.rename(folder)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
