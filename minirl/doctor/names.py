"""Other people's names for our statistics. Ours are those of minirl.types.STATS and keep their names.

TRL's are those its documentation lists for the PPO, GRPO, RLOO, DPO, KTO, reward and SFT trainers (0.9 to 1.x), and for the
classic PPOTrainer (0.4 to 0.11). Where two names mean one thing, the one that stands first here wins.
"""

OURS = {
    # the generation before and of 2024: PPOTrainer, RLOOTrainer
    "objective/scores": "reward_mean",
    "objective/kl": "kl",
    "policy/approxkl_avg": "approx_kl",
    "policy/clipfrac_avg": "clip_fraction",
    "policy/entropy_avg": "entropy",
    "val/ratio": "ratio_mean",
    "loss/policy_avg": "policy_loss",
    "loss/value_avg": "value_loss",
    # GRPOTrainer, and RLOOTrainer of 2025
    "reward": "reward_mean",
    "frac_reward_zero_std": "dead_groups",
    "completions/mean_length": "length_mean",
    "completion_length": "length_mean",
    "clip_ratio/region_mean": "clip_fraction",
    "clip_ratio": "clip_fraction",
    "sampling/sampling_logp_difference/mean": "sampling_gap",
    # DPO, KTO and their kin
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_rewards",
    "rewards/rejected": "rejected_rewards",
    "logps/chosen": "chosen_logprobs",
    "logps/rejected": "rejected_logprobs",
    # the classic PPOTrainer
    "ppo/mean_scores": "reward_mean",
    "env/reward_mean": "reward_mean",
    "ppo/std_scores": "reward_std",
    "env/reward_std": "reward_std",
    "objective/kl_coef": "kl_coef",
    "ppo/policy/entropy": "entropy",
    "ppo/policy/clipfrac": "clip_fraction",
    "ppo/policy/approxkl": "approx_kl",
    "ppo/val/var_explained": "explained_variance",
    "ppo/val/mean": "value_mean",
    "ppo/returns/mean": "return_mean",
    "ppo/loss/value": "value_loss",
    "ppo/loss/policy": "policy_loss",
    "ppo/loss/total": "loss",
    "ppo/learning_rate": "lr",
    "tokens/responses_len_mean": "length_mean",
    # all of them
    "learning_rate": "lr",
    "win_rate": "win_rate",
    "eval_win_rate": "win_rate",
    "num_iterations": "updates",
    "num_ppo_epochs": "updates",
    "ppo_epochs": "updates",
    "epochs": "updates",
    # the last resorts: with the KL penalty inside, and summed over a response
    "objective/rlhf_reward": "reward_mean",
    "objective/entropy": "entropy",
}

CUT_OFF = "completions/clipped_ratio"  # 1 - finished
PER_TOKEN_KL = {"completions/mean_length", "completion_length"}  # beside these, `kl` is a mean over tokens
STEPS = ("step", "global_step", "_step")
SUMMARY = ("train_runtime", "train_loss", "total_flos")  # in the closing row of a log history


def ours(record: dict) -> dict:
    """One record in our names. `kl` is made the KL of a whole response, and `clipped_ratio` becomes `finished`."""
    record = {str(name).removeprefix("train/"): value for name, value in record.items()}
    found = {OURS[name]: record[name] for name in reversed(OURS) if name in record}
    found |= {name: value for name, value in record.items() if name not in OURS and "/" not in name}
    if CUT_OFF in record and (share := number(record[CUT_OFF])) is not None:
        found["finished"] = 1 - share
    length, kl = number(found.get("length_mean")), number(record.get("kl"))
    if length is not None and kl is not None and PER_TOKEN_KL & record.keys():
        found["kl"] = kl * length
    return found


def number(value) -> float | None:
    """The number that a JSON value is or spells ("NaN" included), None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def is_training_row(record: dict) -> bool:
    """Not an evaluation and not the closing summary of a log history. A win rate is welcome wherever it stands."""
    names = [str(name) for name in record]
    if any(name in SUMMARY for name in names):
        return False
    measured = [name for name in names if name not in (*STEPS, "epoch")]
    return "eval_win_rate" in names or any(not name.startswith(("eval_", "eval/")) for name in measured)
