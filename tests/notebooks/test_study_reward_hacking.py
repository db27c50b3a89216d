"""What notebook 10 says of its stored study, and one of its seeds made again at night."""

import pytest
import torch
from test_claims import rows_of, script

SEEDS = ("30", "31", "32")
MISTAKE = "mistake: reference renewed every step"


def ends(seed: str) -> dict[str, dict]:
    rows = [r for r in rows_of("reward_hacking") if r["seed"] == seed and r["kind"] == "end"]
    return {r["run"]: {key: float(r[key]) for key in ("gold", "proxy", "kl", "length")} for r in rows}


def assert_hacked_and_held(start: dict, free: dict, held: dict) -> None:
    """Without a price the proxy rises and gold falls; with one both rise, and the policy stays near."""
    assert free["proxy"] > start["proxy"] + 3 and free["gold"] < start["gold"] - 1.5 and free["kl"] > 20
    assert held["proxy"] > start["proxy"] + 0.8 and held["gold"] > start["gold"] + 0.6 and held["kl"] < 7


@pytest.mark.parametrize("seed", SEEDS)
def test_a_price_on_kl_keeps_gold_in_the_stored_study(seed):
    runs = ends(seed)
    assert_hacked_and_held(runs["SFT"], runs["nothing"], runs["beta 0.3"])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reference_that_follows_the_policy_is_no_leash(seed):
    steps = [r for r in rows_of("reward_hacking") if (r["seed"], r["kind"]) == (seed, "step")]
    logged = {run: max(float(r["kl"]) for r in steps if r["run"] == run) for run in ("beta 0.3", MISTAKE)}
    runs = ends(seed)
    assert logged[MISTAKE] < logged["beta 0.3"]
    assert runs[MISTAKE]["kl"] > 4 * runs["beta 0.3"]["kl"] and runs[MISTAKE]["gold"] < runs["beta 0.3"]["gold"] - 1


@pytest.mark.parametrize("seed", SEEDS)
def test_best_of_n_gains_and_its_proxy_never_falls(seed):
    rows = [r for r in rows_of("reward_hacking") if (r["seed"], r["kind"]) == (seed, "best")]
    proxy, gold = ([float(r[key]) for r in rows] for key in ("proxy", "gold"))
    assert proxy == sorted(proxy) and gold[4] > gold[0] + 0.6 and rows[4]["n"] == "16"


@pytest.mark.parametrize("seed", ["50", "51", "52"])
def test_the_real_model_pays_with_its_text(seed):
    runs = {r["run"]: r for r in rows_of("reward_hacking") if (r["seed"], r["kind"]) == (seed, "end")}
    hasty, free, held = (runs[f"real, {name}"] for name in ("in haste", "no KL", "beta 0.2"))
    assert min(float(r["proxy"]) for r in (free, held)) > 0.6
    assert float(held["kl"]) < 8 and float(free["kl"]) > 2 * float(held["kl"]) and float(hasty["kl"]) > 20
    assert float(free["again"]) > 3 * float(held["again"])


@pytest.mark.nightly
def test_the_claim_holds_when_a_seed_is_run_again():
    torch.set_num_threads(1)
    study = script("reward_hacking")
    desk = study.Desk(30)
    free, held = (study.train(desk, name)[-1] for name in ("nothing", "beta 0.3"))
    assert_hacked_and_held(study.measured(desk, study.ref), free, held)
