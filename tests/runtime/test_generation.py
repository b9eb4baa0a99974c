"""Generation: the same tokens however they are asked for, and a clear end."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchless
from torchless import BundleError, Generation, TextGeneration
from torchless import cache as cache_module
from torchless.export import export
from torchless.generation import Row, decode
from torchless.generation_config import GenerationConfig
from torchless.sampling import make_sampler

TEXTS = ["The union", "A", "Call me Ishmael. Some years ago", "ß 🎉", "people people people"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 1},
    {"top_k": 5, "seed": 2},
    {"top_p": 0.7, "temperature": 1.5, "seed": 3},
]


def greedy(model: Any, ids: list[int], **options: Any) -> list[int]:
    """New ids of transformers' own loop."""
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None} | options
    return model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()


@pytest.mark.parametrize("text", TEXTS)
def test_greedy_text_equals_that_of_transformers(gpt: TextGeneration, gpt_model: Any, text: str) -> None:
    ids = gpt.tokenizer.ids(text)
    done = gpt(text, max_new_tokens=30, eos_token_id=None)
    expected = greedy(gpt_model, ids, max_new_tokens=30)
    assert done == Generation(gpt.tokenizer.decode(expected), expected, "length", len(ids))
    assert gpt(ids, max_new_tokens=30, eos_token_id=None) == done


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
def test_a_ragged_batch_gives_what_each_prompt_gives_alone(gpt: TextGeneration, chosen: dict[str, Any]) -> None:
    alone = [gpt(text, max_new_tokens=20, **chosen) for text in TEXTS]
    assert gpt(TEXTS, max_new_tokens=20, **chosen) == alone
    assert gpt(TEXTS[::-1], max_new_tokens=20, **chosen) == alone[::-1]
    assert len({tuple(one.token_ids) for one in alone}) == len(TEXTS)


def test_a_seed_gives_the_same_text_in_every_position_of_a_batch(gpt: TextGeneration) -> None:
    alone = gpt("The union", max_new_tokens=20, seed=5)
    for position in range(4):
        batch = TEXTS[:4]
        batch[position] = "The union"
        assert gpt(batch, max_new_tokens=20, seed=5)[position] == alone
    assert gpt("The union", max_new_tokens=20, seed=6) != alone


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
@pytest.mark.parametrize("full", [True, False])
def test_a_stream_joined_equals_the_call(gpt: TextGeneration, chosen: dict[str, Any], full: bool) -> None:
    for text in TEXTS:
        stream = gpt.stream(text, max_new_tokens=25, return_full_text=full, **chosen)
        assert stream.result is None
        pieces = list(stream)
        called = gpt(text, max_new_tokens=25, return_full_text=full, **chosen)
        assert "".join(pieces) == called.text
        assert stream.result == called
        assert called.text.startswith(text) or not full


@pytest.mark.parametrize("stops", [1, 2])
def test_a_stop_token_ends_the_text_where_transformers_ends_it(
    gpt: TextGeneration, gpt_model: Any, stops: int
) -> None:
    ids = gpt.tokenizer.ids("The union")
    whole = gpt(ids, max_new_tokens=30, eos_token_id=None).token_ids
    eos = list(dict.fromkeys(whole))[3 : 3 + stops]  # tokens that come up later on
    done = gpt(ids, max_new_tokens=30, eos_token_id=eos if stops > 1 else eos[0])
    assert done.finish_reason == "stop"
    assert done.token_ids == greedy(gpt_model, ids, max_new_tokens=30, eos_token_id=eos)
    assert done.token_ids == whole[: len(done.token_ids)] and done.token_ids[-1] in eos


def test_the_end_tokens_of_the_bundle_stop_by_default(
    gpt: TextGeneration, gpt_checkpoint: Path, copy_of: Any, tmp_path: Path
) -> None:
    ids = gpt.tokenizer.ids("The union")
    whole = gpt(ids, max_new_tokens=30, eos_token_id=None).token_ids
    folder = copy_of(gpt_checkpoint)
    tiny.change_json(folder / "generation_config.json", eos_token_id=[whole[4], 1])
    with torchless.load(export(folder, tmp_path / "out")) as model:
        done = model(ids, max_new_tokens=30)
        assert (done.token_ids, done.finish_reason) == (whole[: whole.index(whole[4]) + 1], "stop")
        assert model(ids, max_new_tokens=30, eos_token_id=None).token_ids == whole


