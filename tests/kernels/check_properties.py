"""What holds for the kernels whatever the numbers are. Started by test_kernels.py."""

import importlib
import inspect
import os

import cases
import pytest
import torch

from minirl import ops
from minirl.kernels import TRITON, check_machine, head_losses, heads, logprobs, policy
from minirl.masking import masked_sum_over
from minirl.ops import TORCH, Ops

torch.set_num_threads(1)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def generator():
    return torch.Generator().manual_seed(3)


def normal(*shape, dtype=torch.float32, scale=1.0):
    return cases.normal(generator(), *shape, dtype=dtype, scale=scale).to(DEVICE)


@pytest.mark.parametrize("name", Ops.__dataclass_fields__)
def test_same_name_and_signature(name):
    twin, kernel = getattr(TORCH, name), getattr(TRITON, name)
    assert kernel.__name__ == twin.__name__ == name and kernel is not twin
    ours, theirs = (inspect.signature(f).parameters.values() for f in (kernel, twin))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


def test_logprobs_are_never_above_zero():
    """Nearly all probability on the chosen token: the difference of two large numbers must not come out positive."""
    for scale in (1.0, 10.0, 100.0):
        hidden, weight = normal(2, 12, 8, scale=scale), normal(70, 8)
        tokens = (hidden @ weight.T).argmax(-1)
        found, entropies = TRITON.hidden_logprobs(hidden, weight, tokens)
        assert (found <= 0).all() and (entropies >= 0).all()
        assert scale == 1.0 or (found == 0).any()
        mask = torch.ones_like(tokens, dtype=torch.bool)
        rows = heads.run_head(hidden, weight, mask, reading(tokens, weight), 7)[1]
        assert (rows <= 0).all()


def reading(tokens, weight):
    def row_pass(first, logits, dlogits, results):
        heads.read_kernel[(len(logits),)](
            *(logits, results, tokens.reshape(-1), first, tokens.numel(), len(weight), logits.stride(0), 1.0),
            **heads.ROW,
        )

    return row_pass


def test_a_row_does_not_depend_on_the_rows_beside_it():
    """To the last bit: alone, or among others, or behind other padding."""
    x, w = normal(9, 40), normal(40)
    whole, part = TRITON.rms_norm(x, w, eps=1e-5), TRITON.rms_norm(x[3:5], w, eps=1e-5)
    assert torch.equal(whole[3:5], part)

    hidden, weight = normal(3, 11, 24), normal(150, 24)
    tokens = torch.randint(150, (3, 11), generator=generator()).to(DEVICE)
    whole = TRITON.hidden_logprobs(hidden, weight, tokens, temperature=0.7)
    part = TRITON.hidden_logprobs(hidden[1:, 2:9], weight, tokens[1:, 2:9], temperature=0.7)
    assert all(torch.equal(a[1:, 2:9], b) for a, b in zip(whole, part, strict=True))

    mask = torch.ones(4, 50, dtype=torch.bool, device=DEVICE)
    mask[:, 33:] = False
    rewards, values = normal(4, 50), normal(4, 50, scale=2.0)
    whole = TRITON.gae(rewards, values, mask, gamma=0.9, lam=0.8)
    part = TRITON.gae(rewards[1:3, :33], values[1:3, :33], mask[1:3, :33], gamma=0.9, lam=0.8)
    assert all(torch.equal(a[1:3, :33], b) for a, b in zip(whole, part, strict=True))


def test_the_same_bits_every_time():
    for family in ("logprobs", "heads", "rmsnorm"):
        for case in cases.cases(family, torch.bfloat16)[:1]:
            function = getattr(TRITON, case.op)
            first, second = (cases.evaluate(function, case, device=DEVICE) for _ in range(2))
            for name in first:
                assert torch.equal(first[name], second[name]), (case, name)


