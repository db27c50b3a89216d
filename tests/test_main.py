"""The command line as a user meets it: what works, and one clear line for what does not."""

import copy
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from minirl.__main__ import main
from minirl.adapters import load_adapter
from minirl.launch import LOOPS, Job
from minirl.lora import merged
from minirl.model import Transformer, TransformerConfig
from minirl.pretrained import load_pretrained, save_pretrained
from minirl.tasks import DATA, digit_sum
from minirl.tokenizer import train_bpe
from minirl.types import STATS


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def train(out, *arguments) -> int:
    return main(["train", *arguments, "--out", str(out), "--threads", "1"])


def one_line(capsys) -> str:
    printed = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in printed if line.startswith("minirl:")]
    assert len(lines) == 1 and "Traceback" not in "".join(printed)
    return lines[0]


def test_quick_road_ends_in_tables_and_a_figure(tmp_path):
    """The main job in its short form, as another process: every stage runs. That it learns is tested elsewhere."""
    command = [sys.executable, "-m", "minirl", "--quick", "--threads", "1", "--out", str(tmp_path / "road")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for word in ("gold", "proxy", "KL", "best of 16", "PPO", "DPO", "GRPO", "accuracy", "00_start_here"):
        assert word in done.stdout
    assert (tmp_path / "road" / "road.png").stat().st_size > 10_000
    results = json.loads((tmp_path / "road" / "results.json").read_text())
    assert results["quick"] and len(results["stories"]["rows"]) == 7


@pytest.mark.parametrize("name", LOOPS)
def test_every_loop_runs_from_the_command_line(tmp_path, name):
    task = "digit_sum" if name in ("pretrain", "sft", "grpo", "dapo") else "stories"
    small = {
        "pretrain": ["--batch", "4"],
        "sft": ["--batch", "4"],
        "reward_model": ["--pairs", "4"],
        "ppo": ["--batch", "4", "--minibatch", "4"],
        "kto": ["--batch", "4"],
    }.get(name, ["--pairs", "4"] if name in ("dpo", "ipo", "cdpo", "robust", "simpo", "orpo") else ["--prompts", "2"])
    out = tmp_path / "run"
    assert train(out, name, "--task", task, "--steps", "2", "--seed", "3", *small) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert {name for record in records for name in record} <= {"step", *STATS}  # one vocabulary
    config = json.loads((out / "config.json").read_text())
    assert config["loop"] == name and config["seed"] == 3 and config["steps"] == 2
    assert config.get("clip_eps_high") == (0.28 if name == "dapo" else None)  # clip-higher is DAPO's name for it
    assert (out / "final" / "model.safetensors").exists()
    assert (out / "checkpoints" / "step_000002").is_dir()


def test_what_the_user_says_goes_before_what_the_algorithm_sets(tmp_path):
    small = ["--task", "digit_sum", "--steps", "1", "--prompts", "2", "--clip-eps-high", "0.5"]
    assert train(tmp_path / "run", "dapo", *small) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["clip_eps_high"] == 0.5


def test_same_seed_same_bytes(tmp_path):
    arguments = ["grpo", "--task", "digit_sum", "--steps", "2", "--prompts", "4"]
    for name in "ab":
        assert train(tmp_path / name, *arguments, "--seed", "1") == 0
    assert train(tmp_path / "c", *arguments, "--seed", "2") == 0
    a, b, c = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in "abc")
    assert a == b != c
    models = [(tmp_path / name / "final" / "model.safetensors").read_bytes() for name in "abc"]
    assert models[0] == models[1] != models[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["grpo", "--task", "chess"],
            "--task: wanted stories, digit_sum, addition, countdown, gsm8k:PATH (its file or folder) or a .jsonl file of "
            "prompts, got 'chess'",
        ),
        (
            ["grpo", "--task", "gsm8k"],
            "--task: gsm8k wants its .jsonl file, or the folder with train.jsonl: gsm8k:PATH",
        ),
        (["grpo", "--task", "gsm8k:nowhere"], "no file nowhere"),
        (["grpo", "--task", "none.jsonl"], "--task: no file none.jsonl"),
        (["ppo", "--model", "nowhere"], "nowhere"),
        (["ppo", "--reward", "none.py:f"], "--reward: no file none.py"),
        (["grpo", "--clip-eps", "-1"], "clip_eps: wanted a finite number in (0, 1], got -1.0"),
        (["grpo", "--group-size", "1", "--prompts", "4"], "group_size"),
        (["ppo", "--device", "abacus"], "--device: 'abacus' cannot be used here"),
        (
            ["ppo", "--top-p", "0.9"],
            "top_p: training wants 1.0, got 0.9. A nucleus gives every other token probability 0",
        ),
        (["ppo", "--threads", "0"], "--threads: wanted 1 to 4096, got 0"),
        (["ppo", "--ops", "cuda"], "--ops: wanted torch or triton, got 'cuda'"),
        (["grpo", "--ops", "triton"], "--ops"),  # no Triton, or no GPU: both say what to do
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, capsys, unhooked, arguments, says):
    arguments = ["train", *arguments, "--out", str(tmp_path / "out"), "--steps", "1"]
    assert main(arguments) == 2
    assert says in one_line(capsys)


