"""The classic interface: what it hands to ppo.improve, what it repairs and says, and tutorial programs that run on it."""

import copy
import math
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_claims import rows_of, script

from minirl.classic import (
    AutoModelForCausalLM,
    AutoModelForCausalLMWithValueHead,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LengthSampler,
    PPOConfig,
    PPOTrainer,
    SFTTrainer,
    TextDataset,
    Trainer,
    TrainingArguments,
    create_reference_model,
    respond_to_batch,
    sft,
)
from minirl.classic.notes import loading
from minirl.generate import generate, generate_greedy
from minirl.kl import AdaptiveKL
from minirl.logprobs import token_logprobs
from minirl.model import PolicyWithValue, RewardModel, Transformer, TransformerConfig, last_token, summed
from minirl.pretrained import load_pretrained, save_pretrained
from minirl.rollout import lay_out
from minirl.tokenizer import begin_with, train_bpe
from minirl.train import ppo
from minirl.train.optimizer import adamw

PROGRAMS = Path(__file__).parent / "data" / "programs"
STORIES_260K = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260k"
TEXTS = [
    "Explain AI safety. Is it safe to ask?",
    "Once upon a time Tom and Lily had a great old dog.",
    "One day a bird sat.",
]
LLAMA = {"width": 16, "layers": 1, "heads": 2, "ffn": 16, "max_length": 96}
GPT2 = LLAMA | {"norm": "layernorm", "positions": "learned", "activation": "gelu", "bias": True, "tied": True}


def made(folder: Path, shape: dict) -> Path:
    tokenizer = train_bpe(TEXTS * 3, 300, eos="<|endoftext|>")
    torch.manual_seed(1)
    save_pretrained(Transformer(TransformerConfig(tokenizer.vocab_size, **shape)), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("models") / "llama", LLAMA)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("models") / "gpt2", GPT2)


@pytest.fixture(autouse=True)
def notes_from_the_start():
    loading.said.clear()


def trainer_on(folder: Path, ref_model=None, **settings) -> PPOTrainer:
    small = {"batch_size": 4, "mini_batch_size": 2, "learning_rate": 1e-3, "ppo_epochs": 2, "seed": 5}
    model = AutoModelForCausalLMWithValueHead.from_pretrained(folder)
    return PPOTrainer(PPOConfig(**(small | settings)), model, ref_model, AutoTokenizer.from_pretrained(folder))


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


QUERIES = [[5, 70, 81], [90, 91, 92, 93, 94], [66, 67], [71, 72, 73]]
RESPONSES = [[80, 81, 82, 83], [75, 76, 0], [99, 98, 97, 96, 95], [101, 0]]
SCORES = [1.0, -1.0, 0.5, 0.25]


def tensors(rows: list[list[int]]) -> list[torch.Tensor]:
    return [torch.tensor(row) for row in rows]


def stepped(trainer: PPOTrainer, queries=None, responses=None, scores=None, **keywords):
    """Stats and weights after one step on the rows above."""
    rows = {"queries": queries, "responses": responses, "scores": scores}
    standard = {"queries": tensors(QUERIES), "responses": tensors(RESPONSES), "scores": tensors(SCORES)}
    given = {name: standard[name] if x is None else x for name, x in rows.items()}
    return trainer.step(**given, **keywords), weights(trainer.model)


# One step is one ppo.improve


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_is_one_improve_bit_for_bit(llama, accumulation):
    policy, _ = load_pretrained(llama)
    model, ref = PolicyWithValue(policy), copy.deepcopy(policy)
    mini = 2 // accumulation
    settings = ppo.PPOConfig(
        batch=4,
        minibatch=2,
        micro_batch=mini,
        epochs=3,
        gamma=0.9,
        lam=0.8,
        clip_eps=0.1,
        value_clip_eps=0.001,
        value_coef=0.7,
        max_grad_norm=0.5,
    )
    trainer = trainer_on(
        llama,
        mini_batch_size=mini,
        gradient_accumulation_steps=accumulation,
        ppo_epochs=3,
        gamma=0.9,
        lam=0.8,
        cliprange=0.1,
        cliprange_value=0.001,
        vf_coef=0.7,
        max_grad_norm=0.5,
        init_kl_coef=0.3,
        target=2.0,
        horizon=100,
    )
    optimizer, generator = adamw(model), torch.Generator().manual_seed(5)
    adaptive = AdaptiveKL(0.3, target=2.0, horizon=100)
    for step in (1, 2):
        tokens, mask, starts = lay_out(QUERIES, RESPONSES)
        rollout = trainer._rollout(QUERIES, RESPONSES, QUERIES, None)
        assert torch.equal(rollout.tokens, tokens) and torch.equal(rollout.mask, mask)
        assert torch.equal(rollout.starts, starts) and rollout.finished.tolist() == [False, True, False, True]
        expected = ppo.improve(
            model,
            ref,
            rollout,
            torch.tensor(SCORES),
            settings,
            optimizer,
            kl_coef=adaptive.kl_coef,
            step=step,
            lr=1e-3,
            generator=generator,
        )
        stats, after = stepped(trainer)
        assert equal(after, weights(model))
        assert stats["objective/kl_coef"] == pytest.approx(adaptive.kl_coef, abs=1e-6)
        adaptive.update(float(expected["kl"]), 4)
        assert trainer.records[-1] == {"step": step} | {name: float(x) for name, x in expected.items()}
    assert stats["ppo/mean_scores"] == pytest.approx(sum(SCORES) / 4)
    assert stats["objective/kl"] == float(expected["kl"]) != 0
    # the KL charged to a token, from the definition
    assert stats["ppo/mean_non_score_reward"] == pytest.approx(
        -stats["objective/kl_coef"] * stats["objective/kl"] * 4 / sum(map(len, RESPONSES)), rel=1e-5
    )
    assert stats["tokens/queries_len_mean"] == sum(map(len, QUERIES)) / 4
    assert stats["ppo/policy/clipfrac"].item() == float(expected["clip_fraction"])


