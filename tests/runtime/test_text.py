"""Text as it is generated: the pieces joined equal the whole, and no piece holds half a character."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from torchless import InputError, TokenizerError
from torchless.text import IncrementalDecoder, Tokenizer, check_pair, check_text

TOKENIZERS = {
    "bpe": Tokenizer(tiny.bpe(), Path("bpe")),
    "wordpiece": Tokenizer(tiny.wordpiece(), Path("wordpiece")),
}
SIZES = {name: tokenizer.fast.get_vocab_size() for name, tokenizer in TOKENIZERS.items()}
MIXED = st.text(
    st.sampled_from("aé 中文字🎉👩‍👩‍👧\u0301\u200d\n\t .!ß") | st.characters(exclude_categories=["Cs"]), max_size=40
)


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = IncrementalDecoder(tokenizer)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_pieces_of_any_ids_joined_equal_the_ids_decoded_at_once(name: str, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, SIZES[name] - 1), max_size=40))
    assert "".join(pieces(TOKENIZERS[name], ids)) == TOKENIZERS[name].decode(ids)


@settings(max_examples=400, deadline=None)
@given(text=MIXED)
def test_pieces_of_a_text_joined_equal_the_text_and_none_holds_half_a_character(text: str) -> None:
    tokenizer = TOKENIZERS["bpe"]
    given_out = pieces(tokenizer, tokenizer.ids(text))
    assert "".join(given_out) == text
    assert not any("\ufffd" in piece for piece in given_out) or "\ufffd" in text


def test_a_character_of_four_tokens_comes_out_whole_with_the_last() -> None:
    tokenizer = TOKENIZERS["bpe"]
    ids = tokenizer.ids("a🎉b")
    assert pieces(tokenizer, ids) == ["a", "", "", "", "🎉", "b", ""]


def test_bytes_that_are_no_character_come_out_once_it_is_certain_and_at_the_end() -> None:
    tokenizer = TOKENIZERS["bpe"]
    half = tokenizer.ids("🎉")[:2]
    assert pieces(tokenizer, half) == ["", "", "\ufffd"]
    assert "".join(pieces(tokenizer, [*half, *tokenizer.ids("ab")])) == "\ufffdab"


def test_the_end_token_is_not_shown() -> None:
    tokenizer = TOKENIZERS["bpe"]
    assert "".join(pieces(tokenizer, [*tokenizer.ids("the end"), 0])) == "the end"


def test_a_stream_costs_the_same_per_token_however_long_it_is() -> None:
    tokenizer = TOKENIZERS["bpe"]
    decoder = IncrementalDecoder(tokenizer)
    for token in tokenizer.ids("the union is strong. " * 50):
        decoder.push(token)
    assert len(decoder._ids) - decoder._start < 4  # what is decoded with each token


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_cut_text_keeps_its_special_tokens_and_leaves_the_tokenizer_as_it_was(name: str) -> None:
    tokenizer, long = TOKENIZERS[name], "the union is strong. " * 30
    whole = tokenizer.ids(long)
    cut = tokenizer.windows(long, 10)[0].ids
    special = name == "wordpiece"
    assert cut == ([*whole[:9], whole[-1]] if special else whole[:10])
    assert tokenizer.ids(long) == whole


def test_of_a_pair_the_longer_text_is_cut() -> None:
    tokenizer = TOKENIZERS["wordpiece"]
    short, long = "the union", "is strong and its people are stronger " * 9
    cut = tokenizer.windows((short, long), 20)[0]
    assert len(cut.ids) == 20
    assert cut.ids[: len(tokenizer.ids(short))] == tokenizer.ids(short)
    assert cut.ids[-1] == 3 and sum(cut.type_ids) == 20 - len(tokenizer.ids(short))


def test_a_limit_too_small_for_the_special_tokens_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="cannot cut to 1 tokens: the special ones"):
        TOKENIZERS["wordpiece"].windows("the union is strong", 1)


def test_settings_that_would_cut_or_pad_are_taken_off(tmp_path: Path) -> None:
    fast = tiny.wordpiece()
    fast.enable_truncation(5)
    fast.enable_padding(length=50)
    fast.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.read(tmp_path / "tokenizer.json").ids("the union is strong and free")) == 8


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "BPE"}}', "\ufffd"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a tokenizer of the tokenizers library"):
        Tokenizer.read(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match=r"gone\.json is missing: export the checkpoint again"):
        Tokenizer.read(tmp_path / "gone.json")


@pytest.mark.parametrize("value", [None, 5, b"text", ["text"], 1.5])
def test_what_is_no_text_is_named_by_its_type(value: object) -> None:
    with pytest.raises(InputError, match=f"expected text, got {type(value).__name__}"):
        check_text(value)


def test_half_a_surrogate_pair_and_a_triple_of_texts_are_refused() -> None:
    with pytest.raises(InputError, match=r"a lone surrogate at character 2: decode the bytes .*'replace'"):
        check_text("ab\ud800")
    with pytest.raises(InputError, match="expected a pair of texts, got a tuple of 3: give several"):
        check_pair(("a", "b", "c"))
    with pytest.raises(InputError, match="expected text, got NoneType"):
        check_pair(("a", None))


def test_ids_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="token ids are whole numbers of 0 or more"):
        TOKENIZERS["bpe"].decode([-1])


def test_one_token_is_shown_with_its_leading_space() -> None:
    tokenizer = TOKENIZERS["bpe"]
    assert tokenizer.token(tokenizer.ids(" the")[0]).startswith(" ")
    assert tokenizer.token(0) == tiny.END
    assert isinstance(tokenizer.fast, FastTokenizer)


def test_the_vocabulary_of_the_tests_is_the_same_every_time() -> None:
    assert tiny.wordpiece_json() == tiny.wordpiece_json.__wrapped__() == tiny.wordpiece_json.__wrapped__()
