"""nanoGPT's checkpoints and vocabularies, against its model."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nanogpt import ALPHABET, checkpoint, meta, nanogpt
from tokenizers import Tokenizer

import torchless
from torchless import TokenizerError
from torchless.bundle import read_bundle
from torchless.export import export, parity
from torchless.export.sources.ranks import letters_of_bytes

CONFIGS: dict[str, dict[str, Any]] = {
    "with biases": {},
    "without biases": {"bias": False},
    "without biases, heads of 12": {"bias": False, "n_embd": 36, "n_head": 3},
    "padded vocabulary": {"vocab_size": 384, "n_layer": 1},
    "one position": {"block_size": 1},
}


@pytest.mark.parametrize("args", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize("dialect", ["fused", "standard"])
def test_logits_and_greedy_tokens_equal_the_model(args: dict[str, Any], dialect: Any, tmp_path: Path) -> None:
    model = nanogpt(**args)
    folder = checkpoint(model, tmp_path / "run", **args)
    out = export(folder, tmp_path / "out", dialect=dialect, tokenizer=tiny.bpe())
    parity_record: Any = read_bundle(out).manifest.parity
    assert "transformers" in parity_record["against"] and 0 < parity_record["max_abs_error"] < 1e-4
    with torchless.load(out) as ours:
        for length in {1, min(9, ours.context_length), ours.context_length}:
            ids = np.random.default_rng(length).integers(0, 320, length).tolist()
            logits = ours.decoder.extend(ours.decoder.new_cache(), ids, keep=range(length))
            with torch.no_grad():
                assert tiny.furthest(logits, model(torch.tensor([ids]))[0].numpy()) < 1e-4
        if ours.context_length > 40:
            mine = ours([5, 9, 200], max_new_tokens=20, eos_token_id=[])
            assert list(mine.token_ids) == model.greedy([5, 9, 200], 20)


def test_without_biases_the_graph_holds_none(tmp_path: Path) -> None:
    for bias in (True, False):
        folder = checkpoint(nanogpt(bias=bias), tmp_path / f"{bias}", bias=bias)
        out = export(folder, tmp_path / f"out {bias}", tokenizer=tiny.bpe())
        assert (b"qkv.bias" in (out / "model.onnx").read_bytes()) is bias
        assert (b"ln_f.bias" in (out / "model.onnx").read_bytes()) is bias


def test_the_folder_the_file_and_a_compiled_models_names_give_one_bundle(tmp_path: Path) -> None:
    model = nanogpt()
    folder = checkpoint(model, tmp_path / "run")
    compiled = checkpoint(model, tmp_path / "compiled", prefix="_orig_mod.")
    tiny_json = tmp_path / "tokenizer.json"
    tiny_json.write_text(tiny.bpe_json(), encoding="utf-8")
    bundles = [
        export(source, tmp_path / f"out {i}", tokenizer=tiny_json)
        for i, source in enumerate([folder, str(folder / "ckpt.pt"), compiled])
    ]
    for name in ("model.onnx", "model.onnx.data", "config.json", "tokenizer.json"):
        assert len({(bundle / name).read_bytes() for bundle in bundles}) == 1
    found = parity.compare(read_bundle(bundles[0]), folder / "ckpt.pt")
    assert found["max_abs_error"] < 1e-4
    assert read_bundle(bundles[0]).manifest.special_tokens == {"bos": 0, "eos": 0}


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> torchless.TextGeneration:
    """A character-level model, whose meta.pkl lies beside it."""
    folder = tmp_path_factory.mktemp("characters")
    size = {"vocab_size": len(ALPHABET)}
    checkpoint(nanogpt(**size), folder / "run", **size)
    meta(folder / "run")
    return torchless.load(export(folder / "run", folder / "out"))


@settings(max_examples=300, deadline=None)
@given(text=st.text(ALPHABET, max_size=60))
def test_every_text_over_the_alphabet_is_one_token_a_character_and_comes_back(
    characters: torchless.TextGeneration, text: str
) -> None:
    tokenizer = characters.tokenizer
    ids = tokenizer.ids(text)
    assert ids == [ALPHABET.index(character) for character in text]
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text).offsets == [(i, i + 1) for i in range(len(text))]


def test_a_character_model_continues_and_streams_text(characters: torchless.TextGeneration) -> None:
    prompt = "a whale, \n and"
    whole = characters(prompt, max_new_tokens=30)
    assert len(whole.text) == 30
    assert "".join(characters.stream(prompt, max_new_tokens=30)) == whole.text
    assert "eos" not in characters.bundle.manifest.special_tokens


@pytest.mark.parametrize("unknown", ["Z", "\r", "ü", "\u3042", "7"])
def test_a_character_outside_the_alphabet_is_named(characters: torchless.TextGeneration, unknown: str) -> None:
    with pytest.raises(
        TokenizerError, match=f"cannot encode this text: it has no token for {unknown!r}".replace("\\", r"\\")
    ):
        characters(f"abc {unknown} abc", max_new_tokens=1)


def test_a_meta_given_by_path_is_the_one_beside_the_checkpoint(
    characters: torchless.TextGeneration, tmp_path: Path
) -> None:
    size = {"vocab_size": len(ALPHABET)}
    folder = checkpoint(nanogpt(**size), tmp_path / "run", **size)
    out = export(folder, tmp_path / "out", tokenizer=meta(tmp_path), check=False)
    assert (out / "tokenizer.json").read_bytes() == characters.bundle.file("tokenizer.json").read_bytes()


class Mark:
    """Unpickling it would create a file: proof that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