@pytest.mark.parametrize("together", [1, 2, 3, 16])
def test_rows_that_end_and_join_at_different_times_leave_the_others_as_they_are(
    gpt: TextGeneration, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(cache_module, "GROWTH", 4)
    prompts = [gpt.tokenizer.ids(text) for text in TEXTS]
    for budgets in ([1, 20, 7, 3, 12], [20, 1, 1, 20, 2], [0, 5, 0, 5, 0], [0] * 5, [3] * 5):
        made: list[list[int]] = [[] for _ in prompts]
        rows = [Row(ids, new, make_sampler(gpt.config, new)) for ids, new in zip(prompts, budgets, strict=True)]
        for token in decode(gpt.decoder, rows, together):
            made[token.prompt].append(token.id)
            assert (token.finish_reason == "length") == (len(made[token.prompt]) == budgets[token.prompt])
        alone = [gpt(ids, max_new_tokens=20, eos_token_id=None).token_ids for ids in prompts]
        assert made == [ids[:budget] for ids, budget in zip(alone, budgets, strict=True)]


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 319), min_size=1, max_size=20), min_size=1, max_size=5),
    stops=st.sets(st.integers(0, 319), max_size=60),
    new=st.integers(0, 25),
)
def test_any_batch_with_any_stops_gives_what_its_rows_give_alone(
    gpt: TextGeneration, prompts: list[list[int]], stops: set[int], new: int
) -> None:
    eos = tuple(stops) or None
    assert gpt(prompts, max_new_tokens=new, eos_token_id=eos) == [
        gpt(one, max_new_tokens=new, eos_token_id=eos) for one in prompts
    ]


def test_no_new_tokens_and_one(gpt: TextGeneration) -> None:
    none, one = (gpt("The union", max_new_tokens=count) for count in (0, 1))
    assert none == Generation("", [], "length", none.prompt_tokens)
    assert len(one.token_ids) == 1 and one.finish_reason == "length"
    stream = gpt.stream("The union", max_new_tokens=0)
    assert (list(stream), stream.result) == ([], none)
    assert gpt.next_tokens("The union", top=1)[0][0] == gpt.tokenizer.token(one.token_ids[0])


def test_the_budget_is_128_tokens_or_what_the_context_leaves(gpt: TextGeneration, tmp_path: Path) -> None:
    done = gpt("The union", eos_token_id=None)
    assert len(done.token_ids) == gpt.context_length - done.prompt_tokens == 64 - done.prompt_tokens
    model = tiny.gpt2(n_positions=300)
    with torchless.load(export(model, tmp_path / "out", check=False)) as long:
        assert len(long([5, 6], eos_token_id=None).token_ids) == 128
        assert len(long([5] * 299, eos_token_id=None).token_ids) == 1


def test_generation_to_the_last_position_equals_transformers(gpt: TextGeneration, gpt_model: Any) -> None:
    for length in (1, 40, 63):
        ids = np.random.default_rng(length).integers(0, 320, length).tolist()
        new = gpt.context_length - length
        assert gpt(ids, max_new_tokens=new, eos_token_id=None).token_ids == greedy(
            gpt_model, ids, max_new_tokens=new
        )
    full = gpt([7] * 64)
    assert (full.token_ids, full.finish_reason) == ([], "length")


def test_an_empty_list_gives_an_empty_list(gpt: TextGeneration) -> None:
    assert gpt([]) == []
    assert gpt([], max_new_tokens=3, seed=1) == []


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda ids: np.array(ids, np.int32)])
def test_ids_come_as_any_sequence_of_whole_numbers(gpt: TextGeneration, kind: Any) -> None:
    assert gpt(kind([5, 6, 7]), max_new_tokens=5) == gpt([5, 6, 7], max_new_tokens=5)


