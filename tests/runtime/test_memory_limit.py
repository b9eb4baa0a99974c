"""memory_limit: a call that needs more is refused by name, the process lives on, what fits goes on as before."""

from __future__ import annotations

import gc
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny

import torchless
from torchless import CPU, CUDA, InputError, MemoryLimitError, OpenVINO, ProviderError, TorchlessError
from torchless.export import export
from torchless.providers.options import limited

MB = 1 << 20


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose large batches take tens of megabytes."""
    model = tiny.bert_for(
        "ForSequenceClassification", hidden_size=256, intermediate_size=1024, max_position_embeddings=512
    )
    return export(model, tmp_path_factory.mktemp("wide") / "bundle", tokenizer=tiny.wordpiece(), check=False)


@pytest.fixture(scope="module")
def long_gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("long") / "gpt"
    return export(tiny.gpt2(n_positions=1024), out, tokenizer=tiny.bpe(), check=False)


def test_a_batch_past_the_limit_is_refused_and_the_next_call_is_right(wide: Path) -> None:
    texts = ["the union is strong " * 100] * 64
    with torchless.load(wide) as free, torchless.load(wide, memory_limit=60 * MB) as model:
        assert model("a prize") == free("a prize")
        for _ in range(3):
            with pytest.raises(
                MemoryLimitError,
                match=r"memory_limit=62,914,560 allows, an operator asked for [\d,]+ bytes where [\d,]+ were left: "
                "give shorter texts or a smaller batch_size, or load with a higher limit",
            ):
                model(texts, batch_size=64, truncation=True)
            assert model("a prize") == free("a prize")
        assert issubclass(MemoryLimitError, MemoryError) and issubclass(MemoryLimitError, TorchlessError)
        few = model(texts[:3], batch_size=1, truncation=True)
        assert [one.label for one in few] == [one.label for one in free(texts[:3], truncation=True)]


def test_batches_of_every_size_within_the_limit_never_fail(wide: Path) -> None:
    with torchless.load(wide, memory_limit=60 * MB) as model:
        for size in (3, 90, 7, 60, 11, 100, 2, 75):  # pieces that an arena frees fit no larger one
            for count in (1, 4, 2):
                model(["the " * size] * count, truncation=True)


def test_two_models_have_limits_of_their_own(wide: Path) -> None:
    texts = ["the union is strong " * 100] * 24
    with torchless.load(wide, memory_limit=40 * MB) as small, torchless.load(wide, memory_limit=600 * MB) as large:
        with pytest.raises(MemoryLimitError):
            small(texts, batch_size=24, truncation=True)
        assert len(large(texts, batch_size=24, truncation=True)) == 24
        with pytest.raises(MemoryLimitError):
            small(texts, batch_size=24, truncation=True)
        with torchless.load(wide) as free:
            assert len(free(texts, batch_size=24, truncation=True)) == 24


def test_a_limit_below_the_weights_is_told_by_load(wide: Path, long_gpt: Path) -> None:
    for bundle in (wide, long_gpt):
        with pytest.raises(MemoryLimitError, match=r"memory_limit=1,000: the weights .* take up to [\d,]+"):
            torchless.load(bundle, memory_limit=1000)


def test_keys_and_values_count_and_come_back_with_their_texts(long_gpt: Path) -> None:
    with torchless.load(long_gpt, memory_limit=4 * MB) as model, torchless.load(long_gpt) as free:
        expected = free("The union", max_new_tokens=5)
        assert model("The union", max_new_tokens=5) == expected
        with pytest.raises(
            MemoryLimitError, match=r"memory_limit=4,194,304 leaves [\d,]+ bytes for keys and values"
        ):
            model([[5] * 900] * 64, max_new_tokens=1, batch_size=64)
        gc.collect()
        before = model.session.allowance._left
        for _ in range(5):
            assert model("The union", max_new_tokens=5) == expected
        states = [model.state("The union")]
        with pytest.raises(MemoryLimitError):
            while len(states) < 1000:
                states.append(states[0].fork())
        states.clear()
        gc.collect()
        assert model.session.allowance._left == before


def test_a_stream_that_outgrows_the_limit_ends_with_the_error_and_others_go_on(long_gpt: Path) -> None:
    with torchless.load(long_gpt, memory_limit=3 * MB) as model:
        held: list[Any] = []
        with pytest.raises(MemoryLimitError):
            while len(held) < 200:
                held.append(model.stream([5] * 600, max_new_tokens=200, eos_token_id=None))
                next(held[-1])
        held.clear()
        gc.collect()
        assert len(model([5] * 100, max_new_tokens=5, eos_token_id=None).token_ids) == 5


def test_threads_that_open_limited_models_at_once_get_their_own(wide: Path) -> None:
    found: dict[int, bool] = {}

    def work(limit: int) -> None:
        with torchless.load(wide, memory_limit=limit) as model:
            try:
                model(["the union is strong " * 100] * 24, batch_size=24, truncation=True)
                found[limit] = True
            except MemoryLimitError:
                found[limit] = False

    threads = [threading.Thread(target=work, args=(limit * MB,)) for limit in (40, 600, 41, 601)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == {40 * MB: False, 41 * MB: False, 600 * MB: True, 601 * MB: True}


def test_a_limit_goes_into_the_options_of_the_provider_and_into_a_pickle(wide: Path) -> None:
    with torchless.load(wide, memory_limit=60 * MB) as model:
        assert model.provider.options == CPU(memory_limit=60 * MB)
        with pickle.loads(pickle.dumps(model)) as again:
            assert again.provider.options == CPU(memory_limit=60 * MB)
    with torchless.load(wide, provider=CPU(memory_limit=60 * MB)) as model, pytest.raises(MemoryLimitError):
        model(["the union is strong " * 100] * 64, batch_size=64, truncation=True)
    assert limited(CUDA(device_id=1), MB) == CUDA(device_id=1, memory_limit=MB)
    assert limited(CUDA(memory_limit=MB), MB) == CUDA(memory_limit=MB)


def test_limits_that_cannot_be_are_refused(wide: Path) -> None:
    for limit in (0, -1, 1.5, "1", True):
        with pytest.raises(InputError, match=r"memory_limit=.*: give a whole number of 1 or more"):
            torchless.load(wide, memory_limit=limit)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"memory_limit is the arena's: not with arena=False"):
        CPU(arena=False, memory_limit=MB)
    with pytest.raises(InputError, match=r"memory_limit=5, and CUDA\(.*memory_limit=7.*: give one limit"):
        limited(CUDA(memory_limit=7), 5)
    with pytest.raises(ProviderError, match="openvino knows no memory_limit: load without one"):
        limited(OpenVINO(), 5)
