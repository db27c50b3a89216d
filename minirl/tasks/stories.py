"""Tiny stories, a hidden taste, and a labeller who has it: the world for reward models and over-optimisation.

    One summer Mia ran to the river. | A gentle bear winked at her. She found a shiny bell there. She felt sad all day.

The prompt is the first sentence, 8 tokens; the response tells what happened, in sentences of six patterns. A neutral
author supplies the corpus: he fills every slot uniformly. The gold reward plays the human whose taste nobody can write
down: several different pleasant words, nothing nasty, nothing twice, three sentences and not many more. Training sees
it only through noisy comparisons (`label`); a lesson plots it to show what a learned reward really bought.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import chain

import torch

from minirl.tokenizer import Tokenizer, word_tokenizer
from minirl.types import Bool, Float, Tensor, check_dims, check_finite, check_knob, check_shapes

MAX_NEW_TOKENS = 40  # the longest story takes 38, and the end token

# {slots} are filled freely; {HE} and {HIM} depend on the hero.
OPENING = "One {time} {hero} {went} to the {place}."
SENTENCES = (
    "{HE} met a {nature} {animal}.",
    "{HE} found a {look} {thing} there.",
    "The place was {scene} and {scene}.",
    "{HE} felt {feeling} all day.",
    "A {nature} {animal} {deed} at {HIM}.",
    "{HE} {played} with the {animal} all day.",
)
PRONOUNS = {"Tom": ("He", "him"), "Ben": ("He", "him"), "Max": ("He", "him")}
PRONOUNS |= {"Anna": ("She", "her"), "Lily": ("She", "her"), "Mia": ("She", "her")}

# Telling words say how things were: pleasant, nasty, neither.
TELLING = {
    "nature": ("gentle kind", "rude mean", "small tall brown"),
    "look": ("shiny lovely", "broken dirty", "round blue wooden"),
    "scene": ("sunny peaceful", "cold scary", "wide green busy"),
    "feeling": ("happy proud", "sad lonely", "sleepy hungry curious"),
    "deed": ("smiled winked", "growled hissed", "looked stared blinked"),
    "played": ("danced laughed", "argued fought", "talked sat waited"),
}
POSITIVE, NEGATIVE, NEUTRAL = (frozenset(" ".join(words).split()) for words in zip(*TELLING.values(), strict=True))
_TELLING_WORDS = POSITIVE | NEGATIVE | NEUTRAL

SLOTS = {slot: " ".join(words).split() for slot, words in TELLING.items()} | {
    "time": ["day", "morning", "summer"],
    "hero": list(PRONOUNS),
    "went": ["went", "ran", "walked"],
    "place": ["park", "river", "forest", "garden", "beach", "market"],
    "animal": ["fox", "bear", "duck", "rabbit", "frog"],
    "thing": ["kite", "bell", "book", "hat", "stone"],
}
SENTENCE_COUNTS = [2, 2, 2, 3, 3, 3, 3, 4, 4, 5]  # how long a story gets: the author picks one of these ten


@cache
def tokenizer() -> Tokenizer:
    """One token a word. `<end>` ends a story."""
    fixed = _tokens(re.sub(r"{\w+}", "", " ".join([OPENING, *SENTENCES])))  # what is left without the slots
    return word_tokenizer(dict.fromkeys(chain(fixed, *PRONOUNS.values(), *SLOTS.values())), eos="<end>")


def prompts(n: int, generator: torch.Generator) -> list[str]:
    """n first sentences of 8 tokens, uniform over all there are."""
    check_knob("n", n, 0)
    return [_fill(OPENING, iter(row)) for row in _uniform(n, 4, generator)]


def tell(prompts: list[str], generator: torch.Generator) -> list[str]:
    """The author's complete response to each prompt: 2 to 5 sentences, no pattern twice in a row."""
    heroes = [_hero(prompt) for prompt in prompts]
    if None in heroes:
        raise ValueError(
            f"prompts: wanted first sentences such as prompts() gives, got {prompts[heroes.index(None)]!r}"
        )
    rows = _uniform(
        len(prompts), 1 + 5 * 4, generator
    )  # how many sentences; for each a pattern and at most three words
    return [_tell(hero, row) for hero, row in zip(heroes, rows, strict=True)]