def test_the_coefficient_moves_only_when_told(llama):
    fixed, moving = trainer_on(llama, adap_kl_ctrl=False), trainer_on(llama, horizon=10)
    for trainer in (fixed, moving):
        for _ in range(2):
            stats, _ = stepped(trainer)
    assert fixed.adaptive.kl_coef == 0.2
    assert moving.adaptive.kl_coef < 0.2  # the KL is below its target of 6
    assert stats["objective/kl_coef"] == pytest.approx(0.2 * (1 - 0.2 * 4 / 10))


def test_the_reference_stays_and_the_seed_is_all_the_randomness(llama):
    first, again, other = (trainer_on(llama, seed=seed) for seed in (1, 1, 2))
    before = weights(first.ref)
    assert equal(stepped(first)[1], stepped(again)[1])
    assert not equal(stepped(other)[1], stepped(again)[1])
    assert equal(weights(first.ref), before)
    torch.manual_seed(0)
    some = first.generate(tensors(QUERIES), max_new_tokens=6, do_sample=True)
    torch.manual_seed(1)
    same = again.generate(tensors(QUERIES), max_new_tokens=6, do_sample=True)
    assert [row.tolist() for row in some] != [row.tolist() for row in same]  # `again` has taken a step more
    state = again.generator.get_state()
    assert not torch.equal(state, first.generator.get_state())


def test_a_reference_given_as_any_model(llama, capsys):
    named = AutoModelForCausalLM.from_pretrained(llama)
    kinds = [named, named.model, PolicyWithValue(named.model), AutoModelForCausalLMWithValueHead(named)]
    results = [stepped(trainer_on(llama, ref_model=kind))[1] for kind in kinds]
    assert all(equal(result, stepped(trainer_on(llama))[1]) for result in results)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(llama)
    same = PPOTrainer(PPOConfig(batch_size=4), model, model, AutoTokenizer.from_pretrained(llama))
    assert same.ref is not model.actor.policy and "ref_model: is the policy itself" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"ref_model: wanted a model of .* or None, got str"):
        trainer_on(llama, ref_model="gpt2")


# What a step takes, repairs and says


def test_a_query_left_in_front_is_cut_off_and_said_once(llama, capsys):
    bare, full, twice = (trainer_on(llama) for _ in range(3))
    joined = tensors([q + r for q, r in zip(QUERIES, RESPONSES, strict=True)])
    expected = stepped(bare)[1]
    assert "cut off" not in capsys.readouterr().err
    assert equal(stepped(full, responses=joined)[1], expected)
    mixed = [joined[0], *tensors(RESPONSES[1:])]
    assert equal(stepped(twice, responses=mixed)[1], expected)
    stepped(full, responses=joined)
    assert capsys.readouterr().err.count("the queries are cut off") == 2  # once for each trainer


def test_a_response_that_repeats_its_query_is_known_from_one_that_carries_it(llama):
    """What generate wrote decides, where a response begins with the words of its query."""
    trainer = trainer_on(llama)
    query, repeats = [7, 8], [7, 8, 9]
    trainer.model.written = {(*query, *repeats)}
    assert trainer._rollout([query], [repeats], [query], None).response.tolist() == [repeats]
    trainer.model.written = {tuple(repeats)}
    assert trainer._rollout([query], [repeats], [query], None).response.tolist() == [[9]]
    # and generate does remember: on a model that repeats one token for ever
    with torch.no_grad():
        trainer.model.actor.policy.head.weight.zero_()[9] = 0.0
    asked = [torch.tensor([0, 0])]  # of all equal logits the first token, greedily
    trainer.eos, trainer.model.config.eos_token_id = None, None
    answer = trainer.generate(asked, return_prompt=False, max_new_tokens=4, do_sample=False)
    assert answer[0].tolist() == [0, 0, 0, 0]
    assert trainer._rollout([[0, 0]], [answer[0].tolist()], [[0, 0]], None).response.shape == (1, 4)
    stepped(trainer, queries=asked, responses=answer, scores=[torch.tensor(1.0)])
    assert not trainer.model.written


def test_what_follows_the_end_token_does_not_count(llama):
    tail = [[*row, 50, 51] if row[-1] == 0 else row for row in RESPONSES]
    assert equal(stepped(trainer_on(llama), responses=tensors(tail))[1], stepped(trainer_on(llama))[1])


@pytest.mark.parametrize(
    "scores",
    [
        SCORES,
        torch.tensor(SCORES),
        [torch.tensor([s]) for s in SCORES],
        tuple(SCORES),
        [1, -1.0, torch.tensor(0.5), 0.25],
    ],
)
def test_scores_of_every_kind(llama, scores):
    assert equal(stepped(trainer_on(llama), scores=scores)[1], stepped(trainer_on(llama))[1])


def test_plain_numbers_are_said_once(llama, capsys):
    trainer = trainer_on(llama)
    stepped(trainer)
    assert "scores" not in capsys.readouterr().err
    stepped(trainer, scores=SCORES)
    stepped(trainer, scores=SCORES)
    assert capsys.readouterr().err.count("scores: plain numbers") == 1


def test_a_short_batch_is_taken_and_said_once(llama, capsys):
    short, exact = trainer_on(llama, batch_size=8), trainer_on(llama, batch_size=2)
    two = {"queries": tensors(QUERIES[:2]), "responses": tensors(RESPONSES[:2]), "scores": tensors(SCORES[:2])}
    assert equal(stepped(short, **two)[1], stepped(exact, **two)[1])
    stepped(short, **two)
    assert capsys.readouterr().err.count("batch_size: 8, and a step got 2") == 1
    one = trainer_on(llama)
    stats, _ = stepped(one, [torch.tensor(QUERIES[0])], [torch.tensor(RESPONSES[0])], [1.0])
    assert all(math.isfinite(x) for x in stats.values())
    assert "Whitened over a single answer" in capsys.readouterr().err
    with pytest.raises(ValueError, match="queries: wanted at most batch_size = 2, got 4"):
        stepped(exact)


@pytest.mark.parametrize("length", [1, 2])
def test_answers_of_a_token_or_two_leave_finite_stats(llama, length):
    trainer = trainer_on(llama)
    for _ in range(2):
        stats, after = stepped(trainer, [torch.tensor([5, 6])], [torch.tensor([7] * length)], [1.0])
    assert all(math.isfinite(x) for x in stats.values()) and all(p.isfinite().all() for p in after)


