"""DeBERTa-v2 and v3 (He et al., 2021): BERT's blocks, whose scores also relate contents to relative positions.

Letters as in parts.py; W width of the embeddings, C the longest text, R the rows of the position table, N those
that a text needs. The names of weights are the checkpoint's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from torchless.errors import ExportError
from torchless.export.attention import distances
from torchless.export.builder import Builder, Value
from torchless.export.config import Config
from torchless.export.encoder import BlockNames, EncoderConfig, block, named_as_body, write_encoder
from torchless.export.families import Facts, bert
from torchless.export.heads import (
    EncoderInputs,
    Head,
    Outputs,
    body,
    dense,
    first_token_scores,
    span_scores,
    token_scores,
)
from torchless.export.parts import Biased, activate, add, embed, linear, norm, project, settle
from torchless.export.weights import Float, Weights
from torchless.manifest import Pooling

BASE = EncoderConfig(
    vocab_size=128100, hidden_size=1536, num_hidden_layers=24, num_attention_heads=24, intermediate_size=6144,
    type_vocab_size=0, eps=1e-7,
)  # fmt: skip
BLOCK = BlockNames(
    query="attention.self.query_proj", key="attention.self.key_proj", value="attention.self.value_proj"
)
C2P, P2C = "c2p", "p2c"  # contents look for positions, positions look for contents


@dataclass(frozen=True)
class DebertaConfig(EncoderConfig):
    position_biased_input: bool = True  # absolute positions in the embeddings, too
    relative_attention: bool = False
    pos_att_type: tuple[str, ...] = ()
    share_att_key: bool = False  # positions are projected by the contents' own matrices
    norm_rel_ebd: bool = False
    max_relative_positions: int = 0
    position_buckets: int = -1  # below 1: each distance is a row of its own
    conv_kernel_size: int = 0  # 0 for no convolution
    conv_groups: int = 1
    conv_act: str = "tanh"
    pooler_hidden_act: str = "gelu"
    legacy: bool = True  # the head for masked words is BERT's, not the paper's

    @classmethod
    def of(cls, c: Config) -> DebertaConfig:
        """Raises ExportError for what is not implemented."""
        shared = EncoderConfig.read(c, BASE)
        c.refuse("attention_head_size", shared.head_size)
        c.refuse("pooler_hidden_size", shared.hidden_size)
        c.refuse("norm_rel_ebd", "none", "layer_norm")
        kernel, groups = c.whole("conv_kernel_size", 0, least=0), c.whole("conv_groups", 1)
        if kernel and (kernel % 2 == 0 or shared.hidden_size % groups):
            raise ExportError(
                f"config.json: conv_kernel_size={kernel} with conv_groups={groups} is not supported: the first "
                f"must be odd, the second divide hidden_size={shared.hidden_size}"
            )
        reach = c.whole("max_relative_positions", -1, least=-1)
        own = {
            "embedding_size": c.whole("embedding_size", shared.hidden_size),
            "position_biased_input": c.flag("position_biased_input", True),
            "relative_attention": c.flag("relative_attention", False),
            "pos_att_type": _kinds(c),
            "share_att_key": c.flag("share_att_key", False),
            "norm_rel_ebd": c.text("norm_rel_ebd", "none") == "layer_norm",
            "max_relative_positions": reach if reach > 0 else shared.max_position_embeddings,
            "position_buckets": c.whole("position_buckets", -1, least=-1),
            "conv_kernel_size": kernel,
            "conv_groups": groups,
            "conv_act": c.text("conv_act", "tanh"),
            "pooler_hidden_act": c.text("pooler_hidden_act", "gelu"),
            "legacy": c.flag("legacy", True),
        }
        return cls(**vars(shared) | own)

    @property
    def scale(self) -> float:
        """Of each kind of score, so that their sum is as large as one alone."""
        return float((self.head_size * (1 + len(self.pos_att_type))) ** -0.5)

    @property
    def span(self) -> int:
        """Half the rows of the position table."""
        return self.position_buckets if self.position_buckets > 0 else self.max_relative_positions


def _kinds(c: Config) -> tuple[str, ...]:
    """pos_att_type: a list, or text such as "p2c|c2p"."""
    given = c.raw.get("pos_att_type") or []
    kinds = [kind.strip() for kind in given.lower().split("|")] if isinstance(given, str) else given
    if not isinstance(kinds, list) or not all(kind in (C2P, P2C) for kind in kinds):
        raise ExportError(f"config.json: pos_att_type={given!r} is not supported (supported: c2p, p2c)")
    return tuple(sorted(set(kinds)))


def build(b: Builder, config: Config, weights: Weights, head: Head, pooling: Pooling | None = None) -> Facts:
    """Write the graph of docs/graph.md's encoder contract, with this head."""
    c = DebertaConfig.of(config)
    w = named_as_body(weights, "deberta", HEADS, head)
    w.forgive(r"mask_predictions\..*")  # pretraining's
    if not c.position_biased_input:
        w.forgive(r"embeddings\.position_embeddings\.weight")  # v3 has them for pretraining alone
    return write_encoder(b, c, w, deberta, head, pooling, segments=c.type_vocab_size > 0)


