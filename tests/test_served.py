"""Rollouts by a server, tested against a stand-in that speaks vLLM's API and samples with our own generate."""

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from minirl.__main__ import main
from minirl.generate import generate
from minirl.model import Transformer, TransformerConfig
from minirl.pretrained import load_pretrained, save_pretrained
from minirl.rollout import response_logprobs, responses_text, rule_scorer
from minirl.run import Run
from minirl.served import ask, check_server, sampler
from minirl.tasks import digit_sum
from minirl.train import critic_free, grpo

TOKENIZER = digit_sum.tokenizer()
PROMPTS = ["12=", "3456=", "999=", "1="]


@dataclass
class StandIn:
    """A server's state: what it serves, how it misbehaves, and what it was asked."""

    folder: Path
    url: str = ""
    development: bool = True
    deaf: bool = False  # says yes to new weights, and keeps the old ones
    coarse: bool = False  # computes in bfloat16
    change: dict = field(default_factory=dict)  # fields of a choice to answer with instead; None leaves one out
    asked: list = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self) -> None:
        self.model = load_pretrained(self.folder)[0]
        if self.coarse:
            self.model.bfloat16()

    def answer(self, path: str, body: dict | None):
        self.asked.append((path, body))
        if path == "/v1/models":
            return {"data": [{"id": "the-model", "root": str(self.folder)}]}
        if path in ("/collective_rpc", "/reset_prefix_cache") and self.development:
            if path == "/collective_rpc" and not self.deaf:
                assert body == {"method": "reload_weights"}
                self.load()
            return {}
        if path == "/v1/completions":
            return {"choices": list(self.choices(body))[::-1]}  # in any order: each has its index
        return None

    def choices(self, body: dict):
        assert body["model"] == "the-model"
        eos = TOKENIZER.eos_id
        rollout = generate(
            self.model,
            [body["prompt"]],
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            group_size=body["n"],
            eos=eos if body["stop_token_ids"] == [eos] else None,
            generator=torch.Generator().manual_seed(body["seed"]),
        )
        for i in range(len(rollout)):
            mask = rollout.mask[i]
            choice = {
                "index": i,
                "token_ids": rollout.response[i][mask].tolist(),
                "logprobs": {"token_logprobs": rollout.logprobs[i][mask].tolist()},
                "finish_reason": "stop" if rollout.finished[i] else "length",
            } | self.change
            yield {name: value for name, value in choice.items() if value is not None}

    def times(self, path: str) -> int:
        return sum(each == path for each, _ in self.asked)


@pytest.fixture
def start(tmp_path):
    servers = []

    def start(folder: Path | None = None, **knobs) -> StandIn:
        folder = folder or tmp_path / "serving"
        if not folder.exists():
            save_pretrained(small_model(), TOKENIZER, folder)
        state = StandIn(folder, **knobs)
        state.load()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(None)

            def do_POST(self):
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, body):
                with state.lock:
                    answer = state.answer(self.path, body)
                data = b"" if answer is None else json.dumps(answer).encode()
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        state.url = f"http://127.0.0.1:{server.server_port}"
        return state

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def small_model(seed=0) -> Transformer:
    torch.manual_seed(seed)
    config = TransformerConfig(vocab_size=TOKENIZER.vocab_size, width=16, layers=1, heads=2, ffn=16, max_length=32)
    return Transformer(config)


def sampled(server, model, **knobs):
    knobs = {"max_new_tokens": 12, "group_size": 3, "generator": torch.Generator().manual_seed(5)} | knobs
    return sampler(server.url, server.folder)(model, TOKENIZER, PROMPTS, **knobs)


def train(server, *, row=critic_free.GRPO, **knobs):
    knobs = {"steps": 3, "prompts": 4, "group_size": 3, "minibatch": 6, "lr": 5e-2, "correction": 2.0} | knobs
    config = grpo.GRPOConfig(warmup=1, **knobs)
    model, run = small_model(), Run(progress=False)
    sample = sampler(server.url, server.folder)

    def score(prompts, responses):
        return [len(response) % 5 for response in responses]

    def prompts(n, generator):
        return [PROMPTS[i] for i in torch.randint(len(PROMPTS), (n,), generator=generator).tolist()]

    scorer = rule_scorer(score, TOKENIZER)
    grpo.train(model, None, TOKENIZER, prompts, scorer, config, run, row=row, sample=sample)
    return model, run.records


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_rollout_is_laid_out_as_our_own(start, temperature):
    """The log-probabilities are those our model gives these tokens where they stand, so every token is in its place."""
    model = small_model()
    texts, rollout = sampled(start(), model, temperature=temperature)
    assert texts == [prompt for prompt in PROMPTS for _ in range(3)]
    assert rollout.prompt_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    again, _ = response_logprobs(model, rollout.tokens, rollout.starts, rollout.mask.shape[1], temperature=temperature)
    assert torch.allclose(again[rollout.mask], rollout.logprobs[rollout.mask], atol=1e-4)
    assert (rollout.logprobs[~rollout.mask] == 0).all() and torch.equal(
        rollout.response, rollout.tokens[:, -rollout.mask.shape[1] :]
    )
    ends = (rollout.response == TOKENIZER.eos_id) & rollout.mask
    assert torch.equal(ends.any(1), rollout.finished) and 0 < rollout.finished.sum() < 12
    assert len(set(responses_text(rollout, TOKENIZER))) > 4  # prompts and samples have noise of their own


def test_samples_come_in_the_order_of_their_index(start):
    server, model = start(), small_model()
    _, rollout = sampled(server, model)
    body = next(
        body for path, body in server.asked if path == "/v1/completions" and body["prompt"] == TOKENIZER.encode("12=")
    )
    first = [choice["token_ids"] for choice in server.choices(body)]
    assert first == [row[mask].tolist() for row, mask in zip(rollout.response[:3], rollout.mask[:3], strict=True)]
    assert first != first[::-1]


