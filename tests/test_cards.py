"""The cards keep their rules and prove their claims; quiz, deck and pages do what a learner relies on."""

import argparse
import ast
import html
import json
import os
import re
import signal
import sqlite3
import sys
import zipfile
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path
from select import select as readable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirl import advantages, exact, kl, masking
from minirl.cards import LEVELS, TOPICS, cards, command, load, load_evening, prove, quiz, schedule, select, sheet
from minirl.cards.printed import cards_page
from minirl.cards.schedule import State, review
from minirl.drills import BANK
from minirl.losses import policy, preference
from minirl.rollout import best_of_kl_bound

ROOT = Path(__file__).resolve().parents[1]
ALL = load()
PROVEN = [card for card in ALL if card.assertion]
TODAY = date(2026, 3, 1)


# The cards


def test_there_are_enough_cards_of_every_topic_and_level():
    assert len(ALL) >= 120 and len(PROVEN) >= 0.6 * len(ALL)
    for topic in TOPICS:
        assert len(select(ALL, topic=topic)) >= 7, topic
    for level in LEVELS:
        assert len(select(ALL, level=level)) >= 15


def test_cards_are_sorted_by_topic_and_level():
    order = [(TOPICS.index(card.topic), card.level) for card in ALL]
    assert order == sorted(order)


def test_questions_are_asked_once():
    for name in ("id", "question", "short", "long"):
        texts = [getattr(card, name) for card in ALL]
        assert len(set(texts)) == len(texts), name


def test_notebooks_exist():
    there = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {card.notebook for card in ALL} <= there


@pytest.mark.parametrize("topic", TOPICS)
def test_every_assertion_holds(topic):
    for card in select(ALL, topic=topic):
        try:
            prove(card)
        except Exception as error:
            raise AssertionError(f"{card.id}: {type(error).__name__}: {error}") from error


def turned_round(source: str) -> str:
    """The same code with its last `assert` negated. An assertion that was never reached would not notice."""
    tree = ast.parse(source)
    last = max((node for node in ast.walk(tree) if isinstance(node, ast.Assert)), key=lambda node: node.lineno)
    last.test = ast.UnaryOp(ast.Not(), last.test)
    return ast.unparse(ast.fix_missing_locations(tree))


def test_assertions_that_are_turned_round_fail():
    """Every seventh card that ends in a plain assert, to save time."""
    tried = [card for card in PROVEN if "\nassert" in card.assertion or card.assertion.startswith("assert")][::7]
    assert len(tried) >= 10
    for card in tried:
        other = cards.Card(**{**vars(card), "assertion": turned_round(card.assertion)})
        with pytest.raises(AssertionError):
            prove(other)


MISTAKES = [  # a wrong version from the drills' bank, and a card that has to notice it
    (kl, "kl_k3", "swapped_k3", "kl-k3-derive"),
    (policy, "ppo_clip_loss", "max_for_negative_advantages", "ppo-minimum"),
    (advantages, "gae", "monte_carlo_returns", "gae-formula"),
    (masking, "masked_whiten", "whitened_over_padding", "dbg-padding-mean"),
    (advantages, "group_relative_advantages", "population_std", "grpo-std-convention"),
    (preference, "bradley_terry_loss", "scores_judged_alone", "rm-scale-shift"),
    (policy, "reinforce_loss", "unnegated_reinforce", "dbg-sign"),
]


