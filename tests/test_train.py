"""Every loop learns: one seed each, from the small stored weights. Three seeds of the main claims run nightly (test_claims)."""

import copy
import dataclasses
import math

import pytest
import torch

from minirl.launch import LOOPS, Job, starting_model, stored_weights
from minirl.losses.preference import dpo_loss
from minirl.model import PolicyWithValue, RewardModel, Transformer, summed
from minirl.pretrained import load_pretrained, save_pretrained
from minirl.rollout import best_of, encode_examples, responses_text, roll_out, rule_scorer
from minirl.run import Run
from minirl.tasks import digit_sum, stories
from minirl.train import critic_free, dpo, grpo, kto, ppo, pretrain, reward_model, sft
from minirl.train.optimizer import NonFiniteError, adamw, update, warmed_up, warmed_up_then_cosine
from minirl.train.settings import DIGIT_SUM, tiny_transformer
from minirl.types import PreferenceBatch

SEED = 11  # not one of those the settings were chosen on
TOKENIZER = digit_sum.tokenizer()


def quiet() -> Run:
    return Run(progress=False)


@pytest.fixture(scope="module")
def base() -> Transformer:
    """The digit model that mostly answers at once."""
    return load_pretrained(stored_weights(digit_sum, "sft"))[0]


def accuracy(model: Transformer) -> float:
    generator = torch.Generator().manual_seed(77)
    texts, rollout = roll_out(
        model, TOKENIZER, digit_sum.prompts(512, generator), max_new_tokens=12, generator=generator
    )
    return float(digit_sum.score(texts, responses_text(rollout, TOKENIZER)).mean())


def settings(name: str, **changes):
    return dataclasses.replace(DIGIT_SUM[name], seed=SEED, **changes)


def test_the_base_mostly_fails(base):
    assert accuracy(base) < 0.35


CRITIC_FREE = {
    "GRPO": critic_free.GRPO,
    "GRPO_KL_IN_REWARD": critic_free.GRPO_KL_IN_REWARD,
    "DR_GRPO": critic_free.DR_GRPO,
    "DAPO": critic_free.DAPO,
    "GSPO": critic_free.GSPO,
    "CISPO": critic_free.CISPO,
    "RLOO": critic_free.RLOO,
    "REINFORCE": critic_free.REINFORCE,
    "REJECTION": critic_free.REJECTION,
    "RWR": critic_free.RWR,
}


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_critic_free_rows_learn_to_work_it_out(base, name):
    policy, run = copy.deepcopy(base), quiet()
    rule = rule_scorer(digit_sum.score, TOKENIZER)
    config = settings("grpo", steps=24, kl_coef=0.001 if name == "GRPO_KL_IN_REWARD" else 0.0)
    grpo.train(policy, base, TOKENIZER, digit_sum.prompts, rule, config, run, row=CRITIC_FREE[name])
    assert accuracy(policy) > 0.7
    assert run.records[-1]["length_mean"] > 1.5 * run.records[0]["length_mean"]


def test_every_row_of_the_table_is_tested():
    rows = {name: row for name, row in vars(critic_free).items() if isinstance(row, critic_free.CriticFree)}
    assert rows == CRITIC_FREE


def test_ppo_learns_to_work_it_out(base):
    model, run = PolicyWithValue(copy.deepcopy(base)), quiet()
    rule = rule_scorer(digit_sum.score, TOKENIZER)
    ppo.train(model, base, TOKENIZER, digit_sum.prompts, rule, settings("ppo", steps=36), run)
    assert accuracy(model.policy) > 0.7
    assert run.records[0]["kl"] == pytest.approx(0, abs=1e-3)


@pytest.fixture(scope="module")
def pairs(base):
    module_job = Job(digit_sum, base, TOKENIZER, None, SEED, "cpu")
    return module_job.pairs()


@pytest.mark.parametrize(
    ("name", "at_least"), [("DPO", 0.5), ("CDPO", 0.5), ("ROBUST", 0.5), ("IPO", 0.5), ("SIMPO", 0.4)]
)
def test_pair_losses_raise_what_was_preferred(base, pairs, name, at_least):
    policy, run = copy.deepcopy(base), quiet()
    dpo.train(policy, base, pairs, settings("dpo", steps=90), run, row=getattr(dpo, name))
    assert accuracy(policy) > at_least
    margins = [record["margin"] for record in run.records]
    assert sum(margins[-10:]) / 10 > margins[0] + 0.005


def test_orpo_learns_from_written_pairs(base):
    """ORPO is SFT on the chosen answers with a push away from the rejected: worked ones against direct ones."""
    prompts = digit_sum.prompts(1000, torch.Generator().manual_seed(SEED))
    answers = [digit_sum.worked_answer(p) for p in prompts] + [digit_sum.direct_answer(p) for p in prompts]
    tokens, mask, starts = encode_examples(TOKENIZER, prompts * 2, answers)
    written = PreferenceBatch(tokens[:1000], tokens[1000:], mask[:1000], mask[1000:], starts[:1000])
    policy, run = copy.deepcopy(base), quiet()
    dpo.train(policy, base, written, settings("dpo", steps=40, lam=0.5), run, row=dpo.ORPO)
    assert accuracy(policy) > 0.8
    assert run.records[-1]["margin"] > run.records[0]["margin"] + 1


