"""One step of a decoder whose past and present are concatenated, as optimum and transformers.js export them.

Such a graph takes the keys and values of P tokens at their own length and gives back those of P + S. They are kept
in a KVCache like any other, and copied into and out of the graph. Letters: B rows, S tokens given, K rows of logits
asked for, V vocabulary, P slots of the past, H heads, E size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchless.cache import KVCache
from torchless.errors import GenerationError, TorchlessError

if TYPE_CHECKING:
    from torchless.decoder import Decoder

Float = npt.NDArray[np.float32]

BRANCH = "use_cache_branch"  # of a merged decoder: whether there is a past


class ConcatenatingStep:
    """As decoder.Step: fill input_ids, then run.

    Rows of unlike length are run together where the graph takes position_ids; else it would number their tokens by
    the longest row's, and rows of one length are run at a time.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, first: int, last: int, tokens: int, picked: int) -> None:
        rows = last - first
        self.input_ids = np.zeros((rows, tokens), np.int64)
        self.logits_positions = np.zeros((rows, picked), np.int64)
        self._decoder, self._cache, self._first, self._last = decoder, cache, first, last

    def run(self, lengths: npt.NDArray[np.int64] | None = None, *, more: bool = False) -> Float:
        """Logits [B,K,V]; lengths [B]: how many of the tokens are no padding, for rows that have no past.

        more: see HostedSession.run.
        """
        past = self._cache.lengths[self._first : self._last]
        tokens = self.input_ids.shape[1]
        given = np.full(len(past), tokens) if lengths is None else lengths
        logits = np.zeros((*self.logits_positions.shape, self._decoder.width), np.float32)
        for rows in self._together(past):
            found = self._run(rows, past[rows], given[rows], more)
            logits[rows] = np.take_along_axis(found, self.logits_positions[rows][:, :, None], axis=1)
        return logits

    def _together(self, past: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        if "position_ids" in self._decoder.takes:
            yield np.arange(len(past))
            return
        for length in np.unique(past):
            yield np.flatnonzero(past == length)

    def _run(self, rows: Any, past: Any, given: Any, more: bool) -> Float:
        """Logits [b,S,V] of some rows, and their new keys and values into the cache."""
        tokens, filled = self.input_ids.shape[1], int(past.max())
        slots = np.arange(filled + tokens)
        # Every row's past ends where the new tokens begin, so that distances are right for windows, too.
        mask = (slots >= filled - past[:, None]) & (slots < filled + given[:, None])
        feeds: dict[str, Any] = {
            "input_ids": self.input_ids[rows],
            "attention_mask": mask,
            "position_ids": past[:, None] + np.arange(tokens),
            BRANCH: np.array([filled > 0]),
        }
        decoder = self._decoder
        takes = decoder.takes
        feeds = {name: value.astype(takes[name], copy=False) for name, value in feeds.items() if name in takes}
        buffers = [buffer for layer in self._cache.layers(self._first, self._last) for buffer in layer]
        for (name, _), buffer in zip(decoder.pasts, buffers, strict=True):
            feeds[name] = np.zeros((len(rows), buffer.shape[1], filled, buffer.shape[3]), buffer.dtype)
            for place, row, length in zip(feeds[name], rows, past, strict=True):
                place[:, filled - length :] = buffer[row, :, :length]
        try:
            names = ["logits", *(present for _, present in decoder.pasts)]
            outputs = decoder.session.run(names, feeds, tokens=len(rows) * tokens, more=more)
        except TorchlessError:
            raise
        except Exception as error:
            raise GenerationError(f"onnxruntime failed in a step: {str(error).splitlines()[0][:400]}") from error
        for present, buffer in zip(outputs[1:], buffers, strict=True):
            for row, start, new in zip(rows, past, present[:, :, -tokens:], strict=True):
                buffer[row, :, start : start + tokens] = new
        return np.asarray(outputs[0], np.float32)