@pytest.mark.parametrize(
    ("room", "function", "mistake", "card_id"), MISTAKES, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_broken_library_is_noticed(room, function, mistake, card_id, monkeypatch):
    (card,) = [card for card in ALL if card.id == card_id]
    (wrong,) = {
        mutant.name: mutant for mutant in BANK if mutant.name == mistake and mutant.of.__name__ == function
    }.values()
    assert prove(card)
    monkeypatch.setattr(room, function, wrong.function)
    with pytest.raises(AssertionError):
        prove(card)


def row(**changes) -> dict:
    line = (ROOT / "data" / "interview.jsonl").read_text(encoding="utf-8").splitlines()[0]
    return json.loads(line) | changes


BROKEN = [
    ("id", "No Slug", "hyphens"),
    ("level", 4, "one of 1, 2, 3"),
    ("level", True, "one of 1, 2, 3"),
    ("topic", "cooking", "policy gradients"),
    ("question", " space before", "without space"),
    ("short", "word " * 60 + "word", "at most 60 words"),
    ("long", "word " * 220 + "word", "at most 220 words"),
    ("follow_ups", ["only one?"], "2 to 4"),
    ("wrong", [], "1 to 3"),
    ("wrong", [{"answer": "x"}], "answer and why"),
    ("notebook", None, "text"),
    ("assertion", "x = (", "Python source"),
    ("assertion", "x = 1", "asserts"),
    ("assertion", "\n".join(["x = 1"] * 20 + ["assert x"]), "at most 20 lines"),
]


@pytest.mark.parametrize(("field", "value", "wanted"), BROKEN)
def test_errors_name_line_and_field(field, value, wanted, tmp_path):
    path = tmp_path / "cards.jsonl"
    good = json.dumps(row())
    path.write_text(f"{good}\n\n{json.dumps(row(**{'id': 'another', field: value}))}\n")
    with pytest.raises(ValueError, match=rf"cards\.jsonl, line 3, {field}: wanted .*{re.escape(wanted)}"):
        load(path)


def test_errors_of_the_file(tmp_path):
    path = tmp_path / "cards.jsonl"
    good = json.dumps(row())
    for text, message in {
        "": "at least one card",
        "{nonsense": "line 1: is no JSON",
        f"{good}\n{good}": r"line 2, id: '.*' stands in line 1 already",
        json.dumps(
            {key: value for key, value in row().items() if key != "short"}
        ): "line 1: wanted the fields id, level",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load(path)


def test_selection():
    assert select(ALL, topic="reward-models") == [card for card in ALL if card.topic == "reward models"]
    assert {card.level for card in select(ALL, topic="kl", level=2)} == {2}
    for wrong in ({"topic": "cooking"}, {"level": 9}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            select(ALL, **wrong)


def test_thirty_for_one_evening(tmp_path):
    evening = load_evening(ALL)
    assert len({card.id for card in evening}) == len(evening) == 30
    assert len({card.topic for card in evening}) >= 12 and sum(card.level == 3 for card in evening) <= 4
    (tmp_path / "evening.json").write_text('["nobody"]')
    with pytest.raises(ValueError, match="no card 'nobody'"):
        load_evening(ALL, tmp_path / "evening.json")


# Spaced repetition


def after(*grades: str) -> State:
    """Graded on each day that it was due."""
    state, day = State(), TODAY
    for grade in grades:
        state = review(state, grade, day)
        day = state.due
    return state


def test_sm2_by_hand():
    """1 day, 6 days, then times the ease, rounded up; easy +0.10, good 0, hard -0.14 (SM-2's formula at 5, 4 and 3)."""
    assert [after(*["good"] * n).interval for n in (1, 2, 3, 4)] == [1, 6, 15, 38]
    assert after("good", "good", "good").ease == 2.5
    assert after("easy").ease == pytest.approx(2.6) and after("hard").ease == pytest.approx(2.36)
    assert after("easy", "easy", "easy").interval == 17  # ceil(6 * 2.8)
    assert after(*["hard"] * 12).ease == 1.3  # and no lower
    lapsed = after("good", "good", "hard", "again")
    assert (lapsed.repetitions, lapsed.interval, lapsed.ease) == (0, 1, pytest.approx(2.36))
    assert (lapsed.reviews, lapsed.right) == (4, 3)
    assert after("good", "good", "again", "good", "good").interval == 6  # from the beginning


@given(st.lists(st.sampled_from(sorted(schedule.QUALITY)), min_size=1, max_size=30))
def test_properties_of_the_schedule(grades):
    state = after(*grades)
    assert state.ease >= 1.3 and state.interval >= 1 and state.due == state.seen + timedelta(days=state.interval)
    assert review(state, "again", state.seen) == state  # only the first grade of a day counts
    again, hard, good, easy = (review(state, grade, state.due).interval for grade in schedule.QUALITY)
    assert again == 1 and hard <= good <= easy
    assert schedule.is_due(state, state.due) and not schedule.is_due(state, state.due - timedelta(days=1))


def test_what_got_less_than_good_comes_back_in_the_same_session():
    assert [schedule.comes_back_today(grade) for grade in ("again", "hard", "good", "easy")] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(ValueError, match="grade: wanted one of again"):
        review(State(), "perfect", TODAY)


def test_progress_survives_the_file(tmp_path):
    path = tmp_path / "new folder" / "progress.json"
    assert schedule.read_progress(path) == {}
    states = {"a": after("good", "hard"), "a card that is gone": after("again")}
    schedule.write_progress(path, states)
    assert schedule.read_progress(path) == states
    assert [file.name for file in path.parent.iterdir()] == ["progress.json"]


DAMAGED = [
    "",
    "{",
    "[]",
    '{"format": "other", "cards": {}}',
    '{"format": "minirl quiz progress 1", "cards": {"a": {}}}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_progress_is_refused_and_left_alone(text, tmp_path):
    path = tmp_path / "progress.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"progress\.json is no progress of this quiz, or is damaged .*left as it is"):
        quiz.run(parsed(quiz, "--progress", str(path)))
    assert path.read_text() == text


def test_progress_with_impossible_numbers_is_refused(tmp_path):
    path = tmp_path / "progress.json"
    for name, value in {"ease": 0.5, "interval": 0, "due": "tomorrow", "reviews": "3"}.items():
        schedule.write_progress(path, {"a": after("good")})
        stored = json.loads(path.read_text())
        stored["cards"]["a"][name] = value
        path.write_text(json.dumps(stored))
        with pytest.raises(ValueError, match="damaged"):
            schedule.read_progress(path)


# The session


def parsed(module, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(words)


def session(chosen, answers: list[str], states=None):
    """(states, how often they were kept) of a session with these answers; the input ends after the last."""
    states, kept, rest = {} if states is None else states, [], iter(answers)

    def answer_of(prompt: str) -> str:
        said = next(rest, None)
        if said is None:
            raise quiz.Stop
        return said

    quiz.ask_cards(chosen, states, TODAY, answer_of=answer_of, keep=lambda: kept.append(dict(states)))
    return states, kept


def test_session_grades_keeps_and_asks_again(capsys):
    one, two = ALL[:2]
    states, kept = session([one, two], ["", "1", "", "m", "4", "", "", "hello", "3"])
    assert states == {one.id: review(State(), "again", TODAY), two.id: review(State(), "easy", TODAY)}
    assert [list(at) for at in kept] == [[one.id], [one.id, two.id], [one.id, two.id]]
    said = " ".join(capsys.readouterr().out.split())
    for text in (one.question, two.short, two.long, *two.follow_ups, two.wrong[0].why, "once more", "Not 'hello'"):
        assert " ".join(text.split()) in said
    assert said.count(" ".join(one.short.split())) == 2


def test_session_shows_the_proof(capsys):
    session(PROVEN[:1], ["", "p", "q"])
    said = capsys.readouterr().out
    assert PROVEN[0].assertion.splitlines()[-1] in said and "It ran just now, and holds." in said


def test_order_of_cards():
    chosen = ALL[:6]
    states = {chosen[0].id: after("again", "good"), chosen[1].id: after("good"), chosen[2].id: after("good", "good")}
    today = TODAY + timedelta(days=3)  # the first has waited for one day, the second for two; the third is not due
    order = quiz.next_cards(chosen, states, today, first=[chosen[5].id])
    assert order == [chosen[1], chosen[0], chosen[5], chosen[3], chosen[4]]


def test_statistics_by_topic():
    chosen = select(ALL, topic="gae")
    states = {chosen[0].id: after("good", "good"), chosen[1].id: after("again")}
    lines = quiz.statistics(chosen, states, TODAY).splitlines()
    assert lines[1].split() == ["gae", str(len(chosen)), "2", "1", "67%"] and len(lines) < 8
    assert "1 tomorrow, 1 within a week" in " ".join(lines)


@pytest.mark.parametrize("columns", [30, 80])
def test_lines_keep_to_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    plain = [card for card in ALL if max(map(len, f"{card.question} {card.long} {card.short}".split())) < 26][:3]
    session(plain, ["", "m", "4"] * 3)
    text = capsys.readouterr().out
    assert text and max(len(line) for line in text.splitlines()) <= max(columns, 48)


def talk(keys: list[bytes], *words: str) -> tuple[str, int]:
    """What `words` say in a terminal of their own to somebody who types these keys, one at each prompt; and the status."""
    pty = pytest.importorskip("pty")
    code = (
        "import argparse, sys; from minirl.cards import quiz; p = argparse.ArgumentParser(); quiz.add_arguments(p); "
        "sys.exit(quiz.run(p.parse_args()))"
    )
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C has to work, whoever started the tests
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", code, *words])
    said, waiting = b"", list(keys)
    while True:
        if not readable([terminal], [], [], 3)[0] and not waiting:
            os.write(terminal, keys[-1])  # a Ctrl-C that came between the prompt and the reading of the answer was lost
            continue
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the other side has closed
            break
        said += piece
        if not piece:
            break
        if said.endswith(b"> ") and waiting:
            os.write(terminal, waiting.pop(0))
            said += b"<"
    _, status = os.waitpid(child, 0)
    return said.decode(), os.waitstatus_to_exitcode(status)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(os.name != "posix", reason="needs a terminal of its own")
def test_a_session_in_a_terminal(tmp_path):
    """Two grades, then Ctrl-C at a prompt: both are on disk, the statistics come, and nothing is torn."""
    path = tmp_path / "progress.json"
    keys = [b"\n", b"m\n", b"3\n", b"\n", b"1\n", b"\x03"]
    said, status = talk(keys, "--evening", "--progress", str(path))
    assert status == 0 and "Traceback" not in said
    first, second = load_evening(ALL)[:2]
    states = schedule.read_progress(path)
    assert {name: state.right for name, state in states.items()} == {first.id: 1, second.id: 0}
    assert "\x1b[1m" in said and "Often said, and wrong" in said and "Coming back" in said


def test_a_piped_session_ends_cleanly(tmp_path, monkeypatch, capsys):
    typed = iter(["", "3"])

    def typed_or_end(prompt: str) -> str:
        print(prompt, end="")
        said = next(typed, None)
        if said is None:
            raise EOFError
        return said

    monkeypatch.setattr("builtins.input", typed_or_end)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert quiz.run(parsed(quiz, "--topic", "gae", "--cards", "3")) == 0
    assert len(schedule.read_progress(tmp_path / quiz.PROGRESS)) == 1
    assert "3 cards." in capsys.readouterr().out
    with pytest.raises(ValueError, match="--cards: wanted at least 1"):
        quiz.run(parsed(quiz, "--cards", "0"))


def test_nothing_due(tmp_path, capsys):
    path = tmp_path / "progress.json"
    known = {card.id: review(State(), "good", date.today()) for card in ALL}
    schedule.write_progress(path, known)
    assert quiz.run(parsed(quiz, "--progress", str(path))) == 0
    assert f"Nothing is due today. Coming back: 0 due now, {len(ALL)} tomorrow" in capsys.readouterr().out


# The deck


def test_ids_of_the_deck_are_fixed_here():
    """Numbers that were written down once: whoever changes the hash loses everybody's intervals."""
    from minirl.cards.anki import note_guid, stable_id

    assert (stable_id("minirl interview deck"), stable_id("minirl interview note type")) == (DECK_ID, MODEL_ID)
    assert note_guid("gae-formula") == GUID
    assert len({note_guid(card.id) for card in ALL}) == len(ALL)


DECK_ID, MODEL_ID, GUID = 1968072146, 1297240236, "c3ab63118cc4edd1"


def notes_of(path: Path) -> tuple[dict, set, set]:
    """{guid: (fields, tags)} and the ids of decks and note types, as Anki reads them."""
    with zipfile.ZipFile(path) as package:
        package.extract("collection.anki2", path.parent)
    database = sqlite3.connect(path.parent / "collection.anki2")
    notes = {
        guid: (fields.split("\x1f"), tags.split())
        for guid, fields, tags in database.execute("select guid, flds, tags from notes")
    }
    ((decks, models),) = database.execute("select decks, models from col").fetchall()
    count = database.execute("select count(*) from cards").fetchone()[0]
    database.close()
    assert count == len(notes)
    return notes, set(json.loads(decks)), set(json.loads(models))


def test_two_builds_of_the_deck_have_the_same_notes(tmp_path, capsys):
    pytest.importorskip("genanki")
    from minirl.cards.anki import note_guid

    for name in ("first", "second"):
        assert command.run(parsed(command, "anki", "--out", str(tmp_path / name / "deck.apkg"))) == 0
    first, second = (notes_of(tmp_path / name / "deck.apkg") for name in ("first", "second"))
    assert first == second and len(first[0]) == len(ALL)
    assert str(DECK_ID) in first[1] and str(MODEL_ID) in first[2]
    for card in ALL:
        fields, tags = first[0][note_guid(card.id)]
        assert html.unescape(fields[0]) == card.question and html.unescape(fields[2]) == card.short
        assert set(tags) == {"minirl", f"level::{card.level}", f"topic::{card.topic.replace(' ', '-')}"}
    assert not list(tmp_path.rglob("*.aside"))


def test_without_genanki_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "genanki", None)
    with pytest.raises(ValueError, match=r"pip install genanki .*minirl\[anki\]"):
        command.run(parsed(command, "anki", "--out", str(tmp_path / "deck.apkg")))
    assert not list(tmp_path.iterdir())


# The pages


class Page(HTMLParser):
    """Reads a page: tags have to close in order, and nothing may be loaded."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        assert not {"src", "href", "srcset", "onclick"} & {name for name, _ in attributes}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def test_the_printed_page(tmp_path, capsys):
    out = tmp_path / "new" / "cards.html"
    assert command.run(parsed(command, "print", "--out", str(out), "--topic", "gae")) == 0
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    for card in ALL:
        assert (card.question in page.text) == (card.topic == "gae"), card.id
    assert "size: A4" in text and not re.search(r"https?://|@import|url\(|<script|<link", text)
    assert Page(cards_page(ALL)).tags.count("h2") == len(TOPICS)


def test_the_sheet_is_whole_and_small_enough(tmp_path, capsys):
    out = tmp_path / "sheet.html"
    assert command.run(parsed(command, "sheet", "--out", str(out))) == 0
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?://|@import|url\(|<script|<link", text)
    for card in load_evening(ALL):
        assert card.question in page.text and sheet.first_line(card.short) in page.text
    assert page.tags.count("code") == sum(map(len, sheet.FORMULAS.values()))
    # printed by a browser it was two pages of A4, each with some room left
    for half in text.split("<body>")[1].split('<h2 class="part second">'):
        assert 500 < len(re.sub(r"<[^>]+>", " ", half).split()) < 1250


# The sheet's formulas are run, and compared with the library.

dice = torch.Generator().manual_seed(0)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=dice, dtype=torch.float64)


LOGP, OLD, REF, A, V, V_OLD, R = (draw(4, 5) for _ in range(7))
CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED = pairs = [-3 + draw(4) for _ in range(4)]
H = (CHOSEN - REF_CHOSEN) - (REJECTED - REF_REJECTED)
SCORES, YES = draw(4), torch.ones(4, 5, dtype=torch.bool)
WORLD = exact.World(3, 2)
REF_WORLD, R_WORLD = exact.sequence_logprobs(WORLD, draw(len(WORLD.prefixes), 3)), draw(len(WORLD))
BEST = exact.optimum(REF_WORLD, R_WORLD, beta=0.5)[0]
LETTERS = {
    "exp": torch.exp, "log": lambda x: torch.as_tensor(x).log(), "sqrt": torch.sqrt, "sigmoid": torch.sigmoid,
    "mean": torch.mean, "std": torch.std, "clip": lambda x, low, high: torch.as_tensor(x).clamp(low, high),
    "total": lambda x: x.sum(1), "detach": lambda x: x.detach(),
    "min": lambda a, b: torch.minimum(a, torch.as_tensor(b, dtype=a.dtype)), "max": torch.maximum,
    "logp": LOGP, "old": OLD, "ref": REF, "A": A, "V": V, "V_old": V_OLD, "R": R, "eps": 0.2, "eps_high": 0.28, "beta": 0.5,
    "ratio": (LOGP - OLD).exp(), "k3": kl.kl_k3(LOGP, REF), "G": 4, "h": H, "e": 0.1, "gamma": 1.0,
    "chosen": CHOSEN, "rejected": REJECTED, "ref_chosen": REF_CHOSEN, "ref_rejected": REF_REJECTED,
}  # fmt: skip
CHAIN = {"r_t": 0.5, "V_next": 0.7, "V": 0.2, "gamma": 0.9, "lam": 0.8}  # two steps: rewards .5, 1; values .2, .7
TWO = advantages.gae(
    torch.tensor([[0.5, 1.0]]), torch.tensor([[0.2, 0.7]]), torch.ones(1, 2).bool(), gamma=0.9, lam=0.8
)
STEP = {"delta": 0.5 + 0.9 * 0.7 - 0.2, "A_next": 1.0 - 0.7, "gamma": 0.9, "lam": 0.8}
CONTROL = {"kl": 3.0, "target": 6.0, "n": 1000, "horizon": 10_000, "beta": 0.2}
PER_ROW = draw(4)
ROW_A = PER_ROW.unsqueeze(1).expand(4, 5)
TRUTH = {  # formula: (what is special about its letters, what the library says)
    "objective": ({"r": R_WORLD, "mean": lambda r: BEST.exp() @ r, "KL": exact.kl(BEST, REF_WORLD)},
                  exact.objective(BEST, REF_WORLD, R_WORLD, beta=0.5)),
    "optimum": ({"pi_ref": REF_WORLD.exp(), "r": R_WORLD, "Z": (REF_WORLD.exp() * (R_WORLD / 0.5).exp()).sum()}, BEST.exp()),
    "reward of a token": ({}, -0.5 * kl.kl_k1(LOGP, REF)),
    "k1": ({}, kl.kl_k1(LOGP, REF)), "k2": ({}, kl.kl_k2(LOGP, REF)), "k3": ({}, kl.kl_k3(LOGP, REF)),
    "adaptive": (CONTROL, torch.tensor(kl.AdaptiveKL(0.2, target=6.0, horizon=10_000).update(3.0, 1000))),
    "REINFORCE": ({}, policy.reinforce_loss(LOGP, A, YES, reduce=masking.fixed_length_mean(1))[0]),
    "leave one out": ({"r": SCORES}, advantages.leave_one_out_advantages(SCORES, 4)),
    "TD error": (CHAIN, torch.tensor(STEP["delta"])),
    "GAE": (STEP, TWO[0][0, 0]),
    "returns": ({"A": TWO[0], "V": torch.tensor([[0.2, 0.7]])}, TWO[1]),
    "whitening": ({}, masking.masked_whiten(A, YES)),
    "ratio": ({}, (LOGP - OLD).exp()),
    "clip": ({}, policy.ppo_clip_loss(LOGP, OLD, A, YES, clip_eps=0.2)[0]),
    "value clip": ({}, policy.value_clip_loss(V, V_OLD, R, YES, clip_eps=0.2)[0]),
    "Bradley-Terry": ({}, preference.bradley_terry_loss(CHOSEN, REJECTED)[0]),
    "log-ratio": ({}, H),
    "DPO": ({}, preference.dpo_loss(*pairs, beta=0.5)[0]),
    "IPO": ({}, preference.ipo_loss(*pairs, beta=0.5)[0]),
    "SimPO": ({}, preference.simpo_loss(CHOSEN, REJECTED, beta=0.5, gamma=1.0)[0]),
    "robust DPO": ({}, preference.robust_dpo_loss(*pairs, beta=0.5, label_smoothing=0.1)[0]),
    "GRPO": ({"r": SCORES}, advantages.group_relative_advantages(SCORES, 4)),
    "GRPO loss": ({"A": ROW_A}, policy.grpo_loss(LOGP, OLD, REF, PER_ROW, YES, clip_eps_high=0.28, kl_coef=0.5)[0]),
    "GSPO": ({"logp": LOGP[:1], "old": OLD[:1]}, policy.gspo_loss(LOGP[:1], OLD[:1], A[:1, 0], YES[:1])[1]["ratio_mean"]),
    "CISPO": ({"A": ROW_A}, policy.cispo_loss(LOGP, OLD, PER_ROW, YES, clip_eps_high=0.28)[0]),
    "dead groups": ({"p": 0.9, "G": 8}, torch.tensor(0.9**8 + 0.1**8)),
    "best of n": ({"n": 16}, torch.tensor(best_of_kl_bound(16))),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "code"), [(name, code) for group in sheet.FORMULAS.values() for name, code, _ in group]
)
def test_the_formulas_of_the_sheet_are_those_of_the_library(name, code):
    special, truth = TRUTH[name]
    letters = {**LETTERS, **special}
    exec(code, letters)
    found = torch.as_tensor(letters[code.split(" = ")[0]])
    torch.testing.assert_close(found.to(truth.dtype), truth, atol=1e-6, rtol=1e-5)


def test_the_memory_table_adds_up():
    """16 bytes for a weight that is trained with Adam in float32, 2 for one that is frozen in bf16."""
    for _, trained, frozen, total in sheet.MEMORY[1:-1]:
        assert total.startswith(str(16 * int(trained) + 2 * bool(frozen)))


def test_prove_command(capsys):
    assert command.run(parsed(command, "prove", "--topic", "gae", "--level", "1")) == 0
    counted = sum(card.assertion is not None for card in select(ALL, topic="gae", level=1))
    assert f"{counted} of {counted} assertions hold." in capsys.readouterr().out
