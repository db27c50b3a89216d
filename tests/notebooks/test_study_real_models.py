"""What notebook 16 says of its stored study, and one of its seeds made again at night."""

import pytest
import torch
from test_claims import rows_of, script

SEEDS = ("40", "41", "42")
RANKS = (1, 2, 8, 32)
each_seed = pytest.mark.parametrize("seed", SEEDS)


def ends(seed: str) -> dict[str, dict]:
    rows = [r for r in rows_of("real_models") if (r["seed"], r["kind"]) == (seed, "end")]
    return {r["run"]: {key: float(r[key]) for key in ("score", "kl", "trained")} for r in rows}


def logged(seed: str, run: str, key: str = "kl") -> list[float]:
    rows = rows_of("real_models")
    return [float(r[key]) for r in rows if (r["seed"], r["kind"], r["run"]) == (seed, "step", run)]


def assert_learned(score: float, kl: float) -> None:
    """The word, for a few nats."""
    assert score > 0.85 and 1 < kl < 12


def assert_nothing_moved(log: list[float], score: float, kl: float) -> None:
    """An optimiser that was made before LoRA holds only what no longer learns."""
    assert set(log) == {0.0} and kl == 0 and score < 0.3


@each_seed
def test_lora_learns_what_all_weights_learn(seed):
    runs = ends(seed)
    for name in ("full", "rank 8"):
        assert_learned(runs[name]["score"], runs[name]["kl"])
    assert runs["rank 8"]["trained"] < 0.2 * runs["full"]["trained"]


@each_seed
def test_rank_acts_as_a_learning_rate_unless_alpha_is_fixed(seed):
    runs = ends(seed)
    free = [runs[f"rank {rank}"]["kl"] for rank in RANKS]
    fixed = [runs["rank 8" if rank == 8 else f"rank {rank}, alpha 16"]["kl"] for rank in RANKS]
    assert free[3] > 2 * free[2] > 2 * max(free[:2]) and free[3] > 10 * free[0]
    assert fixed[3] < 2 * min(fixed)
    assert min(run["score"] for name, run in runs.items() if name.startswith("rank ")) > 0.8


@each_seed
def test_at_one_learning_rate_lora_moves_less_than_all_weights(seed):
    runs = ends(seed)
    assert runs["full, LoRA's rate"]["kl"] > 1.5 * runs["rank 8"]["kl"]
    assert runs["full"]["kl"] > 2 * runs["rate of full"]["kl"] and runs["rate of full"]["score"] > 0.6


@each_seed
def test_the_mistakes_show_as_the_notebook_says(seed):
    early, shared = (ends(seed)[run] for run in ("optimiser before LoRA", "corrections in the reference"))
    assert_nothing_moved(logged(seed, "optimiser before LoRA"), early["score"], early["kl"])
    losses = logged(seed, "optimiser before LoRA", "value_loss")
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3]) and min(logged(seed, "optimiser before LoRA", "grad_norm")) > 0.05
    assert set(logged(seed, "corrections in the reference")) == {0.0}
    assert shared["kl"] > 15 and shared["score"] > 0.9


@pytest.mark.nightly
def test_the_claims_hold_when_a_seed_is_run_again():
    torch.set_num_threads(1)
    study = script("real_models")
    if not study.MODEL.is_dir():
        pytest.skip("the 260k-parameter Llama is not here")
    _, end = study.train(40)
    assert_learned(end["score"], end["kl"])
    log, end = study.train(40, **study.RUNS["optimiser before LoRA"])
    assert_nothing_moved([float(stats["kl"]) for stats in log], end["score"], end["kl"])
