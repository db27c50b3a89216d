"""Configs, tasks, readers of what runs and learners leave behind, the classic loop, and the command line."""

import json
import math
from dataclasses import fields
from pathlib import Path

import numpy
import pytest
import torch
from hostile.tally import note, refused

from minirl import classic, doctor, drills, report
from minirl.__main__ import main
from minirl.cards.cards import load, load_evening, select
from minirl.cards.schedule import read_progress
from minirl.config import TransformerConfig
from minirl.drills import kept
from minirl.drills.grading.submissions import asked, read_submissions
from minirl.files import read_json, read_text
from minirl.model import Transformer
from minirl.pretrained import save_pretrained
from minirl.tasks import addition, countdown, digit_sum, gsm8k, stories
from minirl.train.cartpole import CartPoleConfig
from minirl.train.dpo import DPOConfig
from minirl.train.grpo import GRPOConfig
from minirl.train.kto import KTOConfig
from minirl.train.ppo import PPOConfig
from minirl.train.pretrain import PretrainConfig
from minirl.train.reward_model import RewardModelConfig
from minirl.train.sft import SFTConfig

CARDS = load()

# Configs: every field of every loop

CONFIGS = (PretrainConfig, SFTConfig, RewardModelConfig, PPOConfig, GRPOConfig, DPOConfig, KTOConfig, CartPoleConfig)
HOSTILE = {
    "a word": "0.1",
    "a list": [1],
    "nan": math.nan,
    "-inf": -math.inf,
    "true": True,
    "many digits": 10**400,
    "far below": -(2**70),
}
FIELDS = [
    pytest.param(config, field.name, value, id=f"{config.__name__}-{field.name}-{how}")
    for config in CONFIGS
    for field in fields(config)
    for how, value in (HOSTILE | ({} if field.default is None else {"None": None})).items()
]


@pytest.mark.parametrize("config, name, value", FIELDS)
def test_a_field_that_cannot_be(config, name, value, unhooked, request):
    said = refused(request, lambda: config(**{name: value}))
    assert name in said.partition(":")[0] or name in ("environments", "length"), said


@pytest.mark.parametrize("config", CONFIGS)
def test_numbers_of_numpy_become_json(config, unhooked):
    numbers = {f.name: f.default for f in fields(config) if isinstance(f.default, int | float)}
    made = config(**{name: numpy.asarray(x)[()] for name, x in numbers.items()})
    assert json.loads(json.dumps({name: getattr(made, name) for name in numbers})) == numbers


# Tasks

DICE = torch.Generator()
GSM8K = '{"question": "1 + 1?", "answer": "#### 2"}\n'
TASK_CALLS = {
    f"{task.__name__.rpartition('.')[2]}: {what}": (lambda task=task, call=call: call(task), named)
    for task in (addition, countdown, digit_sum, stories)
    for what, call, named in (
        ("n -1", lambda task: task.prompts(-1, DICE), "n"),
        ("n 2.5", lambda task: task.prompts(2.5, DICE), "n"),
        ("n a word", lambda task: task.prompts("2", DICE), "n"),
        ("n True", lambda task: task.prompts(True, DICE), "n"),
        ("n 2^63", lambda task: task.prompts(2**63, DICE), "n"),
        ("no generator", lambda task: task.prompts(2, None), "generator"),
        ("a seed as generator", lambda task: task.prompts(2, 5), "generator"),
        ("uneven", lambda task: task.score(task.prompts(2, DICE), ["x"]), "responses"),
        ("a text for a list", lambda task: task.score("ab", ["x", "y"]), "prompts"),
        ("None", lambda task: task.score(None, ["x"]), "prompts"),
        ("responses None", lambda task: task.score(task.prompts(1, DICE), None), "responses"),
        ("a response of a number", lambda task: task.score(task.prompts(1, DICE), [5]), "responses"),
    )
}
TASK_CALLS |= {
    "addition: a strange prompt": (lambda: addition.score(["x"], ["0:1"]), "prompts"),
    "addition: digits 9": (lambda: addition.prompts(2, DICE, digits=9), "digits"),
    "addition: digits 1.5": (lambda: addition.prompts(2, DICE, digits=1.5), "digits"),
    "addition: share 2": (lambda: addition.examples(2, DICE, worked_share=2), "worked_share"),
    "countdown: a strange prompt": (lambda: countdown.score(["x"], ["y"]), "prompts"),
    "countdown: share nan": (lambda: countdown.examples(2, DICE, worked_share=math.nan), "worked_share"),
    "digit_sum: a strange prompt": (lambda: digit_sum.score(["x"], ["0:1"]), "prompts"),
    "digit_sum: digits 1": (lambda: digit_sum.prompts(2, DICE, digits=1), "digits"),
    "stories: a strange prompt": (lambda: stories.tell(["x"], DICE), "prompts"),
    "stories: tell None": (lambda: stories.tell(None, DICE), "prompts"),
    "stories: labels of nan": (lambda: stories.label(torch.tensor([math.nan]), torch.zeros(1), DICE), "gold_a"),
    "stories: labels uneven": (lambda: stories.label(torch.zeros(2), torch.zeros(1), DICE), "gold_b"),
    "gsm8k: None": (lambda: gsm8k.load(None), "path"),
    "gsm8k: no file": (lambda: gsm8k.load("/nowhere.jsonl"), "/nowhere.jsonl"),
    "gsm8k: no number": (lambda: gsm8k.is_correct("5", "five"), "reference"),
    "gsm8k: None as text": (lambda: gsm8k.is_correct(None, "#### 5"), "output"),
}


