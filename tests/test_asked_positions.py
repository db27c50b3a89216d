"""Computing only what is asked for changes no number: the last block at some positions, a prompt once for its group."""

from dataclasses import replace

import pytest
import torch

from minirl.attention import SharedPrompt
from minirl.generate import generate
from minirl.logprobs import predicting
from minirl.model import PolicyWithValue, RewardModel, Transformer, TransformerConfig, last_token
from minirl.rollout import hidden_after_shared_prompts, response_logprobs
from minirl.train import ppo
from minirl.train.optimizer import adamw

BASE = TransformerConfig(vocab_size=11, width=24, layers=3, heads=6, ffn=40, max_length=32)
CONFIGS = {
    "llama": BASE,
    "grouped keys": replace(BASE, kv_heads=2, qk_norm=True),
    "gpt2": replace(BASE, norm="layernorm", positions="learned", activation="gelu", bias=True),
    "one layer": replace(BASE, layers=1),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
EXACT = {"rtol": 0, "atol": 1e-12}


def made(config: TransformerConfig) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config).double()


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()))


def test_embeddings_and_head_have_gradients_that_can_differ():
    """The comparisons below mean something: a loss over other positions has other gradients everywhere."""
    model, tokens = made(BASE), torch.arange(8).view(1, 8)
    one, other = (gradients(model, model(tokens)[:, at].square().sum()) for at in (slice(2, 5), slice(3, 6)))
    assert all((a - b).abs().max() > 1e-6 for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("at", [slice(-4, -1), slice(2, None), slice(0, 3), torch.tensor([6, 0, 3])], ids=str)
@pytest.mark.parametrize("starts", [None, torch.tensor([0, 2, 5])], ids=["no padding", "padding"])
@each_config
def test_hidden_at_some_positions_is_hidden_at_all_of_them_picked(config, starts, at):
    model = made(config)
    tokens = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(1))
    counted = torch.ones(3, 8, dtype=torch.bool) if starts is None else torch.arange(8) >= starts[:, None]
    whole = model.hidden(tokens, starts=starts)
    if isinstance(at, slice):
        wanted, counted = whole[:, at], counted[:, at]
    else:
        wanted, counted = whole[torch.arange(3), at][:, None], counted[torch.arange(3), at][:, None]
    found = model.hidden(tokens, starts=starts, at=at)
    torch.testing.assert_close(found[counted], wanted[counted], **EXACT)
    weights = torch.randn_like(wanted) * counted[..., None]
    losses = ((found * weights).sum(), (wanted * weights).sum())
    for a, b in zip(*(torch.autograd.grad(x, list(model.blocks.parameters())) for x in losses), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@each_config
def test_a_prompt_read_once_for_its_group_gives_the_same_numbers_and_gradients(config):
    model = made(config)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    rollout = generate(model, prompts, max_new_tokens=6, group_size=3, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))[:7]  # groups torn apart, one of them short
    part, weights = rollout[order], torch.randn(7, 6, dtype=torch.double)
    results = [
        response_logprobs(model, part.tokens, part.starts, 6, temperature=0.7, prompt_index=index)[0]
        for index in (None, part.prompt_index)
    ]
    torch.testing.assert_close(*results, **EXACT)
    plain, shared = (gradients(model, (x * weights).sum()) for x in results)
    for a, b in zip(plain, shared, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_two_threads_give_the_same_bits_every_time():
    """The gradient of a prompt is a sum over its group. Float32 and large enough for PyTorch to share it out: an atomic sum
    has other bits in nearly every call."""
    torch.manual_seed(0)
    model, before = Transformer(TransformerConfig(vocab_size=11, layers=1)), torch.get_num_threads()
    tokens, index = torch.randint(11, (256, 12)), torch.arange(16).repeat_interleave(16)[torch.randperm(256)]
    tokens[:, :8] = torch.randint(11, (16, 8))[index]
    starts, weights = torch.zeros(256, dtype=torch.long), torch.randn(256, 4)
    torch.set_num_threads(2)
    try:
        found = set()
        for _ in range(3):
            logprobs, _ = response_logprobs(model, tokens, starts, 4, prompt_index=index)
            found.add(b"".join(g.numpy().tobytes() for g in gradients(model, (logprobs * weights).sum())))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_responses_of_one_token_need_the_prompts_alone():
    model = made(BASE)
    rollout = generate(model, [[3, 1], [4, 2, 7]], max_new_tokens=1, group_size=2)
    arguments = (rollout.tokens, rollout.starts, 1)
    found = hidden_after_shared_prompts(model, *arguments, rollout.prompt_index)
    torch.testing.assert_close(found, model.hidden(*arguments[:1], starts=rollout.starts, at=predicting(1)), **EXACT)


def test_shared_prompts_cost_what_they_should():
    """Positions read by the first block: two prompts of 6 once and not eight times, and the answers but for their end."""
    model, seen = made(BASE), []
    model.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(inputs[0].shape[:2].numel()))
    tokens, index = torch.zeros(16, 10, dtype=torch.long), torch.arange(2).repeat_interleave(8)
    for prompt_index in (None, index):
        response_logprobs(model, tokens, torch.zeros(16, dtype=torch.long), 4, prompt_index=prompt_index)
    assert seen == [16 * 10, 2 * 6, 16 * 3]


def test_rows_see_their_own_prompt_and_no_other():
    model = made(BASE)
    tokens = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(4))
    tokens[1, :5], tokens[3, :5] = tokens[0, :5], tokens[2, :5]
    shared = SharedPrompt(torch.tensor([0, 0, 1, 1]))
    model.hidden(tokens[::2, :5], cache=shared)
    torch.testing.assert_close(model.hidden(tokens[:, 5:], cache=shared), model.hidden(tokens)[:, 5:], **EXACT)


def test_a_reward_model_that_reads_its_last_token_reads_one_position():
    torch.manual_seed(5)
    judge = RewardModel(made(BASE), last_token).double()
    torch.nn.init.normal_(judge.score.weight)
    tokens = torch.randint(11, (4, 9))
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    starts = torch.tensor([0, 3, 1, 0])
    wanted = last_token(judge.token_scores(tokens, mask, starts=starts), mask)
    found = judge(tokens, mask, starts=starts)
    torch.testing.assert_close(found, wanted, **EXACT)
    assert found[2] == 0
    learned = [*judge.trunk.blocks.parameters(), judge.score.weight]
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), learned) for x in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize(("minibatch", "passes"), [(6, 3), (3, 1 + 3 * 2)], ids=["one minibatch", "two"])
def test_the_first_pass_of_ppo_supplies_the_old_numbers_where_it_reads_all_rows(minibatch, passes):
    actor, ref = PolicyWithValue(made(BASE)).double(), made(BASE)
    rollout = generate(actor, [[3, 1], [4, 2, 7]] * 3, max_new_tokens=4, generator=torch.Generator().manual_seed(6))
    config, scores, seen = ppo.PPOConfig(batch=6, minibatch=minibatch, epochs=3), torch.arange(6.0).double(), []
    actor.policy.blocks[0].register_forward_hook(lambda *call: seen.append(call))
    stats = ppo.improve(
        actor, ref, rollout, scores, config, adamw(actor), kl_coef=0.1, step=1, lr=1e-3, generator=torch.Generator()
    )
    assert len(seen) == passes
    assert stats["ratio_mean"] != 1  # the last epoch is past the first update
