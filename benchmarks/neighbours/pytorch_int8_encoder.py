"""torch's dynamic quantization, by the engine that torch chooses for the processor."""

from __future__ import annotations

from typing import Any

import pytorch_encoder
import torch


class Model(pytorch_encoder.Model):
    def _load(self, folder: str, threads: int) -> Any:
        linear = {torch.nn.Linear}
        return torch.ao.quantization.quantize_dynamic(super()._load(folder, threads), linear, dtype=torch.qint8)