@pytest.mark.parametrize("call", TASK_CALLS)
def test_a_call_of_a_task(call, unhooked, request):
    function, named = TASK_CALLS[call]
    refused(request, function, named)


# Files of data, metrics and progress

DEEP = "[" * 100_000 + "]" * 100_000
GARBAGE = bytes(range(256)) * 4_000
JSON_LINES = {
    "empty": b"",
    "garbage": GARBAGE,
    "deep": DEEP.encode(),
    "a list": b"[1, 2]\n",
    "a number": b"5\n",
    "null": b"null\n",
    "half a character": b'{"a": "\xc3"}\n',
    "UTF-16": '{"a": 1}\n'.encode("utf-16"),
    "half a line": b'{"step": 1, "lo',
    "endless digits": b'{"step": ' + b"9" * 100_000 + b"}\n",
    "zeros": bytes(1000),
    "an empty object": b"{}\n",
}
READERS = {  # name of the file, the reader, a good content that comes first
    "gsm8k": ("train.jsonl", gsm8k.load, GSM8K),
    "cards": ("interview.jsonl", load, ""),
    "evening": ("evening.json", lambda path: load_evening(CARDS, path), ""),
    "metrics": ("metrics.jsonl", doctor.read_metrics, ""),
    "quiz": ("quiz.json", read_progress, ""),
    "drills": ("drills.json", kept.read, ""),
    "an object": ("a.json", read_json, ""),
}
FILES = [
    pytest.param(*READERS[reader], content, id=f"{reader}-{how}")
    for reader in READERS
    for how, content in JSON_LINES.items()
    if (reader, how) != ("an object", "an empty object")
]


@pytest.mark.parametrize("name, read, before, content", FILES)
def test_a_file_that_cannot_be_read(tmp_path, name, read, before, content, unhooked, request):
    path = tmp_path / "ä folder" / name
    path.parent.mkdir()
    path.write_bytes(before.encode() + content)
    if before and content == b"":
        assert read(path)
        note(request)
        return
    refused(request, lambda: read(path), name)
    assert path.read_bytes() == before.encode() + content  # as it was


@pytest.mark.parametrize("reader", [reader for reader in READERS if reader not in ("quiz", "drills")])
def test_a_folder_or_nothing_where_a_file_is_wanted(tmp_path, reader, unhooked, request):
    name, read, _ = READERS[reader]
    refused(request, lambda: read(tmp_path / name), name)
    (tmp_path / name).mkdir()
    refused(request, lambda: read(tmp_path / name), name)


PROBLEMS = {
    "no answer": '{"question": "1?"}',
    "no number": '{"question": "1?", "answer": "####"}',
    "no mark": '{"question": "1?", "answer": "5"}',
    "an answer of a number": '{"question": "1?", "answer": 5}',
    "infinity": '{"question": "1?", "answer": "#### inf"}',
    "an empty question": '{"question": " ", "answer": "#### 5"}',
    "a blank line": "",
}


