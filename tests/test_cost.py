"""The cost model against things counted on real models, against simulations, and against numbers that were published."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minirl import cost
from minirl.attention import KVCache
from minirl.cost import H100, MODELS, Machine, Model
from minirl.lora import add_lora
from minirl.model import Transformer, TransformerConfig
from minirl.train.optimizer import adamw

SHAPES = [  # heads, kv_heads, head_dim, tied, qkv_bias
    Model(32, 2, 4, 4, 8, 48, 50),
    Model(32, 3, 4, 2, 8, 40, 70, tied=True),
    Model(48, 2, 6, 2, 8, 64, 30, qkv_bias=True),
    Model(32, 2, 4, 1, 16, 96, 90, tied=True, qkv_bias=True),
]


def transformer(model: Model, max_length: int = 64) -> Transformer:
    torch.manual_seed(0)
    shape = {name: getattr(model, name) for name in ("width", "layers", "heads", "kv_heads", "head_dim", "ffn")}
    config = TransformerConfig(
        model.vocab, **shape, max_length=max_length, tied=model.tied, qkv_bias=model.qkv_bias, norm="rmsnorm"
    )
    return Transformer(config)


# Counted on real models


@pytest.mark.parametrize("model", SHAPES)
def test_parameters_are_those_of_a_real_model(model):
    assert cost.parameters(model) == sum(p.numel() for p in transformer(model).parameters())


@pytest.mark.parametrize("model", SHAPES[:2])
def test_state_is_what_an_optimizer_holds(model):
    real = transformer(model)
    optimizer = adamw(real)
    real(torch.arange(8)[None]).mean().backward()
    optimizer.step()
    moments = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if x.dim())
    weights, gradients = (sum(x.nbytes for x in xs) for xs in (real.parameters(), [p.grad for p in real.parameters()]))
    said = cost.state_bytes(cost.parameters(model))
    assert sum(said.values()) == weights + gradients + moments
    assert said["moments"] == moments and said["weights"] == weights / 2, (
        "here float32, there bfloat16 and a master copy"
    )


def test_lora_is_what_an_adapter_holds():
    model = SHAPES[0]
    real = add_lora(transformer(model).to(torch.bfloat16), rank=4)
    optimizer = adamw(real)
    real(torch.arange(8)[None]).float().mean().backward()
    optimizer.step()
    own = [p for p in real.parameters() if p.requires_grad]
    moments = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if x.dim())
    held = sum(p.nbytes for p in real.parameters()) + sum(p.grad.nbytes for p in own) + moments
    said = cost.memory_per_gpu(model, "grpo", lora=sum(p.numel() for p in own))
    assert said["policy"] == held and "reference" not in said


@pytest.mark.parametrize("model", SHAPES)
def test_flops_are_those_that_pytorch_counts(model):
    rows, length = 2, 16
    real, tokens = transformer(model), torch.arange(length)[None].expand(rows, -1) % 30
    with sdpa_kernel(SDPBackend.MATH):  # written out as two products; the fused one is not counted on a CPU
        with FlopCounterMode(display=False) as forward:
            logits = real(tokens)
        with FlopCounterMode(display=False) as backward:
            logits.mean().backward()
    # The whole square of attention scores is computed, so that every query meets `length` keys.
    assert forward.get_total_flops() == cost.forward_flops(model, rows * length, length)
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == cost.update_flops(model, rows * length, length)


def saved(model: Model, rows: int, length: int, *, recompute: bool = False) -> int:
    """Bytes that autograd keeps, each tensor once and the weights not."""
    real = transformer(model, length)
    real.recompute = recompute
    weights, kept = {p.untyped_storage().data_ptr() for p in [*real.parameters(), *real.buffers()]}, {}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held on to, so that no address is used again
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = real.hidden(torch.zeros(rows, length, dtype=torch.long))
    assert hidden.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("model", [SHAPES[0], Model(64, 2, 4, 4, 16, 176, 40), Model(64, 2, 4, 2, 16, 128, 40)])
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_those_that_autograd_keeps(model, recompute):
    """Four more layers, so that all else cancels. minirl repeats shared keys and turns them by its own function."""
    rows, length = 2, 32
    larger = replace(model, layers=model.layers + 4)
    found = saved(larger, rows, length, recompute=recompute) - saved(model, rows, length, recompute=recompute)
    said = [cost.activation_bytes(m, rows * length, recompute=recompute, width=4) for m in (larger, model)]
    low, high = (1.0, 1.02) if recompute else (0.95, 1.25)
    assert low <= found / (said[0] - said[1]) <= high, found / (said[0] - said[1])


@pytest.mark.parametrize("model", SHAPES)
def test_the_cache_is_a_real_cache(model):
    cache = KVCache(transformer(model).config, 3, 20)
    assert cost.kv_bytes(model, 3 * 20, width=4) == cache.keys.nbytes + cache.values.nbytes


# Against simulations


@given(st.integers(2, 6), st.integers(1, 5))
def test_a_ring_sends_what_the_formula_says(gpus, piece):
    """Every rank passes a piece on to its neighbour until each holds the sum of all."""
    own = torch.randint(10, (gpus, gpus, piece), generator=torch.Generator().manual_seed(gpus))  # rank, piece, numbers
    wanted, sent = own.sum(0), 0
    for gathering in (False, True):
        for round_ in range(gpus - 1):
            moving = [(rank, (rank - round_ + gathering) % gpus) for rank in range(gpus)]
            message = [own[rank, k].clone() for rank, k in moving]
            for (rank, k), numbers in zip(moving, message, strict=True):
                other = (rank + 1) % gpus
                own[other, k] = numbers if gathering else own[other, k] + numbers
            sent += piece
        if not gathering:
            assert sent == pytest.approx(cost.scatter_bytes(gpus * piece, gpus))
    assert (own == wanted).all()
    assert sent == pytest.approx(cost.all_reduce_bytes(gpus * piece, gpus))


def test_fsdp_sends_half_as_much_again():
    """Rajbhandari et al. 2020, section 7: stages 1 and 2 send what data parallelism sends, stage 3 half as much again."""
    ddp = cost.update_bytes(1e9, 8, stage=0)
    assert ddp == cost.update_bytes(1e9, 8, stage=2, micro_batches=5) == pytest.approx(2 * 7 / 8 * 2e9)
    assert cost.update_bytes(1e9, 8, stage=3) == 1.5 * ddp
    assert cost.update_bytes(1e9, 8, stage=3, micro_batches=5) == 7.5 * ddp
    assert cost.update_bytes(1e9, 1, stage=3) == 0


def test_experts_that_somebody_chose():
    model, dice = MODELS["DeepSeek-V3"], torch.Generator().manual_seed(0)
    assert cost.weights_read(model, 1) == pytest.approx(model.active)
    assert cost.weights_read(MODELS["Llama-3-8B"], 7) == cost.parameters(MODELS["Llama-3-8B"])
    per_expert = (model.total - model.active) / (256 - 8)
    choices = torch.rand(400, 40, 256, generator=dice).topk(8).indices  # trials, sequences, experts
    touched = torch.zeros(400, 256).scatter(1, choices.flatten(1), 1.0).sum(1).mean()
    others = model.active - 8 * per_expert
    assert cost.weights_read(model, 40) == pytest.approx(others + float(touched) * per_expert, rel=0.01)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_rollout_is_the_sum_of_its_steps(lengths):
    model, machine = MODELS["Llama-3-8B"], H100
    seconds = cost.rollout_time(model, machine, [0] * len(lengths), prompt=100)  # the prompts alone
    for step in range(max(lengths)):
        running = sum(length > step for length in lengths)
        seconds += cost.decode_step(model, machine, running, 100 + step + 0.5)
    assert cost.rollout_time(model, machine, lengths, prompt=100) == pytest.approx(seconds, rel=1e-9)


def test_decoding_waits_for_memory_until_the_batch_is_large():
    model = MODELS["Llama-3-8B"]
    border = cost.compute_bound_batch(H100)
    one, small, large, double = (cost.decode_step(model, H100, b, 0) for b in (1, border / 2, 3 * border, 6 * border))
    assert one == small == pytest.approx(2 * cost.parameters(model) / (H100.bandwidth * H100.mbu))
    assert double == pytest.approx(2 * large) and 2.5 * one < large < 3.1 * one
    assert cost.decode_step(model, H100, 64, 4096) > 2 * one, "long caches are read as well"
    assert cost.decode_step(model, H100, 64, 4096, tensor=2) == cost.decode_step(model, H100, 64, 4096) / 2


def ticked(lengths, batch, lanes, train_time, staleness):
    """The same samplers and trainer, tick by tick: seconds until all updates are done, and the ages of the answers."""
    waiting, left, done_at, version, training = 0, [], {}, 0, None
    ages, now = {}, 0
    while version < len(lengths) // batch:
        if training is not None and now == training:
            version, training = version + 1, None
        left = [(answer, rest) for answer, rest in left if rest > 0 or done_at.setdefault(answer, now) is None]
        while len(left) < lanes and waiting < len(lengths) and waiting // batch <= version + staleness:
            left.append((waiting, lengths[waiting]))
            ages[waiting] = waiting // batch - version
            waiting += 1
        if training is None and all(i in done_at for i in range(version * batch, (version + 1) * batch)):
            training = now + train_time
            if version == len(lengths) // batch - 1:
                return training, [ages[i] for i in range(len(lengths))]
        left = [(answer, rest - 1) for answer, rest in left]
        now += 1
    raise AssertionError("never done")


@given(
    st.lists(st.integers(1, 9), min_size=12, max_size=12),
    st.sampled_from([2, 3, 4]),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(0, 3),
)
def test_the_pipeline_is_that_of_a_clock(lengths, batch, lanes, train_time, staleness):
    said = cost.pipeline(lengths, batch, lanes, token_time=1.0, train_time=train_time, staleness=staleness)
    seconds, ages = ticked(lengths, batch, lanes, train_time, staleness)
    assert said["step"] * (12 // batch) == pytest.approx(seconds)
    assert (said["stale most"], said["stale mean"]) == (max(ages), pytest.approx(sum(ages) / 12))
    assert said["stale most"] <= staleness
    assert said["lanes idle"] == pytest.approx(1 - sum(lengths) / (lanes * seconds), abs=1e-9)
    assert said["trainer idle"] == pytest.approx(1 - 12 // batch * train_time / seconds, abs=1e-9)


def test_equal_answers_overlap_perfectly():
    """Rollout R and training T take R + T in turn, and max(R, T) one step off policy."""
    for rollout, train in ((10, 4), (4, 10), (7, 7)):
        common = dict(lengths=[rollout] * 800, batch=8, lanes=8, token_time=1.0, train_time=train)
        assert cost.pipeline(**common, staleness=0)["step"] == rollout + train
        assert cost.pipeline(**common, staleness=1)["step"] == pytest.approx(max(rollout, train), rel=0.02)


# Against published numbers


def test_parameters_of_released_models():
    wanted = {
        "Qwen2.5-7B": 7_615_616_512,
        "Llama-3-8B": 8_030_261_248,
        "Llama-3-70B": 70_553_706_496,
        "Llama-3-405B": 405_853_388_800,
        "DeepSeek-V3": 671e9,
    }
    assert {name: cost.parameters(model) for name, model in MODELS.items()} == wanted


def test_zero_paper():
    """Rajbhandari et al. 2020, figure 1: 7.5B parameters on 64 GPUs, in GB."""
    held = [sum(cost.state_bytes(7.5e9, gpus=64, stage=stage).values()) / 1e9 for stage in range(4)]
    assert [round(x, 1) for x in held] == [120.0, 31.4, 16.6, 1.9]


def test_gpt3_paper():
    """Brown et al. 2020, table D.1: 3.14e23 FLOPs, 300B tokens. Two matrices of 4 D are three of 8/3 D."""
    gpt3 = Model(12288, 96, 96, 96, 128, 32768, 50257, tied=True)
    assert 6 * cost.parameters(gpt3) * 300e9 == pytest.approx(3.14e23, rel=0.005)
    assert cost.update_flops(gpt3, 300e9, 1024) == pytest.approx(3.14e23, rel=0.04), "attention comes on top"


def test_llama3_paper():
    """Grattafiori et al. 2024: 405B parameters, 15.6T tokens, 3.8e25 FLOPs at 38 to 43% of the peak; 30.84M GPU-hours."""
    llama, tokens = MODELS["Llama-3-405B"], 15.6e12
    assert 6 * cost.parameters(llama) * tokens == pytest.approx(3.8e25, rel=0.005)
    flops = cost.update_flops(llama, tokens, 4096)
    assert flops == pytest.approx(3.8e25, rel=0.05)
    hours = [flops / (H100.flops * mfu) / 3600 for mfu in (0.43, 0.38)]
    assert 25e6 < hours[0] < hours[1] < 30.84e6, "what is left are restarts, evaluations, the longer contexts"


def test_deepseek_v3_paper():
    """DeepSeek-AI 2024: 14.8T tokens in 2.664M hours of an H800 whose dense bf16 peak is an H100's; 70 KB of cache a token."""
    model = MODELS["DeepSeek-V3"]
    at_peak = 6 * model.active * 14.8e12 / H100.flops / 3600
    assert 0.3 < at_peak / 2.664e6 < 0.4, "of the bf16 peak; its products run in FP8, whose peak is twice as high"
    assert cost.update_flops(model, 1e9, 2048) == pytest.approx(6 * model.active * 1e9, rel=0.15)
    assert cost.kv_bytes(model, 1) == pytest.approx(70e3, rel=0.005)


