"""The commands: results on standard output, all else on standard error, and an exit code that says how it went."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import torchless
from torchless.export import export
from torchless.manifest import MANIFEST
from torchless.providers import BY_NAME

CopyOf = Callable[[Path], Path]
Shell = Callable[..., tuple[int, str, str]]


def test_run_streams_what_the_model_says(shell: Shell, gpt_bundle: Path, gpt: torchless.TextGeneration) -> None:
    expected = gpt("The union", max_new_tokens=9).text
    assert shell("run", gpt_bundle, "The union", "--max-new-tokens", 9) == (0, expected + "\n", "")
    assert shell("run", gpt_bundle, "-", "--max-new-tokens", 9, given="The union\n") == (0, expected + "\n", "")
    assert shell("run", gpt_bundle, "--max-new-tokens", 9, given="\ufeffThe union\r\n")[1] == expected + "\n"
    full = shell("run", gpt_bundle, "The union", "--max-new-tokens", 9, "--return-full-text")
    assert full[1] == "The union" + expected + "\n"


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 2.5, "top_k": 90, "top_p": 0.9, "seed": 3},
    {"temperature": 2.5, "min_p": 0.01, "typical_p": 0.9, "seed": 3},
    {"num_beams": 3, "length_penalty": 2.0},
    {"repetition_penalty": 1.9, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_run_passes_every_setting_on(
    options: dict[str, Any], shell: Shell, gpt_bundle: Path, gpt: torchless.TextGeneration
) -> None:
    options = {"max_new_tokens": 12} | options
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    expected = gpt("The union", **options).text
    assert shell("run", gpt_bundle, "The union", *flags)[1] == expected + "\n"
    assert expected != gpt("The union", max_new_tokens=12).text


def test_run_tells_stop_strings_log_probabilities_and_several_texts(
    shell: Shell, gpt_bundle: Path, gpt: torchless.TextGeneration
) -> None:
    string = gpt("The union", max_new_tokens=12).text[4:6]
    options = ("--max-new-tokens", 12, "--stop", string, "--stop", "zzz", "--logprobs", 1, "--json")
    told = json.loads(shell("run", gpt_bundle, "The union", *options)[1])
    assert told["finish_reason"] == "stop_string" and string not in told["text"]
    assert len(told["logprobs"]) == len(told["token_ids"])
    several = ("--max-new-tokens", 5, "--num-return-sequences", 2, "--seed", 1)
    texts = [one.text for one in gpt("The union", max_new_tokens=5, num_return_sequences=2, seed=1)]
    told = json.loads(shell("run", gpt_bundle, "The union", *several, "--json")[1])
    assert [one["text"] for one in told["generations"]] == texts
    assert shell("run", gpt_bundle, "The union", *several)[1] == "".join(f"{text}\n" for text in texts)


def test_run_answers_every_task(
    shell: Shell, bert_bundles: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    texts = ["the [MASK] is strong", "a [MASK]"]
    classifier, embedding, fill_mask = (
        request.getfixturevalue(n) for n in ("classifier", "embedding", "fill_mask")
    )
    code, out, err = shell("run", bert_bundles["text-classification"], *texts)
    assert (code, err) == (0, "")
    assert out == "".join(f"{one.label}\t{one.score:.4f}\n" for one in classifier(texts))
    out = shell("run", bert_bundles["feature-extraction"], "--json", given="\n".join(texts))[1]
    vectors = [json.loads(line)["embedding"] for line in out.splitlines()]
    assert tiny.furthest(np.float32(vectors), embedding(texts)) < 1e-6
    out = shell("run", bert_bundles["fill-mask"], texts[0], "--top-k", 2)[1]
    assert out == "".join(f"{one.score:.4f}\t{one.token}\t{one.sequence}\n" for one in fill_mask(texts[0], top_k=2))
    for task, bundle in bert_bundles.items():
        lines = shell("run", bundle, "--json", *texts)[1].splitlines()
        assert [json.loads(line)["text"] for line in lines] == texts, task


def test_texts_may_stand_before_between_and_after_options(shell: Shell, bert_bundles: dict[str, Path]) -> None:
    bundle = bert_bundles["text-classification"]
    expected = shell("run", bundle, "a", "b c", "d")
    assert expected[0] == 0 and len(expected[1].splitlines()) == 3
    assert shell("run", "--batch-size", 2, bundle, "a", "b c", "d") == expected
    assert shell("run", bundle, "--batch-size", 2, "a", "b c", "d") == expected
    assert shell("run", bundle, "a", "--batch-size", 2, "b c", "--truncation", "d") == expected
    assert shell("run", bundle, "--truncation", "-", given="a\nb c\nd\n") == expected
    minus = shell("run", bundle, "--", "-5 degrees")
    assert minus[0] == 0 and shell("run", bundle, "--truncation", "--", "-5 degrees") == minus
    code, _, error = shell("run", bundle, "a", "--max-tokens", 3)
    assert code == 2 and "unrecognized arguments: --max-tokens" in error
    assert shell("inspect", bundle, "more")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "BUNDLE"),
        (["export", "a"], "OUT"),
        (["export", "a", "b", "--dialect", "fast"], "invalid choice: 'fast'"),
    ],
)
def test_wrong_usage_is_exit_code_2(shell: Shell, arguments: list[str], message: str) -> None:
    code, out, err = shell(*arguments)
    assert (code, out) == (2, "")
    assert message in err and "Traceback" not in err


def test_a_torchless_error_is_one_line_and_exit_code_1(
    shell: Shell, gpt_bundle: Path, gpt_checkpoint: Path, bert_bundles: dict[str, Path], tmp_path: Path
) -> None:
    cases: list[tuple[list[object], str]] = [
        (["run", tmp_path / "nowhere", "x"], "nowhere is not a folder"),
        (["run", gpt_checkpoint, "x"], "it is no bundle"),
        (["run", gpt_bundle, ""], "the prompt is empty"),
        (["run", gpt_bundle, "x", "--max-new-tokens", 5000], "do not fit the model's context of 64"),
        (["run", gpt_bundle, "x", "--temperature", -1], "temperature=-1.0: give 0 or more"),
        (["run", gpt_bundle, "x", "--truncation"], "--truncation is not for text-generation, the task of"),
        (["run", gpt_bundle, "x", "--provider", "cuda"], "provider='cuda'"),
        (["run", bert_bundles["fill-mask"], "x"], "no [MASK] in 'x'"),
        (["run", bert_bundles["fill-mask"], "x [MASK]", "--seed", 1], "--seed is not for fill-mask"),
        (["export", tmp_path / "nowhere", tmp_path / "out"], "nowhere is not a folder"),
        (
            ["export", gpt_checkpoint, gpt_bundle],
            "exists: choose another name, or pass --overwrite",
        ),
        (["quantize", gpt_bundle, tmp_path / "out", "--recipe", "int3"], "int3"),
        (["inspect", gpt_checkpoint], "it is no bundle"),
        (["verify", tmp_path], "it is no bundle"),
    ]
    for arguments, message in cases:
        code, out, err = shell(*arguments)
        assert (code, out) == (1, ""), arguments
        last = err.splitlines()[-1]
        assert last.startswith("torchless: ") and message in last and "Traceback" not in err
    assert os.listdir(tmp_path) == []
    code, out, err = shell("run", gpt_bundle, given=b"\xff\xfe")
    assert (code, out) == (1, "") and "standard input is not UTF-8" in err


def test_verify_of_a_bundle_that_was_changed_is_exit_code_1(
    shell: Shell, gpt_bundle: Path, copy_of: CopyOf
) -> None:
    bundle = copy_of(gpt_bundle)
    parity = json.loads((bundle / MANIFEST).read_text())["parity"]
    parity["values"][0][0] += 1
    tiny.change_json(bundle / MANIFEST, parity=parity)
    code, out, err = shell("verify", bundle)
    assert code == 1 and "differs from its recorded outputs by 1.0e+00" in out
    assert "computes something else here than where it was made" in err


@pytest.mark.parametrize("parity", [{"x": 1}, {"max_abs_error": "no", "against": 5}, {"max_abs_error": None}])
def test_inspect_shows_a_bundle_whose_parity_record_is_odd(
    shell: Shell, gpt_bundle: Path, copy_of: CopyOf, parity: dict[str, Any]
) -> None:
    bundle = copy_of(gpt_bundle)
    tiny.change_json(bundle / MANIFEST, parity=parity)
    code, out, err = shell("inspect", bundle)
    assert (code, err) == (0, "") and "text-generation" in out


def test_doctor_tells_the_versions_and_never_fails(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(shell("doctor", "--json")[1])
    assert found["torchless"] == torchless.__version__ and found["providers_usable"] == ["cpu"]
    assert found["providers"].keys() == BY_NAME.keys() and "pip install" in found["providers"]["cuda"]
    assert found["recipes"].keys() == {"cpu"} and (found["gpus"], found["plugins"]) == ([], [])
    assert found["hub"]["huggingface_hub"] and found["hub"]["offline"][:3] in ("no", "yes")
    assert "provider tensorrt     onnxruntime " in (said := shell("doctor")[1]) and f"hub{' ' * 19}hugg" in said
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, err = shell("doctor")
    assert (code, err) == (0, "") and "onnxruntime is not installed: pip install" in out


@pytest.mark.parametrize("command", [[], ["export"], ["quantize"], ["run"], ["inspect"], ["verify"], ["doctor"]])
def test_every_command_has_help(shell: Shell, command: list[str]) -> None:
    code, out, err = shell(*command, "--help")
    assert (code, err) == (0, "") and out.startswith("usage: torchless") and len(out) > 200


def test_inspect_names_labels_and_the_head_of_ones_own_and_nothing_that_is_not_there(
    shell: Shell, bert_bundles: dict[str, Path], copy_of: CopyOf, tmp_path: Path
) -> None:
    out = shell("inspect", bert_bundles["text-classification"])[1]
    assert "labels   ham, spam, unsure (single_label_classification)\n" in out and "head " not in out
    bundle = export(tiny.bert("token-classification"), tmp_path / "ner", check=False)
    tiny.change_json(bundle / MANIFEST, head="tags")
    out = shell("inspect", bundle)[1]
    assert "labels   LABEL_0, LABEL_1\n" in out and "head     tags, " in out