@pytest.mark.parametrize("line", PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_that_is_none(tmp_path, line, unhooked, request):
    (tmp_path / "train.jsonl").write_text(GSM8K + line + "\n" + GSM8K)
    refused(request, lambda: gsm8k.load(tmp_path), "train.jsonl, line 2")


def test_marks_and_line_ends_are_no_damage(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + GSM8K.replace("\n", "\r\n").encode())
    assert len(gsm8k.load(tmp_path)) == 1
    (tmp_path / "metrics.jsonl").write_bytes(b'\xef\xbb\xbf{"step": 1, "loss": 2.0}\r\n{"step": 2, "loss": 1.0}\r\n')
    assert len(doctor.read_metrics(tmp_path)) == 2
    (tmp_path / "t.json").write_bytes(b"\xef\xbb\xbfa\r\nb\r")
    assert read_text(tmp_path / "t.json") == "a\nb\n"


# The report and the doctor

CONFIG = {"loop": "ppo", "task": "stories", "steps": 3, "versions": {"torch": "2"}}
RECORDS = [{"step": step, "loss": 1.0 / step, "kl": 0.1} for step in (1, 2, 3)]
ANSWER = {"model": "a", "tokens": ["x"], "kl": [0.1], "reward": [0.2], "score": 1.0, "gold": None}
SAMPLES = [{"prompt": "p", "responses": [ANSWER]}]
RUN_FILES = {
    "config a list": ("config.json", []),
    "config steps a word": ("config.json", CONFIG | {"steps": "3"}),
    "config versions a list": ("config.json", CONFIG | {"versions": [1]}),
    "metrics of lists": ("metrics.jsonl", [[1, 2]]),
    "metrics without steps": ("metrics.jsonl", [{"loss": 1.0}]),
    "metrics with a step of a word": ("metrics.jsonl", [{"step": "1", "loss": 1.0}]),
    "timings without seconds": ("timings.jsonl", [{"step": 1}]),
    "timings of words": ("timings.jsonl", [{"step": 1, "seconds": "3"}]),
    "samples an object": ("samples.json", {}),
    "samples without responses": ("samples.json", [{"prompt": "p"}]),
    "samples of a number": ("samples.json", [5]),
    "samples with a score of a word": ("samples.json", [{"prompt": "p", "responses": [ANSWER | {"score": "1"}]}]),
    "samples of uneven length": ("samples.json", [{"prompt": "p", "responses": [ANSWER | {"kl": [0.1, 0.2]}]}]),
    "samples with a prompt of a number": ("samples.json", [{"prompt": 5, "responses": [ANSWER]}]),
    "samples with tokens of numbers": ("samples.json", [{"prompt": "p", "responses": [ANSWER | {"tokens": [5]}]}]),
    "results a list": ("results.json", []),
    "results of nothing": ("results.json", {}),
    "results of words": ("results.json", {"stories": "x", "digit_sum": "y", "seconds": "z"}),
}


def run_folder(out: Path) -> Path:
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(CONFIG))
    for name, rows in (("metrics", RECORDS), ("timings", [{"step": 1, "seconds": 0.5}])):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "samples.json").write_text(json.dumps(SAMPLES))
    return out


@pytest.mark.parametrize("damage", RUN_FILES)
def test_a_run_whose_files_make_no_sense(tmp_path, damage, unhooked, request):
    out = run_folder(tmp_path / "a run")
    report.write_report(out)
    before = (out / "report.html").read_bytes()
    name, content = RUN_FILES[damage]
    lines = name.endswith("l")
    (out / name).write_text("".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content))
    refused(request, lambda: report.write_report(out), name)
    assert (out / "report.html").read_bytes() == before


@pytest.mark.parametrize("value", [10**400, True, "x", None, [1], {}, 1e308], ids=lambda value: f"{value!r:.9}")
def test_a_metric_that_is_no_number_is_left_out(tmp_path, value):
    """A correct read: what cannot be drawn is not drawn, and the rest is."""
    out = run_folder(tmp_path / "run")
    rows = [*RECORDS, {"step": 4, "kl": value, "loss": 0.2}]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "<b>loss</b>" in report.write_report(out).read_text()
    doctor.diagnose(rows)
    assert len(doctor.read_metrics(out)) == 4


@pytest.mark.parametrize("records", [None, 5, "x", {"step": 1}], ids=repr)
def test_a_diagnosis_of_what_is_no_list(records, unhooked, request):
    refused(request, lambda: doctor.diagnose(records), "records")


@pytest.mark.parametrize(
    "records", [[], [None], [5, "x"], [{}], [{"step": None}], [{5: 5}], [{"kl": 10**400}]], ids=repr
)
def test_a_diagnosis_of_nothing_is_no_diagnosis(records, unhooked):
    assert doctor.diagnose(records) == []


