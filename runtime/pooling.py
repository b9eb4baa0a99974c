"""From token vectors to one vector a text, for graphs that leave it to the caller (Reimers and Gurevych, 2019)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchless.manifest import Pooling
from torchless.similarity import unit

Float = npt.NDArray[np.float32]


def pool(states: Float, mask: npt.NDArray[np.int64], pooling: Pooling) -> Float:
    """states [B,S,D] and mask [B,S], 1 for a token -> [B,D]; every row has a token, and padding on the right."""
    if pooling.mode == "cls":
        vectors = states[:, 0]
    elif pooling.mode == "lasttoken":
        vectors = states[np.arange(len(states)), mask.sum(axis=1) - 1]
    elif pooling.mode == "max":
        vectors = np.where(mask[:, :, None] == 1, states, np.finfo(np.float32).min).max(axis=1)
    else:
        weight = mask[:, :, None].astype(np.float32)
        vectors = (states * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-9)
    return unit(vectors) if pooling.normalize else np.ascontiguousarray(vectors)