def test_unknown_loop_lists_the_loops(capsys):
    with pytest.raises(SystemExit):
        main(["train", "q_learning", "--out", "x"])
    assert "invalid choice: 'q_learning'" in capsys.readouterr().err


def test_nan_score_names_the_rule(tmp_path, capsys, unhooked):
    rule = tmp_path / "rule.py"
    rule.write_text("def judge(prompts, responses):\n    return [float('nan')] * len(responses)\n")
    assert train(tmp_path / "out", "grpo", "--task", "digit_sum", "--steps", "1", "--reward", f"{rule}:judge") == 2
    assert "scores: wanted finite numbers, got nan at 0" in one_line(capsys)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def judge(p, r):\n    return [1.0]\n", "rule: wanted one score a response"),
        ("def other(p, r):\n    return r\n", "has no function 'judge'"),
        ("1/0\n", "does not run: ZeroDivisionError"),
    ],
)
def test_a_rule_that_does_not_fit(tmp_path, capsys, unhooked, code, says):
    rule = tmp_path / "rule.py"
    rule.write_text(code)
    assert train(tmp_path / "out", "grpo", "--task", "digit_sum", "--steps", "1", "--reward", f"{rule}:judge") == 2
    assert says in one_line(capsys)


def test_truncated_weights_are_named(tmp_path, capsys):
    assert train(tmp_path / "out", "sft", "--task", "digit_sum", "--steps", "1", "--batch", "2") == 0
    weights = tmp_path / "out" / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "out" / "final"), "--prompt", "12="]) == 2
    assert "model.safetensors" in one_line(capsys)


def test_a_second_run_in_one_folder_asks_for_resume(tmp_path, capsys):
    arguments = ["sft", "--task", "digit_sum", "--steps", "1", "--batch", "2"]
    assert train(tmp_path / "out", *arguments) == 0
    assert train(tmp_path / "out", *arguments) == 2
    assert "--resume" in one_line(capsys)
    assert train(tmp_path / "out", *arguments, "--resume") == 0


