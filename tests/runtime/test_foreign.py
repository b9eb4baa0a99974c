"""Folders that optimum, sentence-transformers and transformers.js write: tiny models, as they lie."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny

import torchless
from torchless.adopting import adopt
from torchless.bundle import read_bundle
from torchless.cli import main
from torchless.decoder import Decoder
from torchless.encoder import Encoder
from torchless.errors import BundleError, InputError, QuantizationError
from torchless.opening import open_folder
from torchless.providers.first import Settings, open_first
from torchless.quantize import quantize
from torchless.tasks import TASKS
from torchless.verify import verify

TOLERANCE = 1e-4
EXPORTS = Path(__file__).parent / "data" / "foreign"
DECODERS = ("gpt2", "gpt-neo", "llama")
ENCODERS = {
    "gpt2-classifier": "text-classification",
    "bert-classifier": "text-classification",
    "roberta-words": "fill-mask",
    "bert-spans": "question-answering",
    "bert-choices": "multiple-choice",
    "distilbert-tokens": "token-classification",
}


def expected(name: str, kind: str = "output") -> list[Any]:
    found = np.load(EXPORTS / name / "expected.npz")
    return [found[f"{kind} {number}"] for number in range(3)]


def opened(folder: Path, **options: Any) -> tuple[Any, Any]:
    bundle = open_folder(folder, **options)
    return bundle, open_first(bundle, Settings(threads=1)).session


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an export, with a tokenizer, as a model's author would put one there."""

    def copy(name: str) -> Path:
        folder = Path(shutil.copytree(EXPORTS / name, tmp_path / name))
        tokenizer = tiny.bpe() if name in DECODERS or name.startswith("gpt2") else tiny.wordpiece()
        (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        return folder

    return copy


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_with_a_concatenated_past_equals_transformers(name: str) -> None:
    bundle, session = opened(EXPORTS / name)
    decoder = Decoder(session, bundle)
    for ids, wanted in zip(expected(name, "ids"), expected(name), strict=True):
        whole = decoder.extend(decoder.new_cache(), ids, keep=range(len(ids)))
        assert tiny.furthest(whole, wanted) < TOLERANCE
        cache = decoder.new_cache()
        cut = len(ids) // 2
        pieces = [decoder.extend(cache, part, keep=range(len(part))) for part in (ids[:cut], ids[cut:])]
        assert tiny.furthest(np.concatenate(pieces), wanted) < TOLERANCE


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("name", DECODERS)
def test_rows_of_unlike_length_decode_together(name: str, positions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, session = opened(EXPORTS / name)
    decoder = Decoder(session, bundle)
    if not positions:  # as for a graph that does not take them: rows of one length at a time
        from torchless.concatenated import ConcatenatingStep

        together = ConcatenatingStep._together

        def apart(self: Any, past: Any) -> Any:
            takes, decoder.takes = decoder.takes, {}
            groups = list(together(self, past))
            decoder.takes = takes
            return groups

        monkeypatch.setattr(ConcatenatingStep, "_together", apart)
    ids, wanted = expected(name, "ids")[0], expected(name)[0]
    starts = (36, 1, 20)
    cache = decoder.new_cache(3)
    for row, start in enumerate(starts):
        decoder.extend(cache, ids[:start], row=row)
    step = decoder.stepper(cache)
    for ahead in range(4):
        logits = step([ids[start + ahead] for start in starts])
        assert tiny.furthest(logits, wanted[[start + ahead for start in starts]]) < TOLERANCE


@pytest.mark.parametrize("name", DECODERS)
def test_it_generates_what_transformers_generates_alone_in_a_batch_and_streaming(
    name: str, copied: Callable[[str], Path]
) -> None:
    with torchless.load(copied(name)) as gpt:
        prompts = [ids[: min(len(ids), 20)].tolist() for ids in expected(name, "ids")]
        wanted = [ids.tolist() for ids in expected(name, "greedy")]
        options: Any = {"max_new_tokens": 25}
        for prompt, ids in zip(prompts, wanted, strict=True):
            found = list(gpt(prompt, **options).token_ids)
            assert found == ids[: len(found)] and (len(found) == 25 or ids[len(found) - 1] == 0)
        batch = gpt(prompts, batch_size=3, **options)
        assert [list(one.token_ids) for one in batch] == [list(gpt(one, **options).token_ids) for one in prompts]
        beams = gpt(prompts[0], num_beams=3, **options)
        assert len(beams.token_ids) > 0
        text = "The future of the union"
        assert "".join(gpt.stream(text, **options)) == gpt(text, **options).text
        assert pickle.loads(pickle.dumps(gpt))(text, **options) == gpt(text, **options)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_equals_transformers_in_one_padded_batch(name: str) -> None:
    bundle, session = opened(EXPORTS / name)
    assert bundle.manifest.task == ENCODERS[name]
    encoder = Encoder(session, bundle, *TASKS[bundle.manifest.task].outputs)
    rows = expected(name, "ids")
    padding = bundle.manifest.special_tokens.get("pad", 0)
    ids, mask = np.full((3, 40), padding), np.zeros((3, 40), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    found = encoder.run(ids, mask, np.zeros_like(ids))
    for one, row, wanted in zip(found, rows, expected(name), strict=True):
        assert tiny.furthest(one[: len(row)] if one.ndim == 2 else one, wanted) < TOLERANCE


def pooled(states: Any, mode: str) -> Any:
    vector = {"mean": states.mean(0), "cls": states[0], "max": states.max(0), "lasttoken": states[-1]}[mode]
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken"])
def test_sentence_transformers_pooling_is_done_by_the_runtime(mode: str, copied: Callable[[str], Path]) -> None:
    folder = copied("mpnet-features")
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    modules = [
        {"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 50}))
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")
    bundle, session = opened(folder)
    assert bundle.manifest.context_length == 50
    encoder = Encoder(session, bundle, "sentence_embedding")
    rows = expected("mpnet-features", "ids")
    ids, mask = np.ones((3, 40), np.int64), np.zeros((3, 40), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    for one, states in zip(encoder.run(ids, mask, ids), expected("mpnet-features"), strict=True):
        assert tiny.furthest(one, pooled(states, mode)) < TOLERANCE
    with torchless.load(folder) as model:
        together, alone = model(tiny.SENTENCES), [model(text) for text in tiny.SENTENCES]
        assert model.dimension == 16 and tiny.furthest(together, np.stack(alone)) < 1e-5
        assert model.tokens(tiny.SENTENCES[0]).shape[1] == 16


def test_variants_of_transformers_js_are_found_and_chosen_by_name(copied: Callable[[str], Path]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder = copied("bert-classifier")
    (folder / "onnx").mkdir()
    plain = folder / "onnx" / "model.onnx"
    (folder / "model.onnx").rename(plain)
    quantize_dynamic(plain, folder / "onnx" / "model_quantized.onnx", weight_type=QuantType.QUInt8)
    data = onnx.load(plain)
    onnx.save(data, folder / "onnx" / "model_q4.onnx", save_as_external_data=True, location="model_q4.onnx_data")
    text = tiny.SENTENCES[1]
    wanted = torchless.load(folder)
    assert wanted.graph.file == "onnx/model.onnx" and wanted.graph.precision == "fp32"
    outside = torchless.load(folder, file="model_q4")
    assert outside.graph.file == "onnx/model_q4.onnx" and outside(text) == wanted(text)
    small = torchless.load(folder, file="onnx/model_quantized.onnx")
    assert small.graph.precision == "int8" and small(text).score == pytest.approx(wanted(text).score, abs=0.1)
    assert pickle.loads(pickle.dumps(small)).graph == small.graph
    with pytest.raises(InputError, match=r"'nope': .* has onnx/model.onnx, onnx/model_quantized.onnx"):
        torchless.load(folder, file="nope")


@pytest.mark.parametrize("file", ["decoder_model_merged", "decoder_with_past_model"])
def test_decoders_of_optimum_before_2025_equal_transformers(file: str, copied: Callable[[str], Path]) -> None:
    """Merged, with an If(use_cache_branch), as transformers.js has them; and apart, with a past, for one token.

    Neither masks the tokens of a step on a past from those after them.
    """
    folder = copied("gpt2")
    shutil.copy(EXPORTS / "gpt2-before" / f"{file}.onnx", folder)
    (folder / "model.onnx").unlink()
    bundle, session = opened(folder)
    decoder = Decoder(session, bundle)
    for ids, wanted in zip(expected("gpt2", "ids"), expected("gpt2"), strict=True):
        whole = decoder.extend(decoder.new_cache(), ids, keep=range(len(ids)))
        assert tiny.furthest(whole, wanted) < TOLERANCE
        cache = decoder.new_cache()
        cuts = (ids[:7], ids[7:8], ids[8:]) if len(ids) > 8 else (ids[:1], ids[1:])
        pieces = [decoder.extend(cache, part, keep=range(len(part))) for part in cuts]
        assert tiny.furthest(np.concatenate(pieces), wanted) < TOLERANCE
    ids, wanted = expected("gpt2", "ids")[0], expected("gpt2")[0]
    lengths = np.array([40, 3, 17])
    last = decoder.last(np.stack([np.where(np.arange(40) < length, ids, 9) for length in lengths]), lengths)
    assert tiny.furthest(last, wanted[lengths - 1]) < TOLERANCE
    with torchless.load(folder) as gpt:
        prompt, greedy = ids[:20].tolist(), expected("gpt2", "greedy")[0].tolist()
        found = list(gpt(prompt, max_new_tokens=25).token_ids)
        assert found == greedy[: len(found)] and (len(found) == 25 or greedy[len(found) - 1] == 0)
        adopt(folder, folder.parent / "bundle")
        with torchless.load(folder.parent / "bundle") as bundled:
            assert list(bundled(prompt, max_new_tokens=25).token_ids) == found


def test_adopted_it_is_a_bundle_that_can_be_verified(
    copied: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("llama", "roberta-words", "mpnet-features"):
        folder = copied(name)
        out = tmp_path / f"{name}.bundle"
        assert main(["adopt", str(folder), str(out)]) == 0
        assert verify(out).ok and read_bundle(out, verify=True).manifest.family == name.partition("-")[0]
        assert main(["inspect", str(folder)]) == 0 and main(["inspect", str(out)]) == 0
        said = capsys.readouterr().out
        assert "no manifest, no hashes" in said and "itself, when it was adopted" in said
        with pytest.raises(BundleError, match="is a bundle already"):
            adopt(out, tmp_path / "again")
        with pytest.raises(QuantizationError, match="has no fused graph in float32: another tool wrote its graph"):
            quantize(out, tmp_path / "int8")
        assert not (tmp_path / "again").exists()
    with torchless.load(tmp_path / "llama") as one, torchless.load(tmp_path / "llama.bundle") as other:
        assert one("The union", max_new_tokens=9) == other("The union", max_new_tokens=9)


def damaged(folder: Path, how: str) -> None:
    graph, config = folder / "model.onnx", folder / "config.json"
    if how == "cut":
        graph.write_bytes(graph.read_bytes()[:-100])
    elif how == "empty":
        graph.write_bytes(b"")
    elif how == "text":
        graph.write_text("version https://git-lfs.github.com/spec/v1")
    elif how == "no config":
        config.unlink()
    elif how == "list":
        config.write_text("[1]")
    elif how == "outside":
        model = onnx.load(graph)
        onnx.save(model, graph, save_as_external_data=True, location="weights", size_threshold=0)
        (folder.parent / "weights").write_bytes((folder / "weights").read_bytes())
        raw = graph.read_bytes().replace(b"weights", b"../weig")
        graph.write_bytes(raw)
    elif how == "link":
        graph.rename(folder.parent / "elsewhere.onnx")
        graph.symlink_to(folder.parent / "elsewhere.onnx")
    else:
        tiny.change_json(config, **json.loads(how))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut", "is not an ONNX graph"),
        ("empty", "is not an ONNX graph"),
        ("text", "is not an ONNX graph"),
        ("no config", "config.json cannot be read"),
        ("list", "holds a list, not an object"),
        ("outside", "weig"),
        ("link", "leads out of the folder"),
        ('{"vocab_size": -1}', "vocab_size is -1"),
        ('{"vocab_size": "many"}', "vocab_size is 'many'"),
        ('{"id2label": {"0": "a", "1": "b"}}', "names 2 labels, the classifier has 3"),
        ('{"max_position_embeddings": -5}', "how long a text may be"),
        ('{"max_position_embeddings": 1e30}', "how long a text may be"),
        ('{"problem_type": "guessing"}', "problem_type='guessing'"),
    ],
)
def test_what_is_damaged_or_hostile_is_refused(how: str, said: str, copied: Callable[[str], Path]) -> None:
    folder = copied("bert-classifier")
    damaged(folder, how)
    with pytest.raises(BundleError, match=said):
        torchless.load(folder)


def test_a_decoder_without_a_cache_and_a_folder_of_nothing_say_what_to_do(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied("gpt2")
    model = onnx.load(folder / "model.onnx")
    kept = [value for value in model.graph.input if "past" not in value.name]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"takes no past_key_values.*text-generation-with-past"):
        torchless.load(folder)
    with pytest.raises(InputError, match="has a head for text-classification"):
        torchless.load(copied("bert-classifier"), task="fill-mask")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"has no torchless.json"):
        torchless.load(tmp_path / "empty")
