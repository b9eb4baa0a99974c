"""torchless export CHECKPOINT OUT"""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="write a bundle from a checkpoint",
        description="Write the bundle OUT from a checkpoint in Hugging Face layout (config.json, "
        "model.safetensors, tokenizer.json), from a GGUF file or from nanoGPT's ckpt.pt, and compare it with torch "
        "where torch is installed.",
    )
    command.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="folder of the checkpoint, FILE.gguf, or nanoGPT's ckpt.pt"
    )
    command.add_argument("out", metavar="OUT", help="folder to write; it must not exist")
    command.add_argument("--task", help="the head to export, by Hugging Face's name (default: the checkpoint's)")
    command.add_argument(
        "--dialect",
        choices=("fused", "standard", "all"),
        default="fused",
        help="fused: onnxruntime's own operators, fastest (default); standard: plain ONNX; all: both",
    )
    command.add_argument("--head", metavar="NAME", help="the last layer, where the checkpoint calls it otherwise")
    command.add_argument(
        "--exporter",
        choices=("direct", "optimum"),
        default="direct",
        help="direct: torchless, for the families that it knows (default); optimum: optimum-onnx and onnxruntime's "
        "optimizer, for any other (an environment of its own: torchless[optimum])",
    )
    command.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json, vocab.txt, vocab.json with merges.txt, nanoGPT's meta.pkl, or the folder of one, if "
        "the checkpoint has none",
    )
    command.add_argument(
        "--pooling",
        choices=("mean", "cls", "max", "lasttoken"),
        help="for embeddings (default: modules.json's, or mean)",
    )
    command.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="for embeddings: length 1 (default: as modules.json says, or no)",
    )
    command.add_argument(
        "--context-length",
        type=int,
        metavar="TOKENS",
        help="the longest text that the bundle will be asked for (default: what the model takes)",
    )
    command.add_argument(
        "--precision",
        choices=("carry", "exact", "fp32"),
        default="carry",
        help="of a GGUF file: carry: its own blocks, with activations rounded to 8 bits as in llama.cpp (default); "
        "exact: the same with activations in float32; fp32: float32 weights, to be quantized otherwise",
    )
    command.add_argument("--no-check", action="store_true", help="do not compare the bundle with its source")
    command.add_argument("--overwrite", action="store_true", help="replace the bundle OUT")
    command.set_defaults(act=act)


def act(args: argparse.Namespace) -> None:
    from torchless.bundle import read_bundle
    from torchless.export import export

    out = export(
        args.checkpoint,
        args.out,
        task=args.task,
        head=args.head,
        dialect=args.dialect,
        tokenizer=args.tokenizer,
        pooling=args.pooling,
        normalize=args.normalize,
        context_length=args.context_length,
        precision=args.precision,
        check=not args.no_check,
        overwrite=args.overwrite,
        exporter=args.exporter,
        progress=lambda line: print(f"{line} ...", file=sys.stderr),
    )
    bundle = read_bundle(out)
    parity = bundle.manifest.parity
    checked = f"; differs from {parity['against']} by at most {parity['max_abs_error']:.1e}" if parity else ""
    if parity and (exact := parity.get("exact_max_abs_error")) is not None:
        checked += f", {exact:.1e} where activations are not rounded to 8 bits (--precision exact)"
    print(f"{out}: {bundle.manifest.task}, {bundle.size / 1e6:.1f} MB{checked}")
