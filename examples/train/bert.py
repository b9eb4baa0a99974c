"""Pre-train a small BERT on e-mails, then teach it to tell spam from ham.

    python prepare.py && python bert.py --minutes 40 --finetune-minutes 8

A lower-case WordPiece tokenizer; masked words (15 %, of these 80 % [MASK], 10 % another word, 10 % kept) as
in the BERT paper, without next-sentence prediction; then fine-tuning of all weights with a fresh classifier,
where masked words stay as an auxiliary loss: without them few mails are soon known by heart.
AdamW, warm-up, linear decay. A tenth of the training mails chooses the pre-trained weights; the fine-tuned
ones are the moving average over their steps. The held-out mails are read once, at the end, by the
half-precision weights loaded back from the written folder.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from batches import Epochs, pack_by_length, pad
from checkpoint import write_checkpoint
from loop import Plan, Run, keep_tokenizer, make_optimizer, train
from measure import confusion
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, PreTrainedModel

HERE = Path(__file__).parent
VOCAB, HIDDEN, LAYERS, HEADS, CONTEXT = 4096, 192, 4, 4, 512
PIECE = 256  # tokens that pre-training sees at once: as in the BERT paper, shorter than the context
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
LABELS = {0: "ham", 1: "spam"}
DEV = 0.1
AUXILIARY = 0.2  # weight of the masked words while fine-tuning, as the GPT paper (2018) has it
BUDGET = 4096  # tokens in a batch


def read_mails(path: Path) -> list[dict]:
    """The {"text", "label"} rows of a file that prepare.py wrote."""
    if not path.exists():
        sys.exit(f"bert.py: {path} is missing: run prepare.py first")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """BERT's stages: clean and lower-case, split at spaces and punctuation, WordPiece, [CLS] A [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        limit_alphabet=200,
        continuing_subword_prefix="##",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return tokenizer


def make_config(**options: object) -> BertConfig:
    """BERT's architecture, small. No dropout in attention: that would rule out the fused kernel."""
    return BertConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=CONTEXT,
        pad_token_id=PAD,
        attention_probs_dropout_prob=0.0,
        **options,
    )