METAS: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "code",
        lambda folder: {"stoi": {"a": 0}, "x": Mark(folder / "ran")},
        "not a plain pickle .*it asks for pathlib",
    ),
    ("a class", lambda folder: {"stoi": np.float32(1)}, "not a plain pickle of nanoGPT's meta .it asks for"),
    ("a list", lambda folder: ["a"], "has no stoi, from characters to ids"),
    ("no stoi", lambda folder: {"itos": {0: "a"}}, "has no stoi, from characters to ids"),
    ("an empty stoi", lambda folder: {"stoi": {}}, "has no stoi"),
    ("words", lambda folder: {"stoi": {"a": 0, "the": 1}}, "stoi holds 'the', which is not a single character"),
    ("numbers", lambda folder: {"stoi": {1: 0}}, "stoi holds 1, which is not a single character"),
    ("a surrogate", lambda folder: {"stoi": {"\ud800": 0}}, "which is not a single character"),
    ("a gap", lambda folder: {"stoi": {"a": 0, "b": 2}}, "does not number its characters 0, 1, 2"),
    ("one id twice", lambda folder: {"stoi": {"a": 0, "b": 0}}, "does not number its characters"),
    ("an odd id", lambda folder: {"stoi": {"a": "0"}}, "does not number its characters"),
]


@pytest.mark.parametrize(("make", "match"), [row[1:] for row in METAS], ids=[row[0] for row in METAS])
def test_a_meta_that_is_not_plain_or_not_of_characters_is_refused(
    make: Callable[[Path], object], match: str, tmp_path: Path
) -> None:
    folder = checkpoint(nanogpt(), tmp_path / "run")
    (folder / "meta.pkl").write_bytes(pickle.dumps(make(tmp_path)))
    tiny.refused(folder, match, tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x05", b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04\x8c\xff", b"\x00"])
def test_a_broken_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    folder = checkpoint(nanogpt(), tmp_path / "run")
    (folder / "meta.pkl").write_bytes(content)
    tiny.refused(folder, r"meta\.pkl is not a plain pickle of nanoGPT's meta", tmp_path)


BROKEN: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("no model", lambda held: held.pop("model"), "holds no model with its model_args"),
    ("no args", lambda held: held.update(model_args=[1]), "holds no model with its model_args"),
    ("no size", lambda held: held["model_args"].pop("n_embd"), "model_args has no whole number n_embd"),
    ("a flag", lambda held: held["model_args"].update(n_layer=True), "model_args has no whole number n_layer"),
    ("no such bias", lambda held: held["model_args"].update(bias="no"), "bias is 'no', expected true or false"),
    ("biases left over", lambda held: held["model_args"].update(bias=False), r"no place in the graph: .*\.bias"),
    ("another size", lambda held: held["model_args"].update(block_size=63), r"wpe\.weight has shape \[64, 32\]"),
    ("an untied head", lambda held: held["model"].update({"lm_head.weight": torch.ones(320, 32)}), "values differ"),
    ("code", lambda held: held.update(x=Mark(Path("ran"))), "cannot be read with weights_only=True"),
]


