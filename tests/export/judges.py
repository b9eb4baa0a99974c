"""What a standard graph answers in a runtime that shares no code with onnxruntime.

usage: judges.py TASKS RESULTS    runs under OpenVINO; TASKS: a JSON list of {"graph", "ids", "starts"} (a decoder)
or {"graph", "feeds"} (an encoder); RESULTS: a folder. The test imports the same for onnx.reference.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]
Judge = Callable[[Arrays], Arrays]
AHEAD = 3  # tokens of the step of several


def reference(graph: str) -> Judge:
    """onnx's own evaluator: every operator in numpy, by the words of the standard."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(graph)

    def run(feeds: Arrays) -> Arrays:
        given = {name: feeds[name] for name in evaluator.input_names if name in feeds}
        return dict(zip(evaluator.output_names, evaluator.run(None, given), strict=True))

    return run


def openvino(graph: str) -> Judge:
    import openvino as ov

    core = ov.Core()
    # A processor with bf16 would compute in it.
    model = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(feeds: Arrays) -> Arrays:
        taken = {port.any_name: feeds[port.any_name] for port in model.inputs if port.any_name in feeds}
        found = model(taken)
        return {port.any_name: found[port] for port in model.outputs}

    return run


def decode(run: Judge, ids: list[int], starts: list[int], cache: list[int]) -> Arrays:
    """Logits of a ragged prompt, [B,S,V]; of one token more in each row, [B,1,V]; of several in the first, [1,3,V].

    starts: how many of the ids each row begins with. cache: layers, heads, slots and the size of a head.
    """
    layers, heads, slots, size = cache
    lengths, longest = np.array(starts), max(starts)
    names = [f"past_key_values.{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    past = {name: np.zeros((len(starts), heads, slots, size), np.float32) for name in names}
    prompt = np.array([ids[:start] + [1] * (longest - start) for start in starts])
    first = run(_feeds(prompt, np.zeros_like(lengths), lengths) | past)
    grown = {name: first[name.replace("past_key_values", "present")] for name in names}
    one = run(_feeds(np.array([[ids[start]] for start in starts]), lengths, np.ones_like(lengths)) | grown)
    grown = {name: one[name.replace("past_key_values", "present")][:1] for name in names}
    more = np.array([ids[starts[0] + 1 :][:AHEAD]])
    several = run(_feeds(more, lengths[:1] + 1, np.array([AHEAD])) | grown)
    return {"first": first["logits"], "one": one["logits"], "several": several["logits"]}


def _feeds(ids: Any, past: Any, given: Any) -> Arrays:
    rows, tokens = ids.shape
    return {
        "input_ids": ids.astype(np.int64),
        "position_ids": (past[:, None] + np.arange(tokens)).astype(np.int64),
        "seqlens_k": (past + given - 1).astype(np.int32),
        "total_sequence_length": np.array(past.max() + tokens, np.int32),
        "logits_positions": np.tile(np.arange(tokens), (rows, 1)).astype(np.int64),
    }


def answer(judge: Callable[[str], Judge], task: dict[str, Any]) -> Arrays:
    run = judge(task["graph"])
    if "ids" in task:
        return decode(run, task["ids"], task["starts"], task["cache"])
    return run({name: np.array(value, np.int64) for name, value in task["feeds"].items()})


if __name__ == "__main__":
    for number, task in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        np.savez(Path(sys.argv[2]) / f"{number}.npz", **answer(openvino, task))
