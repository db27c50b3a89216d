"""The stories: gold by hand, the grammar, the author's probabilities against enumeration and counting, the labeller."""

import math
import re
from collections import Counter
from itertools import pairwise, product

import pytest
import torch

from minirl.tasks import stories

TOM, MIA = "One day Tom went to the park.", "One summer Mia ran to the river."


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gold(response: str, prompt: str = TOM) -> float:
    return round(stories.gold([prompt], [response]).item(), 4)


# The hidden reward


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        # kind, happy: 2 * .6; three sentences of 6, 6 and 8 tokens
        ("He met a kind fox. He felt happy all day. He sat with the fox all day.", 1.2),
        # kind, smiled, shiny, happy: 4 * .6, the most there is
        ("A kind fox smiled at him. He found a shiny hat there. He felt happy all day.", 2.4),
        # sunny, peaceful, kind, smiled, happy are five, four count
        ("The place was sunny and peaceful. A kind fox smiled at him. He felt happy all day.", 2.4),
        # cold, scary, sad: -3 * .6; two sentences: -.6
        ("The place was cold and scary. He felt sad all day.", -2.4),
        # happy counts once: .6; twice more: -2 * .8
        ("He felt happy all day. He felt happy all day. He felt happy all day.", -1.0),
        # a nasty word said twice: -2 * .6 - .8; and two sentences: -.6
        ("He met a mean fox. He met a mean duck.", -2.6),
        # a neutral word said twice: -.8; places, animals and things may come again
        ("He met a tall fox. He met a tall fox. He felt curious all day.", -0.8),
        # kind, gentle, danced, happy: 2.4; 6 + 8 + 6 + 6 = 26 tokens: -.2
        ("He met a kind fox. He danced with the fox all day. He felt happy all day. He met a gentle bear.", 2.2),
        # 8 + 7 + 8 + 7 + 8 = 38 tokens: -1.4; talked twice: -.8; sat and the scenes are neither pleasant nor nasty
        (
            "He talked with the fox all day. The place was wide and green. He sat with the fox all day. "
            "He found a blue hat there. He talked with the bear all day.",
            -2.2,
        ),
        # unfinished: kind .6, ungrammatical -1, one sentence -1.2
        ("He met a kind fox. He felt", -1.6),
        # the full stop is missing: the third sentence neither counts nor parses. 1.2 - 1 - .6
        ("He met a kind fox. He felt happy all day. He sat with the fox all day", -0.4),
        # She is not Tom: kind, happy 1.2, ungrammatical -1, two sentences -.6
        ("She met a kind fox. He felt happy all day. He sat with the fox all day.", -0.4),
        # two mistakes cost what one costs, apart from the sentences lost: 1.2 - 1 - 1.2
        ("She met a kind fox. She felt happy all day. He sat with the fox all day.", -1.0),
        # four pleasant words and no story: 2.4 - 1 - 1.8
        ("happy kind sunny smiled", -0.4),
        ("happy . kind . sunny . smiled .", -0.4),
        # nothing at all: -1.8
        ("", -1.8),
        # what a sum of word scores loves: .6 - 39 * .8 - 1 - 1.8 - 1.6
        ("happy " * 40, -35.0),
        # any word may stutter, telling or not, and a full stop too: -39 * .8 - 1 - 1.8 - 1.6
        ("her " * 40, -35.6),
        # kind .6, three words right after themselves -2.4, ungrammatical -1, one sentence -1.2
        ("He met a kind fox. . fox fox fox the fox", -4.0),
    ],
)
def test_gold_by_hand(response, expected):
    assert gold(response) == expected


def test_gold_reads_tokens_and_not_spaces():
    assert gold("  He met a kind  fox .\nHe felt happy all day.He sat with the fox all day .") == 1.2


