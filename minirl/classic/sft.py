"""The supervised fine-tuning that comes before PPO in those programs: Trainer and what is handed to it.

`minirl.train.sft` is the loop to read; this one takes rows of token ids, as a tokenizer gives them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minirl.classic.models import AutoModelForCausalLM, Output
from minirl.classic.notes import Notes, ignored
from minirl.train.optimizer import adamw, update
from minirl.types import Tensor, check_knob


@dataclass
class Settings:
    """What of TrainingArguments counts here; names and defaults are those of transformers."""

    output_dir: str | Path = "trainer_output"
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    seed: int = 42


def TrainingArguments(output_dir: str | Path = "trainer_output", **keywords) -> Settings:
    """Settings, out of the hundred that programs may pass. Logging, saving, evaluation and precision have no effect here."""
    known = {name: keywords.pop(name) for name in list(keywords) if name in Settings.__dataclass_fields__}
    ignored(keywords)
    settings = Settings(output_dir=output_dir, **known)
    check_knob("per_device_train_batch_size", settings.per_device_train_batch_size, 1)
    check_knob("gradient_accumulation_steps", settings.gradient_accumulation_steps, 1)
    check_knob("learning_rate", settings.learning_rate, 0, open_low=True)
    return settings


class DataCollatorForLanguageModeling:
    """Rows to a padded batch whose labels are its own tokens, padding left out.

    The mask says what padding is, and not the token: where padding is the end token (GPT-2), a text's own end is learned.
    """

    def __init__(self, tokenizer: Any, mlm: bool = True, **keywords):
        if mlm:
            raise ValueError("mlm: wanted False; masked language models are not among the models here")
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence) -> dict[str, Tensor]:
        found = [row if isinstance(row, dict) else {"input_ids": row} for row in rows]
        names = ("input_ids", "attention_mask") if all("attention_mask" in row for row in found) else ("input_ids",)
        batch = self.tokenizer.pad({n: [as_list(row[n]) for row in found] for n in names}, return_tensors="pt")
        return dict(batch) | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


class TextDataset(torch.utils.data.Dataset):
    """A text file as consecutive blocks of block_size tokens; what is left at its end is dropped."""

    def __init__(self, tokenizer: Any, file_path: str | Path, block_size: int, **keywords):
        ids = tokenizer.encode(Path(file_path).read_text(encoding="utf-8"))
        starts = range(0, len(ids) - block_size + 1, block_size)
        self.rows = [torch.tensor(ids[i : i + block_size]) for i in starts]
        if not self.rows:
            raise ValueError(f"block_size: wanted at most the {len(ids)} tokens of {file_path}, got {block_size}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return self.rows[i]


class Trainer:
    """Minimises the loss that `model(**batch)` gives, with AdamW and a learning rate that falls linearly to 0.

    `train_dataset` is a list of dicts with input_ids (and attention_mask, labels), or torch's or Hugging Face's dataset of
    them. Without labels a row's own tokens are learned; padding never is, whatever the labels say.
    """

    def __init__(
        self,
        model: Any,
        args: Settings | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        tokenizer: Any = None,
        **keywords,
    ):
        self.model, self.args, self.notes = model, args or Settings(), Notes()
        self.tokenizer = tokenizer or keywords.pop("processing_class", None)
        ignored(keywords)
        if not isinstance(model, AutoModelForCausalLM):
            raise ValueError(f"model: wanted minirl.classic.AutoModelForCausalLM, got {type(model).__name__}")
        if train_dataset is None or len(train_dataset) == 0:
            raise ValueError("train_dataset: wanted at least one row")
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.data_collator, self.losses = data_collator or stacked, []

    def train(self, **keywords) -> Output:
        """An object with training_loss, the mean over all steps, and global_step. `losses` has every step's own."""
        a, rows = self.args, len(self.train_dataset)
        batch = a.per_device_train_batch_size * a.gradient_accumulation_steps
        a_pass = -(-rows // batch)
        total = a.max_steps if a.max_steps > 0 else max(1, round(a_pass * a.num_train_epochs))
        optimizer = adamw(self.model, weight_decay=a.weight_decay)
        generator, order = torch.Generator().manual_seed(a.seed), []
        for step in range(1, total + 1):
            order = order or list(torch.randperm(rows, generator=generator).split(batch))
            loss = self.loss(self.train_dataset, order.pop(0).tolist())
            lr = a.learning_rate * min(
                step / max(a.warmup_steps, 1), (total + 1 - step) / max(total - a.warmup_steps, 1), 1
            )
            update(optimizer, loss, step=step, lr=lr, max_grad_norm=a.max_grad_norm or float("inf"))
            self.losses.append(loss.item())
        return Output(training_loss=sum(self.losses) / len(self.losses), global_step=total)

    def loss(self, dataset: Any, rows: list[int]) -> Tensor:
        batch = self.data_collator([dataset[i] for i in rows])
        batch = {name: torch.as_tensor(x).to(self.model.device) for name, x in batch.items()}
        batch.setdefault("labels", batch["input_ids"])
        mask = batch.get("attention_mask")
        if mask is not None and (batch["labels"][mask == 0] != -100).any():
            self.notes("labels", "cover padding; what the attention mask leaves out is not learned")
        return self.model(**batch).loss

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """{"eval_loss": the mean over the rows of eval_dataset of each row's nats a token}."""
        if self.eval_dataset is None or len(self.eval_dataset) == 0:
            raise ValueError("eval_dataset: wanted at least one row")
        losses = [self.loss(self.eval_dataset, [i]) for i in range(len(self.eval_dataset))]
        return {"eval_loss": float(torch.stack(losses).mean())}

    def save_model(self, folder: str | Path | None = None) -> None:
        folder = folder or self.args.output_dir
        self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    save_pretrained = save_model


def SFTTrainer(
    model: AutoModelForCausalLM | str,
    args: Settings | None = None,
    train_dataset: Any = None,
    tokenizer: Any = None,
    dataset_text_field: str = "text",
    max_seq_length: int = 1024,
    formatting_func: Callable | None = None,
    **keywords,
) -> Trainer:
    """A Trainer over texts: each row's dataset_text_field, or what formatting_func makes of the row, and an end token."""
    model = AutoModelForCausalLM.from_pretrained(model) if isinstance(model, str) else model
    tokenizer = tokenizer or keywords.pop("processing_class", None)
    if tokenizer is None:
        raise ValueError("tokenizer: wanted one, it turns the texts into tokens")
    if train_dataset is None:
        raise ValueError("train_dataset: wanted at least one row")
    texts = [row[dataset_text_field] if formatting_func is None else formatting_func(row) for row in train_dataset]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    most = min(max_seq_length, model.model.config.max_length)
    rows = [{"input_ids": (tokenizer.encode(text) + end)[:most]} for text in texts]
    collator = keywords.pop("data_collator", None) or DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return Trainer(model, args, collator, rows, tokenizer=tokenizer, **keywords)


def as_list(row: Any) -> list[int]:
    return row.tolist() if hasattr(row, "tolist") else list(row)


def stacked(rows: Sequence[dict]) -> dict[str, Tensor]:
    """Rows of one length as a batch; those of several lengths want a data_collator."""
    batch = {
        name: [as_list(row[name]) for row in rows]
        for name in ("input_ids", "attention_mask", "labels")
        if name in rows[0]
    }
    lengths = {len(row) for row in batch["input_ids"]}
    if len(lengths) > 1:
        raise ValueError(
            f"data_collator: rows of {min(lengths)} to {max(lengths)} tokens want one; "
            f"DataCollatorForLanguageModeling(tokenizer, mlm=False) pads them"
        )
    return {name: torch.tensor(x) for name, x in batch.items()}
