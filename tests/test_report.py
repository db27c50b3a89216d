"""The report says what the files of the run say, needs nothing but itself, and the command in it makes the run again."""

import base64
import json
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirl.__main__ import main
from minirl.model import Transformer
from minirl.pretrained import load_pretrained, save_pretrained
from minirl.report import write_report
from minirl.report.curves import chart, round_ticks, thinned
from minirl.report.verdict import direction, verdict
from minirl.rollout import responses_text, roll_out, sequence_kl
from minirl.samples import pieces, win_rate
from minirl.tasks import digit_sum, stories
from minirl.tokenizer import train_bpe
from minirl.train.settings import tiny_transformer
from minirl.types import STATS

VOID = {"meta", "img", "line", "br"}


class Page(HTMLParser):
    """Reads a page: its text, every attribute, the numbers of <data>, the tokens. Tags have to close in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.tags, self.attributes, self.words, self.numbers, self.tokens = [], [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        found = dict(attributes)
        if tag == "data":
            self.numbers.append(float(found["value"]))
        if "token" in found.get("class", "").split():
            self.tokens.append([found.get("title", ""), found.get("style", ""), ""])
        if tag not in VOID:
            self.open.append((tag, found.get("class", "")))

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and "token" in self.open[-1][1].split():
            self.tokens[-1][2] += data
        if not self.open or self.open[-1][0] != "style":
            self.words.append(data)


def train(out: Path, *arguments: str) -> Path:
    assert main(["train", *arguments, "--out", str(out), "--threads", "1"]) == 0
    return out


def records_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


PPO = ["ppo", "--steps", "3", "--batch", "8", "--minibatch", "8", "--seed", "1"]


@pytest.fixture(scope="module")
def ppo(tmp_path_factory) -> Path:
    """A run paid by the stored reward model, whose score is a sum over tokens. Tests only read it."""
    return train(tmp_path_factory.mktemp("runs") / "ppo", *PPO)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The least that can be reported on: a config and two steps."""
    (tmp_path / "config.json").write_text(json.dumps({"loop": "ppo", "task": "stories", "steps": 2}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kl": 0.5}\n{"step": 2, "kl": 1.5}\n')
    return tmp_path


# The page


def test_it_needs_nothing_but_itself(ppo):
    path = ppo / "report.html"
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(Page(path).tags)
    assert not [name for name, _ in Page(path).attributes if name in ("src", "href", "srcset", "xlink:href")]
    source = path.read_text(encoding="utf-8")
    assert "http" not in source and "@import" not in source and "url(" not in source


def test_it_follows_the_reader_into_the_dark_and_onto_a_phone(ppo):
    source = (ppo / "report.html").read_text(encoding="utf-8")
    assert "color-scheme: light dark" in source and "@media (prefers-color-scheme: dark)" in source
    assert '<meta name="viewport" content="width=device-width' in source and '<meta charset="utf-8">' in source
    dark = source.split("prefers-color-scheme: dark")[1].split("\n}")[0]
    assert all(f"--{name}:" in dark for name in ("ink", "soft", "page", "rule", "box", "line", "kl"))


def test_numbers_are_those_of_the_metrics(ppo):
    page, records = Page(ppo / "report.html"), records_of(ppo)
    drawn = [name for name in STATS if f"{name} at each step" in dict_values(page, "aria-label")]
    assert {"reward_mean", "gold_mean", "kl", "entropy", "explained_variance"} <= set(drawn)
    ends = [record[name] for name in drawn for record in (records[0], records[-1])]
    assert sorted(page.numbers) == sorted(ends)
    for name in drawn:
        assert STATS[name] in page.text
        assert f"{records[-1][name]:.3g} at step 3" in page.text


def dict_values(page: Page, name: str) -> set[str]:
    return {value for key, value in page.attributes if key == name}


def test_settings_versions_and_seconds(ppo):
    config, text = json.loads((ppo / "config.json").read_text()), Page(ppo / "report.html").text
    for name, value in config.items():
        if name != "versions":
            assert f"{name} {'not set' if value is None else value}" in text
    assert f"torch {torch.__version__}" in text and "threads 1" in text
    seconds = sum(json.loads(line)["seconds"] for line in (ppo / "timings.jsonl").read_text().splitlines())
    assert f"took {seconds:.1f} seconds" in text


def test_the_command_makes_the_run_again(ppo, tmp_path):
    words = shlex.split((ppo / "command.txt").read_text())
    assert shlex.join(words) in Page(ppo / "report.html").text
    assert words[:3] == ["python", "-m", "minirl"]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert main(words[3:]) == 0
    for name in ("metrics.jsonl", "config.json", "samples.json"):
        assert (tmp_path / "again" / name).read_bytes() == (ppo / name).read_bytes()


def test_a_path_with_spaces_stays_one_word(tmp_path):
    out = train(tmp_path / "my runs; & more", "sft", "--task", "digit_sum", "--steps", "1", "--batch", "2")
    assert str(out) in shlex.split((out / "command.txt").read_text())
    assert shlex.join([str(out)]) in Page(out / "report.html").text


@pytest.mark.parametrize("resume", ["--resume", "--res"])
def test_a_resumed_run_is_remade_without_stopping(tmp_path, resume):
    arguments = ["sft", "--task", "digit_sum", "--batch", "2"]
    train(tmp_path / "out", *arguments, "--steps", "1")
    train(tmp_path / "out", *arguments, "--steps", "3", resume)
    words = shlex.split((tmp_path / "out" / "command.txt").read_text())
    assert not [word for word in words if word.startswith("--res")] and words[words.index("--steps") + 1] == "3"
    assert "Over steps 1 to 3, loss" in Page(tmp_path / "out" / "report.html").text


def test_a_stopped_run_says_why(tmp_path):
    out = train(tmp_path / "out", *PPO, "--max-kl", "1e-9", "--lr", "0.01")
    assert len(records_of(out)) < 3
    said = Page(out / "report.html").text
    assert f"The run ended at step {len(records_of(out))} of 3: KL" in said and "is above max_kl = 1e-09" in said


def test_a_killed_run_is_reported_up_to_its_last_whole_line(folder):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "kl": 9')
    page = Page(write_report(folder))
    assert page.numbers == [0.5, 1.5] and "KL to the reference ended at 1.5 nats" in page.text


def test_what_is_missing_is_left_out(folder):
    text = Page(write_report(folder)).text
    assert "Curves" in text and "Samples" not in text and "The command" not in text and "seconds" not in text
    (folder / "metrics.jsonl").unlink()
    assert "No step has been recorded." in Page(write_report(folder)).text
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"out: .* no config\.json and no results\.json"):
        write_report(folder)


def test_not_a_number_is_not_drawn(folder):
    (folder / "metrics.jsonl").write_text('{"step": 1, "kl": 0.5, "loss": NaN}\n{"step": 2, "kl": Infinity}\n')
    page = Page(write_report(folder))
    assert page.numbers == [0.5, 0.5] and "nan" not in page.text.lower()


def test_text_is_escaped(folder):
    nasty = "</p><script>alert('a & b')</script>"
    (folder / "config.json").write_text(
        json.dumps({"loop": "ppo", "task": nasty, nasty: nasty, "versions": {nasty: nasty}})
    )
    (folder / "command.txt").write_text(nasty)
    response = {"model": nasty, "tokens": [nasty, " &amp;"], "kl": [0.1, 0.2], "reward": [1.0, -1.0]}
    (folder / "samples.json").write_text(
        json.dumps([{"prompt": nasty, "responses": [response | {"score": 1.0, "gold": None}]}])
    )
    page = Page(write_report(folder))
    assert "script" not in page.tags
    assert [text for *_, text in page.tokens] == [nasty, " &amp;"]
    # title, heading, task, a setting's and a version's name and value, prompt, model, token, command
    assert page.text.count(nasty) == 11


def test_it_is_written_where_there_is_no_plotting_library(ppo, tmp_path):
    shutil.copytree(ppo, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    code = "import sys; sys.modules['matplotlib'] = None; from minirl.report import write_report; write_report(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)
    assert (tmp_path / "run" / "report.html").read_bytes() == (ppo / "report.html").read_bytes()


# Samples


def test_tokens_carry_their_numbers(ppo):
    page = Page(ppo / "report.html")
    responses = [r for question in json.loads((ppo / "samples.json").read_text()) for r in question["responses"]]
    shown = iter(page.tokens)
    for response in responses:
        for i, text in enumerate(response["tokens"]):
            title, style, found = next(shown)
            assert found == text and f"reward {response['reward'][i]:+.3f}" in title and "--reward:" in style
            assert (response["kl"] is None) == ("KL" not in title)
            assert response["kl"] is None or f"KL {response['kl'][i]:.3f} nats" in title
    assert next(shown, None) is None
    assert all(f"score {r['score']:.2f} · gold {r['gold']:.2f}" in page.text for r in responses)


def test_stronger_colour_means_a_larger_number(ppo):
    """Blue above 0 and orange below is told by the class, how much by the opacity."""
    tokens = []
    for title, style, _ in Page(ppo / "report.html").tokens:
        reward = float(title.split("reward ")[1].split(",")[0])
        tokens.append((abs(reward), float(style.split("--reward:")[1].split(";")[0])))
    tokens.sort()
    assert all(a[1] <= b[1] + 0.01 for a, b in pairwise(tokens))
    assert tokens[0][1] < 0.1 and tokens[-1][1] == 0.6


def test_samples_are_what_the_models_write(ppo):
    """Read again with other code: the trained model from the disk, its text, its KL and what the tokens add up to."""
    questions = json.loads((ppo / "samples.json").read_text())
    ref, tokenizer = load_pretrained(Path(stories.__file__).parents[2] / "data" / "weights" / "stories_sft")
    after, _ = load_pretrained(ppo / "final")
    for index, (name, model) in enumerate((("before training", ref), ("after training", after))):
        generator = torch.Generator().manual_seed(1 + 30_000)
        texts, rollout = roll_out(
            model, tokenizer, stories.prompts(4, generator), max_new_tokens=40, generator=generator
        )
        written = responses_text(rollout, tokenizer)
        kl = sequence_kl(model, ref, rollout)
        gold = stories.gold(texts, written)
        for row, question in enumerate(questions):
            sample = question["responses"][index]
            assert question["prompt"] == texts[row] and sample["model"] == name
            assert "".join(sample["tokens"]).replace("<end>", "") == written[row]
            assert sum(sample["reward"]) == pytest.approx(sample["score"], abs=1e-4)
            assert sample["gold"] == pytest.approx(float(gold[row]))
            if index == 1:
                assert sum(sample["kl"]) == pytest.approx(float(kl[row]), abs=1e-4) and float(kl[row]) > 0
            else:
                assert sample["kl"] is None


def test_a_rule_has_a_score_and_no_token_rewards(tmp_path):
    out = train(tmp_path / "out", "grpo", "--task", "digit_sum", "--steps", "1", "--prompts", "2")
    for question in json.loads((out / "samples.json").read_text()):
        before, after = question["responses"]
        assert before["reward"] is after["reward"] is None and len(after["kl"]) == len(after["tokens"])
    text = Page(out / "report.html").text
    assert "The score is that of the rule." in text and "reward of a token" not in text


def test_a_reward_model_shows_what_it_pays_for(tmp_path):
    out = train(tmp_path / "out", "reward_model", "--steps", "1", "--pairs", "4")
    questions = json.loads((out / "samples.json").read_text())
    assert all(len(question["responses"]) == 1 for question in questions)
    assert all(r["reward"] and r["kl"] is None for question in questions for r in question["responses"])
    assert "the model it judges" in Page(out / "report.html").text


def test_pieces_join_to_the_text():
    tokenizer = digit_sum.tokenizer()
    assert pieces([*tokenizer.encode("12:3"), tokenizer.eos_id], tokenizer) == ["1", "2", ":", "3", "$"]
    tokenizer = stories.tokenizer()
    assert pieces(tokenizer.encode("He met a fox."), tokenizer) == ["He", " met", " a", " fox", "."]
    tokenizer = train_bpe(["plain text"], 257, eos="<end>")
    ids = tokenizer.encode("a é€")
    assert pieces(ids, tokenizer) == ["a", " ", "", "é", "", "", "€"]
    assert "".join(pieces(ids[:-1], tokenizer)).startswith("a é")  # cut off within a character


# Curves and words


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_ticks_are_few_and_enclose_the_values(values):
    ticks = round_ticks(values)
    slack = 1e-9 * max(map(abs, ticks))
    assert 2 <= len(ticks) <= 6 and ticks[0] <= min(values) + slack and ticks[-1] >= max(values) - slack
    gaps = [b - a for a, b in pairwise(ticks)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-6) and min(gaps) > 0


def test_ticks_by_hand():
    assert round_ticks([0.0, 1.0]) == [0, 0.5, 1.0]
    assert round_ticks([3.0, 21.0]) == [0, 10, 20, 30]
    assert round_ticks([1.0]) == [0.5, 1.0, 1.5]


def test_a_chart_puts_points_where_they_belong():
    drawn = chart("kl", [(1, 0.0), (2, 1.0), (3, 0.5)])
    (line,) = [part for part in drawn.split("<") if part.startswith("polyline")]
    points = [tuple(map(float, point.split(","))) for point in line.split('points="')[1].split('"')[0].split()]
    (x1, y1), (x2, y2), (x3, y3) = points
    assert x1 < x2 < x3 and x2 - x1 == pytest.approx(x3 - x2) and y2 < y3 < y1  # SVG counts downwards
    assert y1 - y3 == pytest.approx(y3 - y2, abs=0.2)
    assert "step 2: 1<" in drawn and drawn.count("<circle") == 3
    assert chart("kl", [(7, 2.0)]).count('class="alone"') == 1


def test_long_runs_are_thinned_and_keep_their_spikes():
    points = [(step, float(step == 777)) for step in range(1, 5001)]
    kept = thinned(points)
    assert (777, 1.0) in kept and len(kept) <= 122 and kept[0] == points[0] and kept[-1] == points[-1]
    assert kept == sorted(kept) and thinned(points[:50]) == points[:50]


def test_words_follow_the_numbers():
    def said(values, name="reward_mean"):
        return direction([{"step": i, name: value} for i, value in enumerate(values, start=1)], name)

    wiggle = [0.1, -0.1] * 20
    assert said([i / 10 + w for i, w in enumerate(wiggle)]) == "rose"
    assert said([-i / 10 + w for i, w in enumerate(wiggle)]) == "fell"
    # the last value is moved a little: the means differ by 0.025, with a standard error of 0.1
    assert said([*wiggle[:-1], 0.0]) == said([1.0] * 8) == "stayed within its noise,"
    assert said([0.0, 1.0]) == "went"  # two steps say nothing about noise


def test_over_optimisation_is_named_where_it_happened():
    def said(proxy, gold):
        records = [{"step": i, "reward_mean": proxy * i, "gold_mean": gold * i, "kl": i / 2.0} for i in range(1, 21)]
        return " ".join(verdict(records, {}))

    assert "over-optimisation" in said(1.0, -1.0)
    assert "over-optimisation" not in said(1.0, 1.0) and "over-optimisation" not in said(-1.0, -1.0)
    assert "reward_mean rose from 1.5 to 19.5" in said(1.0, 1.0)  # means of 2 steps at either end of 20
    assert "ended at 10 nats" in said(1.0, 1.0)


# The road


def test_the_road_has_its_figure_tables_and_seconds(tmp_path):
    story = {"gold": -0.5, "proxy": 0.25, "kl": 1.5, "length": 20.0}
    digit = {"accuracy": 0.125, "worked": 0.25, "length": 4.0}
    results = {
        "seed": 3,
        "quick": False,
        "torch": "2.9.9",
        "threads": 1,
        "stories": {
            "rows": {
                "SFT": story | {"kl": 0.0},
                "PPO": story | {"gold": 0.75},
                "PPO, no KL": story | {"gold": -4.25, "proxy": 9.5},
                "best of 16": story | {"kl": None},
            },
            "samples": {},
            "reward_model_accuracy": 0.7,
        },
        "digit_sum": {"rows": {"SFT": digit, "GRPO": digit | {"accuracy": 0.875}}, "samples": {}},
        "seconds": {"stories_sft": 1.5, "digits_grpo": 2.25},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "road.png").write_bytes(b"\x89PNG and so on")
    (tmp_path / "command.txt").write_text("python -m minirl --out runs/road\n")
    page = Page(write_report(tmp_path))
    sources = [value for name, value in page.attributes if name == "src"]
    assert [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources] == [
        b"\x89PNG and so on"
    ]
    for words in (
        "PPO 0.75 0.25 1.50 20.0",
        "best of 16 -0.50 0.25 < 1.84 20.0",
        "GRPO 0.88 0.25 4.0",
        "digits_grpo 2.25",
        "all 3.8",
        "torch 2.9.9",
        "from -0.50 to 0.75",
        "over-optimisation",
        "from 12% to 88% right",
        "python -m minirl --out runs/road",
    ):
        assert words in page.text
    (tmp_path / "results.json").write_text(json.dumps(results | {"quick": True}))  # differences are noise then
    text = Page(write_report(tmp_path)).text
    assert "A quick walk" in text and "over-optimisation" not in text
    (tmp_path / "road.png").unlink()
    assert "img" not in Page(write_report(tmp_path)).tags


# Compare


def test_win_rate_by_hand():
    rate, error = win_rate(torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 0.0, -1.0]))
    assert rate == 0.625
    assert error == pytest.approx((((0.375**2) * 2 + 0.125**2 + 0.625**2) / 3 / 4) ** 0.5)
    with pytest.raises(ValueError, match="at least 2 pairs, got 1"):
        win_rate(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="second: wanted finite"):
        win_rate(torch.zeros(2), torch.tensor([0.0, torch.nan]))