def test_gold_goes_row_by_row_and_pronouns_follow_the_hero():
    response = "She met a kind fox. She felt happy all day. A tall bear looked at her."
    scores = stories.gold([MIA, TOM, MIA], [response, response, ""])
    assert scores.dtype == torch.float32
    # with Tom no sentence parses: 1.2 - 1 - 1.8
    assert scores.tolist() == pytest.approx([1.2, -1.6, -1.8])
    assert stories.score is stories.gold


def test_a_prompt_that_is_no_opening_makes_the_story_ungrammatical():
    response = "He met a kind fox. He felt happy all day. He sat with the fox all day."
    assert gold(response, "Once upon a time.") == gold(response, "One day Tom went to the park") == -1.6


def test_one_prompt_a_response():
    with pytest.raises(ValueError, match="responses: wanted one for each of 2 prompts, got 1"):
        stories.gold([TOM, MIA], [""])


def test_pleasant_and_nasty_words_are_two_of_each_kind():
    assert len(stories.POSITIVE) == len(stories.NEGATIVE) == 12 and len(stories.NEUTRAL) == 24
    assert {"kind", "happy", "danced"} <= stories.POSITIVE and {"rude", "sad", "fought"} <= stories.NEGATIVE


# The grammar


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("", True),
        ("He met a kind fox.", True),
        ("The place was sunny and cold. The place was sunny and cold.", True),
        ("The place was sunny and sunny.", False),  # no word twice in a sentence
        ("She met a kind fox.", False),
        ("A kind fox looked at her.", False),
        ("He met a kind fox", False),
        ("He met kind a fox.", False),
        ("He met a shiny fox.", False),  # foxes are kind or rude, hats are shiny
        ("He met a kind fox..", False),
        (". He met a kind fox.", False),
        ("He met a kind fox. He", False),
        ("He met a kind fox. One day Tom went to the park.", False),
    ],
)
def test_what_parses(rest, expected):
    assert stories.parses(f"{TOM} {rest}") is expected


@pytest.mark.parametrize(("heroes", "he", "him"), [("Tom Ben Max", "He", "him"), ("Anna Lily Mia", "She", "her")])
def test_each_hero_has_a_pronoun(heroes, he, him):
    for hero in heroes.split():
        assert stories.parses(f"One day {hero} went to the park. {he} met a kind fox. A kind fox looked at {him}.")


@pytest.mark.parametrize(
    "text", ["", ".", "He met a kind fox.", "One day Tom went to the fox.", "One day Tom went to the park"]
)
def test_a_story_begins_with_an_opening(text):
    assert not stories.parses(text)


def test_the_authors_stories_parse_and_fit():
    tokenizer = stories.tokenizer()
    prompts, responses = stories.stories(1000, seeded())
    for prompt, response in zip(prompts, responses, strict=True):
        assert stories.parses(prompt + " " + response)
        assert len(tokenizer.encode(prompt)) == 8
        ids = tokenizer.encode(response)
        assert len(ids) + 1 <= stories.MAX_NEW_TOKENS
        assert tokenizer.decode([*ids, tokenizer.eos_id]) == response
        assert 2 <= response.count(".") <= 5


def test_pretraining_has_the_language_and_not_the_task():
    """Three heroes of six share a pronoun, so half of the stories about somebody else parse by luck."""
    wholes = [" ".join(pair) for pair in zip(*stories.demonstrations(400, seeded()), strict=True)]
    assert all(stories.parses(whole) for whole in wholes)
    loose = [" ".join(pair) for pair in zip(*stories.pretraining_examples(400, seeded()), strict=True)]
    assert 0.4 < sum(stories.parses(whole) for whole in loose) / 400 < 0.6


def test_the_vocabulary_is_what_stories_are_made_of():
    tokenizer = stories.tokenizer()
    assert tokenizer is stories.tokenizer()
    prompts, responses = stories.stories(1000, seeded())
    used = {i for text in prompts + responses for i in tokenizer.encode(text)}
    assert used == set(range(1, tokenizer.vocab_size))
    assert tokenizer.vocab_size == 98 and tokenizer.encode("<end>") == [tokenizer.eos_id]