def deberta(b: Builder, c: DebertaConfig, w: Weights, inputs: EncoderInputs) -> Value:
    """-> hidden states [B,S,D]."""
    x = embedded = embeddings(b, c, w.under("embeddings"), inputs)
    positions = Positions.of(b, c, w.under("encoder"), inputs.ids)
    for i in range(c.num_hidden_layers):
        h = w.under(f"encoder.layer.{i}")
        bias = partial(positions.scores, b, c, h.under("attention.self")) if positions else ""
        x = block(b, c, x, h, inputs.mask, BLOCK, bias)
        if i == 0 and c.conv_kernel_size:
            x = convolution(b, c, w.under("encoder.conv"), embedded, x, inputs.mask)
    return x


def embeddings(b: Builder, c: DebertaConfig, w: Weights, inputs: EncoderInputs) -> Value:
    """Token vectors, with positions and segments where the model has them, normalized, [B,S] -> [B,S,D]."""

    def vectors(kind: str, rows: int) -> tuple[str, Float]:
        name = f"{kind}_embeddings.weight"
        return w.name(name), w.shaped(name, rows, c.embedding_size)

    x = embed(b, *vectors("word", c.vocab_size), inputs.ids)  # [B,S,W]
    if c.position_biased_input:
        zero, length = b.constant([0], np.int64), b.op("Shape", inputs.ids, start=1, end=2)
        places = b.op("Slice", b.weight(*vectors("position", c.max_position_embeddings)), zero, length, zero)
        x = add(b, x, places)
    if c.type_vocab_size:
        x = add(b, x, embed(b, *vectors("token_type", c.type_vocab_size), inputs.types))
    if c.embedding_size != c.hidden_size:
        x = settle(b, linear(b, x, w.under("embed_proj"), c.embedding_size, c.hidden_size))
    return only_tokens(b, norm(b, x, w.under("LayerNorm"), c.hidden_size, c.eps), inputs.mask)


def only_tokens(b: Builder, x: Value, mask: Value) -> Value:
    """[B,S,D] with zeros for padding, which a convolution would see."""
    kept = b.once("kept") or b.once("kept", b.op("Cast", b.op("Unsqueeze", mask, b.constant([2], np.int64)), to=1))
    return b.op("Mul", x, str(kept))  # by float32 [B,S,1]


