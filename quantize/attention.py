"""Takes the product of queries, keys and values out of the operator that hides it, so that it can be quantized.

In float32 onnxruntime's `Attention` is the faster form: its product lays queries, keys and values down where the
next step reads them. As integers the product gains more than that.
"""

from __future__ import annotations

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
