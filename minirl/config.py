"""The shape of a transformer, checked once: everything else may rely on it."""

from dataclasses import dataclass
from typing import Literal

from minirl.rotary import RopeScaling
from minirl.types import check_knob, check_size


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a Transformer. `kv_heads` None is `heads`; `head_dim` None is width / heads."""

    vocab_size: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int | None = None  # fewer than heads: each key-value head serves a group of query heads (GQA)
    head_dim: int | None = None
    ffn: int = 176  # hidden width of the feed-forward part
    max_length: int = 512
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-5
    positions: Literal["rope", "learned"] = "rope"
    rope_base: float = 10000.0
    activation: Literal["swiglu", "gelu"] = "swiglu"
    bias: bool = False
    tied: bool = False  # the head's weight is the embedding's
    qkv_bias: bool = False  # a bias on queries, keys and values alone, where `bias` is False (Qwen2)
    qk_norm: bool = False  # queries and keys are normalised in each head before they turn (Qwen3)
    rope_scaling: RopeScaling | None = None

    def __post_init__(self):
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "ffn", "max_length"):
            check_size(name, getattr(self, name))
            object.__setattr__(self, name, int(getattr(self, name)))  # numpy's whole numbers are not JSON
        if self.head_dim is None:
            if self.width % self.heads:
                raise ValueError(f"width: wanted a multiple of heads ({self.heads}), got {self.width}")
            object.__setattr__(self, "head_dim", self.width // self.heads)
        check_size("head_dim", self.head_dim)
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: wanted a divisor of heads ({self.heads}), got {self.kv_heads}")
        choices = {"norm": ("rmsnorm", "layernorm"), "positions": ("rope", "learned"), "activation": ("swiglu", "gelu")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: wanted {' or '.join(map(repr, allowed))}, got {getattr(self, name)!r}")
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim: rotary positions turn pairs and want an even number, got {self.head_dim}")
        check_knob("norm_eps", self.norm_eps, 0, open_low=True)
        check_knob("rope_base", self.rope_base, 1, open_low=True)
        if self.bias and self.qkv_bias:
            raise ValueError("qkv_bias: wanted False where bias is True, which says it for every matrix")
        if not (self.rope_scaling is None or (isinstance(self.rope_scaling, RopeScaling) and self.positions == "rope")):
            raise ValueError(f"rope_scaling: wanted a RopeScaling, with rotary positions, got {self.rope_scaling!r}")