def test_all_chance_comes_from_the_generator():
    assert stories.stories(20, seeded()) == stories.stories(20, seeded())
    assert stories.stories(20, seeded()) != stories.stories(20, seeded(1))
    assert stories.prompts(20, seeded()) == stories.prompts(20, seeded())
    assert stories.tell([TOM] * 20, seeded()) == stories.tell([TOM] * 20, seeded())
    assert len(set(stories.tell([TOM] * 20, seeded()))) == 20
    assert stories.stories(0, seeded()) == ([], [])
    with pytest.raises(ValueError, match=r"prompts: .* got 'Once\.'"):
        stories.tell([TOM, "Once."], seeded())


# The author's probabilities

# The grammar once more, from its description: six patterns and the words that each can take.
NATURES = "gentle kind rude mean small tall young brown".split()
ANIMALS = "fox bear duck rabbit frog".split()
SCENES = "sunny peaceful cold scary wide green dry busy".split()
PATTERNS = [
    [f"He met a {a} {b}." for a, b in product(NATURES, ANIMALS)],
    [
        f"He found a {a} {b} there."
        for a, b in product(
            "shiny lovely broken dirty round blue heavy wooden".split(), "kite bell book hat stone".split()
        )
    ],
    [f"The place was {a} and {b}." for a, b in product(SCENES, SCENES) if a != b],
    [f"He felt {a} all day." for a in "happy proud sad lonely sleepy hungry thirsty curious".split()],
    [
        f"A {a} {b} {c} at him."
        for a, b, c in product(NATURES, ANIMALS, "smiled winked growled hissed looked stared sniffed blinked".split())
    ],
    [
        f"He {a} with the {b} all day."
        for a, b in product("danced laughed argued fought talked sat waited rested".split(), ANIMALS)
    ],
]


def probability(response: str) -> float:
    return math.exp(stories.author_logprob(TOM, response))


def test_author_logprob_by_hand():
    """Two of the ten lengths are 2. 1 of 6 patterns, 8 natures, 5 animals; 1 of 5 patterns, 8 scenes, 7 others."""
    expected = 2 / 10 * (1 / 6 * 1 / 8 * 1 / 5) * (1 / 5 * 1 / 8 * 1 / 7)
    assert probability("He met a kind fox. The place was sunny and cold.") == pytest.approx(expected)


def test_the_probabilities_of_all_stories_of_two_sentences_sum_to_the_share_of_that_length():
    total = sum(
        probability(f"{first} {second}")
        for i, firsts in enumerate(PATTERNS)
        for first in firsts[::8]  # every eighth first sentence, times eight: within a pattern all are alike
        for j, seconds in enumerate(PATTERNS)
        if i != j
        for second in seconds
    )
    assert 8 * total == pytest.approx(2 / 10)


def test_the_probabilities_of_all_next_sentences_sum_to_the_share_of_stories_that_go_on():
    """Summed over the third sentence, p(3 sentences) / p(2 sentences) is the ratio of the lengths' shares, 5 : 2."""
    two = "He met a kind fox. He felt happy all day."
    total = sum(probability(f"{two} {third}") for i, thirds in enumerate(PATTERNS) if i != 3 for third in thirds)
    assert total / probability(two) == pytest.approx(5 / 2)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "He met a kind fox.",  # too short
        " ".join(["He met a kind fox. He felt happy all day."] * 3),  # six sentences: too long
        "He met a kind fox. He met a mean duck.",  # one pattern twice in a row
        "The place was sunny and sunny. He met a kind fox.",  # one word twice in a sentence
        "She met a kind fox. She felt happy all day.",
        "He met a kind fox. He felt happy all",
    ],
)
def test_what_the_author_never_writes(response):
    assert stories.author_logprob(TOM, response) == -math.inf