OTHERS = {
    "report: None": (lambda: report.write_report(None), "out"),
    "report: nothing there": (lambda: report.write_report("/nowhere"), "/nowhere"),
    "doctor: None": (lambda: doctor.read_metrics(None), "metrics"),
    "doctor: nothing there": (lambda: doctor.read_metrics("/nowhere"), "/nowhere"),
    "cards: topic": (lambda: select(CARDS, topic="cooking"), "topic"),
    "cards: topic a number": (lambda: select(CARDS, topic=5), "topic"),
    "cards: level 9": (lambda: select(CARDS, level=9), "level"),
    "cards: level a word": (lambda: select(CARDS, level="1"), "level"),
    "cards: level a list": (lambda: select(CARDS, level=[1]), "level"),
    "drills: no such": (lambda: drills.drill("nothing"), "name"),
    "drills: None": (lambda: drills.drill(None), "name"),
    "drills: a list": (lambda: drills.drill(["gae"]), "name"),
    "drills: hint 9": (lambda: drills.hint("gae", 9), "n"),
    "drills: hint 0": (lambda: drills.hint("gae", 0), "n"),
    "drills: hint 1.5": (lambda: drills.hint("gae", 1.5), "n"),
    "drills: check nothing": (lambda: drills.check("nothing", None), "name"),
    "drills: keep in a number": (lambda: drills.keep_progress(5), "path"),
    "interview: 0": (lambda: drills.Interview(0), "n"),
    "interview: 1000": (lambda: drills.Interview(1000), "n"),
    "interview: a word": (lambda: drills.Interview("3"), "n"),
    "interview: no time": (lambda: drills.Interview(1, minutes=0), "minutes"),
    "interview: nan": (lambda: drills.Interview(1, minutes=math.nan), "minutes"),
    "interview: a word of time": (lambda: drills.Interview(1, minutes="30"), "minutes"),
    "interview: among nothing": (lambda: drills.Interview(1, among=["nothing"]), "name"),
    "grading: no folder": (lambda: read_submissions(Path("/nowhere")), "/nowhere"),
    "grading: no drills": (lambda: asked("nothing", [], ["gae"]), "--drills"),
    "grading: only commas": (lambda: asked(",", [], ["gae"]), "--drills"),
}


@pytest.mark.parametrize("call", OTHERS)
def test_a_call_of_a_side_room(call, unhooked, request):
    function, named = OTHERS[call]
    refused(request, function, named)


PROGRESS = {
    "another version": {"version": 2, "drills": {}},
    "drills a list": {"version": 1, "drills": []},
    "an entry a list": {"version": 1, "drills": {"gae": []}},
    "an entry short of a field": {"version": 1, "drills": {"gae": {"tries": 1}}},
    "tries of a word": {"version": 1, "drills": {"gae": {"tries": "1", "hints": 0, "solved": None, "mistakes": []}}},
    "tries below 0": {"version": 1, "drills": {"gae": {"tries": -1, "hints": 0, "solved": None, "mistakes": []}}},
    "solved a number": {"version": 1, "drills": {"gae": {"tries": 1, "hints": 0, "solved": 5, "mistakes": []}}},
    "mistakes a word": {"version": 1, "drills": {"gae": {"tries": 1, "hints": 0, "solved": None, "mistakes": "x"}}},
}


@pytest.mark.parametrize("content", PROGRESS.values(), ids=PROGRESS)
def test_progress_that_is_another(tmp_path, content, unhooked, request):
    path = tmp_path / "progress.json"
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    refused(request, lambda: kept.keep_progress(path), "progress.json")
    assert path.read_bytes() == before
    kept.keep_progress(None)


SUBMISSIONS = {
    "garbage.py": GARBAGE[:5000],
    "zeros.py": b"def gae(): pass\0",
    "deep.ipynb": DEEP.encode(),
    "empty.ipynb": b"",
    "list.ipynb": b"[]",
    "cells.ipynb": b'{"cells": 5}',
    "sources.ipynb": b'{"cells": [{"cell_type": "code", "source": 5}, 7, null]}',
    "encoding.py": b"# -*- coding: nothing -*-\n",
    "half.py": b"x = '\xc3'",
    "large.py": b"#" * 1_100_000,
}


