"""Tokenizers that are built from vocabularies give the ids that transformers gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import torchless
from torchless.errors import ExportError
from torchless.export import export
from torchless.export.sources.tokenizer import SENTENCEPIECE, read_tokenizer

TEXTS = [
    *tiny.SENTENCES, "", " ", "a", "  two  spaces ", "line\nline\r\nline\ttab", "I'll we've can't o'clock",
    "3.14 1,000 ½ ²", "日本語テキスト 漢字", "Ünïcödé É e\u0301 ﬁ ß İ", "🎉 prize 🏳️‍🌈", "ПРИВЕТ Ωμέγα",
    "zero\u200bwidth \u00a0nbsp\u2028line", "control\x00\x07 \ufffd", "--- ... !!! ``x'' <unk> </w> ##s", "a" * 120,
]  # fmt: skip
ANY = st.text(max_size=30) | st.text("aA é'\n.ßΩ漢🎉\u0301<>", max_size=30)
SECOND = ANY.filter(bool)  # transformers takes an empty one for none


def save_bpe(
    folder: Path, tokenizer: Tokenizer, *more: str, names: tuple[str, str] = ("vocab.json", "merges.txt")
) -> Path:
    """vocab.json and merges.txt, with more tokens behind."""
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for token in more:
        vocabulary.setdefault(token, len(vocabulary))
    folder.mkdir(exist_ok=True)
    (folder / names[0]).write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / names[1]).write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


def save_gpt1(folder: Path) -> Path:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(tiny.SENTENCES, trainer)
    return save_bpe(folder, tokenizer)


def save_words(folder: Path, *special: str) -> Path:
    """vocab.txt, by default with BERT's special tokens."""
    vocabulary = tiny.wordpiece().get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens = [*(special or tokens[:5]), *tokens[5:], "É", "Ü", "漢", "##é"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return folder


SPANS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
MASK = {
    "content": "<mask>",
    "lstrip": True,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": True,
}
# name: model type, how the folder is made, tokenizer_config.json, texts of its own
FOLDERS: dict[str, tuple[str, Callable[[Path], Path], dict[str, Any], list[str]]] = {
    "GPT-1": ("openai-gpt", save_gpt1, {}, []),
    "GPT-2": ("gpt2", lambda at: save_bpe(at, tiny.bpe()), {}, [f"a {tiny.END} b{tiny.END}"]),
    "GPT-2 with a space before": ("gpt2", lambda at: save_bpe(at, tiny.bpe()), {"add_prefix_space": True}, []),
    "GPT-2 with tokens added": (
        "gpt2", lambda at: save_bpe(at, tiny.bpe()),
        {"pad_token": "[PAD]", "added_tokens_decoder": {
            "0": {"content": tiny.END, "special": True, "normalized": False},
            "320": {"content": "[PAD]", "special": True, "normalized": False},
            "321": {"content": "[CLS]", "special": True, "normalized": False, "lstrip": True},
            "322": {"content": "Ishmael", "special": False, "normalized": True},
        }},
        ["a [PAD] b  [CLS]c", "Call me Ishmael."],
    ),
    "RoBERTa": (
        "roberta", lambda at: save_bpe(at, tiny.bpe(), *SPANS), {"mask_token": MASK | {"__type": "AddedToken"}},
        ["the <mask> of <pad></s>"],
    ),
    "RoBERTa with a space before": (
        "roberta", lambda at: save_bpe(at, tiny.bpe(), *SPANS),
        {"add_prefix_space": True, "mask_token": MASK | {"__type": "AddedToken"}}, [],
    ),
    "BERT": ("bert", save_words, {}, ["the [MASK] is [SEP] x [UNK]"]),
    "BERT, cased": ("bert", save_words, {"do_lower_case": False}, []),
    "BERT, lower-cased with accents": ("bert", save_words, {"strip_accents": False}, []),
    "BERT, cased without accents": ("bert", save_words, {"do_lower_case": False, "strip_accents": True}, []),
    "BERT, Chinese words whole": ("bert", save_words, {"tokenize_chinese_chars": False}, []),
    "BERT by its class": ("bert", save_words, {"tokenizer_class": "BertTokenizerFast"}, []),
    "DistilBERT": ("distilbert", save_words, {}, []),
    "ELECTRA": ("electra", save_words, {}, []),
    "MPNet": ("mpnet", lambda at: save_words(at, "<s>", "<pad>", "</s>", "[UNK]", "<mask>"), {}, ["the <mask> is"]),
}  # fmt: skip


@pytest.fixture(scope="module", params=FOLDERS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Tokenizer, list[str]]:
    """transformers' tokenizer and ours of one folder."""
    kind, make, config, texts = FOLDERS[request.param]
    folder = make(tmp_path_factory.mktemp("vocabulary") / "files")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.from_str(read_tokenizer(folder, kind).decode())
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return transformers.AutoTokenizer.from_pretrained(folder), ours, texts


def test_ids_and_segments_equal_those_of_transformers(both: tuple[Any, Tokenizer, list[str]]) -> None:
    theirs, ours, texts = both
    for text in (*TEXTS, *texts):
        mine, wanted = ours.encode(text), theirs(text)
        assert mine.ids == wanted["input_ids"], text
        assert (
            ours.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False)["input_ids"]
        )
        pair, wanted = ours.encode(text, "the second"), theirs(text, "the second", return_token_type_ids=True)
        assert (pair.ids, pair.type_ids) == (wanted["input_ids"], wanted["token_type_ids"])


