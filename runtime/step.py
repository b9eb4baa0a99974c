"""One run of a decoder graph over some rows of a cache that it writes in place. Letters as in decoder.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from torchless.cache import KVCache
from torchless.errors import GenerationError, TorchlessError
from torchless.providers.options import CPU
from torchless.session import bind

if TYPE_CHECKING:
    from torchless.decoder import Decoder

Float = npt.NDArray[np.float32]

INPUTS = ("input_ids", "position_ids", "seqlens_k", "total_sequence_length", "logits_positions")


class Step:
    """Arrays bound to the session for rows first..last of a cache: fill input_ids, then run."""

    def __init__(self, decoder: Decoder, cache: KVCache, first: int, last: int, tokens: int, picked: int) -> None:
        rows = last - first
        self.input_ids = np.zeros((rows, tokens), np.int64)
        self.position_ids = np.zeros((rows, tokens), np.int64)
        self.seqlens_k = np.zeros(rows, np.int32)
        self.total_sequence_length = np.zeros((), np.int32)
        self.logits_positions = np.zeros((rows, picked), np.int64)
        self.logits: Float = np.zeros((rows, picked, decoder.width), np.float32)
        self._ahead = np.arange(tokens)
        self._cache, self._first, self._last = cache, first, last
        self._session = decoder.session
        self._binding = decoder.session.io_binding()
        self._takes = [name for name in INPUTS if name in decoder.takes]
        self._bind(decoder)

    def _bind(self, decoder: Decoder) -> None:
        self._inputs = {name: bind(getattr(self, name)) for name in self._takes}
        self._binding.bind_ortvalue_output("logits", bind(self.logits))
        buffers = [buffer for layer in self._cache.layers(self._first, self._last) for buffer in layer]
        for (past, present), buffer in zip(decoder.pasts, buffers, strict=True):
            value = bind(buffer)  # one address as past and present: the graph appends in place
            self._inputs[past] = value
            self._binding.bind_ortvalue_output(present, value)
        # OpenVINO and plugins are given a copy at binding, and would not see what is written later.
        self._copied = decoder.session.get_providers()[0] != CPU.ort_name
        self._bind_inputs()

    def _bind_inputs(self) -> None:
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)

    def _compute(self, more: bool) -> None:
        if self._copied:
            self._bind_inputs()
        self._session.run_with_iobinding(self._binding, tokens=self.input_ids.size, more=more)

    def run(self, lengths: npt.NDArray[np.int64] | None = None, *, more: bool = False) -> Float:
        """Logits [B,K,V], overwritten by the next run. The caller advances the cache's lengths.

        lengths [B]: how many of the tokens are no padding, for rows that have no past. more: see HostedSession.run.
        """
        past = self._cache.lengths[self._first : self._last]
        np.add(past[:, None], self._ahead, out=self.position_ids)
        np.add(past, (len(self._ahead) if lengths is None else lengths) - 1, out=self.seqlens_k, casting="unsafe")
        self.total_sequence_length[...] = past.max() + len(self._ahead)
        try:
            self._compute(more)
        except TorchlessError:
            raise
        except Exception as error:
            raise GenerationError(f"onnxruntime failed in a step: {str(error).splitlines()[0][:400]}") from error
        return self.logits