def stories(n: int, generator: torch.Generator) -> tuple[list[str], list[str]]:
    """n prompts and the author's responses to them."""
    openings = prompts(n, generator)
    return openings, tell(openings, generator)


def gold(prompts: list[str], responses: list[str]) -> Float[Tensor, " B"]:
    """The hidden reward of each response, at most 2.4:

      0.6 * min(different positive words, 4)
    - 0.6 * negative words
    - 0.8 * repeats                     telling words that the response has used before
    - 1.0 * ungrammatical               1 if prompt and response do not parse, unfinished last sentences included
    - 0.6 * max(0, 3 - sentences)       grammatical ones
    - 0.1 * max(0, length - 24)         tokens, full stops counted, the end token not
    """
    if len(prompts) != len(responses):
        raise ValueError(f"responses: wanted one for each of {len(prompts)} prompts, got {len(responses)}")
    return torch.tensor([_gold(p, r) for p, r in zip(prompts, responses, strict=True)], dtype=torch.float32)


score = gold  # the name that every task has


def label(gold_a: Float[Tensor, " N"], gold_b: Float[Tensor, " N"], generator: torch.Generator) -> Bool[Tensor, " N"]:
    """True where the labeller prefers a: with probability sigmoid(gold_a - gold_b) (Bradley and Terry 1952)."""
    check_dims(1, gold_a=gold_a)
    check_shapes(gold_a=gold_a, gold_b=gold_b)
    check_finite(gold_a=gold_a, gold_b=gold_b)
    chance = torch.rand(len(gold_a), generator=generator, device=generator.device)
    return chance.to(gold_a.device) < torch.sigmoid(gold_a - gold_b)


def parses(text: str) -> bool:
    """Whether a whole story, prompt and response, keeps to the grammar: an opening, then complete sentences, any number of
    them, that call its hero by the right pronoun."""
    opening, stop, rest = text.partition(".")
    hero = _hero(opening + stop)
    return hero is not None and None not in _read(rest, hero)


def author_logprob(prompt: str, response: str) -> float:
    """log p(response and end | prompt) under the author, in nats; -inf for what he never writes."""
    hero = _hero(prompt)
    told = _read(response, hero) if hero else []
    if None in told or len(told) not in SENTENCE_COUNTS:
        return -math.inf
    logprob, before = math.log(SENTENCE_COUNTS.count(len(told)) / len(SENTENCE_COUNTS)), None
    for pattern, words in told:
        if pattern == before or len(set(words)) < len(words):
            return -math.inf
        logprob -= math.log(len(SENTENCES) - (before is not None)) + _slot_entropy(pattern)
        before = pattern
    return logprob


def entropy_per_token() -> float:
    """The author's entropy in nats per response token, the end token included: the loss of a perfect language model,
    averaged over the response tokens of his stories.

    It is the expected nats of a story over its expected tokens. Each sentence, taken alone, has a uniform pattern: the
    first is drawn so, and the next is uniform over the others.
    """
    sentences = sum(SENTENCE_COUNTS) / len(SENTENCE_COUNTS)
    shares = [n / len(SENTENCE_COUNTS) for n in Counter(SENTENCE_COUNTS).values()]
    count_entropy = -sum(share * math.log(share) for share in shares)
    pattern_entropy = math.log(len(SENTENCES)) + (sentences - 1) * math.log(len(SENTENCES) - 1)
    word_entropy = sentences * sum(map(_slot_entropy, SENTENCES)) / len(SENTENCES)
    tokens = sentences * sum(len(_parts(pattern)) for pattern in SENTENCES) / len(SENTENCES) + 1
    return (count_entropy + pattern_entropy + word_entropy) / tokens