@dataclass(frozen=True)
class Positions:
    """Distances as rows of the position table, the same in every layer.

    A text of S tokens needs only the rows `first` to `last`: products with positions are as long as the text.
    """

    table: Float  # [R,D]
    first: Value  # int32 [1]
    last: Value  # int32 [1], exclusive
    row: Value  # int32 [B,H,S,S]: which row from `first` on is the distance of query i and key j

    @classmethod
    def of(cls, b: Builder, c: DebertaConfig, w: Weights, ids: Value) -> Positions | None:
        """None for a model whose scores are of contents alone."""
        if not (c.relative_attention and c.pos_att_type):
            w.forgive(r"encoder\.(rel_embeddings|LayerNorm)\..*")
            return None
        far = c.max_position_embeddings - 1
        found = np.clip(buckets(c, np.arange(-far, far + 1)) + c.span, 0, 2 * c.span - 1)
        table = w.shaped("rel_embeddings.weight", 2 * c.span, c.hidden_size)
        if c.norm_rel_ebd:
            gamma, beta = (w.shaped(f"LayerNorm.{name}", c.hidden_size) for name in ("weight", "bias"))
            table = layer_norm(table, gamma, beta, c.eps)
        rows = b.weight(w.name("rows"), found.astype(np.int32))  # by distance, from -far: [2C-1]
        length = b.op("Shape", ids, start=1, end=2)
        first = b.op("Gather", rows, b.op("Sub", b.constant([far + 1], np.int64), length))
        farthest = b.op("Gather", rows, b.op("Add", b.constant([far - 1], np.int64), length))
        last = b.op("Add", farthest, b.constant([1], np.int32))
        row = b.op("Gather", rows, b.op("Add", distances(b, ids), b.constant(far, np.int64)))  # [S,S]
        heads = b.constant([c.num_attention_heads], np.int64)
        shape = b.op("Concat", b.op("Shape", ids, start=0, end=1), heads, length, length, axis=0)
        return cls(table, first, last, b.op("Expand", b.op("Sub", row, first), shape))

    def scores(self, b: Builder, c: DebertaConfig, w: Weights, query: Value, key: Value) -> Value:
        """Contents with positions, and positions with contents: queries and keys [B,H,S,E] -> [B,H,S,S].

        A layer's view of positions depends on weights alone, so it is computed here, with the scale in it.
        """
        kinds: list[Value] = []
        if C2P in c.pos_att_type:
            keys = self._seen(c, w, "key").transpose(1, 2, 0)  # [H,E,R]
            met = b.op("MatMul", query, self._needed(b, w.name("position_keys"), keys, axis=2))  # [B,H,S,N]
            kinds.append(b.op("GatherElements", met, self.row, axis=-1))
        if P2C in c.pos_att_type:
            queries = self._seen(c, w, "query").transpose(1, 0, 2)  # [H,R,E]
            across = b.op("Transpose", key, perm=[0, 1, 3, 2])
            met = b.op("MatMul", self._needed(b, w.name("position_queries"), queries, axis=1), across)  # [B,H,N,S]
            kinds.append(b.op("GatherElements", met, self.row, axis=-2))
        return kinds[0] if len(kinds) == 1 else b.op("Add", *kinds)

    def _seen(self, c: DebertaConfig, w: Weights, role: str) -> Float:
        """The table as a layer's keys or queries, scaled: [R,H,E]."""
        h = w.under(f"{role}_proj" if c.share_att_key else f"pos_{role}_proj")
        matrix, bias = h.shaped("weight", c.hidden_size, c.hidden_size), h.shaped("bias", c.hidden_size)
        product: Float = ((self.table.astype(np.float64) @ matrix.T + bias) * c.scale).astype(np.float32)
        return product.reshape(-1, c.num_attention_heads, c.head_size)

    def _needed(self, b: Builder, name: str, table: Float, axis: int) -> Value:
        return b.op("Slice", b.weight(name, table), self.first, self.last, b.constant([axis], np.int32))


def layer_norm(x: Float, gamma: Float, beta: Float, eps: float) -> Float:
    """parts.norm of a weight, [R,D] -> [R,D]."""
    centred = x.astype(np.float64) - x.mean(axis=-1, keepdims=True, dtype=np.float64)
    normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    result: Float = (normed * gamma + beta).astype(np.float32)
    return result


