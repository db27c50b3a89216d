"""The two studies of notebook 18: what their stored rows claim, and one row of each remade."""

import pytest
import torch
from test_claims import rows_of, script

STALE, COST = rows_of("stale"), rows_of("cost")
SEEDS = ["30", "31", "32"]


def stored(seed: str, lag: int, use: str, column: str = "score") -> float:
    (row,) = (row for row in STALE if (row["seed"], row["lag"], row["use"]) == (seed, str(lag), use))
    return float(row[column])


@pytest.mark.parametrize("seed", SEEDS)
def test_old_answers_teach_if_the_writer_is_in_the_ratio(seed):
    fresh = stored(seed, 0, "as if fresh")
    assert fresh > 0.94 and stored(seed, 0, "as if fresh", "kl") == pytest.approx(0, abs=1e-6)
    for use in ("clipped ratio", "min(ratio, 2)"):
        assert stored(seed, 2, use) > 0.94
    assert 0.85 < stored(seed, 2, "as if fresh") < stored(seed, 2, "clipped ratio")
    pretended, weighed, clipped = (stored(seed, 8, use) for use in ("as if fresh", "min(ratio, 2)", "clipped ratio"))
    assert pretended + 0.15 < weighed < clipped - 0.1 and pretended < 0.5 and clipped > 0.8
    assert stored(seed, 8, "as if fresh", "best") > 0.8, "it had learned, and fell"
    assert stored(seed, 8, "as if fresh", "kl") > 10 * stored(seed, 8, "clipped ratio", "kl")


@pytest.mark.nightly
def test_a_row_of_each_kind_of_staleness_remade():
    torch.set_num_threads(1)
    study = script("stale")
    assert study.run(30, 8, "as if fresh")["score"] < 0.6
    assert study.run(30, 8, "clipped ratio")["score"] > 0.75


def test_the_three_uses_agree_on_fresh_answers():
    """Where the learner wrote the answers itself, the ratio is 1 and all three give one gradient."""
    study, dice = script("stale"), torch.Generator().manual_seed(0)
    mask = torch.arange(5) < torch.tensor([[5], [2], [4]])
    at, advantages = -torch.rand(3, 5, generator=dice), torch.tensor([1.0, -0.5, 0.3])
    gradients = {}
    for lag in (0.0, 0.5):  # the writer's log-probabilities, above and below the learner's
        sampled = at + lag * (torch.rand(3, 5, generator=dice) - 0.5)
        for use in study.USES:
            logprobs = at.clone().requires_grad_()
            study.loss_of(use, logprobs, sampled, advantages, mask).backward()
            gradients[lag, use] = logprobs.grad
    first = gradients[0.0, "as if fresh"]
    assert all(torch.allclose(gradients[0.0, use], first) for use in study.USES)
    assert torch.allclose(gradients[0.5, "as if fresh"], first), "it does not look at the writer"
    assert not torch.allclose(gradients[0.5, "clipped ratio"], first, atol=1e-2)
    assert not torch.allclose(gradients[0.5, "min(ratio, 2)"], first, atol=1e-2)
    assert not first[~mask].any()


def errors(phase: str) -> torch.Tensor:
    """Three constants fitted to the rows called "fit" say the rows called "held out": relative errors."""
    x, t = {}, {}
    for role in ("fit", "held out"):
        rows = [row for row in COST if (row["phase"], row["role"]) == (phase, role)]
        x[role] = torch.tensor([[float(row[name]) for name in ("starts", "mflop", "thousand_numbers")] for row in rows])
        t[role] = torch.tensor([float(row["ms"]) for row in rows])
        assert len(rows) == 9
    relative = (x["fit"] / t["fit"][:, None]).double()
    c = torch.linalg.lstsq(relative, torch.ones(9, 1, dtype=torch.float64)).solution[:, 0]
    assert (c > 0).all(), "no work takes less than no time"
    return (x["held out"].double() @ c / t["held out"] - 1).abs()


@pytest.mark.parametrize(("phase", "typical"), [("decode", 0.4), ("log-probs", 0.25), ("update", 0.25)])
def test_the_cost_model_says_other_sizes_to_tens_of_percent(phase, typical):
    found = errors(phase)
    assert found.median() < typical and found.max() < 1.0


def test_an_update_costs_several_log_prob_passes():
    """6 N against 2 N, and the optimizer: where products dominate."""
    at = {(row["phase"], row["width"], row["batch"]): float(row["ms"]) for row in COST}
    for width, batch in (("384", "32"), ("384", "128"), ("256", "64"), ("128", "128")):
        assert 2 < at["update", width, batch] / at["log-probs", width, batch] < 5


@pytest.mark.nightly
def test_a_row_of_the_measurements_remade():
    """Times are another machine's on another day: within a factor of four, and in the same order."""
    torch.set_num_threads(1)
    stored_rows = [row for row in COST if (row["width"], row["batch"]) == ("256", "16")]
    again = script("cost").rows_of("fit", 256, 16, tries=3)
    assert [row["phase"] for row in again] == [row["phase"] for row in stored_rows]
    for row, old in zip(again, stored_rows, strict=True):
        assert row["mflop"] == pytest.approx(float(old["mflop"]), rel=1e-3)
        assert 0.25 < row["ms"] / float(old["ms"]) < 4
