"""The tokenizers: ids by hand, round trips, what decode leaves out, what encode refuses, real files in and out."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirl.tokenizer import Tokenizer, character_tokenizer, train_bpe, word_tokenizer

WORDS = ["Tom", "ran", "home", "He", "was", "glad", ".", ",", "!"]
STORIES260K = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260k"


@pytest.fixture
def words() -> Tokenizer:
    return word_tokenizer(WORDS, eos="<end>")


def test_words_have_the_ids_of_their_places_and_the_end_token_comes_first(words):
    assert words.eos_id == 0 and words.bos_id is None and words.vocab_size == 10
    assert words.encode("Tom ran home. He was glad.") == [1, 2, 3, 7, 4, 5, 6, 7]


def test_words_are_decoded_to_text_as_one_would_write_it(words):
    assert words.decode([1, 2, 3, 7, 4, 5, 6, 7]) == "Tom ran home. He was glad."
    assert words.decode([1, 8, 2, 9, 9]) == "Tom, ran!!"
    assert words.decode([7, 1]) == ". Tom"


@given(ids=st.lists(st.integers(1, len(WORDS))))
def test_any_ids_survive_decoding_and_encoding(ids):
    """Gibberish too: a policy in trouble says ". . Tom ,"."""
    words = word_tokenizer(WORDS, eos="<end>")
    assert words.encode(words.decode(ids)) == ids


def test_spaces_do_not_matter_to_words(words):
    assert words.encode("  Tom   ran\nhome .") == words.encode("Tom ran home.")


def test_the_end_token_is_read_but_never_written(words):
    assert words.encode("glad.<end>") == [6, 7, 0]
    assert words.decode([6, 7, 0]) == "glad."
    assert words.decode([0]) == "" == words.decode([])


def test_decode_takes_a_tensor_of_one_row(words, unhooked):
    assert words.decode(torch.tensor([1, 2, 7, 0])) == "Tom ran."
    with pytest.raises(ValueError, match=r"ids: wanted one row of ids, got shape \(1, 2\)"):
        words.decode(torch.tensor([[1, 2]]))


def test_the_end_token_pads_where_there_is_no_pad_token(words):
    assert words.pad_id == words.eos_id
    padded = Tokenizer(words.backend, eos="<end>", pad="!")
    assert padded.pad_id == 9


@pytest.mark.parametrize(
    ("text", "word"), [("Tom ran away.", "away"), ("tom ran", "tom"), ("Tom?", "?"), ("Tom ran off<end>", "off")]
)
def test_an_unknown_word_is_named(words, text, word):
    with pytest.raises(ValueError, match=re.escape(f"text: {word!r} is not in the vocabulary of 10 tokens")):
        words.encode(text)


def test_a_vocabulary_that_cannot_work_is_refused():
    with pytest.raises(ValueError, match="'ran' twice"):
        word_tokenizer(["Tom", "ran", "ran"], eos="<end>")
    with pytest.raises(ValueError, match="'Tom' twice"):
        word_tokenizer(["Tom", "ran"], eos="Tom")
    with pytest.raises(ValueError, match="can never be matched"):
        word_tokenizer(["Tom", "don't"], eos="<end>")
    with pytest.raises(ValueError, match="can never be matched"):
        character_tokenizer(["a", "bc"], eos="$")


def test_characters_keep_everything_even_spaces_and_new_lines():
    characters = character_tokenizer("ab =\n", eos="$")
    assert characters.encode("a b\n=") == [1, 3, 2, 5, 4]
    assert characters.decode([1, 3, 2, 5, 4, 0]) == "a b\n="
    assert characters.encode("a\n\n  ") == [1, 5, 5, 3, 3]
    assert characters.encode("a$") == [1, 0]
    with pytest.raises(ValueError, match="'c' is not in the vocabulary of 6 tokens"):
        characters.encode("abc")


def test_a_token_that_the_backend_does_not_have_is_refused(words):
    with pytest.raises(ValueError, match="bos: wanted a token of the vocabulary, got '<s>'"):
        Tokenizer(words.backend, eos="<end>", bos="<s>")


def test_save_and_load_give_the_same_tokenizer(words, tmp_path):
    words.save(tmp_path / "new" / "folder")
    again = Tokenizer.load(tmp_path / "new" / "folder")
    assert again.encode("Tom ran, glad!<end>") == words.encode("Tom ran, glad!<end>") == [1, 2, 8, 6, 9, 0]
    assert again.decode([1, 2, 8, 6, 9, 0]) == "Tom ran, glad!"
    assert (again.eos_id, again.bos_id, again.pad_id, again.vocab_size) == (0, None, 0, 10)
    with pytest.raises(ValueError, match="'away'"):
        again.encode("away")


def test_load_says_what_is_missing_and_reads_tokens_written_as_objects(words, tmp_path):
    with pytest.raises(ValueError, match=r"folder: no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    words.save(tmp_path)
    config = {"eos_token": {"content": "<end>", "lstrip": False}, "bos_token": None, "pad_token": "!"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    again = Tokenizer.load(tmp_path)
    assert (again.eos_id, again.bos_id, again.pad_id) == (0, None, 9)


def test_bpe_merges_the_most_frequent_pair_first():
    """In "ababab abac" the pair (a, b) occurs four times, ("ab", "ab") twice and overlapping, all others less often."""
    bpe = train_bpe(["ababab abac"], 258, eos="<end>")
    assert bpe.vocab_size == 258 and bpe.eos_id == 0
    a, b, c = (bpe.encode(letter)[0] for letter in "abc")
    ab = bpe.vocab_size - 1
    assert bpe.encode("ababac") == [ab, ab, a, c]
    assert bpe.encode("bab") == [b, ab]


@given(text=st.text())
def test_bpe_knows_every_text(text):
    bpe = train_bpe(["the cat sat on the mat, the cat sat"], 280, eos="<|end of text|>")
    assert bpe.decode(bpe.encode(text)) == text


def test_bpe_shortens_what_it_was_trained_on_and_is_the_same_each_time():
    texts = ["the cat sat on the mat", "the dog sat on the log"] * 3
    first, second = (train_bpe(texts, 290, eos="<end>") for _ in range(2))
    assert first.backend.to_str() == second.backend.to_str()
    assert len(first.encode(texts[0])) < len(texts[0]) / 2
    with pytest.raises(ValueError, match="vocab_size"):
        train_bpe(texts, 100, eos="<end>")


@pytest.mark.skipif(not STORIES260K.is_dir(), reason="needs ../shared/data/stories260k")
def test_a_real_llama_tokenizer(tmp_path):
    llama = Tokenizer.load(STORIES260K)
    assert (llama.bos_id, llama.eos_id, llama.pad_id, llama.vocab_size) == (1, 2, 0, 512)
    text = "Once upon a time, Zoë saw 日本."
    ids = llama.encode(text)
    assert ids[0] == llama.bos_id and ids[-1] != llama.eos_id
    assert llama.decode(ids) == text == llama.decode([*ids, llama.eos_id, llama.pad_id])
    assert max(ids) < 512 and {0xE6, 0x97, 0xA5} <= {i - 3 for i in ids}, "日 is E6 97 A5, byte b is token b + 3"
    llama.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.encode(text) == ids and again.pad_id == 0
