"""What choosing a token costs: milliseconds over GPT-2's 50,257 logits, by setting.

    python benchmarks/sampling.py [--draws 200]

Three kinds of logits: of a text (a Zipf law, in which few tokens have nearly all probability), scattered (normal,
with a deviation of 3), and nearly flat, as random weights give. The settings take turns; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from torchless.generation_config import GenerationConfig
from torchless.sampling import make_sampler

VOCABULARY = 50257
SETTINGS = (
    {}, {"temperature": 0.8}, {"top_k": 50}, {"temperature": 0.8, "top_p": 0.95}, {"min_p": 0.05},
    {"typical_p": 0.9}, {"temperature": 0.8, "top_k": 50, "top_p": 0.95}, {"repetition_penalty": 1.2},
    {"no_repeat_ngram_size": 3},
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    zipf = -1.3 * np.log(1 + generator.permutation(VOCABULARY)) + generator.normal(size=VOCABULARY)
    kinds = {"text": zipf, "scattered": 3 * generator.normal(size=VOCABULARY)}
    kinds["flat"] = 0.3 * generator.normal(size=VOCABULARY)
    logits = {name: values.astype(np.float32) for name, values in kinds.items()}
    ids = generator.integers(0, VOCABULARY, 300)
    samplers = [make_sampler(GenerationConfig().override(settings), 100) for settings in SETTINGS]
    times: dict[tuple[int, str], list[float]] = {}
    for _ in range(args.draws):
        for number, sampler in enumerate(samplers):
            for kind, values in logits.items():
                start = time.perf_counter()
                sampler(values, ids, 5)
                times.setdefault((number, kind), []).append(time.perf_counter() - start)
    print(f"{'':48}" + "".join(f"{kind:>11}" for kind in logits))
    for number, settings in enumerate(SETTINGS):
        told = ", ".join(f"{name}={value}" for name, value in settings.items()) or "greedy"
        medians = [1e3 * statistics.median(times[number, kind]) for kind in logits]
        print(f"{told:48}" + "".join(f"{median:8.3f} ms" for median in medians))


if __name__ == "__main__":
    main()