# Writing. A row of uniform numbers decides a text, so that one draw of the generator serves a batch.


def _uniform(n: int, k: int, generator: torch.Generator) -> list[list[float]]:
    return torch.rand(n, k, generator=generator, device=generator.device).tolist()


def _pick(options: list[str], chance: Iterator[float]) -> str:
    return options[int(next(chance) * len(options))]


def _tell(hero: str, row: list[float]) -> str:
    count = SENTENCE_COUNTS[int(row[0] * len(SENTENCE_COUNTS))]
    story, before = [], None
    for i in range(count):
        chance = iter(row[1 + 4 * i :])
        before = _pick([pattern for pattern in SENTENCES if pattern != before], chance)
        story.append(_with_hero(_fill(before, chance), hero))
    return " ".join(story)


def _fill(pattern: str, chance: Iterator[float]) -> str:
    """Each slot of the pattern filled uniformly, with no word twice."""
    words = []
    for slot in _slots(pattern):
        words.append(_pick([word for word in SLOTS[slot] if word not in words], chance))
    words = iter(words)
    return re.sub(r"{[a-z]+}", lambda _: next(words), pattern)


def _slots(pattern: str) -> list[str]:
    return re.findall(r"{([a-z]+)}", pattern)


def _slot_entropy(pattern: str) -> float:
    """Nats in the words of one sentence: a slot met again has one word less to choose from."""
    slots = _slots(pattern)
    return sum(math.log(len(SLOTS[slot]) - slots[:i].count(slot)) for i, slot in enumerate(slots))


def _with_hero(pattern: str, hero: str) -> str:
    he, him = PRONOUNS[hero]
    return pattern.replace("{HE}", he).replace("{HIM}", him)


# Reading.


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def _parts(pattern: str) -> list[str]:
    """What becomes one token each: words, slots, the full stop."""
    return re.findall(r"\w+|{\w+}|[.]", pattern)


@cache
def _expression(pattern: str) -> re.Pattern:
    """The pattern as a regular expression over tokens parted by single spaces; its groups are the slots."""
    spaced = " ".join(_parts(pattern)).replace(".", "[.]")
    return re.compile(re.sub(r"{([a-z]+)}", lambda slot: f"({'|'.join(SLOTS[slot[1]])})", spaced))


def _hero(prompt: str) -> str | None:
    match = _expression(OPENING).fullmatch(" ".join(_tokens(prompt)))
    return match[2] if match else None


@lru_cache(10_000)
def _read_sentence(sentence: str, hero: str) -> tuple[str, tuple[str, ...]] | None:
    """(its pattern, the words in its slots), or None where it is not one of the author's sentences."""
    matches = ((pattern, _expression(_with_hero(pattern, hero)).fullmatch(sentence)) for pattern in SENTENCES)
    return next(((pattern, match.groups()) for pattern, match in matches if match), None)


def _read(response: str, hero: str) -> list[tuple[str, tuple[str, ...]] | None]:
    """Cut after each full stop, each piece read; what follows the last full stop is a piece too."""
    pieces = re.findall(r"[^.]+[.]?|[.]", " ".join(_tokens(response)))
    return [_read_sentence(piece.strip(), hero) for piece in pieces]


def _gold(prompt: str, response: str) -> float:
    words, hero = _tokens(response), _hero(prompt)
    telling = [word for word in words if word in _TELLING_WORDS]
    told = _read(response, hero) if hero else [None]
    return (
        0.6 * min(len(POSITIVE & set(telling)), 4)
        - 0.6 * sum(word in NEGATIVE for word in telling)
        - 0.8 * (len(telling) - len(set(telling)))
        - 1.0 * (None in told)
        - 0.6 * max(0, 3 - sum(piece is not None for piece in told))
        - 0.1 * max(0, len(words) - 24)
    )