def test_rows_of_every_shape(llama):
    expected = stepped(trainer_on(llama))[1]
    assert equal(stepped(trainer_on(llama), queries=QUERIES, responses=RESPONSES)[1], expected)
    wrapped = [torch.tensor([row]) for row in QUERIES]  # (1, S), as tokenizer.encode(..., return_tensors="pt") gives it
    assert equal(stepped(trainer_on(llama), queries=wrapped)[1], expected)


def test_a_padded_tensor_of_queries_and_what_generate_makes_of_it(llama):
    trainer, plain = trainer_on(llama), trainer_on(llama)
    trainer.pad = plain.pad = 0
    padded = torch.tensor([[0] * (5 - len(q)) + q for q in QUERIES])
    carried = torch.tensor([row + r + [0] * (5 - len(r)) for row, r in zip(padded.tolist(), RESPONSES, strict=True)])
    ended = [r if r[-1] == 0 or len(r) == 5 else [*r, 0] for r in RESPONSES]  # a padded row reads as one that ended
    assert equal(stepped(trainer, padded, carried)[1], stepped(plain, responses=tensors(ended))[1])


def test_response_masks_leave_tokens_out(llama):
    """Gaps count as if they were not there, for gradient accumulation as well; a mask of ones changes nothing."""
    ones = [torch.ones(len(row)) > 0 for row in RESPONSES]
    assert equal(stepped(trainer_on(llama), response_masks=ones)[1], stepped(trainer_on(llama))[1])
    gaps = [torch.tensor([i != 1 or len(row) < 3 for i in range(len(row))]) for row in RESPONSES]
    whole, parts = trainer_on(llama), trainer_on(llama, mini_batch_size=1, gradient_accumulation_steps=2)
    results = [stepped(trainer, response_masks=gaps) for trainer in (whole, parts)]
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert not equal(results[0][1], stepped(trainer_on(llama))[1])
    assert results[0][0]["tokens/responses_len_mean"] == sum(int(mask.sum()) for mask in gaps) / 4
    # with the query still in front, the mask has the length of both
    joined = tensors([q + r for q, r in zip(QUERIES, RESPONSES, strict=True)])
    longer = [torch.cat([torch.zeros(len(q)) > 0, mask]) for q, mask in zip(QUERIES, gaps, strict=True)]
    assert equal(stepped(trainer_on(llama), responses=joined, response_masks=longer)[1], results[0][1])
    with pytest.raises(ValueError, match="response_masks: wanted one a response, as long as it is"):
        stepped(trainer_on(llama), response_masks=ones[:3])
    with pytest.raises(ValueError, match="responses: row 1 has no token that counts"):
        stepped(trainer_on(llama), response_masks=[ones[0], ~ones[1], *ones[2:]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"queries": []}, "queries: wanted"),
        ({"queries": "text"}, "queries: wanted a list of tensors"),
        ({"queries": torch.rand(2, 3)}, "queries: wanted token ids"),
        ({"queries": [["a"]]}, "queries: wanted token ids in row 0"),
        ({"responses": tensors(RESPONSES[:3])}, "responses: wanted one a query, 4, got 3"),
        ({"responses": [torch.tensor([], dtype=torch.long), *tensors(RESPONSES[1:])]}, "responses: row 0 is empty"),
        ({"responses": tensors(QUERIES)}, "responses: row 0 has no token that counts"),
        ({"scores": [1.0, 2.0]}, "scores: wanted one a query, 4, got 2"),
        ({"scores": [1.0, 2.0, 3.0, float("nan")]}, "scores: wanted finite numbers, got nan"),
        ({"scores": [1.0, 2.0, 3.0, "good"]}, "scores: wanted one number each"),
        ({"scores": [torch.ones(2)] * 4}, "scores: wanted one number each"),
        ({"scores": 1.0}, "scores: wanted a list of numbers"),
    ],
)
def test_bad_rows_are_named(llama, given, message):
    trainer = trainer_on(llama)
    before = weights(trainer.model)
    rows = {"queries": tensors(QUERIES), "responses": tensors(RESPONSES), "scores": tensors(SCORES)}
    with pytest.raises(ValueError, match=message):
        trainer.step(**(rows | given))
    assert equal(weights(trainer.model), before)


def test_scores_are_clipped_when_asked(llama):
    clipped = stepped(trainer_on(llama, score_clip=0.5))[1]
    by_hand = stepped(trainer_on(llama), scores=[0.5, -0.5, 0.5, 0.25])[1]
    assert equal(clipped, by_hand)


def test_an_optimizer_of_ones_own(llama):
    trainer = trainer_on(llama)
    before = weights(trainer.model)
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step))
    given = (trainer.config, trainer.model, None, trainer.tokenizer)
    own = PPOTrainer(*given, optimizer=optimizer, lr_scheduler=scheduler)
    optimizer.param_groups[0]["initial_lr"] = scheduler.base_lrs[0] = 0.5
    assert equal(stepped(own)[1], before)  # lr 0
    stats, after = stepped(own)
    assert stats["ppo/learning_rate"] == 0.5 and not equal(after, before)
    with pytest.raises(ValueError, match=r"lr_scheduler: .* wanted optimizer="):
        PPOTrainer(*given, lr_scheduler=scheduler)


# Generating