def parrot(folder: Path, character: str) -> str:
    """A model that writes one character for ever: every hidden state is all ones, and one row of the head reads it."""
    tokenizer = digit_sum.tokenizer()
    model = Transformer(tiny_transformer(tokenizer.vocab_size))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.embed.weight.fill_(1)
        model.norm.weight.fill_(1)
        model.head.weight[tokenizer.encode(character)[0]] = 1
    save_pretrained(model, tokenizer, folder)
    return str(folder)


def test_compare_counts_wins_and_half_of_ties(tmp_path, capsys):
    """Ones are worth 5 and sevens the first digit of the prompt, so that who wins is read off the prompts."""
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{digit}="}}\n' for digit in (9, 5, 2)))
    rule = tmp_path / "rule.py"
    rule.write_text(
        "def judge(prompts, responses):\n"
        "    return [5.0 if r[0] == '1' else float(p[0]) for p, r in zip(prompts, responses)]\n"
    )
    ones, sevens = parrot(tmp_path / "ones", "1"), parrot(tmp_path / "sevens", "7")
    options = ["--task", str(tmp_path / "prompts.jsonl"), "--reward", f"{rule}:judge", "-n", "11", "--threads", "1"]
    drawn = torch.randint(3, (11,), generator=torch.Generator().manual_seed(2))
    outcomes = torch.tensor([1.0, 0.5, 0.0])[drawn]
    assert len(outcomes.unique()) == 3
    error = float(outcomes.std()) / 11**0.5
    for pair, rate in (((ones, sevens), float(outcomes.mean())), ((sevens, ones), float(1 - outcomes.mean()))):
        assert main(["compare", *pair, *options, "--seed", "2"]) == 0
        said = capsys.readouterr().out
        assert f"B beats A on {rate:.1%} of 11 prompts, ties counted half (standard error {error:.1%})" in said
        assert said.count("  A ") == said.count("  B ") == 3 and "77777" in said and "11111" in said
    assert main(["compare", ones, ones, *options]) == 0
    assert "B beats A on 50.0%" in capsys.readouterr().out