def test_submissions_that_cannot_be_read_are_said_to_be(tmp_path, request):
    for name, content in SUBMISSIONS.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "link.py").symlink_to("link.py")
    (tmp_path / "good.py").write_text("def gae(): ...")
    found = {one.filename: one for one in read_submissions(tmp_path)}
    assert found["good.py"].problem is None and "gae" in found["good.py"].defines(["gae"])
    unread = [name for name in SUBMISSIONS if found[name].problem]
    note(request, tried=len(SUBMISSIONS), refused=len(unread))
    assert set(SUBMISSIONS) - set(unread) <= {"zeros.py", "sources.ipynb"}


# The classic loop


@pytest.fixture(scope="module")
def trainer():
    words = digit_sum.tokenizer()
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=words.vocab_size, width=8, layers=1, heads=2, ffn=8, max_length=32)
    model = classic.AutoModelForCausalLMWithValueHead(Transformer(config), words)
    return classic.PPOTrainer(classic.PPOConfig(batch_size=2, mini_batch_size=2), model, None, words)


ROW = torch.tensor([1, 2])
CLASSIC = {
    "step: uneven responses": (lambda t: t.step([ROW, ROW], [ROW], [1.0, 2.0]), "responses"),
    "step: uneven scores": (lambda t: t.step([ROW, ROW], [ROW, ROW], [1.0]), "scores"),
    "step: scores of nan": (lambda t: t.step([ROW, ROW], [ROW, ROW], [1.0, math.nan]), "scores"),
    "step: scores of words": (lambda t: t.step([ROW, ROW], [ROW, ROW], ["a", "b"]), "scores"),
    "step: scores None": (lambda t: t.step([ROW, ROW], [ROW, ROW], None), "scores"),
    "step: queries None": (lambda t: t.step(None, [ROW], [1.0]), "queries"),
    "step: queries of words": (lambda t: t.step(["a", "b"], [ROW, ROW], [1.0, 2.0]), "queries"),
    "step: queries of floats": (lambda t: t.step(torch.zeros(2, 2), [ROW, ROW], [1.0, 2.0]), "queries"),
    "step: an empty query": (lambda t: t.step([ROW[:0], ROW], [ROW, ROW], [1.0, 2.0]), "queries"),
    "step: an empty response": (lambda t: t.step([ROW, ROW], [ROW, ROW[:0]], [1.0, 2.0]), "responses"),
    "step: masks of another length": (
        lambda t: t.step([ROW, ROW], [ROW, ROW], [1.0, 2.0], response_masks=[ROW[:1], ROW]),
        "response_masks",
    ),
    "step: too many": (lambda t: t.step([ROW] * 3, [ROW[:1]] * 3, [1.0] * 3), "queries"),
    "step: tokens beyond": (lambda t: t.step([ROW, ROW + 99], [ROW[:1], ROW[:1]], [1.0, 2.0]), "tokens"),
    "generate: floats": (lambda t: t.generate(torch.zeros(2)), "query_tensor"),
    "generate: None": (lambda t: t.generate(None), "query_tensor"),
    "generate: beams": (lambda t: t.generate(ROW, num_beams=4), "num_beams"),
    "generate: temperature": (lambda t: t.generate(ROW, temperature=0), "temperature"),
    "generate: top_k": (lambda t: t.generate(ROW, top_k=-5), "top_k"),
    "generate: length": (lambda t: t.generate(ROW, max_new_tokens=0), "max_new_tokens"),
    "generate: batch 0": (lambda t: t.generate([ROW], batch_size=-1), "batch_size"),
    "config: batch 0": (lambda t: classic.PPOConfig(batch_size=0), "batch_size"),
    "config: rate of a word": (lambda t: classic.PPOConfig(learning_rate="1e-5"), "learning_rate"),
    "config: cliprange": (lambda t: classic.PPOConfig(cliprange=-1), "cliprange"),
    "config: penalty": (lambda t: classic.PPOConfig(kl_penalty="abs"), "kl_penalty"),
    "config: whitening": (lambda t: classic.PPOConfig(whiten_rewards=True), "whiten_rewards"),
    "trainer: no config": (lambda t: classic.PPOTrainer({"batch_size": 2}, t.model, None, t.tokenizer), "config"),
    "trainer: no model": (lambda t: classic.PPOTrainer(None, "gpt2", None, t.tokenizer), "model"),
    "trainer: no tokenizer": (lambda t: classic.PPOTrainer(None, t.model, None, None), "tokenizer"),
    "trainer: a strange reference": (lambda t: classic.PPOTrainer(None, t.model, "gpt2", t.tokenizer), "ref_model"),
    "model: a word": (lambda t: classic.AutoModelForCausalLMWithValueHead("gpt2"), "model"),
    "model: no folder": (lambda t: classic.AutoModelForCausalLM.from_pretrained(Path("/nowhere")), "/nowhere"),
    "model: quantised": (
        lambda t: classic.AutoModelForCausalLM.from_pretrained("/x", load_in_8bit=True),
        "load_in_8bit",
    ),
    "model: a dtype of a word": (
        lambda t: classic.AutoModelForCausalLM.from_pretrained("/x", torch_dtype="float99"),
        "torch_dtype",
    ),
    "model: labels of 2": (
        lambda t: classic.AutoModelForSequenceClassification.from_pretrained("/x", num_labels=2),
        "num_labels",
    ),
    "sft: no rows": (lambda t: classic.Trainer(t.model.pretrained_model, train_dataset=[]), "train_dataset"),
    "sft: no model": (lambda t: classic.Trainer(None, train_dataset=[1]), "model"),
    "sft: masked": (lambda t: classic.DataCollatorForLanguageModeling(t.tokenizer, mlm=True), "mlm"),
    "sft: rate": (lambda t: classic.TrainingArguments(learning_rate=-1), "learning_rate"),
    "lengths: upside down": (lambda t: classic.LengthSampler(5, 2), "max_value"),
    "tokenizer: a number": (lambda t: classic.AutoTokenizer(t.tokenizer)(5), "text"),
    "tokenizer: numbers": (lambda t: classic.AutoTokenizer(t.tokenizer)([5]), "text"),
    "tokenizer: tensors of numpy": (
        lambda t: classic.AutoTokenizer(t.tokenizer)("1", return_tensors="np"),
        "return_tensors",
    ),
}


