"""Fine-tuning as the papers have it: a GPT with its input transformations and the auxiliary loss, or a BERT.

The GPT paper (Radford et al., 2018, sections 3.2 and 3.3) turns every task into one sequence: a start token, the
text (or a premise, a delimiter and a hypothesis), an extract token, at which a fresh linear layer answers; while it
learns that, it goes on foretelling words, with weight 0.5. The three tokens become part of tokenizer.json's
template, so that whoever reads a text or a pair with it gets the sequence by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from batches import Epochs, pad
from loop import Plan, Run, make_optimizer, train
from tokenizers import Encoding, Tokenizer, processors
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2DoubleHeadsModel,
    PretrainedConfig,
    PreTrainedModel,
)

from torchless.export.families import FAMILIES

START, DELIMITER, EXTRACT = "<start>", "<delimiter>", "<extract>"
AUXILIARY = 0.5  # lambda of the paper's equation 5
BUDGET = 4096  # tokens in a batch

# model_types that learn here; GPT-1 has neither GPT-2's end token nor, mostly, a tokenizer.json.
LEARNERS = [name for name in FAMILIES if name != "openai-gpt"]
AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")

Text = str | tuple[str, str]


def read_base(base: Path) -> PretrainedConfig:
    """The config of a checkpoint that can be taught here. Exits with a sentence for anything else."""
    for name in ("config.json", "tokenizer.json"):
        if not (base / name).is_file():
            sys.exit(f"{base} holds no {name}: give the folder of a checkpoint")
    try:
        config = AutoConfig.from_pretrained(base)
    except Exception as error:  # whatever is wrong with it
        sys.exit(f"{base}: its config.json cannot be used ({_first_line(error)})")
    if config.model_type not in LEARNERS:
        sys.exit(f"{base} is a {config.model_type}: these scripts teach {', '.join(LEARNERS)}")
    return config


def longest(config: PretrainedConfig) -> int:
    """Tokens of a text: all positions, but for those that RoBERTa and its kin count from behind the padding's."""
    before = (config.pad_token_id or 0) + 1 if config.model_type in AFTER_PADDING else 0
    return config.max_position_embeddings - before


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def open_base(base: Path, kind: type, **config: object) -> tuple[PreTrainedModel, Tokenizer]:
    """A pre-trained model with a fresh head, and its tokenizer; a GPT's vocabulary grows by the three tokens.

    Exits with a sentence for a folder that holds none.
    """
    read_base(base)
    try:
        tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        model = kind.from_pretrained(base, dtype=torch.float32, **config)
    except Exception as error:  # each library has its own
        sys.exit(f"{base} cannot be opened ({_first_line(error)}): give the folder of a checkpoint")
    if is_gpt(model):
        transform_inputs(tokenizer)
        model.resize_token_embeddings(tokenizer.get_vocab_size(), mean_resizing=False)
        model.config.pad_token_id = model.config.eos_token_id  # behind the extract token, where nothing reads it
    return model, tokenizer


def is_gpt(model: PreTrainedModel) -> bool:
    return model.config.model_type == "gpt2"


def transform_inputs(tokenizer: Tokenizer) -> None:
    """The GPT paper's figure 1: start, text, extract; start, premise, delimiter, hypothesis, extract."""
    tokenizer.add_special_tokens([START, DELIMITER, EXTRACT])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {EXTRACT}",
        pair=f"{START} $A {DELIMITER} $B:1 {EXTRACT}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, DELIMITER, EXTRACT)],
    )


def encode(tokenizer: Tokenizer, texts: Sequence[Text], limit: int) -> list[Encoding]:
    """Texts, or pairs, as the tokenizer's template has them, cut to `limit` tokens. Exits if none fits."""
    template = tokenizer.num_special_tokens_to_add(any(isinstance(text, tuple) for text in texts))
    if limit <= template:
        sys.exit(f"{limit} tokens leave none for a text beside the {template} of the template: give more")
    tokenizer.enable_truncation(limit)
    encodings = tokenizer.encode_batch(list(texts))
    tokenizer.no_truncation()
    return encodings


