"""The models those programs open by name, over minirl's Transformer, PolicyWithValue and RewardModel."""

import copy
import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from minirl.classic.generation import continued
from minirl.classic.notes import Notes, ignored
from minirl.model import PolicyWithValue, RewardModel, Transformer
from minirl.pretrained import _local_folder as local_folder
from minirl.pretrained import load_policy_with_value, load_pretrained, load_reward_model, save_pretrained
from minirl.rollout import lay_out
from minirl.tokenizer import Tokenizer
from minirl.types import Float, Int, Tensor, check_precision

QUANTISED = ("load_in_8bit", "load_in_4bit", "quantization_config")


class Output(dict):
    """What a model gives back: by name, by attribute, and by number among those that are not None."""

    def __getitem__(self, key):
        return [x for x in self.values() if x is not None][key] if isinstance(key, int) else super().__getitem__(key)

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class AutoModelForCausalLM(nn.Module):
    """A language model for the SFT that comes before PPO; GPT2LMHeadModel is another name for it.

    `model(input_ids, attention_mask, labels)` gives `.logits` and, with labels, `.loss`; what the attention mask leaves
    out is not learned, whatever the labels say. `model.model` is the Transformer, for the rest of minirl.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer | None = None, eos: int | None = None):
        super().__init__()
        self.model, self.tokenizer, self.notes = model, tokenizer, Notes()
        self.config = settings_of(model, tokenizer, eos)
        self.generator: torch.Generator | None = None

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **keywords) -> "AutoModelForCausalLM":
        """A folder in the Hugging Face layout, or a name on the hub. dtype or torch_dtype (float32 unless told), device_map
        and revision count; quantisation and `peft_config` are refused; what else those programs pass has no effect."""
        return cls(*opened(name_or_folder, keywords))

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed.weight.dtype

    def forward(self, input_ids: Tensor, attention_mask=None, labels=None, **keywords) -> Output:
        tokens, mask = _placed(self, input_ids, attention_mask)
        logits = self.model(tokens, starts=_starts(mask)).float()
        loss = None if labels is None else next_token_loss(logits, torch.atleast_2d(labels.to(self.device)), mask)
        return Output(loss=loss, logits=logits)

    @torch.no_grad()
    def generate(self, input_ids=None, attention_mask=None, *, do_sample: bool = False, **knobs) -> Int[Tensor, "B S"]:
        """Prompt and response, (B, S); see `generation.continued` for the knobs. Greedy unless do_sample says otherwise."""
        input_ids = knobs.pop("inputs", None) if input_ids is None else input_ids
        placed = _placed(self, input_ids, attention_mask)
        knobs = defaults(self) | {name: x for name, x in knobs.items() if x is not None} | {"do_sample": do_sample}
        return continued(self.model, *placed, generator=self.generator, notes=self.notes, **knobs)[0]

    def resize_token_embeddings(self, size: int) -> None:
        """For programs that call it although nothing was added. ValueError for more tokens than the model has."""
        if size > self.model.config.vocab_size:
            raise ValueError(
                f"size: wanted at most {self.model.config.vocab_size} tokens, got {size}; new ones need training"
            )

    def save_pretrained(self, folder: str | Path, **keywords) -> None:
        saved(self.model, self.tokenizer, folder)


class AutoModelForCausalLMWithValueHead(nn.Module):
    """A policy with a value for every position. `model(input_ids, attention_mask)` gives (logits, None, values).

    `model.actor` is the PolicyWithValue, for the rest of minirl; `model.pretrained_model` the language model in it.
    """

    def __init__(self, model, tokenizer: Tokenizer | None = None, eos: int | None = None):
        super().__init__()
        if isinstance(model, AutoModelForCausalLM):
            model, tokenizer, eos = model.model, tokenizer or model.tokenizer, model.config.eos_token_id
        if not isinstance(model, Transformer | PolicyWithValue):
            raise ValueError(
                f"model: wanted a language model of minirl, got {type(model).__name__}; from_pretrained opens one"
            )
        self.actor = model if isinstance(model, PolicyWithValue) else PolicyWithValue(model)
        self.tokenizer, self.notes = tokenizer, Notes()
        self.config = settings_of(self.actor.policy, tokenizer, eos)
        self.generator: torch.Generator | None = None  # None: PyTorch's global one; a PPOTrainer puts its own here
        self.written: set[tuple[int, ...]] = set()  # prompt and response of what `generate` gave since the last step

    @classmethod
    def from_pretrained(cls, name_or_folder, **keywords) -> "AutoModelForCausalLMWithValueHead":
        """As AutoModelForCausalLM.from_pretrained; a value head is read where the folder has one, and starts at 0 where not.

        A model that is already open is taken as it is, and shares its weights.
        """
        if not isinstance(name_or_folder, str | Path):
            return cls(name_or_folder)
        return cls(*opened(name_or_folder, keywords, value_head=True))

    @property
    def pretrained_model(self) -> AutoModelForCausalLM:
        inner = AutoModelForCausalLM(self.actor.policy, self.tokenizer)
        inner.config, inner.generator, inner.notes = self.config, self.generator, self.notes
        return inner

    @property
    def v_head(self) -> nn.Linear:
        return self.actor.value_head

    @property
    def device(self) -> torch.device:
        return self.actor.policy.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.actor.policy.embed.weight.dtype

    def forward(
        self, input_ids: Tensor, attention_mask=None, **keywords
    ) -> tuple[Float[Tensor, "B S V"], None, Float[Tensor, "B S"]]:
        tokens, mask = _placed(self, input_ids, attention_mask)
        logits, values = self.actor(tokens, starts=_starts(mask))
        return logits.float(), None, values

    @torch.no_grad()
    def generate(self, input_ids=None, attention_mask=None, *, do_sample=None, **knobs) -> Int[Tensor, "B S"]:
        """Prompt and response, (B, S); see `generation.continued` for the knobs.

        Samples unless do_sample is False, and from the whole distribution unless a knob narrows it: PPO learns from
        differences between answers, and greedy ones do not differ.
        """
        input_ids = knobs.pop("inputs", None) if input_ids is None else input_ids
        placed = _placed(self, input_ids, attention_mask)
        knobs = defaults(self) | {name: x for name, x in knobs.items() if x is not None}
        if do_sample is None:
            self.notes("do_sample", "not given; answers are sampled, since greedy ones leave PPO nothing to compare")
        elif not do_sample:
            self.notes("do_sample=False", "the answer is always the most probable one, and PPO sees no other")
        narrowed = [
            f"{name}={knobs[name]:g}"
            for name, plain in (("temperature", (1,)), ("top_k", (0, -1)), ("top_p", (1,)))
            if name in knobs and knobs[name] not in plain
        ]
        if narrowed and do_sample is not False:
            self.notes(
                ", ".join(narrowed),
                "answers come from another distribution than the one step() trains. Its ratio of new to old "
                "probabilities then compares two different things; temperature=1, top_k=0, top_p=1 make it exact",
            )
        knobs["do_sample"] = do_sample is not False
        tokens, rows = continued(self.actor.policy, *placed, generator=self.generator, notes=self.notes, **knobs)
        self.written |= {tuple(row) for row in rows}
        return tokens

    def save_pretrained(self, folder: str | Path, **keywords) -> None:
        """The language model, with value_head.safetensors beside it; any library opens the former."""
        saved(self.actor, self.tokenizer, folder)


class AutoModelForSequenceClassification(nn.Module):
    """A reward model: `model(input_ids, attention_mask).logits` is one score a text, (B, 1).

    One that sums over tokens counts every token after the first, the prompt's too.
    """

    def __init__(self, model: RewardModel):
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(**vars(model.config), num_labels=1, pad_token_id=None)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **keywords) -> "AutoModelForSequenceClassification":
        if keywords.pop("num_labels", 1) != 1:
            raise ValueError("num_labels: wanted 1, a reward model gives one score")
        revision, dtype, device = keywords.pop("revision", None), precision(keywords), placement(keywords)
        check_precision("torch_dtype", dtype, device)
        refuse(keywords)
        folder = local_folder(name_or_folder, revision)
        return cls(load_reward_model(folder, dtype=dtype, device=device)[0])

    @property
    def device(self) -> torch.device:
        return self.model.trunk.embed.weight.device

    def forward(self, input_ids: Tensor, attention_mask=None, **keywords) -> Output:
        rows = real_tokens(input_ids, attention_mask)
        tokens, mask, starts = lay_out([row[:1] for row in rows], [row[1:] for row in rows], device=self.device)
        return Output(logits=self.model(tokens, mask, starts=starts).unsqueeze(1))


def create_reference_model(model: AutoModelForCausalLMWithValueHead, **keywords) -> AutoModelForCausalLMWithValueHead:
    """A frozen copy, for the KL."""
    return copy.deepcopy(model).requires_grad_(False).eval()


# Opening and saving


def opened(name_or_folder, keywords: dict, *, value_head: bool = False) -> tuple:
    """(model, tokenizer or None, end token or None)."""
    keywords = dict(keywords)
    revision, local = keywords.pop("revision", None), keywords.pop("local_files_only", False)
    if local and not Path(name_or_folder).is_dir():
        raise FileNotFoundError(f"{name_or_folder}: no such folder, and local_files_only=True forbids to fetch it")
    dtype, device = precision(keywords), placement(keywords)
    check_precision("torch_dtype", dtype, device)
    refuse(keywords)
    folder = local_folder(name_or_folder, revision)
    if value_head and (folder / "value_head.safetensors").is_file():
        model, tokenizer = load_policy_with_value(folder, dtype=dtype, device=device)
    else:
        model, tokenizer = load_pretrained(folder, dtype=dtype, device=device)
    of_file = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id")
    return model, tokenizer, of_file if tokenizer is None else tokenizer.eos_id


def precision(keywords: dict) -> torch.dtype | None:
    given = [keywords.pop(name, None) for name in ("torch_dtype", "dtype")]
    dtype = next((x for x in given if x is not None), torch.float32)
    if dtype == "auto":
        return None  # the file's
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ValueError(f'torch_dtype: wanted torch.float32, torch.bfloat16, ... or "auto", got {dtype!r}')
    return found


def placement(keywords: dict) -> torch.device:
    where = keywords.pop("device_map", None)
    if isinstance(where, dict):
        if len(set(where.values())) != 1:
            raise ValueError(f"device_map: wanted the whole model on one device, got {where}")
        where = next(iter(where.values()))
    if isinstance(where, str) and where in ("auto", "balanced", "sequential"):
        where = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cpu" if where is None else where)


def refuse(keywords: dict) -> None:
    """ValueError for what would change the model; a note for what does not."""
    if keywords.pop("peft_config", None) is not None:
        raise ValueError(
            "peft_config: adapters come from minirl.lora here: open the model without it, then "
            "add_lora(model.actor.policy, rank=16); reference: minirl.lora.base_of(model.actor.policy)"
        )
    for name in QUANTISED:
        if keywords.pop(name, None):
            raise ValueError(f"{name}: weights are not quantised here; torch_dtype=torch.bfloat16 halves them")
    ignored(keywords)


def saved(model, tokenizer: Tokenizer | None, folder: str | Path) -> None:
    """The model's files into a folder, beside what else is in it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.resolve().parent) as aside:
        save_pretrained(model, tokenizer, Path(aside) / "model")
        for path in (Path(aside) / "model").iterdir():
            if path.is_dir():
                shutil.rmtree(folder / path.name, ignore_errors=True)
            path.replace(folder / path.name)