def test_generate_draws_what_minirl_draws(llama):
    """One seed, two interfaces: the same answers, whatever the lengths of the prompts and the shape they come in."""
    policy, tokenizer = load_pretrained(llama)
    generator = torch.Generator().manual_seed(5)
    rollout = generate(policy, QUERIES, max_new_tokens=8, eos=tokenizer.eos_id, generator=generator)
    expected = [row[kept].tolist() for row, kept in zip(rollout.response, rollout.mask, strict=True)]
    trainer = trainer_on(llama)
    found = trainer.generate(
        tensors(QUERIES), return_prompt=False, max_new_tokens=8, do_sample=True, top_k=0.0, top_p=1.0
    )
    assert [row.tolist() for row in found] == expected
    trainer = trainer_on(llama)
    trainer.eos = end = expected[0][3]  # a token that comes in the middle: the answer ends with it, without padding
    found = trainer.generate(tensors(QUERIES), return_prompt=False, max_new_tokens=8, do_sample=True)
    assert [row.tolist() for row in found] == [r[: r.index(end) + 1] if end in r else r for r in expected]
    trainer = trainer_on(llama)
    found = trainer.generate(tensors(QUERIES), max_new_tokens=8, do_sample=True)
    assert [row.tolist() for row in found] == [q + r for q, r in zip(QUERIES, expected, strict=True)]
    found = trainer_on(llama).generate(
        tensors(QUERIES), return_prompt=False, max_new_tokens=8, top_p=None
    )  # sampled unless told
    assert [row.tolist() for row in found] == expected
    one = trainer_on(llama).generate(torch.tensor(QUERIES[0]), max_new_tokens=8, do_sample=True)
    alone = generate(
        policy, QUERIES[:1], max_new_tokens=8, eos=tokenizer.eos_id, generator=torch.Generator().manual_seed(5)
    )
    assert one.tolist() == alone.tokens.tolist()
    in_two = trainer_on(llama).generate(tensors(QUERIES), batch_size=3, max_new_tokens=3, do_sample=True)
    assert len(in_two) == 4 and all(row[: len(q)].tolist() == q for row, q in zip(in_two, QUERIES, strict=True))


def test_greedy_is_greedy_and_a_mask_is_padding(llama):
    policy, tokenizer = load_pretrained(llama)
    rollout = generate_greedy(policy, QUERIES, max_new_tokens=5, eos=tokenizer.eos_id)
    model = AutoModelForCausalLM.from_pretrained(llama)
    mask = torch.tensor([[0] * (5 - len(q)) + [1] * len(q) for q in QUERIES])
    padded = torch.tensor([[99] * (5 - len(q)) + q for q in QUERIES])
    found = model.generate(padded, attention_mask=mask, max_length=10)
    assert torch.equal(found[:, :5], padded) and torch.equal(found[:, 5:], rollout.response)
    assert torch.equal(
        AutoModelForCausalLMWithValueHead(model).generate(padded, mask, max_length=10, do_sample=False), found
    )
    # without a mask, a pad token that is not the end token says what is padding
    assert torch.equal(model.generate(padded, pad_token_id=99, max_new_tokens=5), found)
    assert model.generate(torch.tensor(QUERIES[0])).shape == (1, 23)  # 20 new tokens unless told


def test_knobs_of_generation(llama):
    model = AutoModelForCausalLM.from_pretrained(llama)
    query = torch.tensor([QUERIES[0]])
    logits = model(query).logits[0, -1]
    torch.manual_seed(0)
    first = model.generate(query, do_sample=True, max_new_tokens=1, num_return_sequences=400)[:, -1]
    assert len(first.unique()) > 20
    three = model.generate(query, do_sample=True, max_new_tokens=1, num_return_sequences=400, top_k=3)[:, -1]
    assert set(three.tolist()) == set(logits.topk(3).indices.tolist())
    cold = model.generate(query, do_sample=True, max_new_tokens=1, num_return_sequences=50, temperature=1e-3)[:, -1]
    assert set(cold.tolist()) == {int(logits.argmax())}
    narrow = model.generate(query, do_sample=True, max_new_tokens=1, num_return_sequences=400, top_p=0.05)[:, -1]
    probs, order = logits.softmax(-1).sort(descending=True)
    assert set(narrow.tolist()) <= set(order[: int((probs.cumsum(0) < 0.05).sum()) + 1].tolist())
    end = int(logits.argmax())  # rows that end early are filled up with the pad token
    some = {"num_return_sequences": 60, "top_k": 3, "eos_token_id": end, "pad_token_id": 7, "max_new_tokens": 4}
    rows = model.generate(query, do_sample=True, **some)[:, 3:].tolist()
    early = [row for row in rows if end in row[:-1]]
    assert 0 < len(early) < 60 and all(set(row[row.index(end) + 1 :]) == {7} for row in early)
    with torch.no_grad():
        model.model.head.weight.zero_()  # every token as likely: the end is the first of equals, greedily
    assert model.generate(query, max_new_tokens=6)[0].tolist() == [*QUERIES[0], 0]
    model.config.pad_token_id = 7
    longer = model.generate(query, max_new_tokens=6, min_new_tokens=2)[0].tolist()
    assert longer == [*QUERIES[0], 1, 1, 0]
    assert model.generate(query, max_new_tokens=6, min_length=5)[0].tolist() == longer
    assert model.generate(query, max_new_tokens=3, eos_token_id=-1)[0].tolist() == [*QUERIES[0], 0, 0, 0]
    unset = {"temperature": None, "top_k": None, "top_p": None, "max_length": None, "eos_token_id": None}
    assert model.generate(query, max_new_tokens=6, **unset)[0].tolist() == [*QUERIES[0], 0]
    both = torch.tensor([QUERIES[0], QUERIES[3]])
    assert model.generate(both, max_new_tokens=3, eos_token_id=[0]).tolist() == [[*q, 0] for q in both.tolist()]


def test_what_narrows_the_distribution_is_said_once(llama, capsys):
    trainer = trainer_on(llama)
    whole = {"do_sample": True, "top_k": 0.0, "top_p": 1.0, "temperature": 1.0, "min_length": -1, "max_new_tokens": 2}
    trainer.generate(tensors(QUERIES), **whole)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        trainer.generate(tensors(QUERIES), **(whole | {"top_p": 0.9, "top_k": 50}))
    said = capsys.readouterr().err
    assert said.count("top_k=50, top_p=0.9: answers come from another distribution") == 1
    trainer.generate(tensors(QUERIES), max_new_tokens=2)
    assert "do_sample: not given; answers are sampled" in capsys.readouterr().err
    trainer.generate(tensors(QUERIES), max_new_tokens=2, do_sample=False, custom=1)
    said = capsys.readouterr().err
    assert "do_sample=False: the answer is always" in said and "custom: of no effect in generate()" in said
    trainer.generate(tensors(QUERIES), max_new_tokens=200, do_sample=True)
    assert "max_new_tokens: 200 cut to 91" in capsys.readouterr().err