def test_kto_learns_without_pairs(base, pairs):
    policy = copy.deepcopy(base)
    kto.train(policy, base, pairs, dataclasses.replace(DIGIT_SUM["kto"], steps=90, seed=SEED), quiet())
    assert accuracy(policy) > 0.5


def test_pretraining_reaches_what_can_be_known():
    """The loss cannot fall below the entropy of the data: digits that nobody can guess, and the choice of the manner."""
    torch.manual_seed(SEED)
    model, run = Transformer(tiny_transformer(TOKENIZER.vocab_size)), quiet()
    pretrain.train(model, TOKENIZER, digit_sum.pretraining_examples, settings("pretrain", steps=220), run)
    manner = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    floor = (5 * math.log(10) + manner) / (6 + 0.8 * 8 + 0.2 * 3)  # all tokens but the first, answers known
    assert floor < run.records[-1]["loss"] < floor + 0.4 < run.records[0]["loss"]


def test_sft_changes_the_manner(base):
    """Demonstrations that are all worked turn the habit round, prompt untouched."""
    model, run = copy.deepcopy(base), quiet()

    def worked(n, generator):
        return digit_sum.examples(n, generator, worked_share=1.0)

    sft.train(model, TOKENIZER, worked, settings("sft", steps=40), run)
    assert accuracy(model) > 0.85
    assert run.records[-1]["loss"] < 0.3 * run.records[0]["loss"]


def test_reward_model_learns_the_labels(base, pairs):
    held_out = Job(digit_sum, base, TOKENIZER, None, SEED + 1, "cpu").pairs()
    judge = RewardModel(copy.deepcopy(base), summed)
    before = reward_model.evaluate(judge, held_out)["loss"]
    reward_model.train(judge, pairs, settings("reward_model"), quiet())
    assert reward_model.evaluate(judge, held_out)["loss"] < before - 0.01
    assert before.item() == pytest.approx(math.log(2), abs=1e-5)


def test_best_of_n_raises_what_it_selects_for(base):
    generator = torch.Generator().manual_seed(SEED)
    prompts = digit_sum.prompts(64, generator)
    texts, rollout = roll_out(base, TOKENIZER, prompts, max_new_tokens=12, group_size=16, generator=generator)
    scores = rule_scorer(digit_sum.score, TOKENIZER)(texts, rollout)
    best = rule_scorer(digit_sum.score, TOKENIZER)(texts[::16], best_of(rollout, scores, 16))
    assert best.mean() > 0.9 > 0.4 > scores.mean()


# What the loops promise besides learning.


def test_ppo_stops_at_max_kl(base):
    model, run = PolicyWithValue(copy.deepcopy(base)), quiet()
    rule = rule_scorer(digit_sum.score, TOKENIZER)
    ppo.train(model, base, TOKENIZER, digit_sum.prompts, rule, settings("ppo", steps=45, max_kl=0.3), run)
    assert run.records[-1]["kl"] > 0.3 and len(run.records) < 45
    assert all(record["kl"] <= 0.3 for record in run.records[:-1])


def test_adaptive_kl_moves_towards_its_target(base):
    model, run = PolicyWithValue(copy.deepcopy(base)), quiet()
    rule = rule_scorer(digit_sum.score, TOKENIZER)
    config = settings("ppo", steps=6, kl_coef=0.1, kl_target=5.0, kl_horizon=1000)
    ppo.train(model, base, TOKENIZER, digit_sum.prompts, rule, config, run)
    coefficients = [record["kl_coef"] for record in run.records]
    # KL is far below 5, so each step multiplies by 1 - 0.2 * 256 / 1000
    expected = [0.1 * (1 - 0.2 * 256 / 1000) ** n for n in range(6)]
    assert coefficients == pytest.approx(expected, rel=1e-4)


def test_missing_eos_penalty_reaches_the_scores(base):
    rule = rule_scorer(lambda prompts, responses: [0.0] * len(responses), TOKENIZER)
    config = settings("grpo", steps=1, prompts=4, max_new_tokens=2, missing_eos_penalty=3.0)
    run = quiet()
    grpo.train(copy.deepcopy(base), None, TOKENIZER, digit_sum.prompts, rule, config, run)
    record = run.records[0]
    assert record["reward_mean"] == pytest.approx(-3.0 * (1 - record["finished"]))
    assert record["finished"] < 1


def test_dynamic_sampling_trains_on_live_groups_only(base):
    rule = rule_scorer(digit_sum.score, TOKENIZER)
    config = settings("grpo", prompts=8, group_size=4)
    generator = torch.Generator().manual_seed(SEED)
    texts, rollout, scores, dead = grpo.sample_groups(
        base, TOKENIZER, digit_sum.prompts, rule, config, critic_free.DAPO, generator
    )
    groups = scores.view(-1, 4)
    assert len(groups) == 8 and (groups.std(1) > 0).all()
    assert dead > 0.1  # there were dead ones, and they were sampled again
    assert torch.equal(scores, rule(texts, rollout))  # rows, prompts and scores still belong together