def settings_of(model: Transformer, tokenizer: Tokenizer | None, eos: int | None) -> SimpleNamespace:
    """The config as attributes that a program may set: `model.config.pad_token_id = ...` is what `generate` then uses."""
    eos = tokenizer.eos_id if eos is None and tokenizer is not None else eos
    return SimpleNamespace(**vars(model.config), eos_token_id=eos, pad_token_id=tokenizer and tokenizer.pad_id)


def defaults(model) -> dict:
    return {"eos_token_id": model.config.eos_token_id, "pad_token_id": model.config.pad_token_id}


# Masks


def _placed(model, input_ids, attention_mask) -> tuple[Tensor, Tensor | None]:
    if not isinstance(input_ids, Tensor) or input_ids.dim() not in (1, 2) or input_ids.is_floating_point():
        got = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise ValueError(f"input_ids: wanted a tensor (B, S) of whole numbers, got {got}")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: wanted shape {tuple(input_ids.shape)} like input_ids, got {tuple(attention_mask.shape)}"
        )
    both = (x if x is None else torch.atleast_2d(x.to(model.device)) for x in (input_ids, attention_mask))
    return tuple(both)


def _starts(attention_mask: Tensor | None) -> Tensor | None:
    """How much of each row is padding before the text. Padding behind it needs nothing: no earlier position sees it."""
    return None if attention_mask is None else (attention_mask.cumsum(1) == 0).sum(1)


def real_tokens(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """Each row without what the mask leaves out."""
    if attention_mask is None:
        return input_ids.tolist()
    return [row[kept.bool()].tolist() for row, kept in zip(input_ids, attention_mask, strict=True)]


def next_token_loss(logits: Tensor, labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """-log p(labels[t + 1] | up to t), averaged over labels that are not -100, where t and t + 1 are both no padding."""
    labels = labels[:, 1:]
    if attention_mask is not None:
        kept = attention_mask.bool()
        labels = labels.masked_fill(~(kept[:, 1:] & kept[:, :-1]), -100)
    if not (labels != -100).any():
        raise ValueError("labels: nothing is counted; wanted one after the first that is not -100 and not padding")
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100)
