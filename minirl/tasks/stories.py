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
from functools import cache
from itertools import chain, pairwise, product

import torch

from minirl.tokenizer import Tokenizer, word_tokenizer
from minirl.types import (
    Bool,
    Float,
    Tensor,
    check_dims,
    check_finite,
    check_generator,
    check_shapes,
    check_size,
    check_texts,
)

MAX_NEW_TOKENS = 40  # the longest story takes 38, and the end token

# {slots} are filled freely, though never with one word twice in a sentence; HE and HIM depend on the hero.
OPENING = "One {time} {hero} {went} to the {place}."
SENTENCES = (
    "HE met a {nature} {animal}.",
    "HE found a {look} {thing} there.",
    "The place was {scene} and {scene}.",
    "HE felt {feeling} all day.",
    "A {nature} {animal} {deed} at HIM.",
    "HE {played} with the {animal} all day.",
)
PRONOUNS = {"Tom": ("He", "him"), "Ben": ("He", "him"), "Max": ("He", "him")}
PRONOUNS |= {"Anna": ("She", "her"), "Lily": ("She", "her"), "Mia": ("She", "her")}

# Telling words say how things were: pleasant, nasty, neither.
TELLING = {
    "nature": ("gentle kind", "rude mean", "small tall young brown"),
    "look": ("shiny lovely", "broken dirty", "round blue heavy wooden"),
    "scene": ("sunny peaceful", "cold scary", "wide green dry busy"),
    "feeling": ("happy proud", "sad lonely", "sleepy hungry thirsty curious"),
    "deed": ("smiled winked", "growled hissed", "looked stared sniffed blinked"),
    "played": ("danced laughed", "argued fought", "talked sat waited rested"),
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
SENTENCE_COUNTS = [2, 2, 3, 3, 3, 3, 3, 4, 4, 5]  # the author picks one of these ten


@cache
def tokenizer() -> Tokenizer:
    """One token a word. `<end>` ends a story."""
    fixed = _tokens(re.sub(r"{\w+}|HE|HIM", "", " ".join([OPENING, *SENTENCES])))
    return word_tokenizer(dict.fromkeys(chain(fixed, *PRONOUNS.values(), *SLOTS.values())), eos="<end>")


def prompts(n: int, generator: torch.Generator) -> list[str]:
    """n first sentences of 8 tokens, uniform over all there are."""
    check_size("n", n, 0)
    check_generator(generator)
    openings = _fillings(OPENING)
    picked = torch.randint(len(openings), (n,), generator=generator, device=generator.device)
    return [openings[i] for i in picked.tolist()]


def tell(prompts: list[str], generator: torch.Generator) -> list[str]:
    """The author's complete response to each prompt: 2 to 5 sentences, no pattern twice in a row."""
    check_texts(prompts=prompts)
    check_generator(generator)
    heroes = [_hero(prompt) for prompt in prompts]
    if None in heroes:
        raise ValueError(
            f"prompts: wanted first sentences such as prompts() gives, got {prompts[heroes.index(None)]!r}"
        )
    # One uniform number decides how many sentences, then two for each: its pattern and its words.
    rows = torch.rand(len(prompts), 1 + 2 * max(SENTENCE_COUNTS), generator=generator, device=generator.device)
    return [_story(hero, row) for hero, row in zip(heroes, rows.tolist(), strict=True)]


def stories(n: int, generator: torch.Generator) -> tuple[list[str], list[str]]:
    """n prompts and the author's responses to them."""
    openings = prompts(n, generator)
    return openings, tell(openings, generator)


demonstrations = stories  # what SFT learns from


def pretraining_examples(n: int, generator: torch.Generator) -> tuple[list[str], list[str]]:
    """Loose talk to learn the language from: each opening is followed by a story about somebody else."""
    return prompts(n, generator), tell(prompts(n, generator), generator)


def gold(prompts: list[str], responses: list[str]) -> Float[Tensor, " B"]:
    """The hidden reward of each response, at most 2.4:

      0.6 * min(different positive words, 4)
    - 0.6 * negative words
    - 0.8 * repeats                     telling words that the response has used before, any word right after itself
    - 1.0 * ungrammatical               1 if prompt and response do not parse, unfinished last sentences included
    - 0.6 * max(0, 3 - sentences)       grammatical ones
    - 0.1 * max(0, length - 24)         tokens, full stops counted, the end token not
    """
    check_texts(prompts=prompts, responses=responses)
    return torch.tensor([_gold(p, r) for p, r in zip(prompts, responses, strict=True)], dtype=torch.float32)


score = gold  # the name that every task has


def label(gold_a: Float[Tensor, " N"], gold_b: Float[Tensor, " N"], generator: torch.Generator) -> Bool[Tensor, " N"]:
    """True where the labeller prefers a: with probability sigmoid(gold_a - gold_b) (Bradley and Terry 1952)."""
    check_dims(1, gold_a=gold_a)
    check_shapes(gold_a=gold_a, gold_b=gold_b)
    check_finite(gold_a=gold_a, gold_b=gold_b)
    check_generator(generator)
    chance = torch.rand(len(gold_a), generator=generator, device=generator.device)
    return chance.to(gold_a.device) < torch.sigmoid(gold_a - gold_b)


def parses(text: str) -> bool:
    """Whether a whole story, prompt and response, keeps to the grammar: an opening, then complete sentences, however
    many, that call its hero by the right pronoun."""
    opening, stop, rest = text.partition(".")
    hero = _hero(opening + stop)
    return hero is not None and None not in _read(rest, hero)


def author_logprob(prompt: str, response: str) -> float:
    """log p(response and end | prompt) under the author, in nats; -inf for what he never writes."""
    hero = _hero(prompt)
    told = _read(response, hero) if hero else []
    if None in told or len(told) not in SENTENCE_COUNTS or any(a == b for a, b in pairwise(told)):
        return -math.inf
    counts = math.log(SENTENCE_COUNTS.count(len(told)) / len(SENTENCE_COUNTS))
    patterns = math.log(len(SENTENCES)) + (len(told) - 1) * math.log(len(SENTENCES) - 1)
    words = sum(math.log(len(_sentences(hero)[pattern])) for pattern in told)
    return counts - patterns - words


def entropy_per_token() -> float:
    """The author's entropy in nats per response token, the end token included: the loss of a perfect language model,
    averaged over the response tokens of his stories.

    It is the expected nats of a story over its expected tokens. Each sentence, taken alone, has a uniform pattern: the
    first is drawn so, and the next is uniform over the others.
    """
    length = sum(SENTENCE_COUNTS) / len(SENTENCE_COUNTS)
    shares = [n / len(SENTENCE_COUNTS) for n in Counter(SENTENCE_COUNTS).values()]
    counts = -sum(share * math.log(share) for share in shares)
    patterns = math.log(len(SENTENCES)) + (length - 1) * math.log(len(SENTENCES) - 1)
    ways = _sentences("Tom")  # as many for every hero
    words = length * sum(math.log(len(way)) for way in ways) / len(ways)
    tokens = length * sum(len(_tokens(way[0])) for way in ways) / len(ways) + 1
    return (counts + patterns + words) / tokens


@cache
def _fillings(pattern: str) -> list[str]:
    """The pattern with its slots filled in every way, no word twice."""
    choices = [SLOTS[slot] for slot in re.findall(r"{(\w+)}", pattern)]
    blanks = re.sub(r"{\w+}", "{}", pattern)
    return [blanks.format(*words) for words in product(*choices) if len(set(words)) == len(words)]


@cache
def _sentences(hero: str) -> list[list[str]]:
    """Every sentence about the hero, by pattern. There are some 500: the grammar is finite, only stories are many."""
    he, him = PRONOUNS[hero]
    return [_fillings(pattern.replace("HE", he).replace("HIM", him)) for pattern in SENTENCES]


@cache
def _pattern_of(hero: str) -> dict[str, int]:
    return {sentence: i for i, sentences in enumerate(_sentences(hero)) for sentence in sentences}


@cache
def _hero_of() -> dict[str, str]:
    return {opening: opening.split()[2] for opening in _fillings(OPENING)}


def _hero(prompt: str) -> str | None:
    return _hero_of().get(_plain(prompt))


def _pick(options: list, chance: float):
    return options[int(chance * len(options))]


def _story(hero: str, chances: list[float]) -> str:
    told, before = [], None
    for i in range(_pick(SENTENCE_COUNTS, chances[0])):
        before = _pick([pattern for pattern in range(len(SENTENCES)) if pattern != before], chances[1 + 2 * i])
        told.append(_pick(_sentences(hero)[before], chances[2 + 2 * i]))
    return " ".join(told)


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def _plain(text: str) -> str:
    """The text as the author spaces it, however it was spaced."""
    return " ".join(_tokens(text)).replace(" .", ".")


def _read(response: str, hero: str) -> list[int | None]:
    """The response cut after each full stop: the pattern of each piece, None where it is no sentence about the hero.
    What follows the last full stop is a piece too."""
    pieces = re.findall(r"[^.]+[.]?|[.]", _plain(response))
    return [_pattern_of(hero).get(piece.strip()) for piece in pieces]


def _gold(prompt: str, response: str) -> float:
    words, hero = _tokens(response), _hero(prompt)
    telling = [word for word in words if word in _TELLING_WORDS]
    repeats = sum(
        word == words[i - 1] or (word in _TELLING_WORDS and word in words[:i]) for i, word in enumerate(words) if i
    )
    told = _read(response, hero) if hero else [None]
    tenths = (  # whole numbers, so that stories of equal worth tie exactly
        6 * min(len(POSITIVE & set(telling)), 4)
        - 6 * sum(word in NEGATIVE for word in telling)
        - 8 * repeats
        - 10 * (None in told)
        - 6 * max(0, 3 - sum(piece is not None for piece in told))
        - 1 * max(0, len(words) - 24)
    )
    return tenths / 10
