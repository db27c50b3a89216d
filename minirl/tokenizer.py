"""Text to token ids and back: a thin class over the `tokenizers` library, and three ways to make a tokenizer.

The backend does the work. This class adds what a language model needs to know about it: which token ends a text, which
begins one, which fills the space after it. Files lie in the Hugging Face layout, tokenizer.json and
tokenizer_config.json.
"""

import json
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from minirl.files import check_path, read_json, read_text
from minirl.types import Tensor, check_knob, check_size, check_texts


class Tokenizer:
    """`eos`, `bos` and `pad` are token strings that the backend knows, or None. `chat_template`: how a conversation
    becomes one text (see chat.py), or None.

    Attributes: eos_id, bos_id (None where there is none), pad_id, vocab_size. Without a pad token the end token fills
    the space: padding is masked everywhere, so that any token would do.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos: str | None,
        bos: str | None = None,
        pad: str | None = None,
        chat_template: str | None = None,
    ):
        self.backend, self.chat_template = backend, chat_template
        self.eos, self.bos, self.pad = eos, bos, pad
        self.eos_id, self.bos_id, self.pad_id = (
            None if token is None else self._id_of(name, token)
            for name, token in (("eos", eos), ("bos", bos), ("pad", pad if pad is not None else eos))
        )

    def _id_of(self, name: str, token: str) -> int:
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise ValueError(f"{name}: wanted a token of the vocabulary, got {token!r}")
        return token_id

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids, with whatever the backend's post-processor puts in front (Llama: the BOS token). An end token is
        never added. ValueError, naming the word, where a closed vocabulary does not hold one."""
        return self._encode(text, add_special_tokens=True)

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of a text that follows another one: the same, without a token for the beginning."""
        return self._encode(text, add_special_tokens=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if not isinstance(text, str):
            raise ValueError(f"text: wanted a text, got {text!r:.80}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text: half a character at {error.start}, which is no text in UTF-8") from None
        try:
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:  # the backend raises bare Exceptions, and does not say which word it was
            pieces = text.replace(self.eos or "", " ") if self.eos else text
            words = [word for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(pieces)]
            unknown = [word for word in words if self.backend.token_to_id(word) is None]
            if not unknown:
                raise
            raise ValueError(f"text: {unknown[0]!r} is not in the vocabulary of {self.vocab_size} tokens") from error

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Text of the ids, a list or a 1-d tensor, with special tokens (end, begin, pad) left out."""
        if isinstance(ids, Tensor):
            if ids.dim() != 1:
                raise ValueError(f"ids: wanted one row of ids, got shape {tuple(ids.shape)}")
            ids = ids.tolist()
        if not isinstance(ids, Sequence) or not all(isinstance(i, Integral) and 0 <= i < 2**32 for i in ids):
            raise ValueError(f"ids: wanted whole numbers from 0 on, got {ids!r:.80}")
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: str | Path) -> None:
        folder = check_path("folder", folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        names["chat_template"] = self.chat_template
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | {k: v for k, v in names.items() if v is not None}
        (folder / "tokenizer.json").write_text(self.backend.to_str(pretty=True) + "\n", encoding="utf-8", newline="\n")
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n"
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """From a folder with tokenizer.json and tokenizer_config.json, ours or one from the Hugging Face hub.

        A chat template may stand in tokenizer_config.json, or in chat_template.jinja, which then counts. Where no entry
        says which token ends a text (GPT-2), the model's config.json does.
        """
        folder = check_path("folder", folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise ValueError(f"folder: no {name} in {folder}")
        path = folder / "tokenizer_config.json"
        config = read_json(path)
        backend = _backend(folder / "tokenizer.json")

        def token(name: str) -> str | None:
            entry = config.get(name)  # a string, or {"content": string, ...} in older files
            entry = entry.get("content") if isinstance(entry, dict) else entry
            if not isinstance(entry, str | None):
                raise ValueError(f"{path}: {name}: wanted a text, got {entry!r:.80}")
            return entry

        eos = token("eos_token") if "eos_token" in config else _end_of_the_model(folder, backend)
        if config.get("add_bos_token") and token("bos_token") is not None:
            begin_with(backend, token("bos_token"))  # some files leave this to the class that reads them (DeepSeek-LLM)
        template = config.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
            template = named[0].get("template") if named else None
        if (folder / "chat_template.jinja").is_file():
            template = read_text(folder / "chat_template.jinja")
        if not isinstance(template, str | None):
            raise ValueError(f"{path}: chat_template: wanted a text, got {type(template).__name__}")
        try:
            return cls(backend, eos=eos, bos=token("bos_token"), pad=token("pad_token"), chat_template=template)
        except ValueError as error:
            raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def _backend(path: Path) -> tokenizers.Tokenizer:
    text = read_text(path)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the backend raises bare Exceptions
        raise ValueError(f"{path}: no tokenizer of the tokenizers library: {error}") from None


def _end_of_the_model(folder: Path, backend: tokenizers.Tokenizer) -> str | None:
    path = folder / "config.json"
    eos = read_json(path).get("eos_token_id") if path.is_file() else None
    return backend.id_to_token(eos) if isinstance(eos, int) and 0 <= eos < 2**32 else None


def begin_with(backend: tokenizers.Tokenizer, bos: str) -> None:
    """Lets the backend put this token in front of every text, if it does not already."""
    bos_id = backend.token_to_id(bos)
    if bos_id is None or backend.encode("").ids[:1] == [bos_id]:
        return
    front = processors.TemplateProcessing(single=f"{bos}:0 $A:0", special_tokens=[(bos, bos_id)])
    backend.post_processor = (
        front if backend.post_processor is None else processors.Sequence([backend.post_processor, front])
    )


def word_tokenizer(words: Iterable[str], *, eos: str) -> Tokenizer:
    """One token a word; punctuation marks are words. The end token has id 0, the words follow in the order given.

    Decoded text has no space before . , ! ? ; and : and encodes back to the same ids.
    """
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")])
    # This decoder puts a space before every token but the first; the second takes it away before punctuation.
    join = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Replace(Regex(r"^ (?=[.,!?;:])"), "")])
    return _closed_vocabulary(words, split, join, eos)


