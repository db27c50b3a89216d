"""Their side of the workloads: transformers' generate and TRL's trainers, set to what is fastest for them on a CPU.

The same shape as `ours`: each workload gives (answers, units). A trainer pauses in a callback between two steps, so that a
unit is all that lies between: fetching a batch, the step, the bookkeeping. No gradient checkpointing, no logging, no saving;
bfloat16 by the trainer's own switch. This file runs by itself, in a Python that need not know minirl.
"""

import importlib.metadata
import platform
from functools import partial
from pathlib import Path
from tempfile import gettempdir

import torch
import transformers
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback

PAD = 0


class Between(TrainerCallback):
    """Pauses after each step of a trainer."""

    def __init__(self):
        self.pause = lambda: None

    def on_step_end(self, args, state, control, **kwargs):
        self.pause()


def versions() -> dict:
    found = {"torch": torch.__version__, "python": platform.python_version()}
    for name in ("transformers", "trl", "accelerate"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def language_model(folder: Path, name: str = "policy"):
    return LlamaForCausalLM.from_pretrained(folder / name, dtype=torch.float32)


def score_model(folder: Path, name: str):
    return LlamaForSequenceClassification.from_pretrained(folder / name, dtype=torch.float32)


def tokenizer(folder: Path):
    return PreTrainedTokenizerFast.from_pretrained(folder / "policy", padding_side="left")


def words(rows: torch.Tensor) -> list[str]:
    return [" ".join(f"t{i}" for i in row) for row in rows.tolist()]


def settings(spec: dict, *, batch: int) -> dict:
    """What every trainer is told."""
    return {
        "output_dir": str(Path(gettempdir()) / "minirl_bench"),  # wanted, and nothing is written to it
        "use_cpu": True,
        "bf16": spec["dtype"] == "bf16",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "logging_steps": 10**6,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 0,
    }


def sampling(folder: Path, spec: dict, *, new: int, group: int):
    model = language_model(folder).eval()
    prompts = load_file(folder / "rows.safetensors")["prompts"][: spec["rows"] // group]
    fixed = {"eos_token_id": None, "pad_token_id": PAD}
    knobs = {"max_new_tokens": new, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} | fixed

    def answers() -> dict:
        some = prompts[:8]
        with torch.inference_mode():
            out = model.generate(
                some, attention_mask=torch.ones_like(some), max_new_tokens=16, do_sample=False, **fixed
            )
        return logits(model, folder) | {"greedy tokens": out[:, some.shape[1] :].tolist()}

    def units(pause) -> None:
        mask = torch.ones_like(prompts)
        with torch.autocast("cpu", torch.bfloat16, enabled=spec["dtype"] == "bf16"), torch.inference_mode():
            while True:
                pause()
                out = model.generate(prompts, attention_mask=mask, num_return_sequences=group, **knobs)
                assert out.shape == (spec["rows"], prompts.shape[1] + new)

    return answers, units


def grpo_step(folder: Path, spec: dict):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows, between = load_file(folder / "rows.safetensors"), Between()
    prompts = rows["prompts"][: spec["rows"] // spec["group"] * spec["units"]]
    args = GRPOConfig(
        **settings(spec, batch=spec["rows"]),
        num_generations=spec["group"],
        max_completion_length=spec["new"],
        beta=0.0,
        num_iterations=1,
        max_steps=spec["units"],
        temperature=1.0,
    )
    trainer = GRPOTrainer(
        model=language_model(folder),
        reward_funcs=partial_reward(spec["new"]),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": words(prompts)}),
        processing_class=tokenizer(folder),
        callbacks=[between],
    )

    def answers() -> dict:
        model, index = trainer.model, torch.arange(spec["rows"]) // spec["group"]
        prompts, responses = rows["prompts"][index], rows["responses"]
        tokens = torch.cat([prompts, responses], 1)
        read = trainer._get_per_token_logps_and_entropies
        with torch.no_grad():
            logprobs = read(model, tokens, torch.ones_like(tokens), spec["new"])[0]
        trainer.current_gradient_accumulation_steps = 1
        batch = {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": responses,
            "completion_mask": torch.ones_like(responses),
            "advantages": torch.linspace(-2, 2, spec["rows"]),
            "num_items_in_batch": torch.tensor(responses.numel()),
        }
        loss = trainer.compute_loss(model, batch)
        return logits(model, folder) | {"log-probs": logprobs.tolist()} | gradient(model, loss)

    return answers, partial(train, trainer, between)


def partial_reward(length: int):
    def even_share(completions, **kwargs):
        return [sum(int(word[1:]) % 2 == 0 for word in text.split()) / length for text in completions]

    return even_share


def dpo_step(folder: Path, spec: dict, *, live: bool):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows, between = load_file(folder / "rows.safetensors"), Between()
    data = {"prompt": words(rows["pair_prompts"])}
    data |= {side: [f" {text}" for text in words(rows[side])] for side in ("chosen", "rejected")}
    args = DPOConfig(
        **settings(spec, batch=spec["pairs"]),
        beta=0.1,
        max_length=spec["pair_length"],
        max_steps=spec["units"],
        precompute_ref_log_probs=not live,
    )
    trainer = DPOTrainer(
        model=language_model(folder),
        ref_model=language_model(folder, "reference"),
        args=args,
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer(folder),
        callbacks=[between],
    )

    def answers() -> dict:
        first = [trainer.train_dataset[i] for i in range(spec["pairs"])]
        batch = trainer.data_collator(first)
        if not live and "ref_chosen_logps" not in batch:
            chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, batch)
            batch |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        loss = trainer.compute_loss(trainer.model, batch)
        return logits(trainer.model, folder) | {"loss": loss.item()} | gradient(trainer.model, loss)

    return answers, partial(train, trainer, between)


def reward_step(folder: Path, spec: dict):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows, between = load_file(folder / "rows.safetensors"), Between()
    data = {side: words(rows[f"judged_{side}"]) for side in ("chosen", "rejected")}
    args = RewardConfig(**settings(spec, batch=spec["pairs"]), max_length=spec["pair_length"], max_steps=spec["units"])
    trainer = RewardTrainer(
        model=score_model(folder, "judge"),
        args=args,
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer(folder),
        callbacks=[between],
    )

    def answers() -> dict:
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(spec["pairs"])])
        loss, out = trainer.compute_loss(trainer.model, batch, return_outputs=True)
        found = {"scores": out.logits.squeeze(-1).tolist(), "loss": loss.item()}
        return found | gradient(trainer.model, loss)

    return answers, partial(train, trainer, between)


