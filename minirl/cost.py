"""What a step of PPO, DPO or GRPO costs, on paper: bytes on each GPU and seconds on the clock. Arithmetic, no tensors.

    memory = memory_per_gpu(MODELS["Llama-3-8B"], "ppo", gpus=8, stage=3)          # bytes by name
    seconds = step_time(MODELS["Llama-3-8B"], H100, "grpo", gpus=8, prompts=64)    # seconds by name

Times are floors divided by efficiencies that you choose: `Machine.mfu` is the share of the peak arithmetic that products
reach, `Machine.mbu` the share of the memory's bandwidth that decoding reaches. Units: bytes, seconds, FLOPs (an addition
and a multiplication are two). Left out: pipelines of layers, latency, fragmentation, sending while computing.
"""

import heapq
from bisect import bisect_right
from dataclasses import dataclass

from minirl.types import check_knob, check_size

BF16 = 2  # bytes a number


@dataclass(frozen=True)
class Model:
    """A decoder like Llama: RMSNorm, SwiGLU, grouped keys and values. A mixture of experts says its totals itself."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False
    total: float | None = None  # a mixture of experts: all its parameters,
    active: float | None = None  # those that one token passes through,
    chosen: float = 1.0  # and the share of the routed experts that one token chooses
    cached: int | None = None  # numbers kept for a token in each layer; None: its keys and values


@dataclass(frozen=True)
class Machine:
    """One GPU: peak FLOPs and bytes a second, its memory, and bytes a second to its neighbours, in one direction."""

    flops: float
    bandwidth: float
    memory: float
    link: float
    mfu: float = 0.4
    mbu: float = 0.6


MODELS = {  # from the models' own config.json; DeepSeek-V3 from its report: 671B, 37B active, 8 of 256 experts
    "Qwen2.5-7B": Model(3584, 28, 28, 4, 128, 18944, 152064, qkv_bias=True),
    "Llama-3-8B": Model(4096, 32, 32, 8, 128, 14336, 128256),
    "Llama-3-70B": Model(8192, 80, 64, 8, 128, 28672, 128256),
    "Llama-3-405B": Model(16384, 126, 128, 8, 128, 53248, 128256),
    # Keys have 192 numbers a head, values 128; latent attention keeps 512 + 64 for all heads. A token passes nine experts
    # of 2,048, which together are as wide as the ffn of the first three layers.
    "DeepSeek-V3": Model(7168, 61, 128, 128, 160, 18432, 129280, total=671e9, active=37e9, chosen=8 / 256, cached=576),
}
H100 = Machine(flops=989e12, bandwidth=3.35e12, memory=80e9, link=450e9)  # SXM, dense bf16; NVLink, one direction
METHODS = {  # models that learn, and frozen ones
    "ppo": (("policy", "critic"), ("reference", "reward model")),
    "grpo": (("policy",), ("reference",)),  # scored by a rule
    "dpo": (("policy",), ("reference",)),
}

# Parameters, FLOPs and bytes of one model


def block_parameters(model: Model) -> int:
    """Weights of a layer: queries and output 2 D HE, keys and values 2 D KE, SwiGLU 3 D F, two norms 2 D."""
    D, queries, keys = model.width, model.heads * model.head_dim, model.kv_heads * model.head_dim
    return 2 * D * (queries + keys) + (queries + 2 * keys) * model.qkv_bias + 3 * D * model.ffn + 2 * D


def parameters(model: Model) -> float:
    """N: embedding V D, the head as large unless tied, the layers, a last norm D."""
    if model.total is not None:
        return model.total
    return (2 - model.tied) * model.vocab * model.width + model.layers * block_parameters(model) + model.width


def forward_flops(model: Model, tokens: float, context: float) -> float:
    """(2 N' + 4 L HE context) tokens. N' are the weights in matrix products, each one multiplication and one addition a
    token; the embedding is a lookup and norms are elementwise. A query meets `context` keys on average, (T + 1) / 2 where
    attention is causal, once in q k^T and once in the sum over values: 2 HE FLOPs each.
    """
    D, E = model.width, model.head_dim
    products = model.layers * (2 * D * E * (model.heads + model.kv_heads) + 3 * D * model.ffn) + model.vocab * D
    if model.active is not None:
        products = model.active - model.vocab * D
    return tokens * (2 * products + 4 * model.layers * model.heads * E * context)


def update_flops(model: Model, tokens: float, context: float, *, recompute: bool = False) -> float:
    """Three forward passes' worth, 6 N a token: going back, each product y = x W becomes two, of x and of W. With
    recomputation the forward pass runs once more: 8 N (Kaplan et al. 2020; Korthikanti et al. 2022)."""
    return (3 + recompute) * forward_flops(model, tokens, context)


def state_bytes(n: float, *, gpus: int = 1, stage: int = 0, learns: bool = True) -> dict[str, float]:
    """Bytes on each GPU for n parameters under Adam in mixed precision: bf16 weights 2 and gradients 2, float32 master
    weights 4 and two moments 8, 16 together. ZeRO's stage 1 splits the twelve of the optimizer over the GPUs, stage 2
    the gradients too, stage 3 (FSDP) the weights too (Rajbhandari et al. 2020, section 5). Stage 0 is DDP. Float32
    without a master copy has 4 + 4 + 8 = 16 as well. A frozen model has its weights alone.
    """
    check_size("gpus", gpus)
    check_knob("stage", stage, 0, 3)
    weights = BF16 * n / (gpus if stage == 3 else 1)
    if not learns:
        return {"weights": weights}
    own = {"weights": weights, "gradients": BF16 * n / (gpus if stage >= 2 else 1)}
    return own | {name: k * n / (gpus if stage >= 1 else 1) for name, k in (("master weights", 4), ("moments", 8))}


def activation_bytes(model: Model, tokens: int, *, recompute: bool = False, width: int = BF16) -> float:
    """What the layers keep for the gradient of `tokens` positions, with attention that stores no table of scores.

    Numbers a token and layer: 4 D (the inputs of both norms and what comes out of them), 2 HE + 2 KE (queries, keys,
    values, mixed values), 4 F (gate, up, silu(gate), their product). With recomputation: the input of each layer, and
    all this for one layer at a time.
    """
    heads = (model.heads + model.kv_heads) * model.head_dim
    layer = 4 * model.width + 2 * heads + 4 * model.ffn
    return width * tokens * (layer + model.layers * model.width if recompute else model.layers * layer)


def logits_bytes(model: Model, positions: int) -> float:
    """12 bytes a logit, the textbook loss's peak in notebook 17: bf16 logits 2 and their gradient 2, float32 copies 8. A
    head that works in chunks has `positions` of one chunk."""
    return 12.0 * positions * model.vocab


def kv_bytes(model: Model, tokens: float, *, width: int = BF16) -> float:
    """The cache: keys and values of each layer and token, 2 K E numbers, or what latent attention keeps instead."""
    kept = 2 * model.kv_heads * model.head_dim if model.cached is None else model.cached
    return width * tokens * model.layers * kept


def memory_per_gpu(
    model: Model,
    method: str,
    *,
    gpus: int = 1,
    stage: int = 0,
    tensor: int = 1,
    micro_tokens: int = 8192,
    recompute: bool = True,
    chunk: int = 1024,
    lora: float = 0.0,
) -> dict[str, float]:
    """Bytes on each GPU of gpus * tensor: models are cut into `tensor` slices, each slice has `gpus` data-parallel ranks.
    All models are there at once, critic and reward model as large as the policy. `micro_tokens` pass through the update
    together, `chunk` of them through the head. `lora`: numbers in the adapter; without it the policy is its reference.
    Stage 3 also holds one layer whole, the one at work.
    """
    if method not in METHODS:
        raise ValueError(f"method: wanted one of {', '.join(METHODS)}, got {method!r}")
    check_size("tensor", tensor)
    check_knob("lora", lora, 0)
    n, (learning, frozen) = parameters(model) / tensor, METHODS[method]
    still = sum(state_bytes(n, gpus=gpus, stage=stage, learns=False).values())
    moving = sum(state_bytes(lora / tensor if lora else n, gpus=gpus, stage=stage).values()) + (still if lora else 0.0)
    total = dict.fromkeys(learning, moving) | {name: still for name in frozen if not (lora and name == "reference")}
    total["activations"] = activation_bytes(model, micro_tokens, recompute=recompute) / tensor
    total["logits"] = logits_bytes(model, min(chunk, micro_tokens)) / tensor
    if stage == 3:
        total["gathered layer"] = BF16 * n / model.layers
    return total


# Seconds


def all_reduce_bytes(size: float, gpus: int) -> float:
    """Sent by each GPU to sum `size` bytes over all: 2 (n-1)/n size. Around a ring, n-1 rounds pass on a piece of size/n
    and leave one sum with each GPU (reduce-scatter); n-1 rounds more hand the sums round (all-gather)."""
    return 2 * scatter_bytes(size, gpus)


def scatter_bytes(size: float, gpus: int) -> float:
    """(n-1)/n size: half an all-reduce, which is a reduce-scatter or an all-gather."""
    check_size("gpus", gpus)
    return (gpus - 1) / gpus * size


def update_bytes(n: float, gpus: int, *, stage: int, micro_batches: int = 1) -> float:
    """Sent by each GPU for an update of n bf16 parameters. Stages 0 to 2: one all-reduce of the gradients, or its halves.
    Stage 3 gathers the weights forwards, again backwards, and scatters the gradients, in every micro-batch."""
    gradients = all_reduce_bytes(BF16 * n, gpus)
    return 1.5 * gradients * micro_batches if stage == 3 else gradients


def weights_read(model: Model, sequences: float) -> float:
    """Parameters that a decoding step touches. Of the routed experts each token chooses a share c; with even routing the
    share that somebody chose is 1 - (1 - c)^sequences."""
    total = parameters(model)
    if model.active is None:
        return total
    routed = (total - model.active) / (1 - model.chosen)
    return total - routed * (1 - model.chosen) ** sequences


def decode_step(model: Model, machine: Machine, sequences: float, context: float, *, tensor: int = 1) -> float:
    """Seconds for a token of each sequence: the slower of reading (weights once, every cache once) and computing."""
    moved = BF16 * weights_read(model, sequences) + kv_bytes(model, sequences * context)
    read = moved / (machine.bandwidth * machine.mbu)
    return max(read, forward_flops(model, sequences, context) / (machine.flops * machine.mfu)) / tensor


def compute_bound_batch(machine: Machine) -> float:
    """Sequences B at which computing takes as long as reading the weights, caches left out: 2 N B / flops = 2 N /
    bandwidth gives B = flops / bandwidth for every dense model in bf16."""
    return machine.flops * machine.mfu / (machine.bandwidth * machine.mbu)


def rollout_time(model: Model, machine: Machine, lengths, *, prompt: int = 512, tensor: int = 1) -> float:
    """Seconds until the last answer of a batch that started together has ended. After each end the batch is smaller but
    its steps are hardly faster while reading the weights is what they wait for: the stragglers' price."""
    ends = sorted(lengths)
    seconds = forward_flops(model, len(ends) * prompt, prompt / 2) / (machine.flops * machine.mfu * tensor)
    before = 0.0
    for i, end in enumerate(ends):
        context = prompt + (before + end) / 2  # the time of a step is linear in it
        seconds += (end - before) * decode_step(model, machine, len(ends) - i, context, tensor=tensor)
        before = end
    return seconds


def step_time(
    model: Model,
    machine: Machine,
    method: str = "grpo",
    *,
    gpus: int = 8,
    prompts: int = 64,
    group: int = 8,
    prompt: int = 512,
    length: int = 4096,
    lengths=None,
    stage: int = 3,
    tensor: int = 1,
    micro_tokens: int = 16384,
    recompute: bool = True,
) -> dict[str, float]:
    """Seconds of one synchronous step on `gpus` GPUs that do everything in turn, by phase.

    Answers are dealt evenly to gpus / tensor samplers; `lengths` are those of one sampler (None: all `length`). PPO and
    GRPO read the answers again with policy and reference, PPO with critic and reward model too. DPO has its pairs.
    """
    if method not in METHODS:
        raise ValueError(f"method: wanted one of {', '.join(METHODS)}, got {method!r}")
    check_size("gpus", gpus)
    learning, frozen = METHODS[method]
    n, answers = parameters(model), max(prompts * group * tensor / gpus, 1)
    lengths = [length] * round(answers) if lengths is None else list(lengths)
    tokens = sum(prompt + end for end in lengths) / tensor  # a GPU
    context = (prompt + sum(lengths) / len(lengths)) / 2
    speed = machine.flops * machine.mfu
    read = forward_flops(model, tokens, context) / speed
    micro_batches = max(round(tokens / micro_tokens), 1) if stage == 3 else 1
    sent = update_bytes(n / tensor, max(gpus // tensor, 1), stage=stage, micro_batches=micro_batches)
    online = method != "dpo"
    return {
        "rollout": rollout_time(model, machine, lengths, prompt=prompt, tensor=tensor) if online else 0.0,
        "log-probs": read * (len(frozen) + online * len(learning)),
        "update": update_flops(model, tokens, context, recompute=recompute) / speed * len(learning),
        "gradients and weights sent": sent / machine.link * len(learning),
        "weights to the samplers": scatter_bytes(BF16 * n, gpus) / machine.link if online else 0.0,
    }


def pipeline(lengths, batch: int, lanes: int, *, token_time: float, train_time: float, staleness: int) -> dict:
    """Samplers with `lanes` sequences at a time beside a trainer that takes `batch` answers in the order in which they were
    begun. An answer for update u may begin once update u - staleness - 1 is done: 0 is synchronous, and no answer is
    older than `staleness` updates. Seconds a step, idle shares of lanes and trainer, staleness of answers, mean and most.
    """
    check_size("batch", batch)
    check_size("lanes", lanes)
    check_knob("staleness", staleness, 0)
    lengths = list(lengths)
    if len(lengths) < batch:
        raise ValueError(f"lengths: wanted at least one batch of {batch}, got {len(lengths)}")
    free, done, busy, ages = [0.0] * lanes, [], 0.0, []
    for u in range(len(lengths) // batch):
        allowed = done[u - staleness - 1] if u > staleness else 0.0
        ready = done[-1] if done else 0.0  # when the trainer has all it needs
        for length in lengths[u * batch : (u + 1) * batch]:
            start = max(heapq.heappop(free), allowed)
            heapq.heappush(free, start + length * token_time)
            ready, busy = max(ready, start + length * token_time), busy + length * token_time
            ages.append(u - bisect_right(done, start))  # updates done when it began, against u
        done.append(ready + train_time)
    return {
        "step": done[-1] / len(done),
        "lanes idle": 1 - busy / (lanes * done[-1]),
        "trainer idle": 1 - len(done) * train_time / done[-1],
        "stale mean": sum(ages) / len(ages),
        "stale most": max(ages),
    }