def mask_words(
    ids: Tensor, mask: Tensor, generator: torch.Generator, *, first: int = len(SPECIAL), vocab: int = VOCAB,
    hidden: int = MASK,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """BERT's noise: ids [B,S] -> noisy ids [B,S] and bool [B,S], true where the model has to answer.

    Words are the ids from `first` to `vocab`; `hidden` is the id of [MASK].
    """
    chance = torch.rand(ids.shape, generator=generator)
    asked = (chance < 0.15) & (mask == 1) & (ids >= first)
    fate = torch.rand(ids.shape, generator=generator)
    other = torch.randint(first, vocab, ids.shape, generator=generator)
    noisy = torch.where(asked & (fate < 0.8), hidden, ids)
    return torch.where(asked & (fate >= 0.9), other, noisy), asked


def masked_loss(model: BertForMaskedLM, rows: list[list[int]], seed: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    """The mean cross-entropy of the hidden words in nats, and how many there were."""
    ids, mask = pad(rows)
    noisy, asked = mask_words(ids, mask, torch.Generator().manual_seed(seed))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        hidden = model.bert(noisy, mask).last_hidden_state  # [B,S,D]
        logits = model.cls(hidden[asked])  # [N,V]: the head runs only where it is asked
    return cross_entropy(logits.float(), ids[asked]), int(asked.sum())


def pieces(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Every text in pieces of up to PIECE tokens, [CLS] and [SEP] included; scraps are left out."""
    rows, width = [], PIECE - 2
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        for i in range(0, len(encoding.ids), width):
            if len(piece := encoding.ids[i : i + width]) >= 8:
                rows.append([CLS, *piece, SEP])
    return rows


def pretrain(args: argparse.Namespace, tokenizer: Tokenizer, texts: list[str], dev: list[str]) -> BertForMaskedLM:
    """Masked-word training; gives the model with its best weights."""
    torch.manual_seed(args.seed)
    # No dropout: no mail is seen often enough to be learned by heart.
    model = BertForMaskedLM(make_config(architectures=["BertForMaskedLM"], hidden_dropout_prob=0.0))
    rows, dev_rows = pieces(tokenizer, texts), pieces(tokenizer, dev)
    epochs, dtype = Epochs(rows, BUDGET, args.seed), getattr(torch, args.dtype)
    tokens = sum(map(len, rows))
    print(f"{model.num_parameters():,} parameters, {tokens:,} tokens, {len(epochs)} steps an epoch", flush=True)

    def loss_at(step: int) -> Tensor:
        return masked_loss(model, [rows[i] for i in epochs.at(step)], args.seed * 1_000_003 + step, dtype)[0]

    def judge() -> float:
        batches = pack_by_length(dev_rows, BUDGET, np.random.default_rng(0))
        parts = [masked_loss(model, [dev_rows[i] for i in batch], n, dtype) for n, batch in enumerate(batches)]
        return sum(loss.item() * n for loss, n in parts) / sum(n for _, n in parts)

    optimizer = make_optimizer(model, args.lr, weight_decay=0.01, beta2=0.98)
    run = Run(model, optimizer, args.state.with_suffix(".pretrain"))
    plan = Plan(args.steps, args.lr, warmup=400, floor=0.02, minutes=args.minutes, judge_every=500)
    train(run, loss_at, judge, plan, "line")
    run.use_best()
    with torch.no_grad():  # no piece was long enough to train these: they begin as the first ones
        positions = model.bert.embeddings.position_embeddings.weight
        positions[PIECE:] = positions[: CONTEXT - PIECE]
    print(f"pre-trained: {run.step} steps, {run.seconds / 60:.1f} min, loss {run.best:.4f}", flush=True)
    return model


def finetune(
    args: argparse.Namespace, body: BertForMaskedLM, tokenizer: Tokenizer, mails: list[dict], dev: list[dict]
) -> BertForSequenceClassification:
    """Classifier training from the pre-trained body; gives the model with the average of its weights.

    dev: mails to show progress on; nothing is chosen by them, so they may be among those learned from.
    """
    torch.manual_seed(args.seed)
    model = BertForSequenceClassification(
        make_config(
            architectures=["BertForSequenceClassification"],
            id2label=LABELS,
            problem_type="single_label_classification",
            label2id={name: i for i, name in LABELS.items()},
        )
    )
    model.bert.load_state_dict(body.bert.state_dict(), strict=False)  # all but the pooler, which is new
    body.cls.predictions.decoder.weight = model.bert.embeddings.word_embeddings.weight  # one matrix for both
    tokenizer.enable_truncation(CONTEXT)
    rows = [e.ids for e in tokenizer.encode_batch([mail["text"] for mail in mails])]
    dev_rows = [e.ids for e in tokenizer.encode_batch([mail["text"] for mail in dev])]
    tokenizer.no_truncation()
    labels = torch.tensor([mail["label"] for mail in mails])
    dev_labels = torch.tensor([mail["label"] for mail in dev])
    epochs, dtype = Epochs(rows, BUDGET, args.seed), getattr(torch, args.dtype)

    def loss_of(rows: list[list[int]], labels: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits = model(*pad(rows)).logits  # [B,2]
        return cross_entropy(logits.float(), labels)

    def judge() -> float:
        batches = pack_by_length(dev_rows, BUDGET, np.random.default_rng(0))
        losses = [loss_of([dev_rows[i] for i in b], dev_labels[b]).item() * len(b) for b in batches]
        return sum(losses) / len(dev_rows)

    def loss_at(step: int) -> Tensor:
        """The classifier's loss on mails with hidden words, and AUXILIARY times that of the hidden words."""
        batch = epochs.at(step)
        ids, mask = pad([rows[i] for i in batch])
        noisy, asked = mask_words(ids, mask, torch.Generator().manual_seed(args.seed * 7_368_787 + step))
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            hidden = model.bert(noisy, mask)
            words = body.cls(hidden.last_hidden_state[asked])  # [N,V]
            logits = model.classifier(model.dropout(hidden.pooler_output))  # [B,2]
        told = cross_entropy(logits.float(), labels[batch], label_smoothing=0.05)
        return told + AUXILIARY * cross_entropy(words.float(), ids[asked])

    steps = args.epochs * len(epochs)
    optimizer = make_optimizer(model, args.finetune_lr, weight_decay=0.01, beta2=0.98)
    run = Run(model, optimizer, args.state.with_suffix(".finetune"))
    limits = {"minutes": args.finetune_minutes, "judge_every": len(epochs) // 2, "average": 0.995}
    plan = Plan(steps, args.finetune_lr, warmup=steps // 10, floor=0.0, **limits)
    train(run, loss_at, judge, plan, "line")
    run.use_average()
    print(f"fine-tuned: {run.step} steps, {run.seconds / 60:.1f} min, loss {run.best:.4f}", flush=True)
    return model


def export(model: PreTrainedModel, tokenizer: Tokenizer, out: Path) -> None:
    """Write config, float16 weights and tokenizer."""
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    write_checkpoint(model, tokenizer, {**names, "model_max_length": CONTEXT, "model_input_names": inputs}, out)


def without_list_marks(text: str) -> str:
    """A mail without what gives a mailing list away: [tags] and Re: in the subject, signature and footer."""
    subject, _, body = text.partition("\n")
    subject = re.sub(r"\[[^\]]*\]|\b(re|fwd?):", "", subject, flags=re.I)
    return subject + "\n" + re.split(r"\n(?:--+|__+)", body)[0]


@torch.no_grad()
def report(args: argparse.Namespace) -> None:
    """Load both folders back and measure them on every held-out mail."""
    mails = read_mails(args.data / "mail-heldout.jsonl")
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    model = BertForMaskedLM.from_pretrained(args.body_out, dtype=torch.float32).eval()
    rows = pieces(tokenizer, [mail["text"] for mail in mails])
    parts = [masked_loss(model, [row], n, torch.float32) for n, row in enumerate(rows)]
    count = sum(n for _, n in parts)
    loss = sum(loss.item() * n for loss, n in parts if n) / count
    print(json.dumps({"masked words": count, "loss": round(loss, 4)}), flush=True)
    model = BertForSequenceClassification.from_pretrained(args.out, dtype=torch.float32).eval()
    tokenizer.enable_truncation(CONTEXT)
    labels = [mail["label"] for mail in mails]
    for name, change in (("whole mails", str), ("without list marks", without_list_marks)):
        rows = [e.ids for e in tokenizer.encode_batch([change(mail["text"]) for mail in mails])]
        guesses = [int(model(*pad([row])).logits.argmax()) for row in rows]
        print(name, json.dumps(confusion(guesses, labels)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=HERE / "data", help="what prepare.py wrote")
    parser.add_argument("--out", type=Path, default=HERE.parent / "checkpoints" / "spam-bert")
    parser.add_argument(
        "--body-out",
        type=Path,
        default=HERE.parent / "checkpoints" / "mail-bert",
        help="where the pre-trained model goes",
    )
    parser.add_argument("--state", type=Path, default=HERE / "data" / "bert.state", help="where a run resumes")
    parser.add_argument("--restart", action="store_true", help="begin anew although there is a state")
    parser.add_argument("--steps", type=int, default=12000, help="steps of pre-training")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of fine-tuning")
    parser.add_argument("--minutes", type=float, help="end pre-training after this long")
    parser.add_argument("--finetune-minutes", type=float, help="end fine-tuning after this long")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--finetune-lr", type=float, default=2.5e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="bfloat16",
        help="bfloat16 is several times faster where the processor has AMX",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.restart:
        for suffix in (".pretrain", ".finetune", ".tokenizer"):
            args.state.with_suffix(suffix).unlink(missing_ok=True)

    mails = read_mails(args.data / "mail-train.jsonl")
    order = np.random.default_rng(args.seed).permutation(len(mails))
    dev = [mails[i] for i in order[: int(DEV * len(mails))]]
    mails = [mails[i] for i in order[int(DEV * len(mails)) :]]
    tokenizer = keep_tokenizer(
        args.state.with_suffix(".tokenizer"), lambda: train_tokenizer([mail["text"] for mail in mails])
    )
    body = pretrain(args, tokenizer, [mail["text"] for mail in mails], [mail["text"] for mail in dev])
    export(body, tokenizer, args.body_out)
    export(finetune(args, body, tokenizer, mails + dev, dev), tokenizer, args.out)  # nothing is chosen any more
    report(args)


if __name__ == "__main__":
    main()