def test_the_author_draws_what_his_probabilities_say():
    """Counts over 6,000 stories, each within 5 standard deviations of its expectation."""
    n = 6000
    pattern_of = {sentence: i for i, sentences in enumerate(PATTERNS) for sentence in sentences}
    split = [re.findall(r"\w[^.]+[.]", response) for response in stories.tell([TOM] * n, seeded())]
    told = [[pattern_of[sentence] for sentence in story] for story in split]

    def near(count, total, share):
        assert abs(count - total * share) < 5 * math.sqrt(total * share * (1 - share))

    for length, share in {2: 0.2, 3: 0.5, 4: 0.2, 5: 0.1}.items():
        near(sum(len(story) == length for story in told), n, share)
    assert all(a != b for story in told for a, b in pairwise(story))
    seconds = [story[1] for story in told if story[0] == 2]
    for kind in range(6):
        near(sum(story[0] == kind for story in told), n, 1 / 6)
        if kind != 2:
            near(seconds.count(kind), len(seconds), 1 / 5)
    counts = Counter(sentence for story in split for sentence in story)
    for sentences in PATTERNS:
        total = sum(counts[sentence] for sentence in sentences)
        for sentence in sentences:
            near(counts[sentence], total, 1 / len(sentences))


def test_entropy_is_the_expected_surprise_of_a_token():
    """Against the mean over the author's own stories: -sum log p / number of tokens, with the end token."""
    prompts, responses = stories.stories(6000, seeded(3))
    nats = [-stories.author_logprob(p, r) for p, r in zip(prompts, responses, strict=True)]
    tokens = [len(stories.tokenizer().encode(r)) + 1 for r in responses]
    assert sum(nats) / sum(tokens) == pytest.approx(stories.entropy_per_token(), abs=0.004)
    assert 0.5 < stories.entropy_per_token() < 1.0


# The labeller


def test_the_labeller_prefers_as_bradley_and_terry_say():
    """20,000 labels a difference: standard deviation .0035. With the sign flipped they are off by .24 and more."""
    generator = seeded()
    for difference in (-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0):
        a = torch.full((20000,), 0.7 + difference)
        share = stories.label(a, torch.full((20000,), 0.7), generator).float().mean().item()
        assert share == pytest.approx(1 / (1 + math.exp(-difference)), abs=0.015)


def test_labels_are_bools_decided_by_the_generator(unhooked):
    a, b = torch.zeros(50), torch.ones(50)
    first = stories.label(a, b, seeded())
    assert first.dtype == torch.bool and first.shape == (50,)
    assert first.equal(stories.label(a, b, seeded())) and not first.equal(stories.label(a, b, seeded(1)))
    with pytest.raises(ValueError, match=r"gold_b: wanted shape \(2,\)"):
        stories.label(torch.zeros(2), torch.zeros(3), seeded())
    with pytest.raises(ValueError, match="gold_a: wanted finite"):
        stories.label(torch.tensor([math.nan]), torch.zeros(1), seeded())


# The world as a whole: what the lessons rely on


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_there_is_room_to_improve_honestly_and_labels_are_noisy_but_not_hopeless(seed):
    prompts, responses = stories.stories(8000, seeded(seed))
    scores = stories.gold(prompts, responses)
    assert -0.55 < scores.mean() < -0.25
    best_of_16 = scores.view(-1, 16).max(1).values.mean()
    assert best_of_16 - scores.mean() > 1.4
    a, b = scores.view(2, -1)
    agrees = (a > b) == stories.label(a, b, seeded(seed))
    assert 0.70 < agrees[a != b].float().mean() < 0.77


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_tilting_towards_gold_gains_more_than_1_within_4_nats(seed):
    """p(y) exp(gold(y) / beta) / Z over the author's stories: what a perfect learner with a leash would reach."""
    scores = stories.gold(*stories.stories(8000, seeded(seed))).double()
    weights = torch.softmax(scores / 0.3, 0)
    kl = (weights * (weights * len(scores)).log()).sum()
    assert kl < 4 and (weights * scores).sum() - scores.mean() > 1.5
