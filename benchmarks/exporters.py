"""torchless's own export beside optimum-onnx's, raw and fused by onnxruntime: size, operators, parity, speed.

Random weights: 6 layers of width 256, 8 heads, 8,000 words; for every family that both exporters know. All three
graphs run in torchless's runtime, in one interleaved run; speeds are medians, as ratios to the raw graph's.
GPT-1 has no row: optimum-onnx 0.1.0 has no config for `openai-gpt` and refuses it.

usage: python benchmarks/exporters.py [--rounds N] [--families NAME ...]
       (in an environment with optimum-onnx 0.1.0: pip install -e ".[cpu,optimum]")
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import torch
import transformers

from torchless.adopting import adopt
from torchless.bundle import Bundle, read_bundle
from torchless.decoder import Decoder
from torchless.encoder import Encoder
from torchless.export import export
from torchless.export.optimum import _trace as trace
from torchless.providers import choose_provider
from torchless.session import open_session
from torchless.tasks import TASKS

SIZES: dict[str, Any] = dict(
    vocab_size=8000, hidden_size=256, num_hidden_layers=6, num_attention_heads=8, intermediate_size=1024,
    max_position_embeddings=512, pad_token_id=0,
)  # fmt: skip
SHIFTED = dict(max_position_embeddings=514, pad_token_id=1, type_vocab_size=1)
ENDS: dict[str, Any] = dict(bos_token_id=0, eos_token_id=None, pad_token_id=None)
GROUPED = ENDS | dict(num_key_value_heads=4)
CLASSIFIER, WORDS, CAUSAL = "ForSequenceClassification", "ForMaskedLM", "ForCausalLM"
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", ENDS | dict(n_positions=512, n_embd=256, n_layer=6, n_head=8)),
    "llama": (f"Llama{CAUSAL}", GROUPED),
    "mistral": (f"Mistral{CAUSAL}", GROUPED | dict(sliding_window=None)),
    "qwen2": (f"Qwen2{CAUSAL}", GROUPED),
    "qwen3": (f"Qwen3{CAUSAL}", GROUPED | dict(head_dim=32)),
    "bert": (f"Bert{CLASSIFIER}", {}),
    "distilbert": (f"DistilBert{CLASSIFIER}", dict(dim=256, n_layers=6, n_heads=8, hidden_dim=1024)),
    "roberta": (f"Roberta{CLASSIFIER}", SHIFTED),
    "xlm-roberta": (f"XLMRoberta{WORDS}", SHIFTED),
    "camembert": (f"Camembert{WORDS}", SHIFTED),
    "electra": (f"Electra{CLASSIFIER}", dict(embedding_size=128)),
    "albert": (f"Albert{WORDS}", dict(embedding_size=128)),
    "mpnet": ("MPNetModel", dict(max_position_embeddings=514, pad_token_id=1)),
    "modernbert": (
        f"ModernBert{CLASSIFIER}",
        dict(local_attention=64, bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3),
    ),
    "deberta-v2": (
        f"DebertaV2{CLASSIFIER}",
        dict(
            relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm",
            position_buckets=64, position_biased_input=False, type_vocab_size=0,
        ),
    ),
}  # fmt: skip
LENGTH, NEW = 128, 32
HEAD = (
    "| family | exporter | MB | operators | error to torch | same ids | {first} | {second} |\n" + "|---" * 8 + "|\n"
)


@dataclass
class Contender:
    name: str
    bundle: Bundle
    run: Any  # a Decoder or an Encoder


def made(family: str) -> Any:
    kind, config = FAMILIES[family]
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**SIZES | config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def contenders(model: Any, folder: Path) -> list[Contender]:
    checkpoint = folder / "checkpoint"
    model.save_pretrained(checkpoint)
    direct = export(model, folder / "direct", check=False)
    task = read_bundle(direct).manifest.task
    trace(checkpoint, folder / "traced", task)
    raw = adopt(folder / "traced", folder / "raw")
    fused = export(checkpoint, folder / "fused", exporter="optimum", check=False)
    found = []
    for name, path in (("direct", direct), ("optimum", raw), ("optimum, fused", fused)):
        bundle = read_bundle(path)
        session = open_session(bundle, bundle.manifest.graphs[0], choose_provider("cpu"))
        decodes = bundle.manifest.cache is not None
        run = Decoder(session, bundle) if decodes else Encoder(session, bundle, *TASKS[task].outputs)
        found.append(Contender(name, bundle, run))
    return found


def error_of(one: Contender, model: Any, ids: Any) -> tuple[float, str]:
    """The largest difference to torch, and whether 32 greedy tokens are the same."""
    with torch.no_grad():
        answer = model(torch.tensor(ids[None]))
    if isinstance(one.run, Decoder):
        ours = one.run.extend(one.run.new_cache(), ids, keep=range(len(ids)))
        wanted = answer.logits[0].numpy()
        theirs = model.generate(torch.tensor(ids[None]), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        same = decode(one.run, ids, NEW) == theirs[0, len(ids) :].tolist()
        return float(np.abs(ours - wanted).max()), "yes" if same else "no"
    ours = one.run.run(ids[None], np.ones((1, len(ids)), int), np.zeros((1, len(ids)), int))[0]
    states = answer["last_hidden_state"][0].mean(0) if "last_hidden_state" in answer else answer.logits[0]
    return float(np.abs(ours - states.numpy()).max()), ""


def decode(decoder: Decoder, ids: Any, count: int) -> list[int]:
    cache = decoder.new_cache()
    found = [int(decoder.extend(cache, ids)[-1].argmax())]
    step = decoder.stepper(cache)
    while len(found) < count:
        found.append(int(step([found[-1]])[0].argmax()))
    return found


def tests_of(one: Contender, ids: Any) -> list[Callable[[], Any]]:
    """What is timed: a prompt and the tokens after it, or one text and eight."""
    run = one.run
    if isinstance(run, Decoder):
        cache = run.new_cache()
        run.extend(cache, ids)
        step = run.stepper(cache)

        def tokens() -> None:
            for token in ids[:NEW]:
                step([int(token)])
            cache.lengths -= NEW

        return [lambda: run.extend(run.new_cache(), ids), tokens]

    def texts(rows: int) -> Callable[[], Any]:
        given = np.tile(ids, (rows, 1)), np.ones((rows, len(ids)), int), np.zeros((rows, len(ids)), int)
        return lambda: run.run(*given)

    return [texts(1), texts(8)]


def compare(family: str, rounds: int, folder: Path) -> list[str]:
    model = made(family)
    ids = np.random.default_rng(0).integers(2, 8000, LENGTH)
    several = contenders(model, folder)
    timed = [tests_of(one, ids) for one in several]
    times: list[list[list[float]]] = [[[], []] for _ in several]
    for turn in range(rounds + 1):
        for index, tests in enumerate(timed):
            for which, test in enumerate(tests):
                start = time.perf_counter()
                test()
                if turn:  # the first warms up
                    times[index][which].append(time.perf_counter() - start)
    rows = []
    base = [median(times[1][which]) for which in range(2)]
    for one, spent in zip(several, times, strict=True):
        graph = onnx.load(one.bundle.file(one.bundle.manifest.graphs[0].file), load_external_data=False).graph
        error, same = error_of(one, model, ids)
        kinds = Counter(node.op_type for node in graph.node)
        ratios = [f"{base[which] / median(spent[which]):.2f}" for which in range(2)]
        operators = f"{sum(kinds.values())} of {len(kinds)} kinds"
        cells = [family, one.name, f"{one.bundle.size / 1e6:.1f}", operators, f"{error:.1e}", same, *ratios]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    decoders = [family for family in args.families if "LM" in FAMILIES[family][0] and family in list(FAMILIES)[:5]]
    for group, first, second in (
        (decoders, f"prompt of {LENGTH}", f"{NEW} tokens, one by one"),
        ([family for family in args.families if family not in decoders], f"1 x {LENGTH}", f"8 x {LENGTH}"),
    ):
        if group:
            print(HEAD.format(first=first, second=second), end="")
        for family in group:
            with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
                print("\n".join(compare(family, args.rounds, Path(scratch))), flush=True)
        print()


if __name__ == "__main__":
    main()