def test_next_tokens_are_the_softmax_of_torch(gpt: TextGeneration, gpt_model: Any) -> None:
    ids = gpt.tokenizer.ids("The union is")
    with torch.no_grad():
        expected = gpt_model(torch.tensor([ids])).logits[0, -1].softmax(-1).topk(5)
    found = gpt.next_tokens("The union is", top=5)
    assert [text for text, _ in found] == [gpt.tokenizer.token(int(i)) for i in expected.indices]
    np.testing.assert_allclose([score for _, score in found], expected.values.numpy(), rtol=1e-4)
    assert len(gpt.next_tokens("The union", top=5000)) == 320


def test_a_score_is_the_log_probability_of_torch(gpt: TextGeneration, gpt_model: Any) -> None:
    ids = gpt.tokenizer.ids("The union is strong")
    with torch.no_grad():
        table = gpt_model(torch.tensor([ids])).logits[0].log_softmax(-1)
    score = gpt.score("The union is strong")
    assert score.token_ids == ids[1:]
    np.testing.assert_allclose(score.logprobs, [table[i, token] for i, token in enumerate(ids[1:])], atol=1e-4)
    assert score.perplexity == pytest.approx(np.exp(-np.mean(score.logprobs)))
    assert gpt.score([5]).logprobs == [] and np.isnan(gpt.score([5]).perplexity)


def test_sampling_settings_of_the_checkpoint_are_the_defaults(
    gpt: TextGeneration, gpt_checkpoint: Path, copy_of: Any, tmp_path: Path
) -> None:
    folder = copy_of(gpt_checkpoint)
    tiny.change_json(folder / "generation_config.json", do_sample=True, temperature=0.7, top_k=4, top_p=0.9)
    with torchless.load(export(folder, tmp_path / "out")) as model:
        assert (model.config.samples, model.config.temperature, model.config.top_k, model.config.top_p) == (
            True, 0.7, 4, 0.9,
        )  # fmt: skip
        ours = model("The union", max_new_tokens=10, seed=4)
        assert ours == gpt("The union", max_new_tokens=10, seed=4, temperature=0.7, top_k=4, top_p=0.9)
        assert model("The union", max_new_tokens=10, do_sample=False) == gpt("The union", max_new_tokens=10)


def test_what_a_checkpoints_file_cannot_set_is_told_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "generation_config.json"
    given = {
        "max_length": 50,
        "min_length": 0,
        "max_new_tokens": 9,
        "seed": 3,
        "token_healing": True,
        "top_h": None,
    }
    path.write_text(json.dumps({**given, "eos_token_id": 5, "use_cache": True, "top_k": 50}))
    with caplog.at_level(logging.WARNING, "torchless"):
        assert GenerationConfig.read(path, 5) == GenerationConfig(eos_token_id=(5,))
    assert caplog.messages == [
        f"{path}: token_healing: not implemented, ignored",
        f"{path}: max_length, max_new_tokens, seed: ignored, a call gives its own",
    ]


def test_token_ids_of_a_checkpoints_logit_bias_are_jsons_strings(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text('{"logit_bias": {"17": -2, "9": 1.5}}')
    assert GenerationConfig.read(path, None).logit_bias == {17: -2, 9: 1.5}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[]", "it is no JSON object$"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        ('{"logit_bias": {"a": 1}}', "logit_bias='a': give a mapping from token ids"),
        ('{"logit_bias": [3]}', r"logit_bias=\[3\]: give a mapping"),
        ('{"top_p": 2, "do_sample": true}', "top_p=2: give above 0"),
    ],
    ids=lambda value: value[:30],
)
def test_a_checkpoints_file_that_is_wrong_is_named(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=rf"generation_config\.json cannot be used: .*{match}"):
        GenerationConfig.read(path, None)


def test_temperature_zero_and_do_sample_false_are_greedy(gpt: TextGeneration) -> None:
    plain = gpt("The union", max_new_tokens=15)
    assert gpt("The union", max_new_tokens=15, temperature=0, seed=3, top_k=9) == plain
    assert gpt("The union", max_new_tokens=15, do_sample=False, temperature=3.0) == plain
    assert gpt("The union", max_new_tokens=15, do_sample=True, temperature=3.0, seed=1) != plain