def test_a_run_can_be_made_longer(tmp_path):
    """Where the learning rate does not depend on the number of steps, more steps later are the same as all at once."""
    arguments = ["grpo", "--task", "digit_sum", "--prompts", "4", "--checkpoint-every", "2"]
    assert train(tmp_path / "a", *arguments, "--steps", "2") == 0
    assert train(tmp_path / "a", *arguments, "--steps", "4", "--resume") == 0
    assert train(tmp_path / "b", *arguments, "--steps", "4") == 0
    for file in ("metrics.jsonl", "final/model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_prompts_from_a_file_and_a_rule_from_a_file(tmp_path):
    prompts, rule = tmp_path / "prompts.jsonl", tmp_path / "rule.py"
    prompts.write_text('{"prompt": "12="}\n{"prompt": "3456="}\n')
    rule.write_text("def short(prompts, responses):\n    return [-len(r) for r in responses]\n")
    assert train(tmp_path / "first", "sft", "--task", "digit_sum", "--steps", "1", "--batch", "2") == 0
    arguments = ["--task", str(prompts), "--reward", f"{rule}:short", "--model", str(tmp_path / "first" / "final")]
    assert train(tmp_path / "out", "ppo", *arguments, "--steps", "1", "--batch", "4", "--minibatch", "4") == 0


@pytest.mark.parametrize("task", ["addition", "countdown"])
def test_the_reasoning_worlds_run_through_every_kind_of_loop(tmp_path, task):
    small = {
        "pretrain": ["--batch", "4"],
        "sft": ["--batch", "4"],
        "grpo": ["--prompts", "2", "--group-size", "4"],
        "ppo": ["--batch", "4", "--minibatch", "4"],
    }
    for name, knobs in small.items():
        assert train(tmp_path / name, name, "--task", task, "--steps", "1", *knobs) == 0
        assert json.loads((tmp_path / name / "config.json").read_text())["task"] == task
    both = [str(tmp_path / name / "final") for name in ("sft", "grpo")]
    assert main(["compare", *both, "--task", task, "-n", "4", "--threads", "1"]) == 0


@pytest.fixture
def gsm8k_folder(tmp_path):
    """Two problems in GSM8K's form, and a model that can read them: bytes for tokens, and no idea of anything."""
    rows = [{"question": f"{n} + {n}?", "answer": f"{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}"} for n in (2, 3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = train_bpe([], 257, eos="<end>")
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocab_size=257, width=16, layers=1, heads=2, ffn=32, max_length=512))
    save_pretrained(model, tokenizer, tmp_path / "model")
    return tmp_path


def test_gsm8k_with_a_model_and_a_file_of_ones_own(gsm8k_folder, capsys):
    given = ["--model", str(gsm8k_folder / "model"), "--steps", "1"]
    for task in (f"gsm8k:{gsm8k_folder}", f"gsm8k:{gsm8k_folder / 'train.jsonl'}"):
        out = gsm8k_folder / f"sft{len(task)}"
        assert train(out, "sft", "--task", task, *given, "--batch", "2") == 0
    small = ["--prompts", "2", "--group-size", "2", "--max-new-tokens", "8"]
    assert train(gsm8k_folder / "grpo", "grpo", "--task", task, *given, *small) == 0
    record = json.loads((gsm8k_folder / "grpo" / "metrics.jsonl").read_text())
    assert record["reward_mean"] in (0, 0.25, 0.5, 0.75, 1)
    pairs = ["--sampled-pairs", "40", "--pair-tokens", "4", "--pairs", "4", "--micro-batch", "2", "--lora", "2"]
    assert train(gsm8k_folder / "dpo", "dpo", "--task", task, *given, *pairs) == 0
    both = [str(out / "final"), str(gsm8k_folder / "grpo" / "final")]
    assert main(["compare", *both, "--task", task, "-n", "4", "--max-new-tokens", "8", "--threads", "1"]) == 0
    assert "B beats A" in capsys.readouterr().out


def test_gsm8k_wants_a_model(gsm8k_folder, capsys, unhooked):
    task = ["--task", f"gsm8k:{gsm8k_folder}", "--steps", "1"]
    assert train(gsm8k_folder / "a", "grpo", *task) == 2
    assert "--model: this task has no stored weights; name a model's folder" in one_line(capsys)
    assert train(gsm8k_folder / "b", "pretrain", *task) == 2
    assert "--model: this task has no tokenizer of its own; name a model's folder" in one_line(capsys)
    (gsm8k_folder / "train.jsonl").write_text('{"question": "q", "answer": "#### x"}\n')
    assert train(gsm8k_folder / "c", "grpo", *task) == 2
    assert "train.jsonl, line 1: wanted" in one_line(capsys)


def test_generate_writes_from_a_saved_model(tmp_path, capsys):
    assert train(tmp_path / "out", "sft", "--task", "digit_sum", "--steps", "1", "--batch", "2") == 0
    capsys.readouterr()
    command = ["generate", str(tmp_path / "out" / "final"), "--prompt", "123456=", "-n", "2", "--max-new-tokens", "8"]
    assert main(command) == 0
    assert capsys.readouterr().out.count("123456= | ") == 2


def test_a_pipe_that_closes_ends_the_command_quietly():
    """`python -m minirl drill | head -1`: the rest of the list has no reader."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "minirl", "drill"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 0)


def test_importing_minirl_needs_no_plots():
    code = "import sys, minirl, minirl.launch; assert not {'matplotlib', 'IPython', 'numpy.testing'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_reads_well(capsys):
    for arguments in (["--help"], ["train", "--help"], ["train", "ppo", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "from random weights to aligned" in printed and "--kl-coef" in printed


# LoRA, half the bytes, less memory: what a real model needs, on a small one.

SAVING = ["--lora", "4", "--dtype", "bf16", "--micro-batch", "3", "--recompute"]


@pytest.mark.parametrize("name, knobs", [
    ("ppo", ["--batch", "8", "--minibatch", "8"]),
    ("grpo", ["--prompts", "2", "--group-size", "4", "--kl-coef", "0.05"]),
    ("dpo", ["--pairs", "4"]),
])  # fmt: skip
def test_loops_train_corrections_on_bf16_weights(tmp_path, name, knobs):
    out = tmp_path / name
    assert train(out, name, "--task", "digit_sum", "--steps", "2", *knobs, *SAVING, "--lr", "1e-2") == 0
    record = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert all(math.isfinite(value) for value in record.values())
    base, _ = load_pretrained(DATA / "weights" / "digit_sum_sft", dtype=torch.bfloat16)
    adapted = load_adapter(copy.deepcopy(base), out / "adapter")
    final, _ = load_pretrained(out / "final")
    assert {p.dtype for p in final.parameters()} == {torch.bfloat16}
    for (key, folded), before in zip(merged(adapted).named_parameters(), base.parameters(), strict=True):
        assert torch.equal(folded, final.get_parameter(key)), "the adapter and the model in final/ are not the same"
        assert torch.equal(before, folded) == ("blocks" not in key or "norm" in key), key
    checkpoint = load_file(out / "checkpoints" / "step_000002" / "tensors.safetensors")
    weights = [key for key in checkpoint if "blocks" in key and key.startswith(("policy", "model"))]
    assert weights and all(".lora_" in key for key in weights), "the base is written into every checkpoint"


def test_a_run_with_lora_goes_on_where_it_stopped(tmp_path):
    arguments = [
        "ppo",
        "--task",
        "digit_sum",
        "--batch",
        "8",
        "--minibatch",
        "8",
        "--lora",
        "4",
        "--checkpoint-every",
        "2",
    ]
    assert train(tmp_path / "a", *arguments, "--steps", "2") == 0
    assert train(tmp_path / "a", *arguments, "--steps", "4", "--resume") == 0
    assert train(tmp_path / "b", *arguments, "--steps", "4") == 0
    for file in ("metrics.jsonl", "final/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_sampled_pairs_may_be_few_and_short(tmp_path, capsys, unhooked):
    (model, tokenizer), world = load_pretrained(DATA / "weights" / "digit_sum_sft"), digit_sum
    assert Job(world, model, tokenizer, None, 0, "cpu", 3, 40).pairs().chosen_mask.shape == (40, 3)
    from_a_file = SimpleNamespace(
        prompts=world.prompts, score=world.score, MAX_NEW_TOKENS=5, __name__="file"
    )  # a few prompts at a time
    pairs = Job(from_a_file, model, tokenizer, None, 0, "cpu", sampled_pairs=40).pairs()
    assert len(pairs) == 40 and (pairs.chosen_mask | pairs.rejected_mask).any(1).all()
    run = ["dpo", "--task", "digit_sum", "--steps", "1", "--pairs", "4"]
    assert train(tmp_path / "none", *run, "--pair-tokens", "0") == 2
    assert "max_new_tokens: wanted a whole number of at least 1, got 0" in one_line(capsys)


@pytest.mark.parametrize("arguments, message", [
    (["grpo", "--dtype", "bf16"], "--dtype: bf16 weights cannot learn by themselves"),
    (["grpo", "--dtype", "int8", "--lora"], "--dtype: wanted fp32 or bf16, got 'int8'"),
    (["reward_model", "--lora"], "--lora: reward_model trains every weight"),
    (["grpo", "--lora", "1000"], "rank: wanted a whole number in [1, "),
    (["grpo", "--micro-batch", "0"], "micro_batch: wanted a whole number of at least 1"),
])  # fmt: skip
def test_what_cannot_be_saved_is_said(tmp_path, capsys, unhooked, arguments, message):
    assert train(tmp_path / "out", *arguments, "--task", "digit_sum", "--steps", "1") == 2
    assert message in one_line(capsys)