def test_micro_batches_add_up():
    """The gradients of parts of a batch, each with its share of the loss, are the gradient of the whole."""
    B, T, D, V = 6, 5, 8, 60
    hidden, weight, mask = normal(B, T, D), normal(V, D), cases.random_mask(generator(), B, T).to(DEVICE)
    tokens = torch.randint(V, (B, T), generator=generator()).to(DEVICE)
    old, advantages = -2 + normal(B, T, scale=0.2), normal(B)
    reduce = masked_sum_over(int(mask.sum()))

    def gradients(parts):
        h, w = (x.clone().requires_grad_() for x in (hidden, weight))
        for part in parts:
            rows = (h[part], w, tokens[part], old[part], None, advantages[part], mask[part])
            TRITON.grpo_head_loss(*rows, kl_coef=0.0, reduce=reduce)[0].backward()
        return h.grad, w.grad

    whole = gradients([slice(0, B)])
    parts = gradients([slice(0, 1), slice(2, 5), slice(5, 6)])  # row 1 has nothing counted
    for a, b in zip(whole, parts, strict=True):
        assert (a - b).abs().max() <= 2e-6 * a.abs().max()


def test_garbage_at_padding_stays_there():
    """NaN where nothing counts: no result and no gradient notices. (check_equality spoils the padding as well.)"""
    case = next(case for case in cases.cases("heads", torch.float32) if case.op == "grpo_head_loss")
    mask = case.inputs["mask"]
    assert case.inputs["hidden"][~mask].isnan().all() and case.inputs["old_logprobs"][~mask].isnan().all()
    found = cases.evaluate(TRITON.grpo_head_loss, case, device=DEVICE)
    assert all(x.isfinite().all() for x in found.values())
    assert (found["gradient hidden"].cpu()[~mask] == 0).all()


def test_a_token_outside_the_vocabulary_is_loud():
    hidden, weight, tokens = normal(1, 3, 8), normal(20, 8), torch.tensor([[3, 20, -100]], device=DEVICE)
    if INTERPRETED:
        with pytest.raises(ValueError, match=r"tokens: wanted ids in \[0, 20\), got 20"):
            TRITON.hidden_logprobs(hidden, weight, tokens)
    found = logprobs.HiddenLogprobs.apply(hidden[0], weight, tokens[0], 1.0, False)[0]
    assert found.isnan().tolist() == [False, True, True]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    found = heads.run_head(hidden, weight, mask, reading(tokens, weight), 8)[1]
    assert found.isnan().tolist() == [[False, True, True]]


def test_not_a_number_is_not_hidden():
    """A GPU's maximum and clamp drop NaN. A loss over a counted NaN is NaN, so that the run stops."""
    nan = torch.tensor([[-1.0, float("nan")]], device=DEVICE)
    fine, mask = torch.full_like(nan, -1.0), torch.ones_like(nan, dtype=torch.bool)
    weights, advantages = torch.ones_like(nan), torch.ones(1, device=DEVICE)
    for tables in ((nan, fine, fine), (fine, nan, fine), (fine, fine, nan)):
        loss, _ = policy.ClippedLoss.apply(*tables, advantages, weights, mask, 0.8, 1.2, 0.1)
        assert loss.isnan()
    hidden = normal(1, 2, 8).index_fill(1, torch.tensor([1], device=DEVICE), float("nan"))
    tokens = torch.zeros(1, 2, dtype=torch.long, device=DEVICE)
    assert TRITON.hidden_logprobs(hidden, normal(20, 8), tokens)[0].isnan().tolist() == [[False, True]]


def test_offsets_go_beyond_32_bits():
    """Rows 2^28 numbers apart: the ninth begins where int32 ends. Untouched memory costs nothing."""
    apart, rows = 2**28, 9
    memory = torch.empty(apart * (rows - 1) + 4096, dtype=torch.float16, device=DEVICE)

    def far(x):
        view = memory.as_strided(x.shape, (apart, *x.stride()[1:]))
        view.copy_(x)
        return view

    x, other = normal(rows, 16, dtype=torch.float16), normal(rows, 16, dtype=torch.float16, scale=0.5)
    weight, mask = normal(16, dtype=torch.float16), torch.ones(rows, 16, dtype=torch.bool, device=DEVICE)
    assert torch.equal(TRITON.rms_norm(far(x), weight, eps=1e-5), TRITON.rms_norm(x, weight, eps=1e-5))
    assert torch.equal(TRITON.swiglu(far(x), other), TRITON.swiglu(x, other))
    assert torch.equal(TRITON.swiglu(other, far(x)), TRITON.swiglu(other, x))
    assert torch.equal(TRITON.gae(far(x), other, mask)[0], TRITON.gae(x, other, mask)[0])
    assert torch.equal(TRITON.gae(other, far(x), mask)[0], TRITON.gae(other, x, mask)[0])
    advantages = x[:, 0].contiguous()
    assert torch.equal(
        TRITON.grpo_loss(far(x), other, None, advantages, mask, kl_coef=0.0)[0],
        TRITON.grpo_loss(x, other, None, advantages, mask, kl_coef=0.0)[0],
    )
    positions, turned = x.view(rows, 1, 2, 8), normal(2, 1, 1, 2, 8, dtype=torch.float16)
    assert torch.equal(TRITON.rotate(far(positions), turned), TRITON.rotate(positions, turned))
    tokens = torch.zeros(rows, 1, dtype=torch.long, device=DEVICE)
    near = TRITON.hidden_logprobs(x.unsqueeze(1), other, tokens)[0]
    assert torch.equal(TRITON.hidden_logprobs(far(x).unsqueeze(1), other, tokens)[0], near)
    assert torch.equal(
        TRITON.hidden_logprobs(x.unsqueeze(1), far(other), tokens)[0],
        TRITON.hidden_logprobs(x.unsqueeze(1), other, tokens)[0],
    )


