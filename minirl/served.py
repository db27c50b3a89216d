"""Rollouts by a server that speaks vLLM's API: sampling is where the time goes, and there it is many times faster.

    VLLM_SERVER_DEV_MODE=1 vllm serve OUT/serving --logprobs-mode processed_logprobs
    python -m minirl train grpo --rollouts http://localhost:8000 --out OUT

After each update the weights are written to OUT/serving, which both sides see, and the server is told to load them. What is
asked of the server, as vLLM documents it (0.10.2 or newer):

- GET /v1/models names the model and, as `root`, the folder it was started with.
- POST /v1/completions takes a prompt as token numbers; with `return_token_ids` and `logprobs` each choice has `token_ids`,
  the end token included, and the log-probability of each. Those of the distribution that was sampled from, after the
  temperature, come with the server's --logprobs-mode processed_logprobs.
- POST /collective_rpc {"method": "reload_weights"} reads the folder again, and POST /reset_prefix_cache forgets keys and
  values of the old weights. Both are there in development mode, which no one but you should reach.

The sampler's log-probabilities then differ a little from the trainer's: see minirl.losses.correction.
"""

import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from minirl.lora import merged
from minirl.model import Transformer
from minirl.pretrained import save_pretrained
from minirl.ranks import ALONE, Ranks
from minirl.rollout import Sample, check_whole_distribution, gathered, lay_out
from minirl.shards import is_sharded
from minirl.tokenizer import Tokenizer
from minirl.types import Rollout

AT_ONCE = 64  # requests; the server makes batches of them


def sampler(
    url: str,
    folder: Path,
    *,
    ranks: Ranks = ALONE,
    export: Callable[[Transformer], Transformer] = merged,
    timeout: float = 600.0,
) -> Sample:
    """A function like `rollout.roll_out` whose responses the server at `url` writes, with the weights as they are then.

    `folder` is where the server reads weights; `export` makes the plain whole model that is written there. Several `ranks`
    ask for a part each. ValueError, with the command that would help, if the server is not there or serves something else.
    """
    url, last = url.rstrip("/"), []

    def sample(
        model: Transformer,
        tokenizer: Tokenizer,
        prompts: list[str],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        group_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> tuple[list[str], Rollout]:
        check_whole_distribution(top_p)
        now = fingerprint(model)
        if ranks.any(now != last):
            push_weights(url, export(model), tokenizer, folder, ranks, timeout)
            last[:] = now
        # a prompt's seed does not depend on who asks; the server adds the number of the sample to it
        seeds = torch.randint(2**31, (len(prompts),), generator=generator).tolist()
        served, mine = served_model(url, folder, timeout), ranks.part(len(prompts))
        knobs = {"n": group_size, "max_tokens": max_new_tokens, "temperature": temperature}
        asked = [
            request(served, tokenizer.encode(prompt), seed, eos=tokenizer.eos_id, **knobs)
            for prompt, seed in zip(prompts[mine], seeds[mine], strict=True)
        ]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(lambda body: ask(f"{url}/v1/completions", body, timeout), asked))
        device = next(model.parameters()).device
        rollout = gathered(as_rollout(asked, answers, tokenizer, device), ranks, len(prompts), tokenizer.eos_id)
        return [prompt for prompt in prompts for _ in range(group_size)], rollout

    return sample


def fingerprint(model: Transformer) -> list[float]:
    """A number for each parameter, or for this rank's share of it, which an update changes. (PyTorch's own count of changes
    does not see those of the fused optimiser.)"""
    own = (p.to_local() if is_sharded(p) else p for p in model.parameters())
    return torch.stack([x.detach().double().sum() for x in own]).tolist()


def request(
    served: str, prompt: list[int], seed: int, *, n: int, max_tokens: int, temperature: float, eos: int | None
) -> dict:
    """The body of a request for n responses to one prompt. Every knob that shapes the distribution is named: a server takes
    the others from the model's generation_config.json."""
    return {
        "model": served,
        "prompt": prompt,
        "n": n,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "stop_token_ids": [] if eos is None else [eos],
        "logprobs": 1,
        "return_token_ids": True,
    }