def test_compare_gives_both_the_same_noise(tmp_path, capsys, ppo):
    weights = str(Path(stories.__file__).parents[2] / "data" / "weights" / "stories_sft")
    assert main(["compare", weights, weights, "-n", "8", "--seed", "4", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    answers = [line[4:] for line in lines if line.startswith(("  A ", "  B "))]
    assert len(answers) == 6 and answers[::2] == answers[1::2] and len(set(answers)) == 3
    assert any("50.0% of 8 prompts" in line and "error 0.0%" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "ONES"], "nowhere: no such folder"),
        (["ONES", "ONES", "-n", "1"], "-n: wanted at least 2 prompts, got 1"),
        (["ONES", "ONES", "--task", "chess"], "--task: wanted stories"),
        (["ONES", "ONES", "--task", "stories"], "'O' is not in the vocabulary of 13 tokens"),
        (["ONES", "ONES", "--reward", "none.py:f"], "--reward: no file none.py"),
        (["ONES", "ONES", "--temperature", "0"], "temperature: wanted"),
    ],
)
def test_compare_says_what_is_wrong_in_one_line(tmp_path, capsys, unhooked, arguments, says):
    parrot(tmp_path / "ones", "1")
    arguments = [str(tmp_path / "ones") if word == "ONES" else word for word in arguments]
    task = [] if "--task" in arguments else ["--task", "digit_sum"]
    assert main(["compare", *arguments, *task, "--threads", "1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("minirl: ") and says in line