def buckets(c: DebertaConfig, distance: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Distances up to half of position_buckets as they are, farther ones by logarithm, each way.

    In float32 and in this order of operations, as torch has it: at the edges of a bucket the last bit decides.
    """
    half, far = c.position_buckets // 2, np.abs(distance)
    if c.position_buckets < 1 or far.max() <= half:
        return distance
    if not 0 < half < c.max_relative_positions - 1:
        raise ExportError(
            f"config.json: position_buckets={c.position_buckets} with max_relative_positions="
            f"{c.max_relative_positions} gives distances up to {far.max()} no bucket"
        )
    ratio = np.log(np.maximum(far, half).astype(np.float32) / np.float32(half))
    ratio = ratio / np.log(np.float32((c.max_relative_positions - 1) / half))
    by_logarithm = np.ceil(ratio * np.float32(half - 1)).astype(np.int64) + half
    return np.where(far <= half, distance, np.sign(distance) * by_logarithm)


def convolution(b: Builder, c: DebertaConfig, w: Weights, embedded: Value, x: Value, mask: Value) -> Value:
    """v2-xlarge's n-grams of the embeddings, added to what the first block made of them, [B,S,D] -> [B,S,D]."""
    d, kernel = c.hidden_size, c.conv_kernel_size
    matrix = b.weight(w.name("conv.weight"), w.shaped("conv.weight", d, d // c.conv_groups, kernel))
    bias = b.weight(w.name("conv.bias"), w.shaped("conv.bias", d))
    rows = b.op("Transpose", embedded, perm=[0, 2, 1])  # [B,D,S]
    grams = b.op("Conv", rows, matrix, bias, group=c.conv_groups, pads=[kernel // 2, kernel // 2])
    grams = only_tokens(b, b.op("Transpose", grams, perm=[0, 2, 1]), mask)
    x = norm(b, add(b, x, activate(b, Biased(grams), c.conv_act)), w.under("LayerNorm"), d, c.eps)
    return only_tokens(b, x, mask)


def word_scores(b: Builder, c: DebertaConfig, w: Weights, x: Value) -> Outputs:
    """[B,S,D] -> scores of the vocabulary [B,S,V]: the paper's head, always tied to the table of words."""
    h = w.under("lm_predictions.lm_head")
    if c.legacy:
        if "dense.weight" in h and "cls.predictions.bias" not in w:
            raise ExportError(
                "config.json: set legacy to false: the checkpoint holds the paper's head, lm_predictions"
            )
        return bert.word_scores(b, c, w, x)
    x = dense(b, x, h.under("dense"), c.hidden_size, c.hidden_size, c.hidden_act)
    x = norm(b, x, h.under("LayerNorm"), c.hidden_size, c.eps)
    name = "embeddings.word_embeddings.weight"
    shift = b.weight(h.name("bias"), h.shaped("bias", c.vocab_size))
    logits = b.op("Add", project(b, x, name, w.shaped(name, c.vocab_size, c.hidden_size)), shift)
    return {"logits": (logits, ["B", "S", c.vocab_size])}


def text_scores(b: Builder, c: DebertaConfig, w: Weights, x: Value) -> Outputs:
    """[B,S,D] -> logits [B,L]."""
    return first_token_scores("pooler.dense", c.pooler_hidden_act, "classifier")(b, c, w, x)


WORDS = r"cls\.predictions\..*", r"lm_predictions\.lm_head\..*"
POOLED, CLASSIFIER = r"pooler\..*", r"classifier\..*"
HEADS = {
    "Model": Head("feature-extraction", body),
    "ForMaskedLM": Head("fill-mask", word_scores, WORDS),
    "ForSequenceClassification": Head("text-classification", text_scores, (POOLED, CLASSIFIER)),
    "ForMultipleChoice": Head("multiple-choice", text_scores, (POOLED, CLASSIFIER)),
    "ForTokenClassification": Head("token-classification", token_scores, (CLASSIFIER,)),
    "ForQuestionAnswering": Head("question-answering", span_scores, (r"qa_outputs\..*",)),
}