def character_tokenizer(characters: Iterable[str], *, eos: str) -> Tokenizer:
    """One token a character. The end token, itself one character or more, has id 0."""
    return _closed_vocabulary(
        characters, pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Sequence([decoders.Fuse()]), eos
    )


def _closed_vocabulary(words: Iterable[str], split, join, eos: str) -> Tokenizer:
    words = list(words)
    check_texts(words=words)
    if len({eos, *words}) != len(words) + 1:
        twice = sorted({word for word in [eos, *words] if [eos, *words].count(word) > 1})
        raise ValueError(f"words: wanted each once, and none equal to eos, got {twice[0]!r} twice")
    for word in words:
        pieces = [piece for piece, _ in split.pre_tokenize_str(word)]
        if pieces != [word]:
            raise ValueError(f"words: {word!r} can never be matched, text is split into {pieces}")
    # No <unk>: a word that is not there is an error and not a token.
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate([eos, *words])}))
    backend.pre_tokenizer, backend.decoder = split, join
    backend.add_special_tokens([AddedToken(eos, special=True, normalized=False)])
    return Tokenizer(backend, eos=eos)


def train_bpe(texts: Iterable[str], vocab_size: int, *, eos: str) -> Tokenizer:
    """Byte-level byte-pair encoding learned from `texts` (Sennrich et al. 2016; on bytes as in GPT-2).

    The end token and the 256 bytes come first, so that no text is unknown; merges fill the rest of `vocab_size`, as far
    as the texts hold pairs that occur twice.
    """
    check_knob("vocab_size", vocab_size, 257)
    check_size("vocab_size", vocab_size)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[eos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, eos=eos)
