"""The kernels at sizes that break them elsewhere, for tests/bench/gpu_kernels.py; tiny ones where there is no GPU."""

import cases
import torch

from minirl.kernels import TRITON
from minirl.ops import TORCH


def check_large(device: str) -> list[dict]:
    """More rows than 65,536, a vocabulary of 151,936, and the same bits ten times over, which a race would not give."""
    many, V, repeats = (70_001, 151_936, 10) if device == "cuda" else (40, 70, 2)
    g = torch.Generator().manual_seed(0)
    cast = torch.bfloat16
    checks = []

    def check(name: str, error: float, allowed: float) -> None:
        checks.append({"op": name, "error": error, "allowed": allowed, "passed": error <= allowed})
        print(f"{name:54} {error:9.1e} {allowed:9.1e}{'' if error <= allowed else '   FAILED'}")

    def off(found, true) -> float:
        return ((found.double() - true.double()).abs().max() / true.abs().max().clamp(min=1e-9)).item()

    def normal(*shape, dtype=cast, scale=1.0):
        return cases.normal(g, *shape, dtype=dtype, scale=scale).to(device)

    x, up, weight = normal(many, 24), normal(many, 24), normal(24)
    true = TORCH.rms_norm(x.double(), weight.double(), eps=1e-5)
    check("rms_norm, many rows", off(TRITON.rms_norm(x, weight, eps=1e-5), true), cases.TOLERANCE[cast])
    check("swiglu, many rows", off(TRITON.swiglu(x, up), TORCH.swiglu(x.double(), up.double())), cases.TOLERANCE[cast])
    heads, table = normal(1, 2, many, 8), normal(2, 1, 1, many, 8)
    true = TORCH.rotate(heads.double(), table.double())
    check("rotate, many positions", off(TRITON.rotate(heads, table), true), cases.TOLERANCE[cast])
    rewards, values = normal(many, 9, dtype=torch.float32), normal(many, 9, dtype=torch.float32)
    mask = cases.random_mask(g, many, 9).to(device)
    true = TORCH.gae(rewards.double(), values.double(), mask)[0]
    check("gae, many rows", off(TRITON.gae(rewards, values, mask)[0], true), cases.TOLERANCE[torch.float32])
    old = rewards - 3
    loss = TRITON.grpo_loss(rewards - 3.1, old, None, values[:, 0].abs(), mask, kl_coef=0.0)[0]
    true = TORCH.grpo_loss(
        (rewards - 3.1).double(), old.double(), None, values[:, 0].abs().double(), mask, kl_coef=0.0
    )[0]
    check("grpo_loss, many rows", off(loss, true), cases.TOLERANCE[torch.float32])

    for label, rows, vocabulary, D in (("many tokens", many, 1000, 64), ("a large vocabulary", 256, V, 128)):
        hidden, weight = normal(rows, 1, D), normal(vocabulary, D, scale=2 * D**-0.5)
        tokens = torch.randint(vocabulary, (rows, 1), generator=g).to(device)
        found = TRITON.hidden_logprobs(hidden, weight, tokens, temperature=0.7)
        sample = torch.arange(0, rows, max(rows // 200, 1), device=device)
        sample[-1] = rows - 1
        logits = hidden[sample].double() @ weight.double().T / 0.7
        logp = logits.log_softmax(-1)
        true = (logp.gather(-1, tokens[sample].unsqueeze(-1)).squeeze(-1), -(logp.exp() * logp).sum(-1))
        for name, ours, theirs in zip(("log-probability", "entropy"), found, true, strict=True):
            check(f"hidden_logprobs, {label}, {name}", off(ours[sample], theirs), cases.TOLERANCE[torch.float32])

        def gradients(hidden=hidden, weight=weight, tokens=tokens, rows=rows):
            h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
            old = torch.full((rows, 1), -7.0, device=device)
            advantages = torch.linspace(-1, 1, rows, device=device)
            loss, _ = TRITON.grpo_head_loss(h, w, tokens, old, old, advantages, old < 0, kl_coef=0.1)
            return torch.autograd.grad(loss, (h, w))

        first = gradients()
        same = all(all(map(torch.equal, first, gradients())) for _ in range(repeats - 1))
        check(f"grpo_head_loss, {label}, the same bits {repeats} times", 0.0 if same else 1.0, 0.0)
        if rows <= 256 or device == "cpu":  # all logits in float64
            h, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
            old = torch.full((rows, 1), -7.0, device=device, dtype=torch.float64)
            advantages = torch.linspace(-1, 1, rows, device=device).double()
            loss, _ = TORCH.grpo_head_loss(h, w, tokens, old, old, advantages, old < 0, kl_coef=0.1)
            for name, ours, theirs in zip(("hidden", "weight"), first, torch.autograd.grad(loss, (h, w)), strict=True):
                error = ((ours.double() - theirs).norm() / theirs.norm()).item()
                check(f"grpo_head_loss, {label}, gradient of {name}", error, cases.TOLERANCE[cast])
    return checks