def test_lengths_and_answers_of_the_reference(llama):
    sampler = LengthSampler(2, 5)
    assert {sampler() for _ in range(50)} == {2, 3, 4}
    trainer = trainer_on(llama)
    stepped(trainer)
    with torch.no_grad():
        trainer.model.actor.policy.head.weight.zero_()[9] = 0.0
    knobs = {"do_sample": False, "length_sampler": lambda: 3, "return_prompt": False, "eos_token_id": -1}
    trainer.eos = None
    ours, ref = trainer.generate(tensors(QUERIES), generate_ref_response=True, **knobs)
    greedy = generate_greedy(load_pretrained(llama)[0], QUERIES, max_new_tokens=3)
    assert [row.tolist() for row in ours] == [[0, 0, 0]] * 4
    assert [row.tolist() for row in ref] == greedy.response.tolist()
    assert respond_to_batch(trainer.model, torch.tensor([QUERIES[0]]), txt_len=7).shape == (1, 7)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"num_beams": 4}, "num_beams: wanted 1"),
        ({"repetition_penalty": 1.2}, "repetition_penalty: wanted 1"),
        ({"top_p": 0.0}, "top_p: wanted"),
        ({"temperature": 0.0}, "temperature: wanted"),
        ({"max_new_tokens": 0}, "max_new_tokens: wanted"),
        ({"max_length": 3}, "max_length: counts the prompt, which has 3 tokens"),
        ({"eos_token_id": [0, 1]}, "eos_token_id: wanted one token"),
        ({"input_ids": torch.zeros(1, 96, dtype=torch.long)}, "input_ids: 96 tokens leave no room"),
        ({"input_ids": [1, 2]}, "input_ids: wanted a tensor"),
        ({"input_ids": torch.rand(1, 3)}, "input_ids: wanted a tensor"),
        ({"attention_mask": torch.ones(1, 2)}, r"attention_mask: wanted shape \(1, 3\)"),
    ],
)
def test_bad_knobs_are_named(llama, knobs, message):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(llama)
    with pytest.raises(ValueError, match=message):
        model.generate(**({"input_ids": torch.tensor([QUERIES[0]]), "do_sample": True} | knobs))


# Models


def test_a_model_comes_back_bit_for_bit(llama, tmp_path):
    trainer = trainer_on(llama)
    stepped(trainer)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    trainer.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "out")
    assert equal(weights(again), weights(trainer.model)) and again.v_head.weight.abs().sum() > 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    plain, tokenizer = load_pretrained(tmp_path / "out")
    assert equal(weights(plain), weights(trainer.model.pretrained_model))
    assert tokenizer.encode(TEXTS[0]) == trainer.tokenizer.encode(TEXTS[0])
    again.pretrained_model.save_pretrained(tmp_path / "plain")
    headless = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "plain")
    assert headless.v_head.weight.abs().sum() == 0  # no head there: it starts at 0


def test_calling_a_model_gives_what_trl_gave(llama):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(llama)
    torch.nn.init.normal_(model.v_head.weight)
    tokens = torch.tensor([QUERIES[1], [99, 99, *QUERIES[0]], [*QUERIES[0], 98, 98]])
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    logits, loss, values = model(tokens, attention_mask=mask)
    assert loss is None and logits.shape == (3, 5, model.config.vocab_size) and values.shape == (3, 5)
    for row, start, ids in ((0, 0, QUERIES[1]), (1, 2, QUERIES[0]), (2, 0, QUERIES[0])):
        alone, _, value = model(torch.tensor([ids]))
        assert torch.allclose(logits[row, start : start + len(ids)], alone[0], atol=1e-5)
        assert torch.allclose(values[row, start : start + len(ids)], value[0], atol=1e-5)
    frozen = create_reference_model(model)
    assert equal(weights(frozen), weights(model)) and not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in model.parameters())
    half = AutoModelForCausalLMWithValueHead.from_pretrained(llama, torch_dtype=torch.bfloat16, device_map={"": "cpu"})
    assert half.dtype == torch.bfloat16 and half(tokens)[0].dtype == torch.float32
    assert AutoModelForCausalLM.from_pretrained(llama, dtype="auto").dtype == torch.float32


def test_keywords_of_from_pretrained(llama, capsys):
    for _ in range(2):
        AutoModelForCausalLMWithValueHead.from_pretrained(
            llama, device_map="auto", trust_remote_code=True, is_trainable=True, low_cpu_mem_usage=True
        )
    assert capsys.readouterr().err.count("is_trainable, low_cpu_mem_usage, trust_remote_code: accepted") == 1
    refused = {"peft_config": object(), "load_in_8bit": True, "torch_dtype": "float31", "device_map": {"a": 0, "b": 1}}
    for name, value in refused.items():
        with pytest.raises(ValueError, match=name):
            AutoModelForCausalLMWithValueHead.from_pretrained(llama, **{name: value})
    with pytest.raises(ValueError, match=r"minirl\.lora"):
        AutoModelForCausalLM.from_pretrained(llama, peft_config=object())
    with pytest.raises(FileNotFoundError, match="local_files_only"):
        AutoModelForCausalLM.from_pretrained("owner/name", local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(llama)))
    with pytest.raises(ValueError, match="size: wanted at most"):
        model.resize_token_embeddings(1000)


def test_a_model_without_a_tokenizer_knows_its_end():
    model = AutoModelForCausalLM.from_pretrained(Path(__file__).parent / "data" / "models" / "qwen2")
    assert model.tokenizer is None and model.config.eos_token_id == 1


