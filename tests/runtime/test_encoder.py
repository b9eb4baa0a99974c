"""What the model is fed: no text without tokens, segments that it knows, a GPT's last token that is no padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from tokenizers import Tokenizer, processors

import torchless
from torchless import InputError
from torchless.export import export

EMPTY = "a text is empty, and the tokenizer's template adds no token to it: give at least one word"


def bare(tokenizer: Tokenizer) -> Tokenizer:
    """Without a template, so that a text has its own tokens only, and a pair no form."""
    return Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"post_processor": None}))


def gpt_classifier(kind: str = "GPT2ForSequenceClassification", **config: Any) -> Any:
    made = tiny.gpt2(num_labels=3, **config).config
    return tiny.uneven(getattr(transformers, kind)(made), 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoder")


@pytest.mark.parametrize(
    ("model", "tokenizer", "asked"),
    [
        (lambda: tiny.bert("text-classification"), tiny.wordpiece, lambda texts: (texts,)),
        (lambda: tiny.bert("feature-extraction"), tiny.wordpiece, lambda texts: (texts,)),
        (gpt_classifier, tiny.bpe, lambda texts: (texts,)),
        (lambda: tiny.bert("question-answering"), tiny.wordpiece, None),
    ],
    ids=["classifier", "embedding", "gpt", "question-answering"],
)
def test_a_text_without_tokens_is_refused_alone_and_in_a_batch_and_a_pair_without_a_template(
    model: Any, tokenizer: Any, asked: Any, tmp_path: Path
) -> None:
    with torchless.load(export(model(), tmp_path / "out", tokenizer=bare(tokenizer()))) as opened:
        if asked is not None:
            assert len(opened(["a b", "a"])) == 2
            for texts in ("", [""], ["a", "", "a b"]):
                with pytest.raises(InputError, match=EMPTY):
                    opened(*asked(texts))
        with pytest.raises(InputError, match="template has no form for a pair of texts: give one text, or export"):
            opened(("a", "b")) if asked else opened("who", "call me")


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt"])
def test_a_gpt_classifies_at_the_last_token_that_is_no_padding(family: str, tmp_path: Path) -> None:
    if family == "gpt2":
        model = gpt_classifier(pad_token_id=0)
    else:
        config = transformers.OpenAIGPTConfig(
            vocab_size=320, n_positions=64, n_embd=32, n_layer=2, n_head=4, num_labels=3, pad_token_id=0
        )
        model = tiny.uneven(transformers.OpenAIGPTForSequenceClassification(config), 5)
    texts = ["The union", f"The union{tiny.END}", f"a{tiny.END} prize{tiny.END}{tiny.END}", "a whale-ship was"]
    with torchless.load(export(model, tmp_path / "out", tokenizer=tiny.bpe())) as opened:
        found = opened(texts, function_to_apply="none")
        for text, mine in zip(texts, found, strict=True):
            with torch.no_grad():
                expected = model(torch.tensor([tiny.bpe().encode(text).ids])).logits[0].numpy()
            assert tiny.furthest(list(mine.scores.values()), expected) < 1e-4
        assert tiny.furthest(list(found[0].scores.values()), list(found[1].scores.values())) < 1e-5
        assert len(opened([tiny.END, tiny.END * 2])) == 2  # all padding: read whole


def test_two_heads_answer_at_the_very_end(tmp_path: Path) -> None:
    model = gpt_classifier("GPT2DoubleHeadsModel", pad_token_id=0)
    tokenizer, choices = tiny.bpe(), ["a prize", "is strong"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {tiny.END}", pair=f"$A ! $B {tiny.END}",
        special_tokens=[(tiny.END, 0), ("!", tokenizer.token_to_id("!"))],
    )  # fmt: skip
    scores = []
    for choice in choices:
        ids = torch.tensor([[tokenizer.encode("The union", choice).ids]])
        with torch.no_grad():
            scores.append(float(model(ids, mc_token_ids=torch.tensor([[ids.shape[-1] - 1]])).mc_logits))
    with torchless.load(export(model, tmp_path / "out", tokenizer=tokenizer)) as opened:
        mine = opened(context="The union", choices=choices)
    np.testing.assert_allclose(mine.scores, torch.tensor(scores).softmax(-1), atol=1e-5)


def test_segments_are_zero_where_the_manifest_says_so(bert_bundles: dict[str, Path], copy_of: Any) -> None:
    bundle = copy_of(bert_bundles["text-classification"])
    pair = ("the union", "a prize")
    with torchless.load(bundle) as opened:
        before = opened(pair)
    tiny.change_json(bundle / "torchless.json", token_types=False, segments=2)
    with torchless.load(bundle) as opened:
        assert opened.bundle.manifest.token_types is False
        ids = opened.tokenizer.ids(pair[0]) + opened.tokenizer.ids(pair[1])[1:]
        (logits,) = opened.runner.run(np.array([ids]), np.ones((1, len(ids)), int), np.zeros((1, len(ids)), int))
        after = opened(pair, function_to_apply="none")
    assert tiny.furthest(list(after.scores.values()), logits) < 1e-5
    tiny.change_json(bundle / "torchless.json", token_types=True)
    with torchless.load(bundle) as opened:
        assert opened(pair) == before
    assert before.scores != pytest.approx(after.scores, abs=1e-3)


def test_a_pair_is_refused_where_the_model_knows_one_segment_only(folder: Path) -> None:
    bundle = export(tiny.bert("text-classification", type_vocab_size=1), folder / "one", tokenizer=tiny.wordpiece())
    tiny.change_json(bundle / "torchless.json", segments=1)
    with torchless.load(bundle) as opened:
        assert opened("a prize").label
        with pytest.raises(
            InputError, match="pair's second text into segment 1, but the model knows 1 only, from 0"
        ):
            opened([("a", "b"), "a"])


@pytest.mark.parametrize(
    "fields", [{"token_types": 1}, {"segments": 0}, {"segments": True}, {"segments": "2"}], ids=str
)
def test_the_manifests_fields_are_checked(bert_bundles: dict[str, Path], copy_of: Any, fields: Any) -> None:
    bundle = copy_of(bert_bundles["text-classification"])
    tiny.change_json(bundle / "torchless.json", **fields)
    with pytest.raises(torchless.BundleError, match=f"field '{next(iter(fields))}'"):
        torchless.load(bundle)


def test_an_encoder_without_a_tokenizer_asks_for_one_only(bert_bundles: dict[str, Path], tmp_path: Path) -> None:
    with (
        torchless.load(export(tiny.bert("text-classification"), tmp_path / "out")) as opened,
        pytest.raises(torchless.TokenizerError, match="without a tokenizer: export again with tokenizer="),
    ):
        opened("a")