class Recorder:
    """In the place of a kernel: notes the grid, and runs nothing."""

    def __init__(self, grids):
        self.grids = grids

    def __getitem__(self, grid):
        self.grids.append(grid)
        return lambda *args, **kwargs: None


def test_more_rows_than_a_grid_has_room_for(monkeypatch):
    """CUDA takes 65,535 programs on the second and third axis, and 2^31 - 1 on the first: rows belong on the first."""
    grids, N = [], 70_001
    for room in ("rmsnorm", "rope", "swiglu", "advantages", "policy", "logprobs", "heads", "head_losses"):
        module = importlib.import_module(f"minirl.kernels.{room}")
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Recorder(grids))
    monkeypatch.setattr(policy, "check_finite", lambda *args, **kwargs: None)
    monkeypatch.setattr(heads, "multiply", lambda a, b, *, out: None)
    monkeypatch.setattr(head_losses, "rows_in_a_tile", lambda vocabulary: N)
    x, long = torch.zeros(N, 2, device=DEVICE), torch.zeros(1, N, device=DEVICE)
    many = torch.ones(N, 2, dtype=torch.bool, device=DEVICE)
    tokens, weight = torch.zeros(1, N, dtype=torch.long, device=DEVICE), torch.zeros(8, 2, device=DEVICE)
    with torch.no_grad():
        TRITON.rms_norm(x, x[0], eps=1e-5)
        TRITON.swiglu(x, x)
        TRITON.rotate(x.view(N, 1, 1, 2), torch.zeros(2, 1, 1, 1, 2, device=DEVICE))
        TRITON.rotate(x.view(1, 1, N, 2), torch.zeros(2, 1, 1, N, 2, device=DEVICE))
        TRITON.gae(x, x, many)
        TRITON.grpo_loss(x, x, None, x[:, 0].contiguous(), many, kl_coef=0.0)
        TRITON.hidden_logprobs(x.unsqueeze(0), weight, tokens)
        TRITON.ppo_head_loss(x.unsqueeze(0), weight, tokens, long, long, long == 0)
    assert len(grids) == 10  # one a call, and two more: the merge after the head, the loss after the fused head
    assert all(side < 65_536 for grid in grids for side in grid[1:]) and max(grid[0] for grid in grids) >= N


def test_the_weight_alone_or_the_hidden_states_alone():
    """What has no gradient costs none, and changes nothing."""
    for case in (cases.cases("logprobs", torch.float32)[0], cases.cases("heads", torch.float32)[0]):
        function = getattr(TRITON, case.op)
        both = cases.evaluate(function, case, device=DEVICE)
        for name in ("hidden", "weight"):
            only = cases.Case(case.op, case.label, case.inputs, case.knobs, (name,))
            found = cases.evaluate(function, only, device=DEVICE)
            assert torch.equal(found[f"gradient {name}"], both[f"gradient {name}"])
    with torch.no_grad():
        plain = cases.Case(case.op, case.label, case.inputs, case.knobs)
        assert torch.equal(cases.evaluate(TRITON.grpo_head_loss, plain, device=DEVICE)["output 0"], both["output 0"])


