"""PPOConfig and PPOTrainer: the classic interface over `minirl.train.ppo.improve`.

What `step` does with three lists, in this order: cut off queries that were left in front of responses and what follows an
end token, lay prompts and responses out as a Rollout, and hand it with the scores to `improve`. Nothing else stands
between a tutorial and the loop that the notebooks explain.
"""

import copy
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from minirl.classic.config import PPOConfig
from minirl.classic.models import AutoModelForCausalLM, AutoModelForCausalLMWithValueHead, create_reference_model
from minirl.classic.notes import Notes, ignored
from minirl.classic.rows import rows_of, split, up_to_end
from minirl.classic.tokenizer import AutoTokenizer
from minirl.kl import AdaptiveKL
from minirl.model import PolicyWithValue, Transformer
from minirl.rollout import lay_out
from minirl.tokenizer import Tokenizer
from minirl.train import ppo
from minirl.train.optimizer import adamw
from minirl.types import Bool, Rollout, Tensor, check_knob

STATS = {  # TRL's name of a number, and improve's
    "objective/kl": "kl",
    "objective/kl_coef": "kl_coef",
    "ppo/mean_scores": "reward_mean",
    "ppo/std_scores": "reward_std",
    "ppo/loss/policy": "policy_loss",
    "ppo/loss/value": "value_loss",
    "ppo/loss/total": "loss",
    "ppo/policy/entropy": "entropy",
    "ppo/policy/approxkl": "approx_kl",
    "ppo/policy/clipfrac": "clip_fraction",
    "ppo/policy/ratio": "ratio_mean",
    "ppo/val/var_explained": "explained_variance",
    "ppo/val/mean": "value_mean",
    "ppo/returns/mean": "return_mean",
    "ppo/learning_rate": "lr",
    "tokens/responses_len_mean": "length_mean",
}


class Stat(float):
    """A number of `stats`: a float, with the .item() that some programs call on it."""

    def item(self) -> float:
        return float(self)