@pytest.mark.parametrize(("change", "match"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_checkpoint_that_does_not_fit_its_args_is_refused(
    change: Callable[[dict[str, Any]], object], match: str, tmp_path: Path
) -> None:
    folder = checkpoint(nanogpt(), tmp_path / "run")
    held = torch.load(folder / "ckpt.pt", weights_only=True)
    change(held)
    torch.save(held, folder / "ckpt.pt")
    tiny.refused(folder, match, tmp_path, tokenizer=tiny.bpe())


def test_a_checkpoint_without_a_tokenizer_says_where_one_comes_from(tmp_path: Path) -> None:
    folder = checkpoint(nanogpt(), tmp_path / "run")
    tiny.refused(folder, r"ckpt\.pt brings no tokenizer: pass tokenizer= .*meta\.pkl.*vocab\.json", tmp_path)
    alphabet = [chr(1000 + i) for i in range(321)]
    tiny.refused(folder, r"the tokenizer has 321 tokens, .* has 320: they are not of one", tmp_path,
                 tokenizer=meta(tmp_path, alphabet))  # fmt: skip


def encoding(tokenizer: Tokenizer, **change: Any) -> Any:
    """A byte-level BPE tokenizer as tiktoken holds it: bytes by rank, and special tokens."""
    bytes_of = {letter: byte for byte, letter in letters_of_bytes().items()}
    special = {tiny.END: tokenizer.token_to_id(tiny.END)}
    ranks = {
        bytes(bytes_of[letter] for letter in token): rank
        for token, rank in tokenizer.get_vocab().items()
        if token not in special
    }
    split = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    held = dict(name="tiny", _pat_str=split, _mergeable_ranks=ranks, _special_tokens=special)
    return SimpleNamespace(**held | change)


ODD = [
    "  two  spaces ",
    "\n\n tab\t",
    "I'll we've can't",
    "12 345 ½",
    "日本語 テキスト",
    "🎉🎉 é e\u0301",
    "a" * 40,
]


def test_an_encoding_of_tiktoken_becomes_the_tokenizer_that_it_came_from(tmp_path: Path) -> None:
    out = export(checkpoint(nanogpt(), tmp_path / "run"), tmp_path / "out", tokenizer=encoding(tiny.bpe()))
    original = tiny.bpe()
    shuffled = list("".join(tiny.SENTENCES))
    random.Random(1).shuffle(shuffled)
    with torchless.load(out) as ours:
        for text in (*tiny.SENTENCES, *ODD, "".join(shuffled), f"a{tiny.END}b"):
            assert ours.tokenizer.ids(text) == original.encode(text).ids
            assert ours.tokenizer.decode(ours.tokenizer.ids(text), skip_special_tokens=False) == text
        assert ours.bundle.manifest.special_tokens["eos"] == original.token_to_id(tiny.END)


def test_an_encoding_equals_tiktoken_itself(tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    fake = encoding(tiny.bpe())
    theirs = tiktoken.Encoding(
        "tiny", pat_str=fake._pat_str, mergeable_ranks=fake._mergeable_ranks, special_tokens=fake._special_tokens
    )
    out = export(checkpoint(nanogpt(), tmp_path / "run"), tmp_path / "out", tokenizer=theirs, check=False)
    with torchless.load(out) as ours:
        for text in (*tiny.SENTENCES, *ODD, f"a{tiny.END}b"):
            assert ours.tokenizer.ids(text) == theirs.encode(text, allowed_special="all")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"_pat_str": r"\p{N}{1,3}| ?\p{L}+"}, "the encoding 'tiny', which splits text otherwise than GPT-2"),
        ({"_mergeable_ranks": {b"a": 0}}, "the encoding 'tiny' has no token for the byte 0"),
        (
            {"_mergeable_ranks": {bytes([i]): i for i in range(256)} | {b"abc": 256}},
            "the token b'abc' is not the merge",
        ),
    ],
)
def test_an_encoding_that_is_no_gpt2s_is_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder = checkpoint(nanogpt(), tmp_path / "run")
    tiny.refused(folder, match, tmp_path, tokenizer=encoding(tiny.bpe(), **change))