def test_one_backward_pass_a_fused_loss():
    case = next(case for case in cases.cases("heads", torch.float32) if case.op == "dpo_head_loss")
    inputs = [x.to(DEVICE) for x in case.inputs.values()]
    inputs[1] = inputs[1].requires_grad_()
    loss, _ = TRITON.dpo_head_loss(*inputs)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


def test_the_twin_in_chunks(monkeypatch):
    """ops.hidden_logprobs gives the same numbers and gradients when the logits do not fit at once."""
    case = next(case for case in cases.cases("logprobs", torch.float32) if case.label == "ragged")
    whole = cases.evaluate(TORCH.hidden_logprobs, case)
    monkeypatch.setattr(ops, "LOGITS_AT_ONCE", 2 * 3 * 101)
    parts = cases.evaluate(TORCH.hidden_logprobs, case)
    for name in whole:
        assert torch.allclose(whole[name], parts[name], rtol=1e-5, atol=1e-6), name


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype, device=DEVICE)


REFUSED = {
    "weight: wanted (V, 4) to go with hidden": lambda: TRITON.hidden_logprobs(
        zeros(1, 2, 4), zeros(9, 5), zeros(1, 2, dtype=torch.long)
    ),
    "tokens: wanted whole numbers": lambda: TRITON.hidden_logprobs(zeros(1, 2, 4), zeros(9, 4), zeros(1, 2)),
    "temperature: wanted a finite number in (0": lambda: TRITON.hidden_logprobs(
        zeros(1, 2, 4), zeros(9, 4), zeros(1, 2, dtype=torch.long), temperature=0.0
    ),
    "weight: wanted torch.float32 like hidden": lambda: TRITON.hidden_logprobs(
        zeros(1, 2, 4), zeros(9, 4).half(), zeros(1, 2, dtype=torch.long)
    ),
    "x: wanted (..., 5) to go with weight": lambda: TRITON.rms_norm(zeros(3, 4), zeros(5), eps=1e-5),
    "x: the Triton kernels take float32, bfloat16 and float16, got torch.float64": lambda: TRITON.rms_norm(
        zeros(3, 4).double(), zeros(4), eps=1e-5
    ),
    "rope: wanted (2, 1 or 2, 1, 3, 4)": lambda: TRITON.rotate(zeros(2, 5, 3, 4), zeros(2, 1, 1, 3, 6)),
    "even number of channels, got 3": lambda: TRITON.rotate(zeros(1, 1, 1, 3), zeros(2, 1, 1, 1, 3)),
    "up: wanted shape (3, 4) like gate": lambda: TRITON.swiglu(zeros(3, 4), zeros(4)),
    "values: wanted data without a gradient": lambda: TRITON.gae(
        zeros(1, 2), zeros(1, 2).requires_grad_(), zeros(1, 2) == 0
    ),
    "gamma: wanted": lambda: TRITON.gae(zeros(1, 2), zeros(1, 2), zeros(1, 2) == 0, gamma=1.1),
    "mask: wanted shape (1, 2) like rewards": lambda: TRITON.gae(zeros(1, 2), zeros(1, 2), zeros(1, 3) == 0),
    "ref_logprobs: wanted (B, T) log-probabilities since kl_coef": lambda: TRITON.grpo_loss(
        zeros(1, 2), zeros(1, 2), None, zeros(1), zeros(1, 2) == 0
    ),
    "advantages: wanted 1 dimension": lambda: TRITON.grpo_loss(
        zeros(1, 2), zeros(1, 2), None, zeros(1, 2), zeros(1, 2) == 0, kl_coef=0.0
    ),
    "advantages: wanted 2 dimensions": lambda: TRITON.ppo_clip_loss(
        zeros(1, 2), zeros(1, 2), zeros(1), zeros(1, 2) == 0
    ),
    "hidden: wanted two rows a pair, 4, got 3": lambda: TRITON.dpo_head_loss(
        zeros(3, 2, 4), zeros(9, 4), zeros(3, 2, dtype=torch.long), zeros(2), zeros(2), zeros(3, 2) == 0
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused(message):
    with pytest.raises(ValueError) as error:
        REFUSED[message]()
    assert message in str(error.value)


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter's own refusal")
def test_the_interpreter_wants_cpu_tensors():
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1 runs the kernels on CPU tensors, got cuda"):
        check_machine("cuda")
