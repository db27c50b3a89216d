"""The transformer: its attention against the written-out one, padding, the cache, causality, both families of config."""

import math
from dataclasses import replace

import pytest
import torch

from minirl.model import (
    KVCache,
    PolicyWithValue,
    RewardModel,
    Transformer,
    TransformerConfig,
    attention_mask,
    last_token,
    naive_attention,
    rope_table,
    rotate,
    summed,
)
from minirl.rotary import RopeScaling
from minirl.types import strict

LLAMA = TransformerConfig(vocab_size=31, width=32, layers=2, heads=4, kv_heads=2, ffn=48, max_length=40)
GPT2 = TransformerConfig(
    vocab_size=31,
    width=32,
    layers=2,
    heads=4,
    ffn=64,
    max_length=40,
    norm="layernorm",
    positions="learned",
    activation="gelu",
    bias=True,
    tied=True,
)
LONG = replace(LLAMA, rope_scaling=RopeScaling("llama3", 8.0, original_max_length=32))
QWEN2, QWEN3 = replace(LLAMA, qkv_bias=True), replace(LLAMA, qk_norm=True, head_dim=10)
FAMILIES = {"llama": LLAMA, "gpt2": GPT2, "llama3": LONG, "qwen2": QWEN2, "qwen3": QWEN3}
CONFIGS = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
ROWS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5], [8, 9, 7, 9, 3]]  # of four lengths


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make(config: TransformerConfig, seed: int = 0) -> Transformer:
    """A model with weights large enough for every part of it to matter: freshly initialised, attention is nearly flat."""
    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3) if p.dim() == 2 else p.add_(torch.randn_like(p) * 0.1)
    return model