def test_a_reward_model_scores_texts(llama, tmp_path):
    policy, tokenizer = load_pretrained(llama)
    judge = RewardModel(policy, last_token)
    torch.nn.init.normal_(judge.score.weight)
    save_pretrained(judge, tokenizer, tmp_path / "judge")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge", num_labels=1)
    words = AutoTokenizer.from_pretrained(tmp_path / "judge")
    found = model(**words(TEXTS, padding=True, return_tensors="pt")).logits
    for i, text in enumerate(TEXTS):
        hidden = policy.hidden(torch.tensor([tokenizer.encode(text)]))
        assert torch.allclose(found[i], judge.score(hidden)[0, -1], atol=1e-5)
    judge.pool = summed  # over every token after the first
    save_pretrained(judge, tokenizer, tmp_path / "sum")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sum")(torch.tensor([[70, 71, 72]])).logits
    assert torch.allclose(whole, judge.score(policy.hidden(torch.tensor([[70, 71, 72]])))[:, 1:].sum(1), atol=1e-5)
    with pytest.raises(ValueError, match="num_labels: wanted 1"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge", num_labels=2)


# Config


def test_defaults_are_trls():
    config = PPOConfig()
    assert (config.learning_rate, config.batch_size, config.mini_batch_size, config.ppo_epochs) == (
        1.41e-5,
        128,
        128,
        4,
    )
    assert (config.init_kl_coef, config.target, config.horizon, config.adap_kl_ctrl) == (0.2, 6.0, 10000, True)
    assert (config.gamma, config.lam, config.cliprange, config.cliprange_value, config.vf_coef) == (
        1,
        0.95,
        0.2,
        0.2,
        0.1,
    )
    assert config.max_grad_norm is None and config.seed == 0 and config.steps == 20000
    assert config.to_dict()["kl_penalty"] == "kl"
    assert PPOConfig(forward_batch_size=3).mini_batch_size == 3


def test_settings_without_effect_are_said_once(capsys):
    PPOConfig(model_name="gpt2", steps=10, batch_size=2, mini_batch_size=1, exp_name="mine")
    assert capsys.readouterr().err == ""
    for _ in range(2):
        PPOConfig(log_with="wandb", early_stopping=True, target_kl=0.1, optimize_cuda_cache=True)
    assert capsys.readouterr().err.count("early_stopping, log_with, optimize_cuda_cache, target_kl: accepted") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kl_penalty", "abs"),
        ("kl_penalty", "full"),
        ("whiten_rewards", True),
        ("use_score_scaling", True),
        ("use_score_norm", True),
        ("is_encoder_decoder", True),
        ("batch_size", 0),
        ("mini_batch_size", 0),
        ("ppo_epochs", 0),
        ("learning_rate", 0.0),
        ("cliprange", 0.0),
        ("init_kl_coef", -0.1),
        ("max_grad_norm", 0.0),
        ("score_clip", -1.0),
    ],
)
def test_settings_that_would_matter_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}: wanted"):
        PPOConfig(**{name: value})


def test_arguments_of_the_trainer_are_named(llama):
    model, words = AutoModelForCausalLMWithValueHead.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    for name, given in {
        "config": ({"batch_size": 2}, model, None, words),
        "model": (PPOConfig(), AutoModelForCausalLM.from_pretrained(llama), None, words),
        "tokenizer": (PPOConfig(), model, None, None),
    }.items():
        with pytest.raises(ValueError, match=f"{name}: wanted"):
            PPOTrainer(*given)


def test_any_tokenizer_with_an_end(llama, tmp_path):
    """A transformers tokenizer is asked for two numbers and to save itself; minirl's own will do as well."""
    saved = []
    theirs = SimpleNamespace(eos_token_id=0, pad_token_id=None, save_pretrained=saved.append)
    for tokenizer in (theirs, load_pretrained(llama)[1]):
        model = AutoModelForCausalLMWithValueHead.from_pretrained(llama)
        settings = PPOConfig(batch_size=4, mini_batch_size=2, learning_rate=1e-3, ppo_epochs=2, seed=5)
        trainer = PPOTrainer(settings, model, tokenizer=tokenizer)
        assert equal(stepped(trainer)[1], stepped(trainer_on(llama))[1])
        trainer.save_pretrained(tmp_path / "out")
    assert saved == [tmp_path / "out"]
    assert (trainer.accelerator.device, trainer.current_device, trainer.device) == (torch.device("cpu"),) * 3
    assert trainer.accelerator.is_main_process and trainer.accelerator.unwrap_model(model) is model


def test_batches_and_logs(llama, tmp_path, capsys):
    trainer = trainer_on(llama, batch_size=2, project_kwargs={"logging_dir": str(tmp_path / "logs")})
    rows = [{"input_ids": torch.tensor(q), "query": str(q)} for q in [*QUERIES, [9, 9]]]
    loader = trainer.prepare_dataloader(rows, lambda rows: [row["query"] for row in rows])
    batches = list(loader)
    assert [len(batch) for batch in batches] == [2, 2] and len({*batches[0], *batches[1]}) == 4
    assert [len(batch) for batch in trainer.prepare_dataloader(rows[:1], lambda rows: rows)] == [1]
    assert "dataset: 1 rows, fewer than batch_size = 2" in capsys.readouterr().err
    trainer.log_stats({"objective/kl": 0.5}, {"query": []}, [torch.tensor(1.0), 3.0])
    assert trainer.logs == [{"objective/kl": 0.5, "env/reward_mean": 2.0, "env/reward_std": 1.0}]
    assert (tmp_path / "logs" / "metrics.jsonl").read_text().startswith('{"step": 0, "objective/kl": 0.5')


# Tokenizer


