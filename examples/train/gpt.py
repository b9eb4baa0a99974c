"""Train a GPT-2-shaped decoder on the State of the Union addresses, from text to a checkpoint.

    python prepare.py && python gpt.py --minutes 45

A byte-level BPE tokenizer, then next-token prediction as in the GPT-2 paper: AdamW, warm-up and cosine,
dropout, gradients clipped at 1. The weights with the lowest held-out loss are written in half precision
as a Hugging Face folder, loaded back and measured on held-out addresses and on Moby Dick.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from checkpoint import write_checkpoint
from loop import Plan, Run, keep_tokenizer, make_optimizer, train
from measure import perplexity
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

HERE = Path(__file__).parent
END = "<|endoftext|>"
VOCAB, LAYERS, HEADS, HIDDEN, CONTEXT, DROPOUT = 6144, 6, 4, 256, 512, 0.05
PROMPTS = ["Fellow citizens, ", "The state of our economy", "Our relations with Great Britain"]


def read_texts(path: Path) -> list[str]:
    """The texts of a file that prepare.py wrote."""
    if not path.exists():
        sys.exit(f"gpt.py: {path} is missing: run prepare.py first")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with one special token, id 0, that stands between texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All texts in a row, each with an end token before it: int64 [N]."""
    end = tokenizer.token_to_id(END)
    ids = [np.array([end, *e.ids], dtype=np.int64) for e in tokenizer.encode_batch(texts)]
    return torch.from_numpy(np.concatenate(ids))


def make_model(end: int) -> GPT2LMHeadModel:
    """GPT-2's architecture and initialisation, small.

    Attention has no dropout of its own: that would rule out the fused kernel, which is three times faster.
    """
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=CONTEXT,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            resid_pdrop=DROPOUT,
            embd_pdrop=DROPOUT,
            attn_pdrop=0.0,
            activation_function="gelu_new",
            bos_token_id=end,
            eos_token_id=end,
        )
    )
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end)
    for block in model.transformer.h:
        block.mlp.act = torch.nn.GELU(approximate="tanh")  # the same function as gelu_new, in one kernel
    return model


def batch_at(step: int, ids: Tensor, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets int64 [B,512] of a step. Every epoch cuts the text anew and shuffles the pieces."""
    per_epoch = (len(ids) - CONTEXT - 1) // CONTEXT // batch
    epoch, i = divmod(step, per_epoch)
    rng = np.random.default_rng([seed, epoch])
    shift = int(rng.integers(CONTEXT))
    pieces = rng.permutation((len(ids) - 1 - shift) // CONTEXT)[i * batch : (i + 1) * batch]
    rows = torch.from_numpy(shift + pieces * CONTEXT)[:, None] + torch.arange(CONTEXT + 1)  # [B,513]
    window = ids[rows]
    return window[:, :-1], window[:, 1:]


def next_token_loss(model: GPT2LMHeadModel, inputs: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean cross-entropy in nats of [B,S] targets, computed in float32."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        logits = model(inputs, use_cache=False).logits  # [B,S,V]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def heldout_loss(model: GPT2LMHeadModel, ids: Tensor, dtype: torch.dtype) -> float:
    """The mean loss over the held-out text in pieces of 512: quick, a little worse than the final figure."""
    rows = ids[: (len(ids) - 1) // CONTEXT * CONTEXT + 1].unfold(0, CONTEXT + 1, CONTEXT)
    losses = [next_token_loss(model, b[:, :-1], b[:, 1:], dtype) * len(b) for b in rows.split(16)]
    return float(sum(losses)) / len(rows)


def export(model: GPT2LMHeadModel, tokenizer: Tokenizer, out: Path) -> None:
    """Write config, generation config, float16 weights and tokenizer."""
    settings = {"bos_token": END, "eos_token": END, "unk_token": END, "model_max_length": CONTEXT}
    write_checkpoint(model, tokenizer, settings, out)


def sample(model: GPT2LMHeadModel, tokenizer: Tokenizer, prompt: str, seed: int, **options: object) -> str:
    """The prompt and up to 120 further tokens."""
    torch.manual_seed(seed)
    ids = torch.tensor([tokenizer.encode(prompt.rstrip()).ids])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=120, pad_token_id=0, **options)
    return tokenizer.decode(out[0].tolist())


def report(out: Path, data: Path, tokenizer: Tokenizer, seed: int) -> dict:
    """Load what was written and measure it."""
    model = GPT2LMHeadModel.from_pretrained(out, dtype=torch.float32).eval()
    figures = {"parameters": model.num_parameters()}
    for name in ("sotu-heldout", "moby-dick"):
        texts = read_texts(data / f"{name}.jsonl")
        figures[name] = perplexity(
            model, [tokenizer.encode(t).ids for t in texts], texts, start=tokenizer.token_to_id(END)
        )
        print(name, figures[name], flush=True)
    for prompt in PROMPTS:
        print("\n[greedy]", sample(model, tokenizer, prompt, seed, do_sample=False))
        print(
            "\n[top-p 0.9, temperature 0.8]",
            sample(model, tokenizer, prompt, seed, do_sample=True, top_p=0.9, top_k=0, temperature=0.8),
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=HERE / "data", help="what prepare.py wrote")
    parser.add_argument("--out", type=Path, default=HERE.parent / "checkpoints" / "sotu-gpt")
    parser.add_argument("--state", type=Path, default=HERE / "data" / "gpt.state", help="where a run resumes")
    parser.add_argument("--restart", action="store_true", help="begin anew although there is a state")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, help="end after this long even if steps are left")
    parser.add_argument("--batch", type=int, default=4, help="texts of 512 tokens in a step")
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="bfloat16",
        help="bfloat16 is several times faster where the processor has AMX",
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    if args.restart:
        args.state.unlink(missing_ok=True)
        args.state.with_suffix(".tokenizer").unlink(missing_ok=True)

    texts = read_texts(args.data / "sotu-train.jsonl")
    tokenizer = keep_tokenizer(args.state.with_suffix(".tokenizer"), lambda: train_tokenizer(texts))
    ids = encode(tokenizer, texts)
    held = encode(tokenizer, read_texts(args.data / "sotu-heldout.jsonl"))
    model = make_model(tokenizer.token_to_id(END))
    print(f"{model.num_parameters():,} parameters, {len(ids):,} tokens, {len(held):,} held out", flush=True)

    def loss_at(step: int) -> Tensor:
        return next_token_loss(model, *batch_at(step, ids, args.batch, args.seed), dtype)

    run = Run(model, make_optimizer(model, args.lr, weight_decay=0.1, beta2=0.95), args.state)
    plan = Plan(args.steps, args.lr, minutes=args.minutes, judge_every=500)
    train(run, loss_at, lambda: heldout_loss(model, held, dtype), plan)
    run.use_best()
    export(model, tokenizer, args.out)
    figures = report(args.out, args.data, tokenizer, args.seed)
    print(json.dumps({"steps": run.step, "minutes": round(run.seconds / 60, 1), **figures}))


if __name__ == "__main__":
    main()