def test_what_is_decoded_equals_that_of_transformers(both: tuple[Any, Tokenizer, list[str]]) -> None:
    theirs, ours, texts = both
    for text in (*TEXTS, *texts):
        ids = ours.encode(text).ids
        for skip in (True, False):
            wanted = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skip) == wanted


@settings(max_examples=60, deadline=None)
@given(text=ANY, second=SECOND)
def test_ids_of_any_text_equal_those_of_transformers(
    both: tuple[Any, Tokenizer, list[str]], text: str, second: str
) -> None:
    theirs, ours, _ = both
    assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert ours.encode(text, second).ids == theirs(text, second)["input_ids"]


def test_the_mask_of_roberta_takes_the_space_before_it_along_as_it_was_trained(tmp_path: Path) -> None:
    folder = save_bpe(tmp_path / "r", tiny.bpe(), *SPANS)
    for config in ({}, {"mask_token": "<mask>"}):
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        ours = Tokenizer.from_str(read_tokenizer(folder, "roberta").decode())
        ids = [ours.token_to_id(token) for token in ("<s>", "of", "<mask>", "Ġof", "</s>")]
        assert ours.encode("of <mask> of").ids == ids


def test_special_tokens_of_older_folders_are_read_from_their_own_files(tmp_path: Path) -> None:
    folder = save_bpe(tmp_path / "old", tiny.bpe())
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": 320, "[CLS]": 321}))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": "[PAD]", "cls_token": {"content": "[CLS]"}, "additional_special_tokens": ["the"]})
    )
    ours = Tokenizer.from_str(read_tokenizer(folder, "gpt2").decode())
    assert ours.encode("a[CLS][PAD]").ids[1:] == [321, 320]
    assert ours.decode(ours.encode("a[CLS]").ids) == "a"


@pytest.mark.parametrize("at", ["folder", "vocab.json", "merges.txt"])
def test_openais_names_and_the_paths_of_files_give_the_same(at: str, tmp_path: Path) -> None:
    folder = save_bpe(tmp_path / "hf", tiny.bpe())
    openai = save_bpe(tmp_path / "openai", tiny.bpe(), names=("encoder.json", "vocab.bpe"))
    given = folder if at == "folder" else folder / at
    assert read_tokenizer(given) == read_tokenizer(openai) == read_tokenizer(openai / "vocab.bpe", "gpt2")
    words = save_words(tmp_path / "bert")
    assert read_tokenizer(words) == read_tokenizer(words / "vocab.txt", "bert")