def word_loss(model: PreTrainedModel, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The mean cross-entropy of the next words, from hidden states [B,S,D]; padding counts for nothing."""
    asked = mask[:, 1:] == 1
    words = hidden[:, :-1][asked] @ model.get_input_embeddings().weight.T  # [N,V]
    return cross_entropy(words.float(), ids[:, 1:][asked])


def classifier_loss(model: PreTrainedModel, rows: Sequence[Encoding], labels: Tensor) -> Tensor:
    """Cross-entropy of the labels [B]; for a GPT, AUXILIARY times that of the next words beside it."""
    ids, mask = pad([row.ids for row in rows], model.config.pad_token_id or 0)
    if not is_gpt(model):
        given = {"input_ids": ids, "attention_mask": mask}
        if getattr(model.config, "type_vocab_size", 1) > 1:
            given["token_type_ids"] = pad([row.type_ids for row in rows])[0]
        return cross_entropy(model(**given).logits.float(), labels)
    hidden = model.transformer(ids, use_cache=False).last_hidden_state  # [B,S,D]; causal: padding is never seen
    told = model.score(hidden[torch.arange(len(ids)), mask.sum(1) - 1])  # [B,L]
    return cross_entropy(told.float(), labels) + AUXILIARY * word_loss(model, hidden, ids, mask)


def choice_loss(model: GPT2DoubleHeadsModel, rows: Sequence[Sequence[Encoding]], labels: Tensor) -> Tensor:
    """Softmax over each question's choices, and AUXILIARY times the words of the right ones.

    rows: for each question its choices, each the sequence of context and choice. labels [B]: the right ones.
    """
    flat = [choice for question in rows for choice in question]
    ids, mask = pad([choice.ids for choice in flat], model.config.pad_token_id)
    hidden = model.transformer(ids, use_cache=False).last_hidden_state  # [B*N,S,D]
    scores = model.multiple_choice_head(hidden, mask.sum(1) - 1).view(len(rows), -1)  # [B,N]
    right = torch.arange(len(rows)) * len(rows[0]) + labels
    words = word_loss(model, hidden[right], ids[right], mask[right])
    return cross_entropy(scores.float(), labels) + AUXILIARY * words


def learn(
    model: PreTrainedModel, lengths: Sequence[Sequence[int]], loss_of: Callable[[Sequence[int]], Tensor],
    judge: Callable[[], float], *, state: Path, epochs: int, lr: float, minutes: float | None, seed: int,
) -> None:  # fmt: skip
    """All weights, AdamW, a tenth of warm-up, linear decay to zero. lengths: a row of ids for each sample."""
    torch.manual_seed(seed)
    batches = Epochs(lengths, BUDGET, seed)
    steps = epochs * len(batches)
    plan = Plan(steps, lr, max(1, steps // 10), floor=0.0, minutes=minutes, judge_every=max(1, len(batches)))
    run = Run(model, make_optimizer(model, lr, weight_decay=0.01, beta2=0.98), state)
    train(run, lambda step: loss_of(batches.at(step)), judge, plan, "line")
    model.eval()
    print(f"fine-tuned: {run.step} steps, {run.seconds / 60:.1f} min", flush=True)


def open_classifier(base: Path, labels: Sequence[str]) -> tuple[PreTrainedModel, Tokenizer]:
    """A pre-trained GPT or BERT with a fresh classifier of these labels."""
    names = dict(enumerate(labels))
    architecture = (read_base(base).architectures or ["(none)"])[0]
    print(f"fine-tuning {architecture} from {base}", flush=True)
    return open_base(
        base, AutoModelForSequenceClassification, id2label=names, label2id={n: i for i, n in names.items()},
        problem_type="single_label_classification",
    )  # fmt: skip
