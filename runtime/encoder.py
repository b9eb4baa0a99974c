"""A model that reads many texts: sorted by length into batches, padded, run, and given back in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from torchless.batching import Batching
from torchless.bundle import Bundle
from torchless.decoder import NUMPY_TYPES, Decoder
from torchless.errors import InputError, TorchlessError
from torchless.hosted import HostedSession
from torchless.pooling import pool
from torchless.session import require
from torchless.tasks import TASKS

Float = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SECOND_NAMES = {"last_hidden_state": "token_embeddings"}  # sentence-transformers' own


class Encoder:
    """The session of a graph that reads a text at once, and the outputs that the task needs. Threads share it.

    An encoder sees the whole text for every token; a decoder with a head (GPT-1, GPT-2) answers at the text's last
    token, which for a classifier, as in transformers, is the last that is not the padding token. Several outputs
    are stacked along a last axis.
    """

    def __init__(self, session: HostedSession, bundle: Bundle, *outputs: str) -> None:
        self.session = session
        self.outputs = list(outputs)
        manifest = bundle.manifest
        self.vocab_size, self.segments = manifest.vocab_size, manifest.segments
        self.token_types = manifest.token_types is not False
        padding = manifest.special_tokens.get("pad")
        self._padding = padding if isinstance(padding, int) else 0
        # Without a token for padding such a classifier takes a batch's last column, whatever it holds.
        self._alone = manifest.graphs[0].dialect == "foreign" and padding is None
        classifies = TASKS[manifest.task].head == "text-classification"
        self.pad_token_id = manifest.special_tokens.get("pad") if classifies else None
        self._decoder = Decoder(session, bundle) if manifest.cache is not None else None
        given = {value.name for value in session.get_outputs()}
        pooling = manifest.pooling
        self._pooling = None
        if pooling is not None and not pooling.inside and outputs == ("sentence_embedding",):
            self._pooling, self.outputs = pooling, ["last_hidden_state"]
        self.outputs = [SECOND_NAMES.get(name, name) if name not in given else name for name in self.outputs]
        require(session, bundle, () if self._decoder else INPUTS[:2], self.outputs)
        # Not every family knows segments; other tools' graphs may take ids of 32 bits.
        self.takes = {value.name: NUMPY_TYPES.get(value.type) for value in session.get_inputs()}
        # Optimum's graph for multiple choice takes [B,choices,S]: here the rows are the choices of one question.
        self._as_choices = any(value.name == INPUTS[0] and len(value.shape) == 3 for value in session.get_inputs())

    def __call__(self, encodings: Sequence[Encoding], batching: Batching) -> Iterator[tuple[int, Float]]:
        """Yield (index, output of that text) for all texts, in no particular order.

        Texts of like length share a batch, so that little padding is computed. A text's output has its own
        length: rows of padding are cut off where the output has one row a token. Raises InputError for a text
        without tokens, and for ids and segments that the model does not know; CancelledError once it is cancelled.
        """
        batch_size = 1 if self._alone else batching.batch_size
        lengths = [len(encoding.ids) for encoding in encodings]
        if 0 in lengths:
            raise InputError(
                "a text is empty, and the tokenizer's template adds no token to it: give at least one word"
            )
        order = sorted(range(len(encodings)), key=lengths.__getitem__)
        for start in range(0, len(order), batch_size):
            batching.check()
            batch = order[start : start + batch_size]
            longest = lengths[batch[-1]]
            # No mask of ours lets padding be seen, but other tools' classifiers look for the last other token.
            ids = np.full((len(batch), longest), self._padding, np.int64)
            mask, types = np.zeros_like(ids), np.zeros_like(ids)
            for row, index in enumerate(batch):
                length = lengths[index]
                ids[row, :length] = encodings[index].ids
                if self.token_types:
                    types[row, :length] = encodings[index].type_ids
                mask[row, : self._read(ids[row, :length])] = 1
            if int(ids.max(initial=0)) >= self.vocab_size:
                raise InputError("the tokenizer has more tokens than the model: they are not of one checkpoint")
            if self.segments is not None and int(types.max(initial=0)) >= self.segments:
                raise InputError(
                    f"the tokenizer puts a pair's second text into segment {int(types.max())}, but the model knows "
                    f"{self.segments} only, from 0: give one text"
                )
            done = start + len(batch)
            outputs = self.run(ids, mask, types, more=done < len(order))
            for index, output in zip(batch, outputs, strict=True):
                yield index, output[: lengths[index]] if output.ndim == 2 else output
            batching.ran(done, len(order), ids.size)

    def read_one(self) -> None:
        """The least that a call can be."""
        one = np.ones((1, 1), np.int64)
        self.run(one * 0, one, one * 0)

    def _read(self, ids: Ids) -> int:
        """How many of a text's ids [S] are read, S but for a decoder that skips padding tokens at the end.

        A text of nothing else is read whole.
        """
        if self._decoder is None or self.pad_token_id is None:
            return len(ids)
        others = np.flatnonzero(ids != self.pad_token_id)
        return int(others[-1]) + 1 if len(others) else len(ids)

    def run(self, ids: Ids, mask: Ids, types: Ids, *, more: bool = False) -> Float:
        """The outputs for input_ids, attention_mask and token_type_ids, each int64 [B,S].

        more: the call goes on with another run (HostedSession.run).
        """
        if self._decoder is not None:
            return self._decoder.last(ids, mask.sum(axis=1), more=more)
        feeds = {
            name: (given[None] if self._as_choices else given).astype(self.takes[name], copy=False)
            for name, given in zip(INPUTS, (ids, mask, types), strict=True)
            if name in self.takes
        }
        try:
            outputs: list[Float] = self.session.run(self.outputs, feeds, tokens=ids.size, more=more)
        except TorchlessError:
            raise
        except Exception as error:
            raise TorchlessError(f"onnxruntime failed: {str(error).splitlines()[0][:400]}") from error
        found = np.asarray(outputs[0] if len(outputs) == 1 else np.stack(outputs, axis=-1), np.float32)
        if self._as_choices:
            found = found.reshape(-1, 1)  # [1,B] -> [B,1]
        return found if self._pooling is None else pool(found, mask, self._pooling)