def left_pad(rows: list[list[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    tokens = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    return tokens, torch.tensor([width - len(row) for row in rows])


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# Attention


def test_attention_mask_by_hand():
    assert attention_mask(0, 3, None, "cpu") is None  # is_causal says it
    assert attention_mask(4, 1, None, "cpu") is None  # the newest position sees everything
    assert attention_mask(0, 3, torch.tensor([1]), "cpu").int().tolist() == [[[[1, 0, 0], [0, 1, 0], [0, 1, 1]]]]
    assert attention_mask(2, 2, None, "cpu").int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert attention_mask(2, 1, torch.tensor([0, 1]), "cpu").int().tolist() == [[[[1, 1, 1]]], [[[0, 1, 1]]]]


def test_the_model_computes_attention_as_written_out():
    model = make(LLAMA)
    attention, config = model.blocks[0].attention, model.config
    x = torch.randn(2, 6, config.width)
    rope = model.rope[:, torch.arange(6)].unsqueeze(-3)
    q, k, v = (
        part(x).view(2, 6, -1, config.head_dim).transpose(1, 2)
        for part in (attention.query, attention.key, attention.value)
    )
    q, k = rotate(q, rope), rotate(k, rope)
    heads = []
    for head in range(config.heads):  # one head at a time: no broadcasting to get wrong
        group = head // (config.heads // config.kv_heads)
        mask = torch.ones(6, 6).tril().bool()
        heads.append(naive_attention(*(z[:, i : i + 1] for z, i in ((q, head), (k, group), (v, group))), mask))
    expected = attention.out(torch.cat(heads, 1).transpose(1, 2).reshape(2, 6, -1))
    close(attention(x, rope, None, None), expected)


def test_qwen3_normalises_each_head_before_it_turns():
    attention, config = make(QWEN3).blocks[0].attention, QWEN3
    x, rope = torch.randn(2, 6, 32), rope_table(config)[:, :6].unsqueeze(-3)
    heads = []
    for head in range(4):
        q, k, v = (
            part(x)[..., i * 10 : (i + 1) * 10]
            for part, i in ((attention.query, head), (attention.key, head // 2), (attention.value, head // 2))
        )
        q, k = (z * (z.square().mean(-1, keepdim=True) + 1e-5).rsqrt() for z in (q, k))
        q, k = q * attention.query_norm.weight, k * attention.key_norm.weight
        q, k, v = rotate(q[:, None], rope), rotate(k[:, None], rope), v[:, None]
        heads.append(naive_attention(q, k, v, torch.ones(6, 6).tril().bool())[:, 0])
    close(attention(x, rope, None, None), attention.out(torch.cat(heads, -1)))


def test_qwen2_has_biases_on_three_matrices():
    biases = {name.partition(".")[2] for name, _ in make(QWEN2).blocks.named_parameters() if name.endswith("bias")}
    assert biases == {f"attention.{part}.bias" for part in ("query", "key", "value")}


def test_feed_forward_and_norms_are_the_published_formulas():
    swiglu, gelu = make(LLAMA).double().blocks[0], make(GPT2).double().blocks[0]
    x = 3 * torch.randn(5, 32, dtype=torch.float64)
    gate = swiglu.ffn.gate(x)
    close(swiglu.ffn(x), swiglu.ffn.down(gate * torch.sigmoid(gate) * swiglu.ffn.up(x)), 1e-9)
    up = gelu.ffn.up(x)
    tanh = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))  # Hendrycks and Gimpel 2016
    close(gelu.ffn(x), gelu.ffn.down(tanh), 1e-9)
    rms = (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    close(swiglu.ffn_norm(x), x / rms * swiglu.ffn_norm.weight, 1e-9)
    standard = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    close(gelu.ffn_norm(x), standard * gelu.ffn_norm.weight + gelu.ffn_norm.bias, 1e-9)


def test_grouped_heads_equal_repeated_ones():
    grouped = make(LLAMA)
    full = make(TransformerConfig(**{**vars(LLAMA), "kv_heads": LLAMA.heads}))
    state = grouped.state_dict()
    for name in state:
        if ".key." in name or ".value." in name:
            per_head = state[name].view(LLAMA.kv_heads, LLAMA.head_dim, LLAMA.width)
            state[name] = per_head.repeat_interleave(2, 0).reshape(-1, LLAMA.width)
    full.load_state_dict(state)
    tokens = torch.randint(0, 31, (3, 9))
    close(grouped(tokens), full(tokens))


def test_rope_turns_pairs_by_position_times_frequency():
    config = TransformerConfig(vocab_size=2, width=8, heads=1, rope_base=100.0, max_length=16)
    x = torch.randn(1, 1, 16, 8)
    pairs = torch.complex(x[..., :4], x[..., 4:])  # channel i with channel i + 4
    angles = torch.arange(16)[:, None] * torch.tensor([100.0 ** (-i / 4) for i in range(4)])
    expected = pairs * torch.polar(torch.ones(16, 4), angles)
    close(rotate(x, rope_table(config).unsqueeze(-3)), torch.cat([expected.real, expected.imag], -1), 1e-5)


def test_rope_attention_depends_on_distance_only():
    table = rope_table(LLAMA)
    q, k = torch.randn(2, LLAMA.head_dim)
    score = lambda i, j: rotate(q, table[:, i]) @ rotate(k, table[:, j])  # noqa: E731
    close(score(7, 3), score(30, 26), 1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-2


# Padding, cache, causality


@CONFIGS
def test_left_padding_changes_nothing(config):
    model = make(config)
    for pad in (0, 30):
        tokens, starts = left_pad(ROWS, pad)
        logits = model(tokens, starts=starts)
        assert logits.isfinite().all()
        for row, start, one in zip(ROWS, starts, logits, strict=True):
            close(one[start:], model(torch.tensor([row]))[0])


@CONFIGS
def test_a_row_of_padding_alone_is_finite_and_so_are_gradients(config):
    model = make(config)
    logits = model(torch.zeros(2, 4, dtype=torch.long), starts=torch.tensor([4, 0]))
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@CONFIGS
def test_padding_gets_no_gradient(config):
    model = make(config)
    tokens, starts = left_pad([[3, 1, 4], [1, 5, 9, 2, 6]], pad=17)  # 17 occurs nowhere else
    model.head.weight = torch.nn.Parameter(model.head.weight.detach().clone())  # untie: the head reaches every token
    model(tokens, starts=starts)[0, 2:].square().sum().backward()
    assert model.embed.weight.grad[17].abs().max() == 0
    assert model.embed.weight.grad[3].abs().max() > 0


@CONFIGS
@pytest.mark.parametrize("pieces", [[7], [1] * 7, [4, 1, 1, 1], [3, 4], [2, 1, 3, 1]])
@pytest.mark.parametrize("padded", [False, True])
def test_cached_and_uncached_logits_agree(config, pieces, padded):
    model = make(config)
    tokens, starts = left_pad(ROWS)
    starts = starts if padded else None
    cache = KVCache(config, len(tokens), 9)
    seen = [model(piece, starts=starts, cache=cache) for piece in tokens.split(pieces, 1)]
    assert cache.length == 7
    real = torch.arange(7) >= (0 if starts is None else starts[:, None])
    close(torch.cat(seen, 1)[real.expand(4, 7)], model(tokens, starts=starts)[real.expand(4, 7)])


def test_repeat_continues_each_row_n_times():
    model = make(LLAMA)
    prompts, next_tokens = torch.randint(0, 31, (2, 4)), torch.randint(0, 31, (6, 1))
    cache = KVCache(LLAMA, 2, 5)
    model(prompts, cache=cache)
    logits = model(next_tokens, cache=cache.repeat(3))
    assert cache.length == 4
    close(logits[:, -1], model(torch.cat([prompts.repeat_interleave(3, 0), next_tokens], 1))[:, -1])


@CONFIGS
def test_the_future_changes_nothing_in_the_past(config):
    model = make(config)
    tokens = torch.randint(0, 31, (2, 12))
    for t in (1, 6, 11):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + 1) % 31
        before, after = model(tokens), model(changed)
        close(before[:, :t], after[:, :t], 1e-6)
        assert (before[:, t] - after[:, t]).abs().max() > 1e-2


@CONFIGS
def test_every_position_sees_its_whole_past(config):
    model = make(config)
    inputs = model.embed(torch.randint(0, 31, (1, 8))).detach().requires_grad_()
    model.embed.forward = lambda tokens: inputs
    model(torch.zeros(1, 8, dtype=torch.long))[0, -1].square().sum().backward()
    assert (inputs.grad[0].abs().amax(-1) > 1e-6).all()


def test_positions_matter():
    for config in (LLAMA, GPT2):
        model = make(config)
        a, b = model(torch.tensor([[1, 2, 3, 4]]))[0, -1], model(torch.tensor([[2, 1, 3, 4]]))[0, -1]
        assert (a - b).abs().max() > 1e-2


# Size and start


@pytest.mark.parametrize("tied", [False, True])
def test_parameter_count(tied):
    V, D, L, F_, E = 31, 32, 2, 48, 8
    llama = Transformer(TransformerConfig(**{**vars(LLAMA), "tied": tied}))
    attention = 2 * D * 4 * E + 2 * D * 2 * E  # query and out; key and value
    expected = V * D * (1 if tied else 2) + L * (attention + 3 * D * F_ + 2 * D) + D
    assert sum(p.numel() for p in llama.parameters()) == expected
    gpt2 = Transformer(TransformerConfig(**{**vars(GPT2), "tied": tied}))
    block = 4 * (D * D + D) + (D * 64 + 64) + (64 * D + D) + 4 * D
    expected = V * D * (1 if tied else 2) + 40 * D + L * block + 2 * D
    assert sum(p.numel() for p in gpt2.parameters()) == expected


def test_gpt2_small_has_124_million_parameters():
    with torch.device("meta"):
        gpt2 = Transformer(
            TransformerConfig(
                50257, 768, 12, 12, None, None, 3072, 1024, "layernorm", 1e-5, "learned", 1.0e4, "gelu", True, True
            )
        )
    assert sum(p.numel() for p in gpt2.parameters()) == 124_439_808


@CONFIGS
def test_a_fresh_model_is_reproducible_and_nearly_uniform(config):
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(Transformer(config))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
    logits = models[0](torch.randint(0, 31, (64, 16)))
    kl_from_uniform = math.log(31) + (logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    assert kl_from_uniform.mean() < (0.05 if config.tied else 0.8)  # of log 31 = 3.4
    block = models[0].blocks[0]
    for weight, std in (
        (models[0].embed.weight, 0.02),
        (block.attention.query.weight, 32**-0.5),
        (block.attention.out.weight, (config.heads * config.head_dim) ** -0.5 / 2),  # sqrt(2 * 2 layers)
        (block.ffn.up.weight, 32**-0.5),
        (block.ffn.down.weight, config.ffn**-0.5 / 2),
    ):
        assert 0.9 < weight.std() / std < 1.1
    assert all(not p.any() for name, p in models[0].named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = make(LLAMA)
    tokens, starts = left_pad(ROWS)
    expected = model(tokens, starts=starts)
    logits = model.to(dtype)(tokens, starts=starts)
    assert logits.dtype == dtype
    real = torch.arange(7) >= starts[:, None]
    assert (logits[real] - expected[real]).abs().max() < (0.3 if dtype == torch.bfloat16 else 1e-4)


def test_the_way_through_bfloat16_rounds_weights_and_not_positions():
    model, tokens = make(LLAMA), torch.randint(0, 31, (2, 40))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    expected = model(tokens)
    close(model.bfloat16().float()(tokens), expected, 0)


# Heads


def test_values_start_at_zero_and_share_the_trunk():
    torch.manual_seed(0)
    both = PolicyWithValue(make(LLAMA))
    tokens, starts = left_pad(ROWS)
    logits, values = both(tokens, starts=starts)
    assert values.shape == tokens.shape and not values.any()
    close(logits, both.policy(tokens, starts=starts), 0)
    torch.nn.init.normal_(both.value_head.weight)
    hidden, values = both.hidden_and_values(tokens, starts)
    close(values, hidden @ both.value_head.weight[0] + both.value_head.bias)
    values.square().sum().backward()
    assert both.policy.embed.weight.grad.abs().max() > 0
    assert both.config is LLAMA


def test_a_separate_critic_leaves_the_policy_alone():
    critic = make(TransformerConfig(vocab_size=31, width=16, heads=2, max_length=40), seed=1)
    both = PolicyWithValue(make(LLAMA), critic)
    torch.nn.init.normal_(both.value_head.weight)
    tokens, starts = left_pad(ROWS)
    logits, values = both(tokens, starts=starts)
    close(logits, both.policy(tokens, starts=starts), 0)
    close(values, both.value_head(critic.hidden(tokens, starts=starts)).squeeze(-1), 0)
    values.square().sum().backward()
    assert all(p.grad is None for p in both.policy.parameters())
    assert critic.embed.weight.grad.abs().max() > 0


@pytest.mark.parametrize("pool", [last_token, summed])
def test_reward_model_ignores_what_is_not_counted(pool):
    model = RewardModel(make(LLAMA), pool)
    torch.nn.init.normal_(model.score.weight)
    prompt, response = [3, 1, 4], [1, 5, 9]
    short = model(torch.tensor([prompt + response]), torch.ones(1, 3).bool())
    tokens = torch.tensor([[0, 0, *prompt, *response, 7, 7], [2] * 10])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]]).bool()
    scores = model(tokens, mask, starts=torch.tensor([2, 0]))
    assert scores.shape == (2,)
    close(scores[:1], short)
    # read at the response tokens themselves: the last of them matters
    other = model(torch.tensor([[*prompt, 1, 5, 8]]), torch.ones(1, 3).bool())
    assert (other - short).abs() > 1e-3


def test_a_fresh_reward_model_scores_zero():
    model = RewardModel(make(LLAMA), summed)
    assert model(torch.tensor([[1, 2, 3]]), torch.ones(1, 2).bool()).tolist() == [0.0]


def test_last_token_is_the_last_that_counts():
    scores = torch.tensor([[1.0, 6.0, 3.0, 9.0], [4.0, 5.0, 6.0, 7.0], [8.0, -3.0, -4.0, -5.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    last = last_token(scores, mask)
    assert last.tolist() == [3.0, 7.0, 8.0]
    (gradient,) = torch.autograd.grad(last.sum(), scores)
    assert gradient.nonzero().tolist() == [[0, 2], [1, 3], [2, 0]]


def test_pools_by_hand():
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, torch.nan], [torch.inf, torch.nan, 0.0]])
    mask = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 0]]).bool()
    assert last_token(scores, mask).tolist() == [3.0, 5.0, 0.0]
    assert summed(scores, mask).tolist() == [4.0, 9.0, 0.0]