def test_same_seed_same_responses(start):
    server, model = start(), small_model()
    first, second = sampled(server, model)[1], sampled(server, model)[1]
    other = sampled(server, model, generator=torch.Generator().manual_seed(6))[1]
    assert torch.equal(first.tokens, second.tokens)
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)


def test_every_knob_of_the_distribution_is_named(start):
    """A server takes those that a request leaves out from the model's generation_config.json."""
    server = start()
    sampled(server, small_model())
    bodies = [body for path, body in server.asked if path == "/v1/completions"]
    assert len({body["seed"] for body in bodies}) == len(bodies) == len(PROMPTS)
    for body in bodies:
        assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, -1, 0.0, 1.0)
        assert body["presence_penalty"] == body["frequency_penalty"] == 0.0 and body["return_token_ids"]


def test_a_nucleus_is_refused(start):
    with pytest.raises(ValueError, match="top_p"):
        sampled(start(), small_model(), top_p=0.9)


# Weights


def test_weights_are_pushed_once_an_update(start):
    server = start()
    model, records = train(server)
    assert server.times("/collective_rpc") == server.times("/reset_prefix_cache") == 3
    assert all(record["sampling_gap"] < 1e-5 for record in records), "it samples with the weights of this step"
    sampled(server, model)
    assert torch.equal(server.model.head.weight, model.head.weight)


def test_without_an_update_nothing_is_pushed_again(start):
    server, model = start(), small_model()
    sample = sampler(server.url, server.folder)
    for _ in range(2):
        sample(model, TOKENIZER, PROMPTS, max_new_tokens=4)
    assert server.times("/collective_rpc") == 1


def test_a_server_that_keeps_old_weights_is_seen_in_the_gap(start):
    _, records = train(start(deaf=True))
    assert records[0]["sampling_gap"] < 1e-5 < 1e-3 < records[2]["sampling_gap"]


def test_a_coarse_sampler_is_corrected(start):
    _, records = train(start(coarse=True), steps=1, minibatch=12)
    assert 1e-4 < records[0]["sampling_gap"] < 0.1
    assert records[0]["approx_kl"] < 1e-6, "old log-probabilities are the trainer's, so the first update is on-policy"


def test_the_weights_change_the_update(start, tmp_path):
    """With a sampler that stays behind. A cap of 1 takes off what a cap of 2 allows; the same cap does the same."""
    caps = [2.0, 2.0, 1.0]
    heads = [
        train(start(tmp_path / f"serving_{i}", deaf=True), correction=cap)[0].head.weight for i, cap in enumerate(caps)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.allclose(heads[0], heads[2])


def test_one_ratio_a_response_is_refused(start):
    with pytest.raises(ValueError, match="correction"):
        train(start(), row=critic_free.GSPO)


# Servers that are not what they should be


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_ids": None}, "token_ids"),
        ({"logprobs": None}, "logprobs"),
        ({"token_ids": [1, 2, 3]}, "3 tokens with"),
        ({"token_ids": []}, "0 tokens with"),
        ({"token_ids": [99], "logprobs": {"token_logprobs": [-1.0]}}, "another vocabulary"),
        ({"logprobs": {"token_logprobs": [None]}, "token_ids": [1]}, "log-probabilit"),
        ({"token_ids": [1], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "stop"}, "ends with token 1"),
    ],
)
def test_an_answer_that_is_none_is_named(start, change, said):
    with pytest.raises(ValueError, match=f"--rollouts: .*{said}"):
        sampled(start(change=change), small_model())


def test_too_few_responses_are_named(start, monkeypatch):
    server = start()
    monkeypatch.setattr(StandIn, "choices", lambda self, body: iter(()))
    with pytest.raises(ValueError, match="wanted 3 responses to a prompt, the server sent 0"):
        sampled(server, small_model())


def test_without_development_mode_it_says_how_to_start(start):
    with pytest.raises(ValueError, match=r"404.*VLLM_SERVER_DEV_MODE=1"):
        sampled(start(development=False), small_model())


def test_another_models_server_is_refused(start, tmp_path):
    server = start(tmp_path / "another")
    with pytest.raises(ValueError, match=r"serves .*another, wanted .*serving"):
        sampler(server.url, tmp_path / "serving")(small_model(), TOKENIZER, PROMPTS, max_new_tokens=4)


def test_no_server_leaves_the_weights_and_the_command(tmp_path):
    with pytest.raises(ValueError, match=r"vllm serve .*serving --logprobs-mode processed_logprobs --port 9"):
        check_server("http://127.0.0.1:9", small_model(), TOKENIZER, tmp_path / "serving")
    assert (tmp_path / "serving" / "model.safetensors").exists()


def test_a_page_is_not_an_api(start, monkeypatch):
    server = start()
    monkeypatch.setattr(json, "loads", lambda text: (_ for _ in ()).throw(ValueError("a page")))
    with pytest.raises(ValueError, match="does not answer in JSON"):
        ask(f"{server.url}/v1/models", None, 5)


def test_from_the_command_line(start, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "grpo", "--task", "digit_sum", "--steps", "2", "--prompts", "8", "--group-size", "4", "--threads"]
    words += ["1", "--out", str(out)]
    assert main([*words, "--rollouts", "http://127.0.0.1:9"]) == 2
    assert "vllm serve" in capsys.readouterr().err
    server = start(out / "serving")
    assert main([*words, "--rollouts", server.url]) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2] and all(r["sampling_gap"] < 1e-4 for r in records)
    assert server.times("/collective_rpc") == 2