def as_rollout(asked: list[dict], answers: list[dict], tokenizer: Tokenizer, device: torch.device) -> Rollout:
    """The server's answers as a Rollout, group by group. ValueError, naming the field, for an answer that is not one."""
    prompts, responses, logprobs, finished, index = [], [], [], [], []
    for i, (body, answer) in enumerate(zip(asked, answers, strict=True)):
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            rows = [(c["token_ids"], c["logprobs"]["token_logprobs"], c["finish_reason"]) for c in choices]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"--rollouts: the server's answer lacks {error}; wanted vLLM 0.10.2 or newer, with return_token_ids"
            ) from None
        if len(rows) != body["n"]:
            raise ValueError(f"--rollouts: wanted {body['n']} responses to a prompt, the server sent {len(rows)}")
        for tokens, scores, reason in rows:
            if not tokens or len(tokens) != len(scores) or not all(0 <= t < tokenizer.vocab_size for t in tokens):
                what = f"{len(tokens)} tokens with {len(scores)} log-probabilities, or of another vocabulary"
                raise ValueError(f"--rollouts: the server sent {what}")
            if not all(isinstance(score, float | int) and math.isfinite(score) for score in scores):
                raise ValueError(f"--rollouts: the server sent log-probabilities that are no numbers: {scores[:8]}")
            if reason == "stop" and tokens[-1] != tokenizer.eos_id:
                raise ValueError(f"--rollouts: a response ends with token {tokens[-1]}, wanted eos {tokenizer.eos_id}")
            prompts.append(body["prompt"])
            responses.append(tokens)
            logprobs.append([min(float(score), 0.0) for score in scores])
            finished.append(reason == "stop")
            index.append(i)
    tokens, mask, starts = lay_out(prompts, responses, device=device)
    T = mask.shape[1]
    table = torch.tensor([row + [0.0] * (T - len(row)) for row in logprobs], device=device)
    tokens[:, -T:].masked_fill_(~mask, tokenizer.eos_id or 0)
    return Rollout(
        tokens=tokens,
        response=tokens[:, -T:],
        mask=mask,
        logprobs=table,
        finished=torch.tensor(finished, device=device),
        prompt_index=torch.tensor(index, device=device),
        starts=starts,
    )


def push_weights(
    url: str, model: Transformer, tokenizer: Tokenizer, folder: Path, ranks: Ranks = ALONE, timeout: float = 600.0
) -> None:
    """The first rank writes the model to the folder and has the server load it; the others wait."""
    if ranks.first:
        save_pretrained(model, tokenizer, folder)
        served_model(url, folder, timeout)
        ask(f"{url}/collective_rpc", {"method": "reload_weights"}, timeout)
        ask(f"{url}/reset_prefix_cache", {}, timeout)
    ranks.barrier()


def served_model(url: str, folder: Path, timeout: float) -> str:
    """The name of the model the server serves. ValueError if it reads another folder than ours."""
    try:
        about = ask(f"{url}/v1/models", None, timeout)["data"][0]
        name, root = about["id"], about["root"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"--rollouts: {url}/v1/models does not name a model and its folder; wanted vLLM") from None
    if Path(root).resolve() != folder.resolve():
        raise ValueError(f"--rollouts: the server serves {root}, wanted {folder}")
    return name


def ask(url: str, body: dict | None, timeout: float) -> dict:
    """GET without a body, POST with one; the answer's JSON, {} where it is empty."""
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(call, timeout=timeout) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else {}
    except urllib.error.HTTPError as error:
        hint = ". Start it with VLLM_SERVER_DEV_MODE=1" if error.code == 404 else ""
        said = error.read().decode(errors="replace")[:200]
        raise ValueError(f"--rollouts: {url} answers {error.code} {error.reason}{hint} ({said})") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ValueError(f"--rollouts: no answer from {url} ({error})") from None
    except ValueError as error:
        raise ValueError(f"--rollouts: {url} does not answer in JSON ({error})") from None


def how_to_serve(url: str, folder: Path) -> str:
    port = url.rpartition(":")[2]
    return f"Start one: VLLM_SERVER_DEV_MODE=1 vllm serve {folder} --logprobs-mode processed_logprobs" + (
        f" --port {port}" if port.isdigit() else ""
    )


def check_server(url: str, model: Transformer, tokenizer: Tokenizer, folder: Path, ranks: Ranks = ALONE) -> None:
    """Before a run: the weights are in the folder, so that a server can be started on it, and one answers."""
    if ranks.first and not folder.exists():
        save_pretrained(model, tokenizer, folder)
    ranks.barrier()
    try:
        served_model(url.rstrip("/"), folder, 10.0)
    except ValueError as error:
        raise ValueError(
            f"{error}. The weights are in {folder}. {how_to_serve(url, folder)}, then the same command"
        ) from None