# Errors


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"layers": 1.5}, "layers"),
        ({"width": 30}, "width"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"norm": "batchnorm"}, "norm"),
        ({"positions": "alibi"}, "positions"),
        ({"activation": "relu"}, "activation"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"rope_base": 0.0}, "rope_base"),
        ({"bias": True, "qkv_bias": True}, "qkv_bias"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling"),
        ({"rope_scaling": RopeScaling("linear", 2.0), "positions": "learned"}, "rope_scaling"),
    ],
)
def test_bad_configs_are_named(change, word, unhooked):
    with pytest.raises(ValueError, match=f"^{word}: "):
        TransformerConfig(**{**vars(LLAMA), "head_dim": None, **change})


def test_bad_tokens_are_named(unhooked):
    model = make(LLAMA)
    with pytest.raises(ValueError, match=r"^tokens: .*2 dimensions"):
        model.hidden(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"^tokens: wanted integers"):
        model.hidden(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"^tokens: wanted integers"):
        model.hidden(torch.zeros(2, 0, dtype=torch.long))
    for bad in (31, -1):
        with pytest.raises(ValueError, match=r"^tokens: wanted numbers in \[0, 31\)"):
            model.hidden(torch.tensor([[0, bad]]))
    with pytest.raises(ValueError, match=r"^tokens: 41 positions .* max_length 40"):
        model.hidden(torch.zeros(1, 41, dtype=torch.long))
    model.hidden(torch.zeros(1, 40, dtype=torch.long))