class PPOTrainer:
    """PPOTrainer(config, model, ref_model, tokenizer): `generate`, then `step` on what it gave and what that was worth.

    ref_model None is a frozen copy of the model. `tokenizer` is AutoTokenizer, one of transformers, or minirl's own; only
    its end and pad tokens are asked for. Randomness comes from config.seed alone. `records` keeps what `improve` gave, under
    minirl's names: `minirl.report` and other readers of metrics take them.
    """

    def __init__(
        self,
        config: Any = None,
        model: Any = None,
        ref_model: Any = None,
        tokenizer: Any = None,
        dataset: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: Any = None,
        **keywords,
    ):
        ignored({"num_shared_layers": num_shared_layers} | keywords)
        config = PPOConfig() if config is None else config
        if not isinstance(config, PPOConfig):
            raise ValueError(f"config: wanted minirl.classic.PPOConfig, got {type(config).__name__}")
        if not isinstance(model, AutoModelForCausalLMWithValueHead):
            wanted = "minirl.classic.AutoModelForCausalLMWithValueHead"
            raise ValueError(f"model: wanted {wanted}, got {type(model).__name__}; its from_pretrained opens a folder")
        if not hasattr(tokenizer, "eos_token_id") and not isinstance(tokenizer, Tokenizer):
            raise ValueError(f"tokenizer: wanted one with an eos_token_id, got {type(tokenizer).__name__}")
        self.config, self.model, self.tokenizer, self.notes = config, model, tokenizer, Notes()
        wrapped = AutoTokenizer(tokenizer) if isinstance(tokenizer, Tokenizer) else tokenizer
        self.eos, self.pad = wrapped.eos_token_id, wrapped.pad_token_id
        self.ref_model = create_reference_model(model) if ref_model is None else ref_model
        self.ref = language_model(self.ref_model).to(model.device)
        if self.ref is model.actor.policy:
            self.notes("ref_model", "is the policy itself, so that the KL would always be 0; a frozen copy is taken")
            self.ref = copy.deepcopy(self.ref).requires_grad_(False)
        self.optimizer = adamw(model.actor) if optimizer is None else optimizer
        self.own_lr, self.lr_scheduler = optimizer is not None or lr_scheduler is not None, lr_scheduler
        if self.own_lr and optimizer is None:
            raise ValueError("lr_scheduler: moves the learning rates of an optimizer; wanted optimizer= as well")
        self.generator = model.generator = torch.Generator().manual_seed(config.seed)
        self.adaptive = AdaptiveKL(config.init_kl_coef, target=config.target, horizon=int(config.horizon))
        self.current_step, self.records, self.logs = 0, [], []
        self.dataset, self.dataloader = dataset, None
        if dataset is not None:
            self.dataloader = self.prepare_dataloader(dataset, data_collator)
        unwrap = {"unwrap_model": lambda model: model, "wait_for_everyone": lambda: None, "print": print}
        alone = {"is_main_process": True, "is_local_main_process": True, "num_processes": 1, "process_index": 0}
        self.accelerator = SimpleNamespace(device=model.device, **unwrap, **alone)

    @property
    def device(self) -> torch.device:
        return self.model.device

    current_device = device

    def prepare_dataloader(self, dataset, data_collator: Callable | None = None) -> torch.utils.data.DataLoader:
        """Shuffled batches of batch_size rows; the last one is left out if it is smaller, unless it is the only one."""
        size = self.config.batch_size
        if len(dataset) < size:
            self.notes("dataset", f"{len(dataset)} rows, fewer than batch_size = {size}; they make one batch")
        return torch.utils.data.DataLoader(
            dataset,
            batch_size=size,
            collate_fn=data_collator,
            shuffle=True,
            drop_last=len(dataset) >= size,
            generator=self.generator,
        )

    def generate(
        self,
        query_tensor: Any,
        length_sampler: Callable | None = None,
        batch_size: int | None = None,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs,
    ):
        """One query (S,) gives a tensor (1, S + T); a list of them a list of rows without padding, `batch_size` at a time
        (None: all at once). `length_sampler()` says how many tokens to write. The knobs are those of model.generate."""
        given = (query_tensor, length_sampler, batch_size, return_prompt, generation_kwargs)
        answers = self._answers(self.model, *given)
        if not generate_ref_response:
            return answers
        ref = AutoModelForCausalLMWithValueHead(self.ref)
        ref.generator, ref.notes = self.generator, self.model.notes
        return answers, self._answers(ref, *given)

    def _answers(self, model, query_tensor, length_sampler, batch_size, return_prompt: bool, generation_kwargs: dict):
        knobs = {"eos_token_id": self.eos, "pad_token_id": self.pad} | generation_kwargs
        queries = rows_of("query_tensor", query_tensor, self.pad)
        one_tensor = isinstance(query_tensor, Tensor)
        answers = []
        for some in split(queries, len(queries) if one_tensor else batch_size or len(queries)):
            width = max(map(len, some))
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in some])
            tokens = torch.tensor([[self.pad or 0] * (width - len(row)) + row for row in some])
            if length_sampler is not None:
                knobs["max_new_tokens"] = int(length_sampler())
            written = model.generate(tokens, mask, **knobs)
            if one_tensor:
                return written if return_prompt else written[:, width:]
            for row, query in zip(written, some, strict=True):
                answer = up_to_end(row[width:].tolist(), self.eos)
                answers.append(torch.tensor(query + answer if return_prompt else answer, device=written.device))
        return answers

    def step(self, queries: Any, responses: Any, scores: Any, response_masks: Any = None) -> dict:
        """One PPO update on responses (token ids, a row each) to queries, and what each was worth. Returns TRL's stats.

        ValueError, naming the argument: rows of another number or kind, a score that is no finite number, a response in
        which nothing counts. A `response_masks` row is True (or 1) on the tokens of its response that count.
        """
        began = time.perf_counter()
        asked, answered = rows_of("queries", queries, self.pad), rows_of("responses", responses, None)
        worth = self._scores(scores, len(asked))
        rollout = self._rollout(asked, answered, rows_of("queries", queries, None), response_masks)
        settings = self._settings(rollout.mask)
        self.current_step += 1
        kl_coef = self.adaptive.kl_coef
        stats = ppo.improve(
            self.model.actor,
            self.ref,
            rollout,
            worth,
            settings,
            self.optimizer,
            kl_coef=kl_coef,
            step=self.current_step,
            lr=self.optimizer.param_groups[0]["lr"] if self.own_lr else self.config.learning_rate,
            generator=self.generator,
        )
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        ours = {name: float(x) for name, x in stats.items()}
        if self.config.adap_kl_ctrl:
            self.adaptive.update(ours["kl"], len(rollout))
        self.records.append({"step": self.current_step} | ours)
        self.model.written.clear()
        theirs = {name: ours[own] for name, own in STATS.items() if own in ours}
        theirs["ppo/mean_non_score_reward"] = -kl_coef * ours["kl"] / ours["length_mean"]  # of a token
        theirs["objective/entropy"] = ours["entropy"] * ours["length_mean"]  # of a response, in nats
        theirs["tokens/queries_len_mean"] = sum(map(len, asked)) / len(asked)
        theirs["time/ppo/total"] = time.perf_counter() - began
        return {name: Stat(x) for name, x in theirs.items()}

    def _settings(self, mask: Bool[Tensor, "B T"]) -> ppo.PPOConfig:
        """Our names for the config's."""
        c, rows = self.config, len(mask)
        if rows > c.batch_size:
            raise ValueError(f"queries: wanted at most batch_size = {c.batch_size}, got {rows}")
        if rows < c.batch_size:
            alone = " Whitened over a single answer, advantages push some of its tokens up and others down, whatever the score"
            self.notes("batch_size", f"{c.batch_size}, and a step got {rows}; it is taken.{alone if rows == 1 else ''}")
        together = min(rows, c.mini_batch_size * c.gradient_accumulation_steps)
        return ppo.PPOConfig(
            batch=rows,
            minibatch=together,
            micro_batch=None if c.mini_batch_size >= rows else c.mini_batch_size,
            epochs=c.ppo_epochs,
            gamma=c.gamma,
            lam=c.lam,
            clip_eps=c.cliprange,
            value_clip_eps=c.cliprange_value,
            value_coef=c.vf_coef,
            max_grad_norm=float("inf") if c.max_grad_norm is None else c.max_grad_norm,
        )

    def _scores(self, scores: Any, rows: int) -> Tensor:
        scores = scores.flatten() if isinstance(scores, Tensor) else scores
        if isinstance(scores, float | int) and rows == 1:
            scores = [scores]
        if not isinstance(scores, Sequence | Tensor) and not hasattr(scores, "tolist"):
            raise ValueError(f"scores: wanted a list of numbers, one a response, got {type(scores).__name__}")
        if len(scores) != rows:
            raise ValueError(f"scores: wanted one a query, {rows}, got {len(scores)}")
        if any(not isinstance(score, Tensor) for score in scores):
            self.notes("scores", "plain numbers, taken as they are; tensors would do as well")
        try:
            found = torch.tensor([float(score) for score in scores])
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"scores: wanted one number each, got {scores!r}") from None
        if not found.isfinite().all():
            raise ValueError(f"scores: wanted finite numbers, got {found[~found.isfinite()][0]}")
        if rows > 1 and (found == found[0]).all():
            self.notes(
                "equal scores",
                f"every response got {found[0]:g}, which says nothing of any; whitening blows up the noise that is left, and "
                f"the policy moves all the same. Does the reward read the answer alone, without the query?",
            )
        if self.config.score_clip is not None:
            found = found.clamp(-self.config.score_clip, self.config.score_clip)
        return found.to(self.device)

    def _rollout(
        self, asked: list[list[int]], answered: list[list[int]], padded: list[list[int]], masks: Any
    ) -> Rollout:
        """`padded` are the queries as they came, which is how a response that begins with its query has them."""
        if len(answered) != len(asked):
            raise ValueError(f"responses: wanted one a query, {len(asked)}, got {len(answered)}")
        counted = [[True] * len(row) for row in answered] if masks is None else rows_of("response_masks", masks, None)
        if [len(row) for row in counted] != [len(row) for row in answered]:
            raise ValueError("response_masks: wanted one a response, as long as it is")
        responses = []
        for i, (query, row) in enumerate(zip(asked, answered, strict=True)):
            # A response may begin with its query's words by itself: then the two together are what was written.
            left_in_front = row[: len(padded[i])] == padded[i]
            if left_in_front and tuple(query + up_to_end(row, self.eos)) not in self.model.written:
                self.notes("responses", "begin with their queries, as generate() returns them; the queries are cut off")
                row = row[len(padded[i]) :]
            responses.append(up_to_end(row, self.eos))
            counted[i] = counted[i][len(answered[i]) - len(row) :][: len(responses[i])]
            if not any(counted[i]):
                raise ValueError(f"responses: row {i} has no token that counts, beside its query")
        tokens, mask, starts = lay_out(asked, responses, device=self.device)
        if masks is not None:
            width = mask.shape[1]
            mask &= torch.tensor([[bool(x) for x in r] + [False] * (width - len(r)) for r in counted]).to(mask.device)
        ended = torch.tensor([self.eos is not None and row[-1] == self.eos for row in responses])
        return Rollout(
            tokens=tokens,
            response=tokens[:, -mask.shape[1] :],
            mask=mask,
            logprobs=torch.zeros(mask.shape, device=mask.device),  # improve computes them itself
            finished=ended.to(mask.device),
            prompt_index=torch.arange(len(tokens), device=mask.device),
            starts=starts,
        )

    def log_stats(self, stats: dict, batch: dict, rewards: Any, columns_to_log: Sequence[str] = ("query",)) -> None:
        """Keeps stats and the mean reward in `logs`; with project_kwargs={"logging_dir": ...} also in its metrics.jsonl."""
        worth = torch.tensor([float(reward) for reward in rewards])
        self.logs.append(
            {name: float(x) for name, x in stats.items()}
            | {"env/reward_mean": worth.mean().item(), "env/reward_std": worth.std(correction=0).item()}
        )
        folder = self.config.project_kwargs.get("logging_dir")
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with open(Path(folder) / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.current_step} | self.logs[-1]) + "\n")

    def save_pretrained(self, folder: str | Path) -> None:
        """Model, value head and tokenizer, for from_pretrained and for any library that reads the Hugging Face layout."""
        self.model.save_pretrained(folder)
        if isinstance(self.tokenizer, Tokenizer):
            self.tokenizer.save(folder)
        else:
            self.tokenizer.save_pretrained(folder)

    save_model = save_pretrained


class LengthSampler:
    """A length from min_value to max_value - 1, each as likely."""

    def __init__(self, min_value: int, max_value: int):
        check_knob("max_value", max_value, min_value + 1)
        self.values, self.random = range(min_value, max_value), random.Random(0)

    def __call__(self) -> int:
        return self.random.choice(self.values)


def respond_to_batch(
    model: AutoModelForCausalLMWithValueHead, queries: Tensor, txt_len: int = 20, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """txt_len sampled tokens after each query, (B, txt_len), past any end token."""
    knobs = {"eos_token_id": -1, "do_sample": True, "top_k": top_k, "top_p": top_p}
    return model.generate(queries, max_new_tokens=txt_len, **knobs)[:, queries.shape[1] :]


def set_seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def language_model(model: Any) -> Transformer:
    """The Transformer in whatever was given as reference."""
    if isinstance(model, AutoModelForCausalLMWithValueHead):
        return model.actor.policy
    inner = {AutoModelForCausalLM: "model", PolicyWithValue: "policy"}.get(type(model))
    model = model if inner is None else getattr(model, inner)
    if not isinstance(model, Transformer):
        raise ValueError(f"ref_model: wanted a model of minirl.classic or None, got {type(model).__name__}")
    return model
