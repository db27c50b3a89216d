"""`python -m minirl cards anki | print | sheet | prove`: the cards as an Anki deck, as pages, and put to the test."""

import argparse
from pathlib import Path

from minirl.cards.cards import TOPICS, load, load_evening, prove, select


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(title="what to make", metavar="{anki,print,sheet,prove}", required=True)
    anki = kinds.add_parser("anki", help="a deck for Anki (wants genanki)")
    anki.add_argument("--out", type=Path, default=Path("minirl_interview.apkg"), help="(minirl_interview.apkg)")
    anki.set_defaults(make=make_anki)

    pages = kinds.add_parser("print", help="all questions with their short answers, a page to print")
    pages.add_argument("--out", type=Path, default=Path("cards.html"), help="(cards.html)")
    choice(pages)
    pages.set_defaults(make=make_pages)

    sheet = kinds.add_parser("sheet", help="two pages for the evening before: formulas, traps, first lines")
    sheet.add_argument("--out", type=Path, default=Path("sheet.html"), help="(sheet.html)")
    sheet.set_defaults(make=make_sheet)

    proof = kinds.add_parser("prove", help="run the assertion of every card that has one")
    choice(proof)
    proof.set_defaults(make=make_proof)


def choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topic", metavar="T", help=f"one of: {', '.join(TOPICS)} (all)")
    parser.add_argument("--level", type=int, metavar="L", help="1, 2 or 3 (all)")


def run(args: argparse.Namespace) -> int:
    return args.make(args)


def make_anki(args: argparse.Namespace) -> int:
    from minirl.cards.anki import write_deck

    cards = load()
    print(f"Deck: {write_deck(cards, args.out)} ({len(cards)} notes). Import a later one over it: your intervals stay.")
    return 0


def make_pages(args: argparse.Namespace) -> int:
    from minirl.cards.printed import cards_page

    cards = select(load(), topic=args.topic, level=args.level)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(cards_page(cards), encoding="utf-8", newline="\n")
    print(f"Page: {args.out} ({len(cards)} cards)")
    return 0


def make_sheet(args: argparse.Namespace) -> int:
    from minirl.cards.sheet import sheet_page

    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(sheet_page(load_evening(load())), encoding="utf-8", newline="\n")
    print(f"Sheet: {args.out} (two pages of A4)")
    return 0


def make_proof(args: argparse.Namespace) -> int:
    """Every assertion in turn; those that fail are named, and the exit status is 1."""
    cards = [card for card in select(load(), topic=args.topic, level=args.level) if card.assertion]
    failed = 0
    for card in cards:
        try:
            prove(card)
        except Exception as error:  # whatever it is, the card is wrong and the others want to be run too
            failed += 1
            print(f"{card.id}: {type(error).__name__}: {error}")
    print(f"{len(cards) - failed} of {len(cards)} assertions hold.")
    return int(failed > 0)
