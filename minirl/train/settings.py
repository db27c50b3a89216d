"""Settings that learn on two CPU cores, for each loop and world. Chosen on seeds 0-2, checked on others (see the tests).

A field that is not named here has its config's own default, which is also what a world of your own starts from.
"""

from minirl.model import TransformerConfig
from minirl.train.dpo import DPOConfig
from minirl.train.grpo import GRPOConfig
from minirl.train.kto import KTOConfig
from minirl.train.ppo import PPOConfig
from minirl.train.pretrain import PretrainConfig
from minirl.train.reward_model import RewardModelConfig
from minirl.train.sft import SFTConfig


def tiny_transformer(vocab_size: int) -> TransformerConfig:
    """0.11M parameters: enough for these worlds. Four times as many were four times as slow and no better.

    The rotary base is 100 and not Llama's 10,000: texts are at most 64 tokens long, and every channel should turn
    noticeably within them. With 10,000 the digit world was learned by two seeds of three, with 100 by all.
    """
    return TransformerConfig(
        vocab_size=vocab_size, width=64, layers=2, heads=4, ffn=176, max_length=64, rope_base=100.0
    )


PREFERENCE_PAIRS = 2500  # what the labeller is asked for

STORIES = {
    "pretrain": PretrainConfig(steps=250, batch=64, lr=4e-3, warmup=50),
    "sft": SFTConfig(steps=60, batch=64, lr=2e-3),
    "reward_model": RewardModelConfig(steps=160, pairs=64, lr=1e-3, weight_decay=0.1),
    # Reward models of other seeds differ in scale: one price of a nat would mean another KL for each, one KL does not.
    "ppo": PPOConfig(
        steps=60,
        batch=128,
        minibatch=32,
        epochs=2,
        max_new_tokens=40,
        kl_coef=0.25,
        kl_target=3.2,
        kl_horizon=1000,
        lr=6e-4,
    ),
    "dpo": DPOConfig(steps=120, pairs=64, beta=0.2, lr=3e-4),
    "kto": KTOConfig(steps=120, batch=128, beta=0.2, lr=3e-4),
    "grpo": GRPOConfig(
        steps=60, prompts=16, group_size=8, minibatch=32, epochs=2, max_new_tokens=40, kl_coef=0.3, lr=6e-4
    ),
}

DIGIT_SUM = {
    "pretrain": PretrainConfig(steps=300, batch=128, lr=5e-3, warmup=50),
    "sft": SFTConfig(steps=60, batch=128, lr=1e-3),
    "reward_model": RewardModelConfig(steps=100, pairs=64, lr=1e-3, weight_decay=0.1),
    "ppo": PPOConfig(steps=60, batch=256, minibatch=64, epochs=1, max_new_tokens=12, kl_coef=0.0, lr=5e-4),
    "dpo": DPOConfig(steps=120, pairs=64, beta=0.1, lr=3e-4),
    "kto": KTOConfig(steps=120, batch=128, beta=0.1, lr=3e-4),
    "grpo": GRPOConfig(
        steps=60, prompts=16, group_size=16, minibatch=256, epochs=1, max_new_tokens=12, kl_coef=0.0, lr=5e-4
    ),
}

ADDITION = {
    "pretrain": PretrainConfig(steps=450, batch=128, lr=5e-3, warmup=50),
    "sft": SFTConfig(steps=60, batch=128, lr=1e-3),
    "reward_model": RewardModelConfig(steps=100, pairs=64, lr=1e-3, weight_decay=0.1),
    "ppo": PPOConfig(steps=80, batch=256, minibatch=64, epochs=1, max_new_tokens=36, kl_coef=0.0, lr=2e-4),
    "dpo": DPOConfig(steps=120, pairs=64, beta=0.1, lr=3e-4),
    "kto": KTOConfig(steps=120, batch=128, beta=0.1, lr=3e-4),
    # Longer answers want a smaller step than the digit sum's: 5e-4 damages the skill.
    "grpo": GRPOConfig(
        steps=80, prompts=16, group_size=16, minibatch=256, epochs=1, max_new_tokens=36, kl_coef=0.0, lr=2e-4
    ),
}

COUNTDOWN = {
    "pretrain": PretrainConfig(steps=700, batch=128, lr=5e-3, warmup=50),
    "sft": SFTConfig(steps=60, batch=128, lr=1e-3),
    "reward_model": RewardModelConfig(steps=100, pairs=64, lr=1e-3, weight_decay=0.1),
    "ppo": PPOConfig(steps=100, batch=256, minibatch=64, epochs=1, max_new_tokens=52, kl_coef=0.0, lr=3e-4),
    "dpo": DPOConfig(steps=120, pairs=64, beta=0.1, lr=3e-4),
    "kto": KTOConfig(steps=120, batch=128, beta=0.1, lr=3e-4),
    "grpo": GRPOConfig(
        steps=80, prompts=16, group_size=16, minibatch=256, epochs=1, max_new_tokens=52, kl_coef=0.0, lr=3e-4
    ),
}
