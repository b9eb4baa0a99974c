"""Memory after long inputs: what a process keeps of batches of every size, and what giving it back costs.

    python benchmarks/memory.py BUNDLE... [--calls 60] [--seed 0] [--json FILE]

Each bundle and setting is a process of its own. It reads one typical text (128 tokens) and notes its resident
memory; then batches of 1 to 32 texts of 8 to 512 tokens in random order (a GPT continues them by 4 tokens), the
same ones for all settings; then five short texts, and notes its memory again. It should be at most 1.3 times the
first. Afterwards it reads single texts and large batches, each kind again and again, for the time that they take.

Settings: "given back" is the default; "kept" leaves all in onnxruntime's arena; "no arena" is CPU(arena=False).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BATCH, LENGTHS, TYPICAL = 32, (8, 512), 128
SINGLE, LARGE = 30, 8  # calls that are timed: of one text of TYPICAL tokens, of 16 long texts
ALLOWED = 1.3
SETTINGS = ("given back", "kept", "no arena")


def resident() -> float:
    """Megabytes that the process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def work(bundle: str, setting: str, calls: int, seed: int) -> dict[str, Any]:
    import torchless
    from torchless import batching, hosted

    if setting == "kept":
        hosted.LARGE = batching.LARGE = sys.maxsize
    model = torchless.load(bundle, provider=torchless.CPU(arena=setting != "no arena"))
    chance = random.Random(seed)
    longest = min(LENGTHS[1], model.context_length - 8)
    word = "a"

    def ask(texts: int, tokens: int) -> None:
        if isinstance(model, torchless.TextGeneration):
            ids = [[chance.randrange(1, 200) for _ in range(tokens)] for _ in range(texts)]
            model(ids, max_new_tokens=4, eos_token_id=None, batch_size=BATCH)
        else:
            model([" ".join([word] * tokens)] * texts, batch_size=BATCH, truncation=True)

    def seconds(times: int, *call: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            ask(*call)
        return (time.perf_counter() - start) / times

    ask(1, TYPICAL)
    first, most = resident(), 0.0
    start = time.perf_counter()
    for _ in range(calls):
        ask(chance.randint(1, BATCH), chance.randint(LENGTHS[0], longest))
        most = max(most, resident())
    soak = time.perf_counter() - start
    for _ in range(5):
        ask(1, 32)
    last = resident()
    return {
        "typical": first, "most": most, "after": last, "ratio": last / first, "soak": soak,
        "single": seconds(SINGLE, 1, min(TYPICAL, longest)), "large": seconds(LARGE, 16, longest),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--work", choices=SETTINGS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(work(args.bundles[0], args.work, args.calls, args.seed)))
        return 0
    rows = []
    for bundle in args.bundles:
        for setting in SETTINGS:
            command = [sys.executable, __file__, bundle, "--work", setting, "--calls", str(args.calls)]
            done = subprocess.run([*command, "--seed", str(args.seed)], capture_output=True, text=True, check=True)
            row = {"bundle": Path(bundle).name, "setting": setting, **json.loads(done.stdout)}
            rows.append(row)
            print(
                f"{row['bundle']:16} {setting:10}  typical {row['typical']:6.1f} MB  most {row['most']:7.1f}  "
                f"after {row['after']:6.1f}: {row['ratio']:.2f} of it  soak {row['soak']:6.2f} s  "
                f"single {row['single'] * 1e3:6.2f} ms  large {row['large'] * 1e3:7.1f} ms",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return max(row["ratio"] for row in rows if row["setting"] == SETTINGS[0]) > ALLOWED


if __name__ == "__main__":
    sys.exit(main())
