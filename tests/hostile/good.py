"""Good files of every kind that the library reads, in one folder, and what reads each of them."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from minirl import doctor, report
from minirl.adapters import load_adapter, save_adapter
from minirl.cards.cards import load as load_cards
from minirl.cards.schedule import State, read_progress, review, write_progress
from minirl.chat import render
from minirl.checkpoint import restore, write_checkpoint
from minirl.drills import kept
from minirl.gguf_file import load_gguf
from minirl.kl import AdaptiveKL
from minirl.launch import find_task
from minirl.lora import add_lora
from minirl.model import PolicyWithValue, RewardModel, Transformer, TransformerConfig, summed
from minirl.pretrained import load_policy_with_value, load_pretrained, load_reward_model, save_pretrained
from minirl.run import Run
from minirl.tasks import DATA, gsm8k
from minirl.tokenizer import Tokenizer, character_tokenizer

CONFIG = TransformerConfig(vocab_size=13, width=4, layers=1, heads=2, ffn=4, max_length=8)
SETTINGS = {"loop": "sft", "task": "digit_sum", "steps": 5}


def tokenizer() -> Tokenizer:
    words = character_tokenizer("0123456789+=", eos="!").backend
    return Tokenizer(words, eos="!", chat_template="{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}")


def make() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG)


def tracked() -> dict:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    adaptive = AdaptiveKL(0.1, target=1.0, horizon=10)
    return {"model": model, "optimizer": optimizer, "generator": torch.Generator(), "adaptive": adaptive}


def write_all(folder: Path) -> None:
    save_pretrained(make(), tokenizer(), folder / "model")
    save_pretrained(PolicyWithValue(make()), tokenizer(), folder / "policy")
    save_pretrained(RewardModel(make(), summed), tokenizer(), folder / "judge")
    save_adapter(add_lora(make(), rank=1), folder / "adapter")
    objects = tracked()
    write_checkpoint(folder / "checkpoints", 1, objects)
    write_checkpoint(folder / "checkpoints", 2, objects)
    run = Run(folder / "run", config=SETTINGS, checkpoint_every=1, progress=False)
    done = run.track(**tracked())
    for step in run.steps(done, 3):
        run.record(step, {"loss": torch.tensor(1.0 / step), "kl": torch.tensor(0.1)})
    answer = {"model": "a", "tokens": ["x", "y"], "kl": [0.1, 0.2], "reward": None, "score": 1.0, "gold": 0.5}
    (folder / "run" / "samples.json").write_text(json.dumps([{"prompt": "p", "responses": [answer]}]))
    (folder / "gsm8k").mkdir()
    (folder / "gsm8k" / "train.jsonl").write_text('{"question": "1 + 1?", "answer": "2 #### 2"}\n' * 3)
    (folder / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    cards = (DATA / "interview.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    (folder / "cards.jsonl").write_text("\n".join(cards) + "\n", encoding="utf-8")
    entry = {"tries": 1, "hints": 0, "solved": None, "mistakes": ["flipped"]}
    (folder / "drills.json").write_text(json.dumps({"version": 1, "drills": {"gae": entry}}))
    today = date(2026, 1, 1)
    write_progress(
        folder / "quiz.json", {"a-card": review(State(), "good", today), "b": review(State(), "again", today)}
    )
    try:
        import gguf
        from test_gguf import LLAMA, write
        from test_gguf import make as make_larger
    except ImportError:
        return
    write(gguf, folder / "model.gguf", make_larger(LLAMA), "llama")


def read_checkpoints(folder: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says which one was damaged
        return restore(folder, tracked())


def read_run(folder: Path) -> list[dict]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Run(folder, config=SETTINGS, resume=True, checkpoint_every=1, progress=False)
        run.track(**tracked())
    report.write_report(folder)
    return run.records


def speak(folder: Path) -> str:
    return render(Tokenizer.load(folder), [{"role": "user", "content": "1"}])


@dataclass(frozen=True)
class Reader:
    folder: str  # a folder or a file in the folder of good ones
    files: tuple[str, ...]  # what it reads there; "" is the file itself
    read: Callable[[Path], object]


MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
READERS = {
    "model": Reader("model", MODEL, load_pretrained),
    "policy": Reader("policy", (*MODEL, "value_head.safetensors"), load_policy_with_value),
    "judge": Reader("judge", MODEL, load_reward_model),
    "tokenizer": Reader("model", ("tokenizer.json", "tokenizer_config.json"), Tokenizer.load),
    "template": Reader("model", ("tokenizer_config.json",), speak),
    "adapter": Reader(
        "adapter", ("adapter_config.json", "adapter_model.safetensors"), lambda path: load_adapter(make(), path)
    ),
    "gguf": Reader("model.gguf", ("",), load_gguf),
    "checkpoints": Reader(
        "checkpoints",
        tuple(f"step_00000{n}/{name}" for n in (1, 2) for name in ("state.json", "tensors.safetensors")),
        read_checkpoints,
    ),
    "run": Reader(
        "run",
        (
            "config.json",
            "metrics.jsonl",
            "timings.jsonl",
            "samples.json",
            "checkpoints/step_000003/state.json",
            "checkpoints/step_000003/tensors.safetensors",
        ),
        read_run,
    ),
    "doctor": Reader("run", ("metrics.jsonl", "config.json"), lambda path: doctor.diagnose(doctor.read_metrics(path))),
    "gsm8k": Reader("gsm8k", ("train.jsonl",), gsm8k.task),
    "prompts": Reader("prompts.jsonl", ("",), lambda path: find_task(str(path))),
    "cards": Reader("cards.jsonl", ("",), load_cards),
    "drills": Reader("drills.json", ("",), kept.read),
    "quiz": Reader("quiz.json", ("",), read_progress),
}
