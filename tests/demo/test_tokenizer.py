"""The tokenizer takes any Unicode text, gives it back, and keeps common words whole."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from daguerre.demo.tokenizer import corpus, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """A tokenizer learned from few captions."""
    return train_tokenizer(corpus(3, scenes=3000))


def squeezed(text: str) -> str:
    """Text without what tokenizing loses: case and white space."""
    return "".join(text.lower().split())


def test_common_words_are_single_tokens(tokenizer: CLIPTokenizer) -> None:
    """The words of most prompts are one token each."""
    assert len(tokenizer) <= 1059
    words = ["a", "beautiful", "sunset", "over", "mountains", "red", "circle", "on", "a", "blue", "background"]
    assert tokenizer.tokenize(" ".join(words)) == [f"{word}</w>" for word in words]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp", "Cn", "Lu", "Lt", "M"))))
def test_any_text_comes_back(tokenizer: CLIPTokenizer, text: str) -> None:
    """Bytes beneath the merges make every text readable."""
    assume("<|" not in text)  # the special tokens' own names mean themselves
    tokens = tokenizer(text).input_ids
    assert tokens[0] == tokenizer.bos_token_id
    assert tokens[-1] == tokenizer.eos_token_id
    assert squeezed(tokenizer.decode(tokens, skip_special_tokens=True)) == squeezed(unicodedata.normalize("NFC", text))


@pytest.mark.parametrize(
    "text", ["日本の夕日", "🐈‍⬛ 👩🏽‍🚀", "ein schöner Sonnenuntergang", "\x00\x07", "zxqv " * 200]
)
def test_no_text_is_unknown(tokenizer: CLIPTokenizer, text: str) -> None:
    """No text has the unknown token, which is the end token too, in it."""
    inner = tokenizer(text, truncation=True, max_length=77).input_ids[1:-1]
    assert tokenizer.eos_token_id not in inner
    assert len(inner) <= 75


def test_it_is_read_back_as_it_was_written(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    """Saving and loading changes no token."""
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["a yellow star on a purple background", "wörter, die keiner kennt: 42", ""]
    assert again(texts).input_ids == tokenizer(texts).input_ids


def test_the_end_is_the_highest_token_for_clip_pools_there(tokenizer: CLIPTokenizer) -> None:
    """CLIP finds the end of the text by its number."""
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