def test_the_tokenizer_those_programs_expect(llama, tmp_path):
    words, ours = AutoTokenizer.from_pretrained(llama, use_fast=True), load_pretrained(llama)[1]
    assert words.pad_token is None and words.pad_token_id is None and words.eos_token_id == 0
    words.pad_token = words.eos_token
    assert words.pad_token_id == 0 and len(words) == words.vocab_size == ours.vocab_size
    ids = words.encode(TEXTS[0])
    assert ids == ours.encode(TEXTS[0]) and words.encode(TEXTS[0], return_tensors="pt").tolist() == [ids]
    assert words.decode(ids) == words.decode(torch.tensor([ids])) == TEXTS[0]
    assert words.decode([*ids, 0]) == TEXTS[0] + "<|endoftext|>"
    assert words.decode([*ids, 0], skip_special_tokens=True) == TEXTS[0] and words.decode(ids[0]) == words.decode(
        ids[:1]
    )
    assert words.batch_decode(tensors([ids, ids[:3]])) == [TEXTS[0], words.decode(ids[:3])]
    one = words(TEXTS[0])
    assert one["input_ids"] == one.input_ids == ids and one.attention_mask == [1] * len(ids)
    rows = [ours.encode(text) for text in TEXTS]
    width = max(map(len, rows))
    for side in ("right", "left"):
        words.padding_side = side
        batch = words(TEXTS, padding=True, return_tensors="pt").to("cpu")
        for row, kept, expected in zip(batch.input_ids, batch["attention_mask"], rows, strict=True):
            assert row[kept.bool()].tolist() == expected and len(row) == width
            assert (kept[0] == 0) == (side == "left" and len(expected) < width)
    cut = words(TEXTS, truncation=True, padding="max_length", max_length=7, return_tensors="pt")
    assert cut.input_ids.tolist() == [row[:7] for row in rows]
    filled = words("One", padding="max_length", max_length=9)
    assert len(filled.input_ids) == 9 and sum(filled.attention_mask) == len(words.encode("One"))
    with pytest.raises(ValueError, match=r"padding: rows of .* wanted padding=True"):
        words(TEXTS, return_tensors="pt")
    with pytest.raises(ValueError, match='return_tensors: wanted "pt"'):
        words.encode("One", return_tensors="np")
    with pytest.raises(ValueError, match="ids: wanted one row"):
        words.decode(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="pad_token: '<pad>' is new"):
        words.add_special_tokens({"pad_token": "<pad>"})
    assert words.add_special_tokens({"pad_token": "<|endoftext|>"}) == 0
    assert words.convert_tokens_to_ids(words.convert_ids_to_tokens(70)) == 70
    words.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token == "<|endoftext|>"
    assert AutoTokenizer.from_pretrained(llama, padding_side="left", pad_token="!").pad_token == "!"


def test_a_conversation_by_the_models_own_template(llama):
    words = AutoTokenizer.from_pretrained(llama)
    begin_with(words.tokenizer.backend, "!")  # the template writes every special token itself
    words.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    messages = [{"role": "user", "content": "Is it safe?"}]
    assert words.apply_chat_template(messages, tokenize=False) == "[user] Is it safe?<|endoftext|>"
    ids = words.apply_chat_template(messages, return_tensors="pt")
    assert ids.shape[0] == 1 and words.decode(ids, skip_special_tokens=True) == "[user] Is it safe?" and ids[0, -1] == 0


# Supervised fine-tuning


def test_the_loss_is_that_of_the_next_token(llama):
    model = AutoModelForCausalLM.from_pretrained(llama)
    tokens = torch.tensor([[*QUERIES[1], 0], [99, 99, *QUERIES[0], 0]])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    labels = tokens.clone()
    labels[0, :3] = -100
    terms = []
    for row, first in (([*QUERIES[1], 0], 3), ([*QUERIES[0], 0], 1)):
        logits = model.model(torch.tensor([row]))
        terms += token_logprobs(logits[:, :-1], torch.tensor([row[1:]]))[0, first - 1 :].tolist()
    out = model(tokens, attention_mask=mask, labels=labels)
    assert out.loss.item() == pytest.approx(-sum(terms) / len(terms), abs=1e-5)
    assert torch.equal(out[0], out.loss) and torch.equal(out[1], out["logits"])
    with pytest.raises(ValueError, match="labels: nothing is counted"):
        model(tokens, labels=torch.full_like(tokens, -100))


def test_a_trainer_learns_its_texts_and_their_end(gpt2, tmp_path, capsys):
    words = AutoTokenizer.from_pretrained(gpt2)
    words.pad_token = words.eos_token
    model = AutoModelForCausalLM.from_pretrained(gpt2)
    settings = TrainingArguments(
        str(tmp_path / "out"), num_train_epochs=200, per_device_train_batch_size=2, learning_rate=1e-2, fp16=True
    )
    assert "fp16: accepted" in capsys.readouterr().err
    trainer = SFTTrainer(model, settings, train_dataset=[{"text": text} for text in TEXTS[1:]], tokenizer=words)
    result = trainer.train()
    assert result.global_step == 200 and trainer.losses[0] > 5 and trainer.losses[-1] < 0.5
    trainer.save_model()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert equal(weights(again), weights(model))
    query = words("One day", return_tensors="pt")
    written = model.generate(**query, max_new_tokens=30, pad_token_id=0)
    assert (
        words.decode(written[0]) == TEXTS[2] + "<|endoftext|>"
    )  # the end is learned, although it is the pad token too


def test_the_rate_warms_up_and_falls(gpt2, monkeypatch):
    rates, update = [], sft.update
    monkeypatch.setattr(sft, "update", lambda *given, lr, **more: rates.append(lr) or update(*given, lr=lr, **more))
    settings = TrainingArguments(max_steps=5, warmup_steps=2, learning_rate=3.0)
    Trainer(AutoModelForCausalLM.from_pretrained(gpt2), settings, train_dataset=[{"input_ids": [5, 6]}]).train()
    assert rates == pytest.approx([1.5, 3.0, 3.0, 2.0, 1.0])


def test_labels_on_padding_change_nothing_and_are_said_once(gpt2, capsys):
    words = AutoTokenizer.from_pretrained(gpt2, pad_token="<|endoftext|>")
    batch = words(TEXTS, padding="max_length", max_length=40, return_tensors="pt")
    rows = [{name: x[i] for name, x in batch.items()} for i in range(3)]
    results = []
    for labels in ("none", "everything"):
        model = AutoModelForCausalLM.from_pretrained(gpt2)
        given = [row | ({"labels": row["input_ids"].clone()} if labels == "everything" else {}) for row in rows]
        settings = TrainingArguments(max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2)
        if labels == "none":
            collator = DataCollatorForLanguageModeling(tokenizer=words, mlm=False)
            assert (collator(rows)["labels"] == -100).sum() == (batch["attention_mask"] == 0).sum()
            trainer = Trainer(model=model, args=settings, data_collator=collator, train_dataset=given)
        else:
            trainer = Trainer(model=model, args=settings, train_dataset=given, eval_dataset=given)
        trainer.train()
        results.append((weights(model), trainer.losses))
    assert equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    assert capsys.readouterr().err.count("labels: cover padding") == 1
    with torch.no_grad():
        each = [float(model(**{name: x[None] for name, x in row.items()}).loss) for row in given]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(each) / 3, abs=1e-5)