def test_only_dead_groups_is_an_error(base):
    never = rule_scorer(lambda prompts, responses: [1.0] * len(responses), TOKENIZER)
    config = settings("grpo", prompts=2, group_size=4)
    with pytest.raises(ValueError, match="groups in a row were dead"):
        grpo.sample_groups(
            base, TOKENIZER, digit_sum.prompts, never, config, critic_free.DAPO, torch.Generator().manual_seed(0)
        )


def test_truncated_rows_are_left_out_where_the_row_says_so(base):
    generator = torch.Generator().manual_seed(SEED)
    _, rollout = roll_out(base, TOKENIZER, digit_sum.prompts(32, generator), max_new_tokens=5, generator=generator)
    counted = critic_free.DAPO.counted(rollout)
    assert 0 < rollout.finished.sum() < 32
    assert not counted[~rollout.finished].any()
    assert torch.equal(counted[rollout.finished], rollout.mask[rollout.finished])


def test_a_batch_of_truncated_responses_is_a_clear_error(base):
    rule = rule_scorer(lambda prompts, responses: [float(ord(r[0])) for r in responses], TOKENIZER)
    config = settings("grpo", prompts=4, group_size=4, max_new_tokens=1)
    with pytest.raises(ValueError, match="max_new_tokens: every response ran into the limit of 1"):
        grpo.train(copy.deepcopy(base), None, TOKENIZER, digit_sum.prompts, rule, config, quiet(), row=critic_free.DAPO)


def test_grpo_without_a_reference_needs_no_kl(base):
    rule = rule_scorer(digit_sum.score, TOKENIZER)
    with pytest.raises(ValueError, match="ref: wanted a model"):
        grpo.train(base, None, TOKENIZER, digit_sum.prompts, rule, settings("grpo", kl_coef=0.1), quiet())


def test_dpo_starts_at_log_two(base, pairs):
    run = quiet()
    dpo.train(copy.deepcopy(base), base, pairs, settings("dpo", steps=1), run)
    assert run.records[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_dpo_uses_summed_logprobs(base, pairs):
    chosen, rejected = dpo.pair_logprobs(base, pairs[:8])
    for i in range(8):
        one = pairs[i : i + 1]
        logits = base(one.chosen, starts=one.starts)[0].log_softmax(-1)
        length = int(one.chosen_mask.sum())
        first = one.chosen.shape[1] - one.chosen_mask.shape[1]
        by_hand = sum(logits[first + t - 1, one.chosen[0, first + t]] for t in range(length))
        assert chosen[i].item() == pytest.approx(by_hand.item(), abs=1e-3)
    assert dpo_loss(chosen, rejected, chosen, rejected)[0].item() == pytest.approx(math.log(2))


def test_same_seed_gives_the_same_bits(base):
    rule = rule_scorer(digit_sum.score, TOKENIZER)
    models = []
    for seed in (1, 1, 2):
        policy = copy.deepcopy(base)
        config = dataclasses.replace(DIGIT_SUM["grpo"], steps=2, seed=seed)
        grpo.train(policy, None, TOKENIZER, digit_sum.prompts, rule, config, quiet())
        models.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert torch.equal(models[0], models[1]) and not torch.equal(models[0], models[2])


def test_non_finite_loss_stops_before_the_weights_change(base):
    policy = copy.deepcopy(base)
    before = copy.deepcopy(policy.state_dict())
    loss = sum(p.sum() for p in policy.parameters()) * float("nan")
    with pytest.raises(NonFiniteError, match="step 7: the loss is nan"):
        update(adamw(policy), loss, step=7, lr=0.1, max_grad_norm=1.0)
    assert all(torch.equal(before[name], x) for name, x in policy.state_dict().items())


def test_learning_rates_are_functions_of_the_step():
    assert [warmed_up(step, 1.0, 4) for step in (1, 2, 4, 100)] == [0.25, 0.5, 1.0, 1.0]
    assert warmed_up_then_cosine(4, 1.0, 4, 104) == 1.0
    assert warmed_up_then_cosine(54, 1.0, 4, 104) == pytest.approx(0.55)
    assert warmed_up_then_cosine(104, 1.0, 4, 104) == pytest.approx(0.1)


@pytest.mark.parametrize("n", [5, 64])
def test_batches_visit_every_row_once_an_epoch(n):
    rows = torch.cat([reward_model.nth_batch(step, n, 4, seed=0) for step in range(1, n + 1)])  # four epochs
    for epoch in rows.split(n):
        assert sorted(epoch.tolist()) == list(range(n))
    assert not torch.equal(rows[:n], rows[n : 2 * n])


def test_loops_start_where_they_say(tmp_path):
    model, tokenizer = starting_model(stories, LOOPS["ppo"], None, 0)
    assert tokenizer.vocab_size == model.config.vocab_size
    save_pretrained(model, None, tmp_path / "bare")
    with pytest.raises(ValueError, match="has no tokenizer"):
        starting_model(stories, LOOPS["ppo"], str(tmp_path / "bare"), 0)
