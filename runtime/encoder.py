"""An encoder over many texts: sorted by length into batches, padded, run, and given back in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from torchless.bundle import Bundle
from torchless.errors import InputError, TorchlessError
from torchless.session import require

if TYPE_CHECKING:
    import onnxruntime as ort

Float = npt.NDArray[np.float32]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Encoder:
    """The session of an encoder graph, and the one output that the task needs. Threads share it."""

    def __init__(self, session: ort.InferenceSession, bundle: Bundle, output: str) -> None:
        require(session, bundle, INPUTS, [output])
        self.session = session
        self.output = output
        self.vocab_size = bundle.manifest.vocab_size

    def __call__(self, encodings: Sequence[Encoding], batch_size: int) -> Iterator[tuple[int, Float]]:
        """Yield (index, output of that text) for all texts, in no particular order.

        Texts of like length share a batch, so that little padding is computed. A text's output has its own
        length: rows of padding are cut off where the output has one row a token.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size={batch_size!r}: give a whole number of 1 or more")
        lengths = [len(encoding.ids) for encoding in encodings]
        order = sorted(range(len(encodings)), key=lengths.__getitem__)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = lengths[batch[-1]]
            ids = np.zeros((len(batch), longest), np.int64)  # what padding holds is never seen behind the mask
            mask, types = np.zeros_like(ids), np.zeros_like(ids)
            for row, index in enumerate(batch):
                length = lengths[index]
                ids[row, :length] = encodings[index].ids
                types[row, :length] = encodings[index].type_ids
                mask[row, :length] = 1
            if int(ids.max(initial=0)) >= self.vocab_size:
                raise InputError("the tokenizer has more tokens than the model: they are not of one checkpoint")
            yield from zip(batch, self.run(ids, mask, types), strict=True)

    def run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64], types: npt.NDArray[np.int64]) -> Float:
        """The graph's output for input_ids, attention_mask and token_type_ids, each int64 [B,S]."""
        feeds = dict(zip(INPUTS, (ids, mask, types), strict=True))
        try:
            (output,) = self.session.run([self.output], feeds)
        except Exception as error:
            raise TorchlessError(f"onnxruntime failed: {str(error).splitlines()[0][:400]}") from error
        return output  # type: ignore[no-any-return]
