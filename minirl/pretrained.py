"""Models on disk in the Hugging Face layout, so that any library can read what this one wrote, and the other way round.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json

A Transformer is a GPT2LMHeadModel, or a LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM (see layouts.py). A
PolicyWithValue is its policy in the same form, with value_head.safetensors beside it (and a separate critic in a folder
of that name). A RewardModel is a ...ForSequenceClassification with one label. Only safetensors and JSON are read; nothing
is unpickled.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from minirl.files import check_path, read_json
from minirl.layouts import (
    FAMILIES,
    architecture,
    family_of,
    pack,
    plain_name,
    read_config,
    shapes_of,
    tensor_names,
    unpack,
    write_config,
)
from minirl.model import PolicyWithValue, RewardModel, Transformer, TransformerConfig, last_token, summed
from minirl.tokenizer import Tokenizer
from minirl.types import Tensor, all_finite

POOLS = {"last_token": last_token, "summed": summed}  # the ones a file can name
TEXT = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ON_THE_HUB = ["model*.safetensors", "*.json", "chat_template.jinja"]  # what is fetched: nothing that is pickled
FIRST_MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")  # older than the rule of owner/name

Readers = dict[str, Callable[[], Tensor]]  # the name of a tensor, and what reads it


# Loading


def load_pretrained(
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> tuple[Transformer, Tokenizer | None]:
    """A language model and its tokenizer (None where the folder has none).

    A folder in the Hugging Face layout needs nothing else. A name on the hub ("gpt2", "deepseek-ai/deepseek-llm-7b-base")
    is fetched by huggingface_hub, in the version that `revision` names. Weights are read one at a time into `dtype` (None:
    the file's; a CPU trains in float32) on `device`, so that memory holds the model and one tensor more.
    FileNotFoundError or ValueError, naming the file and what is wrong with it, for anything that is not such a model.
    """
    folder = _local_folder(name_or_folder, revision)
    settings = _read_settings(folder, scores=False)
    trunk = assemble(_config_of(settings, folder), *_weights(folder), dtype=dtype, device=device)
    return trunk, _read_tokenizer(folder, trunk.config)


def load_policy_with_value(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[PolicyWithValue, Tokenizer | None]:
    """What `save_pretrained` made of a PolicyWithValue. Arguments and errors as in `load_pretrained`."""
    folder = check_path("folder", folder)
    policy, tokenizer = load_pretrained(folder, dtype=dtype, device=device)
    critic = folder / "critic"
    model = PolicyWithValue(policy, load_pretrained(critic, dtype=dtype, device=device)[0] if critic.is_dir() else None)
    path = folder / "value_head.safetensors"
    _fill(model.value_head, {name: read() for name, read in _readers(path).items()}, path)
    return model, tokenizer


def load_reward_model(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[RewardModel, Tokenizer | None]:
    """A reward model and its tokenizer. One that another library wrote scores the last token, as they all do.

    Such a file has no head over the vocabulary, which a reward model does not use; it is then 0.
    """
    folder = check_path("folder", folder)
    settings = _read_settings(folder, scores=True)
    pool = settings.get("minirl_pool", "last_token")
    if not isinstance(pool, str) or pool not in POOLS:
        raise ValueError(f"{folder / 'config.json'}: minirl_pool: wanted one of {', '.join(POOLS)}, got {pool!r}")
    config, (readers, path) = _config_of(settings, folder), _weights(folder)
    if "score.weight" not in readers:
        raise ValueError(f"{path}: no tensor score.weight")
    score = readers.pop("score.weight")()
    readers.setdefault("lm_head.weight", lambda: score.new_zeros(config.vocab_size, config.width))
    trunk = assemble(config, readers, path, dtype=dtype, device=device)
    model = RewardModel(trunk, POOLS[pool])
    _fill(model.score, {"weight": score}, path)
    return model, _read_tokenizer(folder, config)


def assemble(
    config: TransformerConfig,
    readers: Readers,
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Transformer:
    """A Transformer of weights that are read, converted and placed one after the other.

    ValueError, naming `path` and the tensor: one that is missing, or too many, or of the wrong shape, or no numbers.
    """
    if dtype is not None and dtype not in PRECISIONS:
        raise ValueError(f"dtype: wanted one of {', '.join(map(str, PRECISIONS))}, got {dtype}")
    if config.layers > len(readers):  # and not after a million layers have been built
        raise ValueError(f"{path}: {len(readers)} tensors are not enough for the config's {config.layers} layers")
    shapes, wanted, known = shapes_of(config), tensor_names(config), {}
    for name, read in readers.items():
        plain = plain_name(name, config)
        if plain is None:
            continue
        if plain in known:
            raise ValueError(f"{path}: the tensor {plain} twice, with its prefix and without")
        known[plain] = read
    for what, names in (("no", wanted.keys() - known.keys()), ("unexpected", known.keys() - wanted.keys())):
        if names:
            first, *others = sorted(names)
            raise ValueError(f"{path}: {what} tensor {first}" + (f" (and {len(others)} more)" if others else ""))
    weights, precision = {}, None
    for theirs, ours in wanted.items():
        try:
            x = known[theirs]()
        except Exception as error:  # a kind of number that nobody here knows, a file that changed under way
            raise ValueError(f"{path}: {theirs}: cannot be read: {error}") from None
        precision = precision or x.dtype
        if x.dtype not in PRECISIONS or (dtype is None and x.dtype != precision):
            raise ValueError(f"{path}: {theirs}: wanted floating point, all alike, got {x.dtype}")
        if not all_finite(x):
            raise ValueError(f"{path}: {theirs}: holds numbers that are not finite")
        try:
            parts = unpack(theirs, x, [shapes[name] for name in ours])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        for name, part in zip(ours, parts, strict=True):
            weights[name] = torch.empty(part.shape, dtype=dtype or x.dtype, device=device).copy_(part)
    with torch.device("meta"):  # no time and no random numbers go into weights that are replaced
        model = Transformer(config)
    model.load_state_dict(weights, strict=False, assign=True)
    if config.tied:
        model.head.weight = model.embed.weight
    return model.to(device)  # the table of angles


def _local_folder(name_or_folder: str | Path, revision: str | None) -> Path:
    """The folder itself, or a copy of what the hub has under this name."""
    folder = check_path("name_or_folder", name_or_folder)
    if folder.is_dir():
        return folder
    name = str(name_or_folder)
    if folder.suffix == ".gguf":
        raise ValueError(f"{name}: a GGUF file; minirl.gguf_file.load_gguf reads these")
    owner, slash, _ = name.partition("/")
    named = name in FIRST_MODELS or (re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not Path(owner).is_dir())
    if isinstance(name_or_folder, Path) or not named:
        hint = "" if slash else "; a model of the Hugging Face hub is called owner/name"
        raise FileNotFoundError(f"{name}: no such folder (nothing is downloaded{hint})")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        how = "pip install huggingface_hub fetches a model of that name, or name a folder that holds one"
        raise FileNotFoundError(f"{name}: no such folder; {how}") from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=ON_THE_HUB, ignore_patterns=["*/*"]))
    except Exception as error:  # no network, no such model, no permission: one sentence with the hub's own first line
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
        raise FileNotFoundError(f"{name}: no such folder, and the Hugging Face hub gave none: {reason}") from error


def _read_settings(folder: Path, *, scores: bool) -> dict:
    path = folder / "config.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no config.json, so this is no model in the Hugging Face layout")
    settings = read_json(path)
    family = settings.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"{path}: wanted model_type {', '.join(map(repr, FAMILIES))}, got {family!r:.80}")
    wanted, other = (architecture(family, scores=which) for which in (scores, not scores))
    found = settings.get("architectures") or [architecture(family, scores=False)]
    if found != [wanted]:
        hint = f"; {'load_pretrained' if scores else 'load_reward_model'} reads these" if found == [other] else ""
        raise ValueError(f"{path}: wanted architectures ['{wanted}'], got {found}{hint}")
    return settings


def _config_of(settings: dict, folder: Path) -> TransformerConfig:
    try:
        return read_config(settings)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None


def _weights(folder: Path) -> tuple[Readers, Path]:
    """What reads each tensor of a folder, and the file to name in messages."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return _readers(single), single
    if not index.is_file():
        raise FileNotFoundError(f"{folder}: no model.safetensors (only safetensors are read, nothing pickled)")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(Path(str(shard)).name == shard for shard in weight_map.values()):
        raise ValueError(f"{index}: wanted a weight_map from tensors to files of this folder")
    readers = {}
    for shard in sorted(set(weight_map.values())):
        readers |= _readers(folder / shard)
    return readers, index


def _readers(path: Path) -> Readers:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (only safetensors are read, nothing pickled)")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: partial(_read_tensor, path, name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from None


def _read_tensor(path: Path, name: str) -> Tensor:
    """The file is opened for each tensor, so that the pages of those read before do not stay in memory."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def _fill(head: nn.Linear, tensors: dict[str, Tensor], path: Path) -> None:
    """Puts the tensors of a file in the place of a small head's."""
    for name, p in head.named_parameters():
        if name not in tensors:
            raise ValueError(f"{path}: no tensor {name}")
        if not tensors[name].is_floating_point() or not all_finite(tensors[name]):
            raise ValueError(f"{path}: {name}: wanted finite floating point numbers, got {tensors[name].dtype}")
        if tensors[name].shape != p.shape:
            raise ValueError(f"{path}: {name}: wanted shape {tuple(p.shape)}, got {tuple(tensors[name].shape)}")
        p.data.copy_(tensors[name])
    for name in tensors.keys() - dict(head.named_parameters()).keys():
        raise ValueError(f"{path}: unexpected tensor {name}")


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
    ValueError: a config that no layout has words for, a pool of one's own, a parameter that the config does not
    account for, a folder that holds something other than a model.
    """
    if not isinstance(model, Transformer | PolicyWithValue | RewardModel):
        raise ValueError(f"model: wanted a model of minirl, got {type(model).__name__}")
    if not isinstance(tokenizer, Tokenizer | None):
        raise ValueError(f"tokenizer: wanted a Tokenizer or None, got {type(tokenizer).__name__}")
    with _renamed_when_whole(check_path("folder", folder).resolve()) as aside:
        if isinstance(model, RewardModel):
            if model.pool not in POOLS.values():
                raise ValueError(f"model: a file can only name the pools {', '.join(POOLS)}, got {model.pool}")
            pool = next(name for name, function in POOLS.items() if function is model.pool)
            extra = {"num_labels": 1, "minirl_pool": pool}
            _write_transformer(model.trunk, tokenizer, aside, extra, {"score.weight": model.score.weight})
        elif isinstance(model, PolicyWithValue):
            _write_transformer(model.policy, tokenizer, aside, {}, {})
            _write_tensors(dict(model.value_head.named_parameters()), aside / "value_head.safetensors")
            if model.critic is not None:
                (aside / "critic").mkdir()
                _write_transformer(model.critic, None, aside / "critic", {}, {})
        else:
            _write_transformer(model, tokenizer, aside, {}, {})


def _write_transformer(
    model: Transformer, tokenizer: Tokenizer | None, folder: Path, extra: dict, beside: dict[str, Tensor]
) -> None:
    config = model.config
    family = family_of(config)
    tensors = dict(model.named_parameters())
    for name in sorted(shapes_of(config).keys() ^ tensors.keys()):
        raise ValueError(f"model: wanted the parameters of its config and no others, got a difference in {name}")
    if tokenizer is not None:
        _check_vocabulary(tokenizer, config, "save_pretrained")
        tokenizer.save(folder)
    settings = {
        "architectures": [architecture(family, scores=bool(beside))],
        **extra,
        **write_config(config),
        "bos_token_id": tokenizer and tokenizer.bos_id,
        "eos_token_id": tokenizer and tokenizer.eos_id,
        "pad_token_id": tokenizer and tokenizer.pad_id,
        "torch_dtype": str(model.embed.weight.dtype).removeprefix("torch."),
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8", newline="\n")
    _write_tensors(pack(tensors, config) | beside, folder / "model.safetensors")


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