def ppo_step(folder: Path, spec: dict):
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    from trl.experimental.ppo.ppo_trainer import forward, get_reward, selective_log_softmax

    rows, between = load_file(folder / "rows.safetensors"), Between()
    args = PPOConfig(
        **settings(spec, batch=spec["rows"]),
        num_mini_batches=1,
        num_ppo_epochs=4,
        total_episodes=spec["rows"] * spec["units"],
        response_length=spec["new"],
        local_rollout_forward_batch_size=spec["rows"],
        num_sample_generations=0,
        temperature=1.0,
        kl_coef=0.05,
    )
    policy, reference, judge = language_model(folder), language_model(folder, "reference"), score_model(folder, "judge")
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer(folder),
        model=policy,
        ref_model=reference,
        reward_model=judge,
        value_model=score_model(folder, "critic"),
        train_dataset=Dataset.from_dict({"input_ids": rows["prompts"].tolist()}),
        eval_dataset=Dataset.from_dict({"input_ids": rows["prompts"][: spec["rows"]].tolist()}),
    )
    trainer.callback_handler.add_callback(between)

    def answers() -> dict:
        index = torch.arange(spec["rows"]) // spec["group"]
        tokens = torch.cat([rows["prompts"][index], rows["responses"]], 1)
        before, found = spec["prompt"], {}
        with torch.no_grad():
            for name, model in (("log-probs", policy), ("reference log-probs", reference)):
                out = forward(model, tokens, PAD).logits[:, before - 1 : -1]
                found[name] = selective_log_softmax(out, tokens[:, before:]).tolist()
            found["scores"] = get_reward(judge, tokens, PAD, before)[1].tolist()
        return logits(policy, folder) | found

    return answers, partial(train, trainer, between)


def train(trainer, between: Between, pause) -> None:
    between.pause = pause
    trainer.train()


def logits(model, folder: Path) -> dict:
    with torch.no_grad():
        return {"logits": model(load_file(folder / "rows.safetensors")["prompts"][:4]).logits.tolist()}


def gradient(model, loss: torch.Tensor) -> dict:
    """Norms of the gradient: of all weights, of the embedding and of the head over the vocabulary, where there is one."""
    model.zero_grad()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    parts = [norm, model.model.embed_tokens.weight.grad.norm()]
    if hasattr(model, "lm_head"):
        parts.append(model.lm_head.weight.grad.norm())
    model.zero_grad()
    return {"gradient norms": torch.stack(parts).tolist()}


transformers.logging.set_verbosity_error()
WORKLOADS = {
    "generate": partial(sampling, new=32, group=1),
    "generate_64": partial(sampling, new=64, group=1),
    "generate_groups": partial(sampling, new=32, group=8),
    "generate_groups_64": partial(sampling, new=64, group=8),
    "grpo": grpo_step,
    "dpo": partial(dpo_step, live=True),
    "dpo_precomputed": partial(dpo_step, live=False),
    "reward_model": reward_step,
    "ppo": ppo_step,
    "ppo_critic": ppo_step,
}
