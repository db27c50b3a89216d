"""The tokenizer those programs expect, over minirl's own: encode, decode, pad, and a chat template where there is one."""

from collections.abc import Sequence
from pathlib import Path

import torch

from minirl import chat
from minirl.classic.notes import ignored
from minirl.pretrained import _local_folder as local_folder
from minirl.tokenizer import Tokenizer
from minirl.types import Tensor

Text = str | Sequence[str]


class Encoding(dict):
    """input_ids, attention_mask and what else there is: as a dict, by attribute, and `.to(device)` for tensors."""

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device) -> "Encoding":
        return Encoding({name: x.to(device) if isinstance(x, Tensor) else x for name, x in self.items()})


class AutoTokenizer:
    """`from_pretrained(name or folder)`; GPT2Tokenizer is another name for it.

    Without a pad token of its own (GPT-2) `pad_token` is None until it is set, and padding is then done with the end
    token: it is masked, so that any token would do. Nothing is ever taken for padding by its number alone.
    """

    def __init__(self, tokenizer: Tokenizer, *, padding_side: str = "right"):
        self.tokenizer, self.padding_side = tokenizer, padding_side
        self.model_max_length: int | None = None

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **keywords) -> "AutoTokenizer":
        revision, side = keywords.pop("revision", None), keywords.pop("padding_side", "right")
        special = {name: keywords.pop(name) for name in ("pad_token", "eos_token", "bos_token") if name in keywords}
        ignored(keywords, quiet=("use_fast", "trust_remote_code", "cache_dir", "token", "local_files_only"))
        made = cls(Tokenizer.load(local_folder(name_or_folder, revision)), padding_side=side)
        for name, token in special.items():
            setattr(made, name, token)
        return made

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.save(folder)

    # Special tokens

    def _with(self, **tokens: str | None) -> None:
        """The same backend under other special tokens. ValueError, naming the argument, for a token it does not know."""
        old = self.tokenizer
        known = {"eos": old.eos, "bos": old.bos, "pad": old.pad, "chat_template": old.chat_template}
        self.tokenizer = Tokenizer(old.backend, **(known | tokens))

    eos_token = property(lambda self: self.tokenizer.eos, lambda self, token: self._with(eos=token))
    bos_token = property(lambda self: self.tokenizer.bos, lambda self, token: self._with(bos=token))
    pad_token = property(lambda self: self.tokenizer.pad, lambda self, token: self._with(pad=token))
    chat_template = property(
        lambda self: self.tokenizer.chat_template, lambda self, text: self._with(chat_template=text)
    )
    eos_token_id = property(
        lambda self: self.tokenizer.eos_id, lambda self, token: self._with(eos=self.convert_ids_to_tokens(token))
    )
    pad_token_id = property(
        lambda self: None if self.tokenizer.pad is None else self.tokenizer.pad_id,
        lambda self, token: self._with(pad=self.convert_ids_to_tokens(token)),
    )
    bos_token_id = property(lambda self: self.tokenizer.bos_id)
    vocab_size = property(lambda self: self.tokenizer.vocab_size)

    def __len__(self) -> int:
        return self.tokenizer.vocab_size

    def add_special_tokens(self, tokens: dict[str, str]) -> int:
        """Sets special tokens that the vocabulary has; returns how many are new, which is always 0."""
        for name, token in tokens.items():
            if name not in ("pad_token", "eos_token", "bos_token"):
                raise ValueError(f"tokens: wanted pad_token, eos_token or bos_token, got {name!r}")
            if self.tokenizer.backend.token_to_id(token) is None:
                raise ValueError(f"{name}: {token!r} is new, and no embedding belongs to it; use tokenizer.eos_token")
            setattr(self, name, token)
        return 0

    # Text to ids

    def encode(
        self, text: str, *, return_tensors: str | None = None, add_special_tokens: bool = True, **keywords
    ) -> list[int] | Tensor:
        """A list of ids, or with return_tensors="pt" a tensor (1, S)."""
        ids = self._ids([text], add_special_tokens, keywords)[0]
        return torch.tensor([ids]) if _as_tensors(return_tensors) else ids

    def __call__(
        self,
        text: Text,
        *,
        padding: bool | str = False,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        **keywords,
    ) -> Encoding:
        """`truncation` with `max_length` cuts; `padding` fills up to the longest row, or with "max_length" to max_length."""
        alone = isinstance(text, str)
        if not isinstance(text, str | list | tuple):
            raise ValueError(f"text: wanted a string or a list of strings, got {type(text).__name__}")
        rows = self._ids([text] if alone else list(text), add_special_tokens, keywords)
        length = keywords.get("max_length") if padding == "max_length" else None
        if padding or (_as_tensors(return_tensors) and len(rows) > 1):
            return self.pad(
                {"input_ids": rows[0] if alone and not _as_tensors(return_tensors) else rows},
                padding=padding,
                max_length=length,
                return_tensors=return_tensors,
            )
        found = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        if _as_tensors(return_tensors):
            return Encoding({name: torch.tensor(x) for name, x in found.items()})
        return Encoding({name: x[0] for name, x in found.items()} if alone else found)

    def _ids(self, texts: list[str], add_special_tokens: bool, keywords: dict) -> list[list[int]]:
        truncation, most = keywords.get("truncation"), keywords.get("max_length") or self.model_max_length
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"text: wanted a string or a list of strings, got {type(text).__name__}")
        encode = self.tokenizer.encode if add_special_tokens else self.tokenizer.encode_continuation
        return [encode(text)[: most if truncation else None] for text in texts]

    def pad(
        self,
        rows: dict,
        *,
        padding: bool | str = True,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **keywords,
    ) -> Encoding:
        """{"input_ids": rows of ids, ...} filled up on `padding_side`; the attention mask is 0 where they were."""
        alone = len(rows["input_ids"]) > 0 and not isinstance(rows["input_ids"][0], list | Tensor)
        given = {name: [x] if alone else x for name, x in rows.items()}
        ids = [row.tolist() if isinstance(row, Tensor) else list(row) for row in given["input_ids"]]
        masks = [list(map(int, row)) for row in given.get("attention_mask", [[1] * len(row) for row in ids])]
        lengths = {len(row) for row in ids}
        if not padding and len(lengths) > 1:
            raise ValueError(
                f"padding: rows of {min(lengths)} to {max(lengths)} tokens make no tensor; wanted padding=True"
            )
        width = max_length if padding == "max_length" and max_length else max(lengths, default=0)
        filler = self.tokenizer.pad_id or 0

        def filled(row: list[int], with_: int) -> list[int]:
            more = [with_] * (width - len(row))
            return more + row if self.padding_side == "left" else row + more

        found = {"input_ids": [filled(row, filler) for row in ids], "attention_mask": [filled(row, 0) for row in masks]}
        if _as_tensors(return_tensors):
            return Encoding({name: torch.tensor(x) for name, x in found.items()})
        return Encoding({name: x[0] if alone else x for name, x in found.items()})

    def apply_chat_template(
        self,
        messages: list[dict],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        return_tensors: str | None = None,
        **variables,
    ) -> str | list[int] | Tensor:
        """A conversation by the model's own template (see minirl.chat): text, ids, or a tensor (1, S)."""
        text = chat.render(
            self.tokenizer, messages, add_generation_prompt=add_generation_prompt, variables=variables or None
        )
        return self.encode(text, return_tensors=return_tensors, add_special_tokens=False) if tokenize else text

    # Ids to text

    def decode(self, ids: int | Sequence[int] | Tensor, *, skip_special_tokens: bool = False, **keywords) -> str:
        """Text of one row of ids, special tokens included unless they are to be skipped."""
        ids = torch.as_tensor(ids)
        ids = ids.reshape(-1) if ids.dim() == 0 else ids.squeeze(0) if ids.dim() == 2 and len(ids) == 1 else ids
        if ids.dim() != 1:
            raise ValueError(f"ids: wanted one row of ids, got shape {tuple(ids.shape)}; batch_decode takes several")
        return self.tokenizer.backend.decode(ids.int().tolist(), skip_special_tokens=skip_special_tokens)

    def batch_decode(self, rows, *, skip_special_tokens: bool = False, **keywords) -> list[str]:
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]

    def tokenize(self, text: str) -> list[str]:
        return [self.convert_ids_to_tokens(token) for token in self.tokenizer.encode_continuation(text)]

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self.tokenizer.backend.token_to_id(token)

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self.tokenizer.backend.id_to_token(token)


def _as_tensors(return_tensors: str | None) -> bool:
    if return_tensors not in (None, "pt"):
        raise ValueError(f'return_tensors: wanted "pt" or None, got {return_tensors!r}')
    return return_tensors == "pt"
