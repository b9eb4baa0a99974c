"""Embeddings: pooled as sentence-transformers pools, one vector a token as transformers gives, and searched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import torchless
from torchless import Embedding, InputError, Match, similarity
from torchless.export import export

TEXTS = [*tiny.SENTENCES, "a", ""]
POOL = {
    "mean": lambda tokens: tokens.mean(0),
    "cls": lambda tokens: tokens[0],
    "max": lambda tokens: tokens.max(0).values,
    "lasttoken": lambda tokens: tokens[-1],
}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.bert("feature-extraction")


@pytest.fixture(scope="module")
def normalized(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedding]:
    out = export(model, tmp_path_factory.mktemp("unit") / "out", tokenizer=tiny.wordpiece(), normalize=True)
    with torchless.load(out) as opened:
        yield opened


def hidden(model: Any, text: str) -> Any:
    """What torch computes for a text alone [S,D]."""
    with torch.no_grad():
        return model(torch.tensor([tiny.wordpiece().encode(text).ids])).last_hidden_state[0]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", list(POOL))
def test_every_pooling_equals_torch_in_both_dialects_and_in_ragged_batches(
    model: Any, mode: str, normalize: bool, tmp_path: Path
) -> None:
    out = export(
        model, tmp_path / "out", tokenizer=tiny.wordpiece(), pooling=mode, normalize=normalize, dialect="all"
    )
    expected = torch.stack([POOL[mode](hidden(model, text)) for text in TEXTS])
    if normalize:
        expected = torch.nn.functional.normalize(expected, dim=-1)
    for dialect in ("fused", "standard"):
        with torchless.load(out, dialect=dialect) as ours:
            assert ours.bundle.manifest.pooling.mode == mode
            assert tiny.furthest(ours(TEXTS, batch_size=8), expected.numpy()) < 1e-4
            assert tiny.furthest(ours(TEXTS[0]), expected[0].numpy()) < 1e-4


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
    ids=str,
)
def test_old_and_new_names_of_a_pooling_are_read(model: Any, settings: Any, mode: str, tmp_path: Path) -> None:
    folder = tiny.save(model, tmp_path / "checkpoint", tiny.wordpiece())
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": "."}]')
    tiny.change_json(folder / "config.json", **settings)
    with torchless.load(export(folder, tmp_path / "out", check=False)) as ours:
        assert ours.bundle.manifest.pooling.mode == mode


def test_several_poolings_at_once_are_refused(model: Any, tmp_path: Path) -> None:
    folder = tiny.save(model, tmp_path / "checkpoint", tiny.wordpiece())
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": "."}]')
    tiny.change_json(folder / "config.json", pooling_mode=["cls", "mean"])
    tiny.refused(folder, "pooling by cls, mean is not supported", tmp_path)


def test_normalizing_and_truncating_at_call_time_equal_numpy(
    embedding: Embedding, normalized: Embedding, bert_models: dict[str, Any]
) -> None:
    plain = embedding(TEXTS)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    assert abs(lengths - 1).min() > 0.01
    assert tiny.furthest(embedding(TEXTS, normalize=True), plain / lengths) < 1e-6
    assert tiny.furthest(embedding(TEXTS, truncate_dim=5), plain[:, :5]) == 0
    short = plain[:, :5] / np.linalg.norm(plain[:, :5], axis=1, keepdims=True)
    assert tiny.furthest(embedding(TEXTS, truncate_dim=5, normalize=True), short) < 1e-6
    assert embedding([], truncate_dim=5).shape == (0, 5) and embedding("a", truncate_dim=5).shape == (5,)
    whole = normalized(TEXTS)
    cut = whole[:, :7] / np.linalg.norm(whole[:, :7], axis=1, keepdims=True)
    assert tiny.furthest(normalized(TEXTS, truncate_dim=7), cut) < 1e-6
    assert tiny.furthest(normalized(TEXTS, truncate_dim=32, normalize=True), whole) < 1e-6


def test_hidden_states_equal_those_of_the_pipeline(embedding: Embedding, bert_models: dict[str, Any]) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny.wordpiece(), pad_token="[PAD]")
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    theirs = transformers.pipeline(
        "feature-extraction", model=bert_models["feature-extraction"], tokenizer=tokenizer, device="cpu"
    )
    for mine, text in zip(embedding.tokens(TEXTS, batch_size=8), TEXTS, strict=True):
        assert tiny.furthest(mine, theirs(text)[0]) < 1e-4
    assert embedding.tokens("a").shape == (3, 32) and embedding.tokens([]) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"normalize": 1}, "normalize=1: give True or False"),
        ({"truncate_dim": 0}, "truncate_dim=0: give a whole number of 1 or more"),
        ({"truncate_dim": 33}, "truncate_dim=33: the vectors have 32 numbers"),
    ],
    ids=str,
)
def test_wrong_settings_of_an_embedding_are_said(
    embedding: Embedding, normalized: Embedding, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        embedding("a", **options)
    with pytest.raises(
        InputError, match=r"normalize=False: the graph of .* normalizes, export it with normalize=Fal"
    ):
        normalized("a", normalize=False)


def test_similarity_is_the_cosine_of_texts_and_of_vectors(embedding: Embedding) -> None:
    vectors = embedding(TEXTS)
    expected = torch.nn.functional.cosine_similarity(
        torch.tensor(vectors)[:, None], torch.tensor(vectors)[None], dim=-1
    )
    assert tiny.furthest(embedding.similarity(TEXTS, TEXTS), expected.numpy()) < 1e-5
    assert embedding.similarity(TEXTS[0], TEXTS[1]) == pytest.approx(float(expected[0, 1]), abs=1e-5)
    assert tiny.furthest(embedding.similarity(vectors[0], TEXTS), expected[0].numpy()) < 1e-5
    assert tiny.furthest(embedding.similarity(TEXTS, TEXTS[2]), expected[:, 2].numpy()) < 1e-5
    assert embedding.similarity([], TEXTS).shape == (0, len(TEXTS))
    assert embedding.similarity(np.zeros(32, np.float32), "a") == 0  # nothing is like a vector of zeros


def test_a_search_finds_the_texts_most_like_the_query(embedding: Embedding, tmp_path: Path) -> None:
    corpus = embedding(TEXTS)
    expected = embedding.similarity("the union", TEXTS)
    found = embedding.search("the union", corpus, top_k=3)
    assert [one.index for one in found] == np.argsort(-expected)[:3].tolist()
    np.testing.assert_allclose([one.score for one in found], np.sort(expected)[::-1][:3], atol=1e-6)
    assert embedding.search([TEXTS[4], "a"], corpus, top_k=1)[0][0].index == 4
    assert [one.index for one in embedding.search(corpus[:2], corpus, top_k=1)[1]] == [1]
    assert embedding.search(corpus[3], corpus)[0] == Match(3, pytest.approx(1.0, abs=1e-5))
    np.save(tmp_path / "corpus.npy", corpus.astype(np.float16))
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    assert embedding.search(TEXTS[2], mapped, top_k=1)[0].index == 2
    short = embedding(TEXTS, truncate_dim=8)
    assert embedding.search(TEXTS[1], short, top_k=1)[0].index == 1  # the query is cut as the corpus was
    assert len(embedding.search("a", corpus, top_k=99)) == len(TEXTS)
    assert embedding.search("a", corpus[:0]) == [] and embedding.search([], corpus) == []


@pytest.mark.parametrize(
    ("query", "corpus", "match"),
    [
        ("a", [1.0, 2.0], r"corpus: expected numbers of shape \[N, D\], got float64 \[2\]"),
        ("a", ["x"], "corpus: expected numbers"),
        (None, np.ones((3, 32)), "query: expected numbers"),
        (np.ones(5), np.ones((3, 32)), "corpus: its vectors have 32 numbers, the others 5"),
        ("a", np.full((3, 32), np.nan), "the vectors hold NaN or infinity: compute them again"),
        ("a", np.ones((3, 33)), "corpus: its vectors have 33 numbers, the others 32"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_vectors_are_said(embedding: Embedding, query: Any, corpus: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        embedding.search(query, corpus)
    with pytest.raises(InputError, match="top_k=0: give a whole number of 1 or more"):
        embedding.search("a", np.ones((3, 32)), top_k=0)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 40), queries=st.integers(0, 7), top_k=st.integers(1, 45), seed=st.integers(0, 2**20))
def test_a_search_in_blocks_gives_what_sorting_everything_gives(
    rows: int, queries: int, top_k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    few = np.array([[0, 0], [0, 2], [3, 0], [-1, 0], [0, -1]], np.float32)  # so few that many rows are equal
    corpus, asked = (few[rng.integers(0, len(few), count)] for count in (rows, queries))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "ROWS", 7)
        patch.setattr(similarity, "QUERIES", 3)
        scores, indices = similarity.search(asked, corpus, top_k)
    table = similarity.cosine(asked, corpus)
    order = np.argsort(-table, axis=1, kind="stable")[:, :top_k]
    assert indices.tolist() == order.tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(table, order, axis=1), atol=1e-6)
