"""What each family of models writes into config.json, and what it calls its tensors.

    GPT-2               GPT2LMHeadModel      learned positions, LayerNorm, one matrix for query, key and value, (in, out)
    Llama               LlamaForCausalLM     also DeepSeek-LLM, SmolLM2, Llama 3, DeepSeek-R1-Distill-Llama
    Qwen2, Qwen2.5      Qwen2ForCausalLM     a bias on query, key and value; also DeepSeek-R1-Distill-Qwen
    Qwen3               Qwen3ForCausalLM     queries and keys normalised in each head

Which of them a model is follows from its TransformerConfig, so that nothing has to be remembered: what was loaded as a
Qwen2 is saved as one. A setting that would change the numbers and that our Transformer does not have is an error.
"""

import torch

from minirl.model import Transformer, TransformerConfig
from minirl.rotary import RopeScaling
from minirl.types import Tensor

LARGEST = 2**28  # of any number in a config: two million positions of 128 channels are a table of 2 GB
FAMILIES = {"gpt2": "GPT2", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}  # model_type, and the classes' prefix

LLAMA = {  # our name of a part, and Llama's; Qwen's are the same
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
GPT2 = {
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "attention_norm": "ln_1",
    "attention.query": "attn.c_attn",  # three of ours in one of theirs
    "attention.key": "attn.c_attn",
    "attention.value": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
}


# Which family


def family_of(config: TransformerConfig) -> str:
    """The model_type that has words for this config. ValueError, naming the field, where none has."""
    if (config.norm, config.positions) == ("layernorm", "learned"):
        family, wanted = "gpt2", {"activation": "gelu", "bias": True, "kv_heads": config.heads, "qk_norm": False}
        wanted["head_dim"] = config.width // config.heads
    else:
        family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
        wanted = {"norm": "rmsnorm", "positions": "rope", "activation": "swiglu"}
        if family == "qwen3":
            wanted |= {"bias": False, "qkv_bias": False}
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"config: {FAMILIES[family]}'s layout wants {name}={value!r}, got {getattr(config, name)!r}"
            )
    return family


def architecture(family: str, *, scores: bool) -> str:
    """The class that config.json names, for a language model or for a model that scores."""
    return FAMILIES[family] + (
        "ForSequenceClassification" if scores else "LMHeadModel" if family == "gpt2" else "ForCausalLM"
    )


# config.json


def read_config(settings: dict) -> TransformerConfig:
    """ValueError: an entry that is missing, or that says something our Transformer does not do."""
    family = settings.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"wanted model_type {', '.join(map(repr, FAMILIES))}, got {family!r:.80}")
    _want(settings, tie_word_embeddings=(False, True, None), attention_bias=(False, True))
    try:
        config = _read_gpt2(settings) if family == "gpt2" else _read_llama(settings, family)
    except KeyError as error:
        raise ValueError(f"no entry {error.args[0]}") from None
    except TypeError as error:
        raise ValueError(str(error)) from None
    for name in ("vocab_size", "width", "layers", "heads", "head_dim", "ffn", "max_length"):
        if getattr(config, name) > LARGEST:
            raise ValueError(f"{name}: wanted at most {LARGEST:,}, got {getattr(config, name):,}")
    if config.positions == "rope" and config.max_length * config.head_dim > LARGEST:
        angles = f"{config.max_length:,} positions of {config.head_dim} channels"
        raise ValueError(f"max_length: wanted a table of at most {LARGEST:,} angles, got {angles}")
    return config


def _want(settings: dict, **wanted) -> None:
    """An entry that is absent means the first of the values that will do."""
    for name, allowed in wanted.items():
        found = settings.get(name, allowed[0])
        if found not in allowed:
            raise ValueError(f"{name} {found!r} is not supported, wanted {' or '.join(map(repr, allowed))}")


def _read_gpt2(settings: dict) -> TransformerConfig:
    _want(
        settings,
        activation_function=("gelu_new", "gelu_pytorch_tanh"),  # two names of the tanh approximation
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
    )
    return TransformerConfig(
        vocab_size=settings["vocab_size"],
        width=settings["n_embd"],
        layers=settings["n_layer"],
        heads=settings["n_head"],
        ffn=settings.get("n_inner") or 4 * settings["n_embd"],
        max_length=settings["n_positions"],
        norm="layernorm",
        norm_eps=settings.get("layer_norm_epsilon", 1e-5),
        positions="learned",
        activation="gelu",
        bias=True,
        tied=settings.get("tie_word_embeddings", True),
    )