@pytest.mark.parametrize("call", CLASSIC)
def test_a_call_of_the_classic_loop(trainer, call, unhooked, request):
    function, named = CLASSIC[call]
    before = [p.clone() for p in trainer.model.parameters()]
    refused(request, lambda: function(trainer), named)
    assert all(torch.equal(x, p) for x, p in zip(before, trainer.model.parameters(), strict=True))


# The command line


def words(text: str) -> list[str]:
    return text.split()


COMMANDS = {
    "": ["--threads", "0"],
    "--threads": words("--threads -3"),
    "--device": words("--device nothing --out OUT"),
    "argument --threads": words("--threads two"),
    "argument --seed": words("--seed 1.5"),
    "invalid choice: 'tain'": words("tain"),
    "required: NAME": words("train"),
    "invalid choice: 'pp0'": words("train pp0 --out OUT"),
    "--out": words("train ppo"),
    "--task": words("train ppo --task cooking --out OUT"),
    "gsm8k": words("train grpo --task gsm8k: --out OUT"),
    "nowhere.jsonl": words("train grpo --task /nowhere.jsonl --out OUT"),
    "top_p": words("train grpo --top-p 0.9 --out OUT"),
    "no function": words("train grpo --steps 1 --reward FILE.py:nothing --task digit_sum --out OUT"),
    "nowhere.py": words("train grpo --reward /nowhere.py:score --task digit_sum --out OUT"),
    "/nowhere": words("train grpo --model /nowhere --task digit_sum --out OUT"),
    "--dtype": words("train grpo --dtype fp8 --task digit_sum --out OUT"),
    "--lora": words("train pretrain --lora 4 --task digit_sum --out OUT"),
    "rank": words("train grpo --lora 0 --task digit_sum --out OUT"),
    "--ops": words("train grpo --ops numpy --task digit_sum --out OUT"),
    "group_size": words("train grpo --group-size 0 --task digit_sum --out OUT"),
    "steps": words("train grpo --steps -1 --task digit_sum --out OUT"),
    "clip_eps": words("train grpo --clip-eps 0 --task digit_sum --out OUT"),
    "lr": words("train grpo --lr nan --task digit_sum --out OUT"),
    "temperature": words("train grpo --temperature 0 --task digit_sum --out OUT"),
    "minibatch": words("train ppo --minibatch 10000 --task digit_sum --out OUT"),
    "beta": words("train dpo --beta -1 --task digit_sum --out OUT"),
    "sampled_pairs": words("train dpo --sampled-pairs 0 --task digit_sum --out OUT"),
    "kl_coef": words("train ppo --kl-coef -1 --task digit_sum --out OUT"),
    "kl_target": words("train ppo --kl-target 0 --task digit_sum --out OUT"),
    "nowhere": words("generate /nowhere"),
    "generate": words("generate"),
    "'x'": words("generate MODEL --prompt x --max-new-tokens 2"),
    "max_new_tokens": words("generate MODEL --prompt 1 --max-new-tokens 0"),
    "top_p: ": words("generate MODEL --prompt 1 --top-p 2 --max-new-tokens 2"),
    "group_size: ": words("generate MODEL --prompt 1 -n 0 --max-new-tokens 2"),
    "temperature: ": words("generate MODEL --prompt 1 --temperature nan --max-new-tokens 2"),
    "prompts": words("generate MODEL --prompt= --max-new-tokens 2"),
    "-n": words("compare MODEL MODEL -n 1 --task digit_sum"),
    "cooking": words("compare MODEL MODEL --task cooking"),
    "metrics": words("doctor /nowhere/metrics"),
    "name": words("drill nothing"),
    "n: wanted": words("drill gae --hint 9"),
    "bad.json": words("drill gae --write BAD"),
    "of garbage": words("grade GRADED --drills GARBAGE"),
    "--seed": words("generate MODEL --prompt 1 --seed 99999999999999999999"),
    "--threads: wanted": words("generate MODEL --prompt 1 --threads 99999999999"),
    "tokenizer.json": words("generate BARE --prompt 1"),
    "SystemExit": words("train grpo --steps 1 --reward EXIT.py:score --task digit_sum --out OUT"),
    "checkpoint_every": words("train grpo --steps 1 --checkpoint-every -1 --task digit_sum --out OUT"),
    "line 2": words("train grpo --steps 1 --task PROMPTS.jsonl --model MODEL --out OUT"),
    "--check": words("drill gae --check /nowhere.py"),
    "minutes": words("interview --minutes 0"),
    "--cards": words("quiz --cards 0"),
    "--progress": words("quiz --progress BAD"),
    "topic": words("cards print --topic cooking --out OUT/x.html"),
    "submissions": words("grade /nowhere"),
    "notebooks": words("notebooks /nowhere/at/all --out OUT"),
}


