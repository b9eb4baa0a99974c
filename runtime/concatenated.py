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
        ids = self.input_ids[rows]
        tokens = ids.shape[1]
        if tokens == 1 or not self._reads_ahead(int(past.max())):
            return self._once(rows, ids, past, given, more)
        one = np.ones_like(given)
        steps = [self._once(rows, ids[:, i : i + 1], past + i, one, more or i + 1 < tokens) for i in range(tokens)]
        return np.concatenate(steps, axis=1)

    def _reads_ahead(self, filled: int) -> bool:
        """Whether several tokens cannot be given at once, since each would see those after it."""
        decoder = self._decoder
        if BRANCH in decoder.takes and not filled:
            return False  # the branch for prompts
        if decoder.reads_ahead is None:
            decoder.reads_ahead = reads_ahead(decoder)
        return decoder.reads_ahead

    def _once(self, rows: Any, ids: Any, past: Any, given: Any, more: bool) -> Float:
        """One run of the graph: ids [b,S] -> logits [b,S,V], new keys and values into the cache."""
        decoder, tokens, filled = self._decoder, ids.shape[1], int(past.max())
        feeds = _feeds(decoder, ids, past, given)
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


def reads_ahead(decoder: Decoder) -> bool:
    """Whether a token of several on a past sees those after it.

    The graph of a separate decoder "with past", and that branch of a merged one, is often traced with one token,
    for which transformers makes no mask. Two rows begin alike and end unlike: are the first tokens' logits alike?
    In one run, so that an activation's scale, which is the whole batch's in int8 graphs, is the same for both.
    """
    layout, tokens = decoder.layout, 8
    ids = np.zeros((2, tokens), np.int64)
    ids[1, 1:] = decoder.vocab_size - 1
    past = np.ones(2, np.int64)
    feeds = _feeds(decoder, ids, past, np.full(2, tokens))
    nothing = np.zeros((2, layout.heads, 1, layout.head_size), decoder.cache_type)
    feeds |= {name: nothing for name, _ in decoder.pasts}
    try:
        logits = decoder.session.run(["logits"], feeds, tokens=ids.size)[0]
    except TorchlessError:
        raise
    except Exception:  # what takes no two rows, or no several tokens, still takes them one by one
        return True
    one, other = logits[:, 0].astype(np.float32)
    return not np.allclose(one, other, rtol=0, atol=1e-3 * float(np.abs(one).max()))


def _feeds(decoder: Decoder, ids: Any, past: Any, given: Any) -> dict[str, Any]:
    """All that the graph reads but the past; past, given [B]: tokens before, and tokens that are no padding."""
    filled, tokens = int(past.max()), ids.shape[1]
    slots = np.arange(filled + tokens)
    # Every row's past ends where the new tokens begin, so that distances are right for windows, too.
    mask = (slots >= filled - past[:, None]) & (slots < filled + given[:, None])
    feeds: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": past[:, None] + np.arange(tokens),
        BRANCH: np.array([filled > 0]),
    }
    takes = decoder.takes
    return {name: value.astype(takes[name], copy=False) for name, value in feeds.items() if name in takes}
