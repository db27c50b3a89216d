"""Models in GGUF, the one-file format of llama.cpp: configuration, tokenizer and, mostly, compressed weights.

    model, tokenizer = load_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")
    save_pretrained(model, tokenizer, "smollm2")          # from here on a folder like any other

A weight of Q4_1 is one of 16 steps between the least and the greatest of its 32 neighbours; it is decompressed once, and
the model is then an ordinary one that happens to have been rounded. The `gguf` package reads the file (pip install
'minirl[gguf]').
"""

import re
from functools import partial
from pathlib import Path

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from minirl.files import check_path
from minirl.layouts import read_config
from minirl.model import Transformer
from minirl.pretrained import Readers, assemble
from minirl.tokenizer import Tokenizer, begin_with
from minirl.types import Tensor

NAMES = {  # GGUF's name of a part, and the Hugging Face one
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL, USER_DEFINED = 3, 4  # kinds of token that stand for themselves and are not made by merging
STRING, ARRAY = 8, 9  # kinds of entry; the others are numbers of so many bytes
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load_gguf(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[Transformer, Tokenizer]:
    """A language model and its tokenizer from a GGUF file of the llama, qwen2 or qwen3 architecture.

    Weights are decompressed one at a time into `dtype`. FileNotFoundError, ImportError (no gguf package), or ValueError,
    naming the file, for another architecture, a tensor that is missing or too many, a tokenizer that is no byte-level BPE.
    """
    path = check_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ImportError("GGUF files want the gguf package: pip install gguf") from None
    try:
        check_lengths(path)
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # what the package raises on a damaged file has no type of its own
        raise ValueError(f"{path}: not a whole GGUF file: {error}") from None
    compressed = {tensor.name: tensor for tensor in reader.tensors}
    try:
        config = read_config(_settings(fields, tied="output.weight" not in compressed))
        tokenizer = _tokenizer(fields)
    except KeyError as error:
        raise ValueError(f"{path}: no entry {error.args[0]}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # entries of other kinds than they should be: a word for a number, a list for a word
        raise ValueError(f"{path}: its metadata make no sense: {type(error).__name__}: {error}") from None
    interleaved = {"attn_q": config.heads, "attn_k": config.kv_heads} if _family(fields) == "llama" else {}
    readers: Readers = {}
    for name, tensor in compressed.items():
        part = name.rpartition(".")[0].rpartition(".")[2]
        readers[_plain_name(name)] = partial(_decompress, tensor, interleaved.get(part))
    return assemble(config, readers, path, dtype=dtype, device=device), tokenizer


def check_lengths(path: Path) -> None:
    """Walks over a file's counts and lengths before anybody believes them: a damaged one is read for ever. ValueError."""
    size = path.stat().st_size
    with open(path, "rb") as file:

        def number(width: int) -> int:
            if len(data := file.read(width)) < width:
                raise ValueError("it ends in the middle of its metadata")
            return int.from_bytes(data, "little")

        def skip(length: int) -> None:
            if length > size - file.tell():
                raise ValueError(f"a length of {length} reaches beyond its end")
            file.seek(length, 1)

        def value(kind: int) -> None:
            if kind == ARRAY:
                kind, length = number(4), number(8)
                if kind == STRING:
                    for _ in range(length):
                        skip(number(8))
                else:
                    skip(length * width_of(kind))
            else:
                skip(number(8) if kind == STRING else width_of(kind))

        number(8)  # the magic and the version, which the package looks at
        tensors, entries = number(8), number(8)
        for _ in range(entries):
            skip(number(8))
            value(number(4))
        for _ in range(tensors):
            skip(number(8))
            skip(8 * number(4))
            number(12)


def width_of(kind: int) -> int:
    if kind not in WIDTHS:
        raise ValueError(f"an entry of kind {kind}")
    return WIDTHS[kind]


def _family(fields: dict) -> str:
    return fields["general.architecture"]


def _settings(fields: dict, *, tied: bool) -> dict:
    """The metadata as config.json would say it."""
    family = _family(fields)
    if family not in ("llama", "qwen2", "qwen3"):
        raise ValueError(f"wanted general.architecture 'llama', 'qwen2' or 'qwen3', got {family!r}")
    scaling = fields.get(f"{family}.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"{family}.rope.scaling.type {scaling!r} is not supported, wanted 'none'")
    heads, width = fields[f"{family}.attention.head_count"], fields[f"{family}.embedding_length"]
    head_dim = fields.get(f"{family}.attention.key_length", width // heads)
    turned = fields.get(f"{family}.rope.dimension_count", head_dim)
    if turned != head_dim:
        raise ValueError(f"{family}.rope.dimension_count: wanted all {head_dim} channels of a head, got {turned}")
    return {
        "model_type": family,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": fields[f"{family}.feed_forward_length"],
        "num_hidden_layers": fields[f"{family}.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get(f"{family}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": fields[f"{family}.context_length"],
        "rms_norm_eps": fields[f"{family}.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields.get(f"{family}.rope.freq_base", 10000.0),
        "tie_word_embeddings": tied,
    }


def _plain_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; a name we do not know stays, and is then refused."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if found is None or found[2] not in NAMES:
        return name
    layer = "" if found[1] is None else f"model.layers.{found[1]}."
    return f"{layer}{NAMES[found[2]]}.{found[3]}"


def _decompress(tensor, interleaved_heads: int | None) -> Tensor:
    from gguf.quants import dequantize

    x = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    if interleaved_heads is None:
        return x
    # llama.cpp turns neighbours 2i and 2i + 1 of a head where we turn i and i + head_dim / 2.
    return x.view(interleaved_heads, -1, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def _tokenizer(fields: dict) -> Tokenizer:
    kind, split = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    if kind != "gpt2":
        raise ValueError(f"tokenizer.ggml.model: wanted 'gpt2', a byte-level BPE, got {kind!r}")
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)  # cuts into words as GPT-2 does, unless told
    if split == "smollm":
        as_bytes = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), as_bytes])
    elif split == "qwen2":
        words = pre_tokenizers.Split(Regex(QWEN2), "isolated")
        bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        as_bytes = pre_tokenizers.Sequence([words, bare])
        backend.normalizer = normalizers.NFC()
    elif split != "gpt-2":
        raise ValueError(f"tokenizer.ggml.pre: wanted 'gpt-2', 'smollm' or 'qwen2', got {split!r}")
    backend.pre_tokenizer, backend.decoder = as_bytes, decoders.ByteLevel()
    for token, what in zip(tokens, kinds, strict=True):
        if what == CONTROL:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif what == USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False)])

    def named(name: str) -> str | None:
        found = fields.get(f"tokenizer.ggml.{name}_token_id")
        return None if found is None else tokens[found]

    if fields.get("tokenizer.ggml.add_bos_token") and named("bos") is not None:
        begin_with(backend, named("bos"))
    template = fields.get("tokenizer.chat_template")
    return Tokenizer(backend, eos=named("eos"), bos=named("bos"), pad=named("padding"), chat_template=template)