EARLY = ("config.json", "lock", "drill_progress.json")  # what holds nothing yet


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    tokenizer = digit_sum.tokenizer()
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, width=8, layers=1, heads=2, ffn=8, max_length=16)
    save_pretrained(Transformer(config), tokenizer, folder / "model")
    (folder / "rule.py").write_text("def score(prompts, responses):\n    return [0.0] * len(prompts)\n")
    (folder / "bad.json").write_bytes(b'{"format": "\xff"}')
    (folder / "names of garbage").write_bytes(GARBAGE)
    (folder / "exit.py").write_text("raise SystemExit(0)\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": null}\n')
    save_pretrained(Transformer(config), None, folder / "bare")
    (folder / "graded").mkdir()
    (folder / "graded" / "a.py").write_text("def gae(): ...\n")
    return {
        "MODEL": folder / "model",
        "FILE": folder / "rule",
        "BAD": folder / "bad.json",
        "GARBAGE": folder / "names of garbage",
        "GRADED": folder / "graded",
        "BARE": folder / "bare",
        "EXIT": folder / "exit",
        "PROMPTS": folder / "prompts",
    }


@pytest.mark.parametrize("says", COMMANDS)
def test_a_command_that_cannot_be(says, places, tmp_path, monkeypatch, capsys, unhooked, request):
    """One line on stderr that names what is wrong, no traceback, exit 2, and nothing written."""
    monkeypatch.chdir(tmp_path)
    argv = []
    for word in COMMANDS[says]:
        for name, place in (places | {"OUT": tmp_path / "out"}).items():
            word = word.replace(name, str(place)) if name in word else word
        argv.append(word)
    threads = torch.get_num_threads()
    try:
        code = main(argv)
    except SystemExit as exit:
        code = exit.code
    finally:
        torch.set_num_threads(threads)
        kept.keep_progress(None)
    said = capsys.readouterr()
    assert code == 2, said.err
    assert says in said.err and "Traceback" not in said.err
    assert "error:" in said.err or said.err.count("\n") == 1
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    assert not [path for path in written if path.name not in EARLY], written
    note(request, refused=1)