# A whole step


def test_memory_of_the_three_methods():
    model = MODELS["Qwen2.5-7B"]
    n = cost.parameters(model)
    held = {method: cost.memory_per_gpu(model, method) for method in cost.METHODS}
    states = {
        method: sum(v for k, v in said.items() if k not in ("activations", "logits")) for method, said in held.items()
    }
    assert states == {"ppo": 36 * n, "grpo": 18 * n, "dpo": 18 * n}
    split = cost.memory_per_gpu(model, "ppo", gpus=8, stage=3)
    assert split["policy"] == 2 * n and split["reward model"] == n / 4
    assert split["gathered layer"] == 2 * n / model.layers and "gathered layer" not in held["ppo"]
    assert split["activations"] == held["ppo"]["activations"], "each GPU has its own batch"
    cut = cost.memory_per_gpu(model, "ppo", gpus=4, stage=3, tensor=2)
    assert cut["policy"] == split["policy"] and cut["activations"] == split["activations"] / 2
    kept, again = (cost.activation_bytes(model, 8192, recompute=r) for r in (False, True))
    assert again < kept / 5


def test_a_step_adds_up():
    model = MODELS["Qwen2.5-7B"]
    ppo, grpo, dpo = (cost.step_time(model, H100, method) for method in ("ppo", "grpo", "dpo"))
    assert ppo["rollout"] == grpo["rollout"] > 0 == dpo["rollout"]
    assert ppo["log-probs"] == pytest.approx(2 * grpo["log-probs"]) == pytest.approx(4 * dpo["log-probs"])
    assert (
        ppo["update"]
        == 2 * grpo["update"]
        == pytest.approx(4 / 3 * 2 * cost.step_time(model, H100, recompute=False)["update"])
    )
    more = cost.step_time(model, H100, gpus=16)
    assert more["update"] == pytest.approx(grpo["update"] / 2) and more["rollout"] > 0.6 * grpo["rollout"]
    sliced = cost.step_time(model, H100, tensor=2)
    assert all(sliced[phase] == pytest.approx(grpo[phase]) for phase in ("update", "log-probs")), (
        "the same tokens a GPU"
    )
    uneven = cost.step_time(model, H100, lengths=[1024] * 63 + [4096])
    assert uneven["update"] < 0.4 * grpo["update"] and uneven["rollout"] > 0.4 * grpo["rollout"]


def test_bad_input():
    model = MODELS["Qwen2.5-7B"]
    for wrong, match in (
        (lambda: cost.memory_per_gpu(model, "trpo"), "method"),
        (lambda: cost.step_time(model, H100, "sft"), "method"),
        (lambda: cost.state_bytes(1.0, stage=4), "stage"),
        (lambda: cost.state_bytes(1.0, gpus=0), "gpus"),
        (lambda: cost.step_time(model, H100, gpus=0), "gpus"),
        (lambda: cost.memory_per_gpu(model, "ppo", tensor=0), "tensor"),
        (lambda: cost.all_reduce_bytes(1.0, 0), "gpus"),
        (lambda: cost.memory_per_gpu(model, "ppo", lora=-1.0), "lora"),
        (lambda: cost.pipeline([1], 2, 1, token_time=1, train_time=1, staleness=0), "lengths"),
        (lambda: cost.pipeline([1, 2], 2, 1, token_time=1, train_time=1, staleness=-1), "staleness"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()
    assert Machine(1.0, 1.0, 1.0, 1.0).mfu == 0.4