def _read_llama(settings: dict, family: str) -> TransformerConfig:
    bias = settings.get("attention_bias", False)
    _want(settings, hidden_act=("silu",))
    if family == "llama":
        _want(settings, mlp_bias=(bias,))
    else:
        _want(settings, use_sliding_window=(False,))  # with False, sliding_window means nothing
        if "sliding_attention" in (settings.get("layer_types") or []):
            raise ValueError("layer_types 'sliding_attention' is not supported, wanted 'full_attention'")
    if family == "qwen3":
        _want(settings, attention_bias=(False,))
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}  # newer and older files
    if not isinstance(rope, dict):
        raise ValueError(f"wanted rope_parameters to be an object, got {rope!r}")
    _want(rope | settings, partial_rotary_factor=(1.0,))
    return TransformerConfig(
        vocab_size=settings["vocab_size"],
        width=settings["hidden_size"],
        layers=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        kv_heads=settings.get("num_key_value_heads"),
        head_dim=settings.get("head_dim", 128 if family == "qwen3" else None),
        ffn=settings["intermediate_size"],
        max_length=settings["max_position_embeddings"],
        norm_eps=settings["rms_norm_eps"],
        rope_base=settings.get("rope_theta") or rope.get("rope_theta", 10000.0),
        rope_scaling=_read_scaling(rope),
        bias=bias if family == "llama" else False,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied=settings.get("tie_word_embeddings", False),
    )


def _read_scaling(rope: dict) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        # "dynamic" follows the text's length as it grows: keys in the cache would have turned at another speed.
        raise ValueError(f"rope_type {kind!r} is not supported, wanted 'default', 'linear' or 'llama3'")
    names = {"factor": "factor"}
    if kind == "llama3":
        names |= {name: name for name in ("low_freq_factor", "high_freq_factor")}
        names["original_max_length"] = "original_max_position_embeddings"
    for name in names.values():
        if name not in rope:
            raise ValueError(f"rope_type {kind!r} wants an entry {name}")
    return RopeScaling(kind, **{ours: rope[theirs] for ours, theirs in names.items()})


def write_config(config: TransformerConfig) -> dict:
    """The entries of config.json that say what `config` says."""
    family = family_of(config)
    if family == "gpt2":
        return {
            "model_type": "gpt2",
            "vocab_size": config.vocab_size,
            "n_embd": config.width,
            "n_inner": config.ffn,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_positions": config.max_length,
            "layer_norm_epsilon": config.norm_eps,
            "activation_function": "gelu_new",
            "tie_word_embeddings": config.tied,
            "attn_pdrop": 0.0,  # theirs are 0.1 unless told
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        }
    settings = {
        "model_type": family,
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
    }
    if family == "llama":
        settings |= {"attention_bias": config.bias, "mlp_bias": config.bias}
    else:
        settings |= {"use_sliding_window": False} | ({"attention_bias": False} if family == "qwen3" else {})
    if (scaling := config.rope_scaling) is not None:
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
            rope["original_max_position_embeddings"] = scaling.original_max_length
        settings["rope_scaling"] = rope
    return settings


# Tensors


def shapes_of(config: TransformerConfig) -> dict[str, torch.Size]:
    """Our parameters and their shapes. The head of a tied model is its embedding, and is not named a second time."""
    with torch.device("meta"):  # shapes without memory
        return {name: p.shape for name, p in Transformer(config).named_parameters()}


def tensor_names(config: TransformerConfig) -> dict[str, list[str]]:
    """Each tensor of a file, and which of our parameters it holds: one, or GPT-2's three in one.

    model.layers.3.self_attn.q_proj.weight: [blocks.3.attention.query.weight]
    """
    words, layers = (GPT2, "transformer.h") if family_of(config) == "gpt2" else (LLAMA, "model.layers")
    names = {}
    for ours in shapes_of(config):
        *part, kind = ours.split(".")
        if part[0] == "blocks":
            theirs = f"{layers}.{part[1]}.{words['.'.join(part[2:])]}.{kind}"
        else:
            theirs = f"{words['.'.join(part)]}.{kind}"
        names.setdefault(theirs, []).append(ours)
    return names


def plain_name(name: str, config: TransformerConfig) -> str | None:
    """A file's name of a tensor as `tensor_names` has it. None: a constant of old files, or a tied head said again."""
    if config.tied and name == "lm_head.weight":
        return None
    if family_of(config) != "gpt2":
        return None if name.endswith("rotary_emb.inv_freq") else name
    if name.endswith((".attn.bias", ".attn.masked_bias")):  # the causal mask
        return None
    return name if name.startswith(("transformer.", "lm_head.", "score.")) else f"transformer.{name}"


def is_transposed(theirs: str) -> bool:
    """GPT-2 keeps the matrices of its blocks as (in, out)."""
    return theirs.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def unpack(theirs: str, x: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """A file's tensor as our parameters of these shapes. ValueError where it has another shape than they add up to."""
    wanted = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    wanted = wanted[::-1] if is_transposed(theirs) else wanted
    if x.shape != wanted:
        raise ValueError(f"{theirs}: wanted shape {wanted}, got {tuple(x.shape)}")
    return list((x.T if is_transposed(theirs) else x).split([shape[0] for shape in shapes]))


def pack(tensors: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Our parameters as the file's tensors."""
    packed = {}
    for theirs, ours in tensor_names(config).items():
        x = tensors[ours[0]] if len(ours) == 1 else torch.cat([tensors[name] for name in ours])
        packed[theirs] = x.T if is_transposed(theirs) else x
    return packed
