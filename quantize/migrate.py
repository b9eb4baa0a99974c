"""Moves part of an activation's unevenness into the weights that read it (SmoothQuant, Xiao et al., 2022).

A few channels of a transformer's activations are many times larger than the others. One scale a row must reach
the largest, and leaves few steps to the rest. x W = (x / s) (s W) for any s > 0 a channel, and with
s = max|x|**alpha / max|W|**(1 - alpha) both sides are easier to round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from torchless.quantize.calibrate import Calibration
from torchless.quantize.draft import Draft
from torchless.quantize.matrices import Matrix, find_matrices
from torchless.quantize.recipes import Keep, Recipe
from torchless.quantize.weights import TINY, Float, check_finite

PAYS = 1.5  # times less error of the activations, for which a Mul is worth its time
QUIETEST = 0.1  # of the median: a channel that was silent on a few texts may speak on another one


def migrate(draft: Draft, recipe: Recipe, calibration: Calibration) -> None:
    """Divide what the matrices inside read by s, and multiply their rows by it.

    Where a norm's result is read by them alone, its own weights are divided (every pre-norm GPT and Llama), which
    costs nothing; otherwise, as in a post-norm BERT, whose norm is the residual too, a Mul stands before them where
    that pays. What attention or an activation gives is left as it is: nothing was gained there
    (docs/quantization.md).
    """
    if recipe.migrate is None:
        return
    producers = {node.output[0]: node for node in draft.nodes}
    groups = [
        group for group in _groups(draft, recipe) if all(_is_norm(draft, producers, x) for x in _inputs(group))
    ]
    if not groups:
        return
    rows = [np.max([_row_magnitudes(draft, matrix) for matrix in group], axis=0) for group in groups]
    magnitudes = calibration.magnitudes([x for group in groups for x in _inputs(group)])
    readers = draft.readers()
    for group, weights in zip(groups, rows, strict=True):
        inputs = _inputs(group)
        largest = np.max([magnitudes[x] for x in inputs], axis=0)
        s = scales(largest, weights, recipe.migrate)
        nodes = [node for matrix in group for node in matrix.readers]
        folds = {x: _folds(draft, producers[x], readers, nodes) for x in inputs}
        if not all(folds.values()) and gain(largest, weights, s) < PAYS:
            continue
        for matrix in group:
            draft.scale(matrix.name, s if matrix.transposed else s[:, None])
        for x in inputs:
            norm = producers[x]
            if folds[x]:
                for name in norm.input[1:]:
                    draft.scale(name, np.float32(1) / s)
                calibration.divide(x, x, s)
            else:
                _divide_before(draft, x, nodes, s, group[0].name)
                calibration.divide(f"{x}.migrated", x, s)


def scales(largest: Float, weights: Float, alpha: float) -> Float:
    """max|x| [K] of every channel and max|W| [K] of every row -> s [K], of geometric mean 1."""
    x = np.maximum(largest, max(QUIETEST * float(np.median(largest)), TINY))
    w = np.maximum(weights, max(QUIETEST * float(np.median(weights)), TINY))
    logarithm = alpha * np.log(x) - (1 - alpha) * np.log(w)
    return np.asarray(np.exp(logarithm - logarithm.mean()), np.float32)


def gain(largest: Float, weights: Float, s: Float) -> float:
    """How many times finer the steps of x become, weighed by the rows of W that multiply them."""
    before, after = largest.max() * np.linalg.norm(weights), (largest / s).max() * np.linalg.norm(weights * s)
    return float(before / max(after, TINY))


def _groups(draft: Draft, recipe: Recipe) -> list[list[Matrix]]:
    """The matrices that migration is for, together where they share what they read."""
    groups: list[list[Matrix]] = []
    for matrix in find_matrices(draft)[0]:
        if matrix.role != "body" or isinstance(recipe.scheme(matrix.name, matrix.role), Keep):
            continue
        joined = [matrix]
        for group in [group for group in groups if set(_inputs(group)) & set(matrix.inputs)]:
            groups.remove(group)
            joined = group + joined
        groups.append(joined)
    return groups


def _inputs(group: list[Matrix]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(x for matrix in group for x in matrix.inputs))


def _is_norm(draft: Draft, producers: dict[str, Any], x: str) -> bool:
    """Of either kind: a LayerNormalization, or a root-mean-square norm, which ends in x / Sqrt(..) times weights.

    Both have their weights behind their first input.
    """
    norm = producers.get(x)
    if norm is None or norm.op_type != "Mul":
        return norm is not None and norm.op_type == "LayerNormalization"
    ratio = producers.get(norm.input[0])
    if ratio is None or ratio.op_type != "Div" or norm.input[1] not in draft.tensors:
        return False
    root = producers.get(ratio.input[1])
    return root is not None and root.op_type == "Sqrt"


def _row_magnitudes(draft: Draft, matrix: Matrix) -> Float:
    """The largest magnitude [K] of what each channel is multiplied by."""
    array = draft.array(matrix.name)
    check_finite(matrix.name, array)
    magnitudes: Float = np.abs(array).max(axis=0 if matrix.transposed else 1)
    return magnitudes


def _folds(draft: Draft, norm: Any, readers: dict[str, list[Any]], nodes: list[Any]) -> bool:
    """Whether nobody but `nodes` reads the norm's result, and no other norm its weights."""
    result = norm.output[0]
    alone = all(any(reader is node for node in nodes) for reader in readers[result])
    own = all(len(readers[name]) == 1 and name in draft.tensors for name in norm.input[1:])
    return alone and own and result not in draft.outputs


def _divide_before(draft: Draft, x: str, nodes: list[Any], s: Float, name: str) -> None:
    inverse = draft.add(f"{name}.migration", (1 / s).astype(np.float32))
    divided = f"{x}.migrated"
    readers = [node for node in nodes if node.input[0] == x]
    first = min(index for index, node in enumerate(draft.nodes) if any(node is one for one in readers))
    draft.nodes.insert(first, helper.make_node("Mul", [x, inverse], [divided], name=f"{divided}/Mul"))
    for node in readers:
        node.input[0] = divided