def test_a_checkpoint_without_tokenizer_json_is_exported_with_its_vocabulary(tmp_path: Path) -> None:
    config = transformers.OpenAIGPTConfig(vocab_size=200, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    folder = tiny.save(tiny.uneven(transformers.OpenAIGPTLMHeadModel(config), 1), tmp_path / "gpt1")
    save_gpt1(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    with torchless.load(export(folder, tmp_path / "out")) as ours:
        text = "The Future of the Übermaß"
        assert ours.tokenizer.ids(text) == theirs(text)["input_ids"]
        assert len(ours(text, max_new_tokens=5).token_ids) == 5
        assert ours.tokenizer.decode(ours.tokenizer.ids("The prize, now.")) == "the prize , now ."


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("gpt2", lambda folder: (folder / "merges.txt").unlink(), r"holds no vocab\.json with its merges\.txt"),
    ("gpt2", write("merges.txt", "#version\na b c\n"), r"merges\.txt, line 2: 'a b c' is not a merge"),
    ("gpt2", write("merges.txt", "ab\n"), r"merges\.txt, line 1: 'ab' is not a merge of two tokens"),
    ("gpt2", write("merges.txt", "qqq zzz\n"), "its vocabulary makes no tokenizer .*download it again"),
    ("gpt2", write("vocab.json", "{"), r"vocab\.json cannot be read"),
    ("gpt2", write("vocab.json", "[1]"), r"vocab\.json holds a list, not an object"),
    ("gpt2", write("vocab.json", '{"a": 1, "b": 1}'), r"vocab\.json does not give each token an id of its own"),
    ("gpt2", write("vocab.json", '{"a": "x"}'), r"vocab\.json does not give each token an id of its own"),
    ("gpt2", write("tokenizer_config.json", "{"), r"tokenizer_config\.json cannot be read"),
    ("gpt2", write("tokenizer_config.json", "[]"), r"tokenizer_config\.json holds a list, not an object"),
    ("gpt2", write("tokenizer_config.json", '{"add_bos_token": true}'), "add_bos_token=True is not supported"),
    ("gpt2", write("tokenizer_config.json", '{"unk_token": 5}'), "5 is not a token: expected text, or an object"),
    ("gpt2", write("tokenizer_config.json", '{"added_tokens_decoder": [1]}'), "added_tokens_decoder does not map"),
    (
        "gpt2", write("tokenizer_config.json", '{"added_tokens_decoder": {"999": {"content": "x y"}}}'),
        "the added token 'x y' should have the id 999, and comes out as 320",
    ),
    ("gpt2", write("added_tokens.json", '{"[PAD]": 999}'), "should have the id 999, and comes out as 320"),
    (
        "gpt2", write("tokenizer_config.json", '{"tokenizer_class": "BertJapaneseTokenizer"}'),
        "a BertJapaneseTokenizer cannot be made from its vocabulary alone .these can: OpenAIGPTTokenizer, GPT2Tok",
    ),
    ("roberta", lambda folder: None, "the vocabulary has no </s>, which stands around every text"),
    ("bert", lambda folder: (folder / "vocab.txt").unlink(), r"tokenizer\.json is missing: write it with Auto"),
    ("bert", write("vocab.txt", "[UNK]\n[CLS]\n"), r"the vocabulary has no \[SEP\]"),
    ("bert", lambda folder: (folder / "vocab.txt").write_bytes(b"\xff"), r"vocab\.txt cannot be read"),
    ("bert", write("tokenizer_config.json", '{"do_lower_case": "no"}'), "do_lower_case is 'no', expected true or"),
    ("bert", write("tokenizer_config.json", '{"do_basic_tokenize": false}'), "do_basic_tokenize=False is not supp"),
    ("bert", write("tokenizer_config.json", '{"strip_accents": 1}'), "strip_accents is 1, expected true or false"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "match"), BROKEN, ids=[f"{kind}-{match[:40]}" for kind, _, match in BROKEN]
)
def test_a_vocabulary_that_is_broken_or_of_another_kind_is_refused(
    kind: str, change: Callable[[Path], object], match: str, tmp_path: Path
) -> None:
    folder = save_words(tmp_path / "x") if kind == "bert" else save_bpe(tmp_path / "x", tiny.bpe())
    change(folder)
    with pytest.raises(ExportError, match=match):
        read_tokenizer(folder, kind)


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_a_sentencepiece_model_alone_is_refused_with_the_command_that_converts_it(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"\x0a\x0e")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ExportError, match=r"is a SentencePiece model without .*\n.*\npython -c"):
            read_tokenizer(path, "xlm-roberta")


@pytest.mark.parametrize("content", ["{", "[1, 2]", "5", "null", "\x00"])
def test_a_broken_tokenizer_config_beside_a_sound_tokenizer_json_is_named(
    content: str, gpt_checkpoint: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = copy_of(gpt_checkpoint)
    (folder / "tokenizer_config.json").write_text(content)
    tiny.refused(folder, r"tokenizer_config\.json (cannot be read|holds a \w+, not an object)", tmp_path)
