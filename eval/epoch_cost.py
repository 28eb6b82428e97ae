"""Time training steps of two recipes side by side: `python eval/epoch_cost.py mnist vae ncode-open`.

Both models are compiled, then take turns in short blocks of steps in one process, so that a busy machine slows both
alike. Prints the median over the pairs of blocks of their ratio, with its quartiles; writes
eval/results/epoch_cost.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from steps import step_of

from ncode_gen.runtime.files import write_json

ROOT = Path(__file__).parent.parent
BLOCKS, STEPS = 61, 15


def main() -> None:
    """Time the two recipes and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("base")
    parser.add_argument("other")
    parser.add_argument("--root", default="data", help="folder of the image sets")
    options = parser.parse_args()
    names = (options.base, options.other)
    steppers = [step_of(f"{options.data}/{name}", options.root) for name in names]
    times: list[list[float]] = [[], []]
    for _ in range(BLOCKS):
        for once, spent in zip(steppers, times, strict=True):
            start = time.perf_counter()
            for _ in range(STEPS):
                once()
            spent.append((time.perf_counter() - start) / STEPS)
    medians = [sorted(spent)[BLOCKS // 2] for spent in times]
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    result = {
        "data": options.data,
        "threads": torch.get_num_threads(),
        "milliseconds_a_step": dict(zip(names, [round(1000 * m, 2) for m in medians], strict=True)),
        "median_ratio": round(ratios[BLOCKS // 2], 3),
        "ratio_quartiles": [round(ratios[BLOCKS // 4], 3), round(ratios[3 * BLOCKS // 4], 3)],
        "blocks": BLOCKS,
        "steps_a_block": STEPS,
    }
    print(result)
    write_json(ROOT / "eval" / "results" / "epoch_cost.json", result)


if __name__ == "__main__":
    main()
