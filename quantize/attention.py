"""Takes the product of queries, keys and values out of the operator that hides it, so that it can be quantized.

In float32 onnxruntime's `Attention` is the faster form: its product lays queries, keys and values down where the
next step reads them. As integers the product gains more than that; where one range does for all of its rows, it
goes back into the operator, as `QAttention`, which is one node in place of three.
"""

from __future__ import annotations

from typing import Any

from onnx import helper

from torchless.quantize.draft import CONTRIB, Draft

KEPT = ("num_heads", "scale", "mask_filter_value")


def open_attention(draft: Draft) -> None:
    """Every Attention(x, W, bias, mask, , shift) becomes MatMul, Split and MultiHeadAttention."""
    nodes = []
    for node in draft.nodes:
        if node.op_type != "Attention" or node.domain != CONTRIB:
            nodes.append(node)
            continue
        given = [*node.input, "", "", ""]
        x, weight, bias, mask, _, shift = given[:6]
        y = node.output[0]
        parts = [f"{y}.query", f"{y}.key", f"{y}.value"]
        kept = {one.name: helper.get_attribute_value(one) for one in node.attribute if one.name in KEPT}
        inputs = [*parts, bias, mask, shift]
        nodes += [
            helper.make_node("MatMul", [x, weight], [f"{y}.qkv"], name=f"{y}.qkv/MatMul"),
            helper.make_node("Split", [f"{y}.qkv"], parts, name=f"{y}.qkv/Split", axis=-1, num_outputs=3),
            helper.make_node(
                "MultiHeadAttention", inputs if shift else inputs[:-1], [y], name=f"{y}/MultiHeadAttention",
                domain=CONTRIB, **kept,
            ),
        ]  # fmt: skip
    draft.nodes = nodes


def behind(draft: Draft, product: str) -> tuple[Any, Any] | None:
    """The Split and the MultiHeadAttention that alone read a product of queries, keys and values."""
    readers = draft.readers()
    if len(readers.get(product, [])) != 1 or product in draft.outputs or readers[product][0].op_type != "Split":
        return None
    split = readers[product][0]
    after = {id(node): node for part in split.output for node in readers.get(part, [])}
    attention = next(iter(after.values()))
    return (split, attention) if len(after) == 1 and attention.op_type == "MultiHeadAttention" else None


def close_attention(draft: Draft, product: Any, inputs: list[str]) -> bool:
    """Swap a product of integers, its Split and MultiHeadAttention for one QAttention; False where that cannot be.

    inputs: of MatMulIntegerToFloat, with a bias: rows, weight, both scales, both zero points, bias.
    """
    found = behind(draft, product.output[0])
    if found is None or any(found[1].input[5:]):  # QAttention takes no shift of the scores
        return False
    split, attention = found
    mask = [*attention.input, ""][4]
    if not mask:  # then the other operator has a faster kernel
        return False
    rows, weight, step, scales, zero, weight_zero, bias = inputs
    y = attention.output[0]
    kept = {one.name: helper.get_attribute_value(one) for one in attention.attribute if one.name in KEPT}
    closed = helper.make_node(
        "QAttention", [rows, weight, bias, step, scales, mask, zero, weight_zero], [y], name=f"{y}/QAttention",
        domain=CONTRIB, **kept,
    )  # fmt: skip
    draft.replace(product, [])
    draft.replace(split, [])
    draft.replace(attention, [closed])
    return True