def test_bad_starts_and_caches_are_named(unhooked):
    model, tokens = make(LLAMA), torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"^starts: wanted one number a row"):
        model.hidden(tokens, starts=torch.zeros(3, dtype=torch.long))
    for bad in (-1, 5):
        with pytest.raises(ValueError, match=r"^starts: wanted numbers in \[0, 4\]"):
            model.hidden(tokens, starts=torch.tensor([0, bad]))
    with pytest.raises(ValueError, match=r"^cache: "):
        model.hidden(tokens, cache=KVCache(LLAMA, 2, 3))
    with pytest.raises(ValueError, match=r"^cache: "):
        model.hidden(tokens, cache=KVCache(LLAMA, 1, 8))
    cache = KVCache(LLAMA, 2, 60)
    model.hidden(torch.zeros(2, 39, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match=r"max_length 40"):
        model.hidden(torch.zeros(2, 2, dtype=torch.long), cache=cache)


def test_values_are_looked_at_on_request_everywhere(unhooked):
    with strict(), pytest.raises(ValueError, match=r"^tokens: "):
        make(LLAMA).hidden(torch.tensor([[31]]))


def test_reward_model_wants_a_mask_over_the_last_columns(unhooked):
    model = RewardModel(make(LLAMA), last_token)
    with pytest.raises(ValueError, match=r"^mask: "):
        model.token_scores(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 4).bool())
    with pytest.raises(ValueError, match=r"^mask: "):
        model.token_scores(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 2).bool())
