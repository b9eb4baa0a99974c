"""Rotary positions (Su et al., 2021): angles by which queries and keys are turned, as tables of cosines and sines.

A pair of a head's numbers, the i-th of each half, turns by position · frequency_i; frequencies fall from 1 almost
to 1/theta. Checkpoints that were taught longer texts stretch the slow ones (`rope_scaling`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchless.errors import ExportError
from torchless.export.config import Config
from torchless.export.weights import Float


@dataclass(frozen=True)
class Rotary:
    """cos and sin [C,E/2] of every position, for heads of size E; a model with several gives each a name."""

    cos: Float
    sin: Float
    name: str = "rotary"

    @classmethod
    def read(cls, c: Config, size: int, positions: int, name: str = "rotary") -> Rotary:
        """Of a config, for heads of `size` and texts of up to `positions` tokens.

        Raises ExportError for a scaling that is not implemented or depends on the text's length.
        """
        frequencies, factor = _frequencies(c, size, positions)
        angles = np.outer(np.arange(positions, dtype=np.float32), frequencies)
        cos, sin = ((turn(angles) * factor).astype(np.float32) for turn in (np.cos, np.sin))
        return cls(cos, sin, name)


def _frequencies(c: Config, size: int, positions: int) -> tuple[Float, float]:
    """Angles a position [E/2], and what cosines and sines are multiplied by."""
    given = c.raw.get("rope_parameters") or c.raw.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ExportError(f"config.json: rope_scaling is {given!r}, expected an object")
    scaling = Config(given, "config.json: rope_scaling")
    scaling.refuse("partial_rotary_factor", 1, 1.0)
    theta = scaling.number("rope_theta", c.number("rope_theta", 10000.0))
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    plain: Float = (1 / np.float32(theta) ** exponents).astype(np.float32)
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return (plain / np.float32(scaling.number("factor", 0))).astype(np.float32), 1.0
    trained = scaling.whole("original_max_position_embeddings", c.whole("max_position_embeddings"))
    if kind == "dynamic":  # stretched only past the length that was trained
        if positions > trained:
            raise ExportError(
                f"config.json: dynamic rope_scaling changes with the text past {trained:,} tokens: export with "
                f"context_length={trained} (--context-length) or less"
            )
        return plain, 1.0
    if kind == "llama3":
        return _llama3(plain, scaling, trained), 1.0
    if kind == "yarn":
        return _yarn(plain, theta, scaling, trained, size)
    raise ExportError(
        f"config.json: rope_scaling of type {kind!r} is not supported (supported: default, linear, dynamic, "
        "llama3, yarn)"
    )


def _llama3(plain: Float, scaling: Config, trained: int) -> Float:
    """Llama 3.1: slow frequencies are divided by the factor, fast ones stay, those between are mixed."""
    factor, low, high = (scaling.number(name, 0) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = trained * plain / np.float32(2 * math.pi)  # of a pair, over the length that was trained
    share = np.clip((turns - low) / (high - low), 0, 1)  # 0 for slow ones, 1 for fast ones
    made: Float = ((1 - share) * plain / factor + share * plain).astype(np.float32)
    return made


def _yarn(plain: Float, theta: float, scaling: Config, trained: int, size: int) -> tuple[Float, float]:
    """YaRN (Peng et al., 2023): as Llama 3.1's, by a ramp over the pairs, and scores are scaled with the factor."""
    factor = scaling.number("factor", 0)

    def pair_of(turns: float) -> float:
        """Which pair turns so often over the length that was trained."""
        return size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(scaling.number("beta_fast", 32)), pair_of(scaling.number("beta_slow", 1))
    if scaling.flag("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    slow = np.clip((np.arange(size // 2) - first) / max(last - first, 0.001), 0, 1)
    made: Float = (slow * plain / factor + (1 - slow) * plain).astype(np.float32)

    def sharper(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    m, m_all = scaling.number("mscale", 0), scaling.number("mscale_all_dim", 0)
    usual = sharper(m) / sharper(m_all) if m and m_all else sharper(1)
    return made, scaling.number("attention_factor", usual)