def test_a_text_file_in_blocks_and_what_a_trainer_refuses(gpt2, tmp_path):
    words = AutoTokenizer.from_pretrained(gpt2)
    (tmp_path / "corpus.txt").write_text(" ".join(TEXTS))
    blocks = TextDataset(words, tmp_path / "corpus.txt", block_size=8)
    ids = words.encode(" ".join(TEXTS))
    assert torch.cat([blocks[i] for i in range(len(blocks))]).tolist() == ids[: len(ids) // 8 * 8]
    model = AutoModelForCausalLM.from_pretrained(gpt2)
    collator = DataCollatorForLanguageModeling(words, mlm=False)
    settings = TrainingArguments(num_train_epochs=1, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    result = Trainer(model, settings, data_collator=collator, train_dataset=blocks).train()
    assert result.global_step == -(-len(blocks) // 4)
    for message, given in {
        "model: wanted": {"model": model.model, "train_dataset": blocks},
        "train_dataset: wanted at least one row": {"model": model, "train_dataset": []},
    }.items():
        with pytest.raises(ValueError, match=message):
            Trainer(**given)
    with pytest.raises(ValueError, match="data_collator: rows of 2 to 3 tokens"):
        Trainer(model, train_dataset=[{"input_ids": [1, 2]}, {"input_ids": [1, 2, 3]}]).train()
    with pytest.raises(ValueError, match="block_size: wanted at most"):
        TextDataset(words, tmp_path / "corpus.txt", block_size=10_000)
    with pytest.raises(ValueError, match="mlm: wanted False"):
        DataCollatorForLanguageModeling(words)
    with pytest.raises(ValueError, match="tokenizer: wanted one"):
        SFTTrainer(model, train_dataset=[{"text": "One"}])


# Tutorial programs


def run_program(monkeypatch, name: str, *arguments) -> dict:
    """What a program leaves behind, run as by `python name arguments`."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    torch.manual_seed(0)
    return runpy.run_path(str(PROGRAMS / name), run_name="__main__")


def assert_finite(stats: dict) -> None:
    assert stats and all(math.isfinite(x) for x in stats.values())
    assert {"ppo/mean_scores", "objective/kl", "ppo/loss/total", "time/ppo/total"} <= stats.keys()


def folders(llama: Path) -> list[Path]:
    return [llama, STORIES_260K] if STORIES_260K.is_dir() else [llama]


def test_one_query_at_a_time_runs_and_its_reward_is_constant(monkeypatch, llama, capsys):
    for folder in folders(llama):
        loading.said.clear()
        left = run_program(monkeypatch, "one_query.py", folder)
        assert_finite(left["stats"])
        assert left["rewards"] == [1.0, 1.0, 1.0]  # every question holds the word already
        said = capsys.readouterr().err
        for once in (
            "the queries are cut off",
            "scores: plain numbers",
            "batch_size: 4, and a step got 1",
            "top_p=0.9",
        ):
            assert said.count(once) == 1
        answer = left["response"][0, left["inputs"].input_ids.shape[1] :]
        assert "safe" not in left["tokenizer"].decode(answer).lower()


def test_gpt2_with_sft_first_runs(monkeypatch, gpt2, tmp_path, capsys):
    left = run_program(monkeypatch, "gpt2_sft_then_ppo.py", gpt2, tmp_path / "out")
    assert_finite(left["stats"])
    assert left["trainer"].losses[-1] < left["trainer"].losses[0]
    assert "labels: cover padding" in capsys.readouterr().err
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "out")
    assert equal(weights(again), weights(left["ppo_model"]))


def test_the_batch_loop_runs(monkeypatch, llama, capsys):
    for folder in folders(llama):
        left = run_program(monkeypatch, "batches.py", folder)
        assert len(left["history"]) == len(left["ppo_trainer"].logs) == 3
        for stats in left["history"]:
            assert_finite(stats)
        assert left["history"][0]["objective/kl"] == 0 != left["history"][-1]["objective/kl"]
        again = run_program(monkeypatch, "batches.py", folder)
        drop = {"time/ppo/total"}
        for a, b in zip(left["history"], again["history"], strict=True):
            assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}


# The keyword, and what replaces it


def assert_claims(rows: list[dict]) -> None:
    """Of one seed: the constant reward, the repaired one, the reward model."""
    rows = {(row["reward"], row["when"]): row for row in rows}

    def gain(reward: str, column: str) -> float:
        return float(rows[reward, "after"][column]) - float(rows[reward, "before"][column])

    together = rows["prompt and answer", "after"]
    assert float(together["least_score"]) == float(together["greatest_score"]) == 1.0
    assert float(rows["prompt and answer", "before"]["answer alone"]) < 0.3  # while half of the answers lack the word
    assert gain("answer alone", "answer alone") > 0.7
    assert gain("reward model", "reward model") > 1.5
    assert gain("reward model", "gold") > 0.3
    assert all(math.isfinite(float(row["kl"])) for row in rows.values() if row["when"] == "after")


@pytest.mark.parametrize("seed", [20, 21, 22])
def test_the_repaired_reward_is_learned_in_the_stored_study(seed):
    assert_claims([row for row in rows_of("classic") if int(row["seed"]) == seed])


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [20, 21, 22])
def test_the_repaired_reward_is_learned_when_run_again(seed):
    study = script("classic")
    assert_claims([row for reward in study.REWARDS for row in study.rows(reward, seed)])


def test_the_repaired_reward_is_learned_in_eight_steps():
    before, after, history = script("classic").trained("answer alone", seed=30, steps=8)
    assert before["answer alone"] < 0.3 and after["answer alone"] - before["answer alone"] > 0.3
    assert_finite(history[-1])


def test_equal_scores_are_said_once(llama, capsys):
    trainer = trainer_on(llama)
    before = weights(trainer.model)
    for _ in range(2):
        trainer.step(*[[torch.tensor(row) for row in rows] for rows in (QUERIES, RESPONSES)], [1.0] * 4)
    printed = capsys.readouterr().err
    assert printed.count("equal scores: every response got 1, which says nothing of any") == 1
    assert not equal(before, weights(trainer.model)), "the note says that the policy moves all the same"
    trainer = trainer_on(llama)
    trainer.step(*[[torch.tensor(row) for row in rows] for rows in (QUERIES, RESPONSES)], SCORES)
    assert "equal scores" not in capsys.readouterr().err
