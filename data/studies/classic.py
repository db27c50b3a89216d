"""The classic loop with a keyword for a reward, seeds 20, 21, 22, others than those on which the settings were chosen: read
on prompt and answer together, read on the answer alone, and a reward model in the rule's place. About two minutes on one
CPU core.

python data/studies/classic.py
"""

import torch
from store import write

from minirl.classic import AutoModelForCausalLMWithValueHead, AutoTokenizer, PPOConfig, PPOTrainer
from minirl.pretrained import load_reward_model
from minirl.rollout import lay_out
from minirl.tasks import DATA, stories

SEEDS = (20, 21, 22)
BASE, JUDGE = DATA / "weights" / "stories_sft", DATA / "weights" / "stories_reward_model"
KEYWORD = "the"  # "One day Tom went to the park." holds it, and about half of the answers do
STEPS = 20
ANSWERS = 256  # to measure with
PPO = {
    "learning_rate": 6e-4,
    "batch_size": 64,
    "mini_batch_size": 32,
    "ppo_epochs": 2,
    "init_kl_coef": 0.1,
    "adap_kl_ctrl": False,
    "vf_coef": 0.5,
    "cliprange_value": 0.5,
    "max_grad_norm": 1.0,
}
SETTINGS = (SEEDS, KEYWORD, STEPS, ANSWERS, PPO)

tokenizer = AutoTokenizer.from_pretrained(BASE)
judge, _ = load_reward_model(JUDGE)


def keyword(text: str) -> float:
    return 1.0 if KEYWORD in text.replace(".", " ").split() else -1.0


def read_together(prompts, queries, answers) -> list[float]:
    """The mistake: the prompt has the word already."""
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [keyword(f"{prompt} {text}") for prompt, text in zip(prompts, texts, strict=True)]


def read_alone(prompts, queries, answers) -> list[float]:
    return [keyword(text) for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


@torch.no_grad()
def judged(prompts, queries, answers) -> list[float]:
    tokens, mask, starts = lay_out([query.tolist() for query in queries], [answer.tolist() for answer in answers])
    return judge(tokens, mask, starts=starts).tolist()


REWARDS = {"prompt and answer": read_together, "answer alone": read_alone, "reward model": judged}


def asked(n: int, generator: torch.Generator) -> tuple[list[str], list[torch.Tensor]]:
    prompts = stories.prompts(n, generator)
    return prompts, [tokenizer.encode(prompt, return_tensors="pt")[0] for prompt in prompts]


def answered(trainer, queries) -> list[torch.Tensor]:
    return trainer.generate(queries, return_prompt=False, do_sample=True, max_new_tokens=stories.MAX_NEW_TOKENS)


def measured(trainer, seed: int) -> dict:
    """Fresh answers under every reward, and under the hidden taste that the reward model was made for."""
    prompts, queries = asked(ANSWERS, torch.Generator().manual_seed(1000 + seed))
    answers = answered(trainer, queries)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    found = {name: sum(reward(prompts, queries, answers)) / ANSWERS for name, reward in REWARDS.items()}
    return found | {"gold": float(stories.gold(prompts, texts).mean())}


def trained(reward: str, seed: int, *, steps: int = STEPS) -> tuple[dict, dict, list[dict]]:
    """(measured before, measured after, stats of every step)."""
    model = AutoModelForCausalLMWithValueHead.from_pretrained(BASE)
    trainer = PPOTrainer(PPOConfig(seed=seed, **PPO), model, None, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    before, history = measured(trainer, seed), []
    for _ in range(steps):
        prompts, queries = asked(PPO["batch_size"], generator)
        answers = answered(trainer, queries)
        scores = torch.tensor(REWARDS[reward](prompts, queries, answers))
        history.append(trainer.step(queries, answers, scores))
    return before, measured(trainer, seed), history


def rows(reward: str, seed: int) -> list[dict]:
    before, after, history = trained(reward, seed)
    seen = [stats["ppo/mean_scores"] for stats in history]
    first = {"seed": seed, "reward": reward}
    lowest = {"least_score": min(seen), "greatest_score": max(seen), "kl": history[-1]["objective/kl"]}
    return [first | {"when": "before"} | before, first | {"when": "after"} | after | lowest]


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("classic", [row for seed in SEEDS for reward in REWARDS for row in rows(reward, seed)], SETTINGS)
