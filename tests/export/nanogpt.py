"""nanoGPT's model and files, written from their description, small enough to be made for one test."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny
import torch
from torch import nn
from torch.nn import functional

SIZES = dict(n_layer=2, n_head=4, n_embd=32, block_size=64, bias=True, vocab_size=320, dropout=0.0)
ALPHABET = sorted("\n !,.abcdefghijklmnopqrstuvwxyzABC'-\té🎉")


class Norm(nn.Module):
    """Layer normalization that can do without a bias."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Any) -> Any:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)
        self.heads = heads

    def forward(self, x: Any) -> Any:
        rows, length, width = x.shape
        q, k, v = (
            part.view(rows, length, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(width, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(rows, length, width))


class FeedForward(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.c_proj = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: Any) -> Any:
        return self.c_proj(functional.gelu(self.c_fc(x)))  # the exact one


class Block(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = Norm(width, bias), Norm(width, bias)
        self.attn, self.mlp = Attention(width, heads, bias), FeedForward(width, bias)

    def forward(self, x: Any) -> Any:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """Pre-norm blocks under a head that is tied to the embedding; weights by nanoGPT's names."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        width, bias = args["n_embd"], args["bias"]
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(args["vocab_size"], width),
                wpe=nn.Embedding(args["block_size"], width),
                h=nn.ModuleList([Block(width, args["n_head"], bias) for _ in range(args["n_layer"])]),
                ln_f=Norm(width, bias),
            )
        )
        self.lm_head = nn.Linear(width, args["vocab_size"], bias=False)
        self.lm_head.weight = self.transformer["wte"].weight
        self.config = SimpleNamespace(hidden_size=width)

    def forward(self, ids: Any) -> Any:
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))

    def greedy(self, ids: list[int], new: int) -> list[int]:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            for _ in range(new):
                tokens = torch.cat([tokens, self(tokens)[:, -1:].argmax(-1)], dim=1)
        return tokens[0, len(ids) :].tolist()


def nanogpt(**args: Any) -> NanoGPT:
    return tiny.uneven(NanoGPT(SIZES | args), seed=len(args))


def checkpoint(model: NanoGPT, folder: Path, prefix: str = "", **args: Any) -> Path:
    """ckpt.pt as train.py writes it, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    held = dict(
        model=state, optimizer=optimizer.state_dict(), model_args=SIZES | args, iter_num=7,
        best_val_loss=torch.tensor(1.5), config={"dataset": "tiny", "learning_rate": 1e-3},
    )  # fmt: skip
    torch.save(held, folder / "ckpt.pt")
    return folder


def meta(folder: Path, alphabet: list[str] = ALPHABET, **change: Any) -> Path:
    """meta.pkl as the character-level prepare.py writes it."""
    stoi = {character: i for i, character in enumerate(alphabet)}
    held = {"vocab_size": len(alphabet), "itos": {i: c for c, i in stoi.items()}, "stoi": stoi} | change
    (folder / "meta.pkl").write_bytes(pickle.dumps(held))
    return folder / "meta.pkl"
