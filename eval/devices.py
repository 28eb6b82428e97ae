"""Time of training, sampling and scoring on a device: `python eval/devices.py --device cuda`.

Training steps of several recipes, batch and precision as these say: as they are, and compiled as training does it, on
CUDA with CUDA graphs; both take turns in short blocks in one process, and medians over the blocks are shown. Compiling
is not counted. Then, with checkpoints: 10,000 samples, and the likelihood of test images at K = 512 in float32
with the model's own solver; each the best of three. The commands' other work, imports and files, is not counted.

Keeps what was measured on other devices; writes eval/results/devices.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from steps import step_of

from ncode_gen.config import Recipe
from ncode_gen.data.sets import load_data
from ncode_gen.distributions import likelihood_bounds
from ncode_gen.runfolder.run import find_run, load_run
from ncode_gen.runtime.device import resolve_device, use_full_precision
from ncode_gen.runtime.environment import describe_environment
from ncode_gen.runtime.files import write_json, write_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "eval" / "results"
RECIPES = ("mnist/vae", "mnist/ncode-open", "mnist/ncode-autoencoder", "mnist/ncode-refined")
SAMPLED = ("mnist-ncode-refined", "fashion-mnist-ncode-refined")
SCORED = ("mnist-ncode-open", "mnist-ncode-open-flow")
BLOCKS, STEPS, SAMPLES, IMAGES, PARTICLES = 9, 20, 10000, 50, 512
WAYS = ("plain", "compiled")


def stepper(name: str, device: torch.device, root: str, *, compiled: bool) -> Callable[[], float]:
    """Return a function that takes some training steps of a recipe, warm, and returns the seconds of one."""
    once = step_of(name, root, device, "on" if compiled else "off")

    def block() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            found = once()
        found.tolist()  # waits for the device
        return (time.perf_counter() - start) / STEPS

    block()
    return block


def steps_of(name: str, device: torch.device, root: str) -> dict[str, float]:
    """Return the milliseconds of a step of a recipe by the way it is computed, all taking turns."""
    blocks = {way: stepper(name, device, root, compiled=way == "compiled") for way in WAYS}
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(BLOCKS):
        for way, block in blocks.items():
            spent[way].append(block())
    return {way: round(1e3 * sorted(taken)[BLOCKS // 2], 3) for way, taken in spent.items()}


def best_of_three(work: Callable[[], torch.Tensor]) -> float:
    """Return the seconds of the fastest of three calls, after one that warms up."""
    work().sum().item()
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        work().sum().item()
        taken.append(time.perf_counter() - start)
    return min(taken)


def sampling(name: str, device: torch.device) -> float:
    """Return the seconds of drawing 10,000 images with a published checkpoint."""
    model = load_run(find_run(f"checkpoints/{name}"), device)
    return best_of_three(lambda: model.sample(SAMPLES, torch.Generator().manual_seed(0)))


def scoring(name: str, device: torch.device, root: str) -> float:
    """Return the images a second whose likelihood is found with a published checkpoint."""
    model = load_run(find_run(f"checkpoints/{name}"), device)
    images = load_data(Recipe.load(ROOT / "models/mnist/vae.toml").data.at(root)).test
    some = images.first(IMAGES, device)

    def work() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.cat([bound for _, bound in likelihood_bounds(model, some, PARTICLES, generator)])

    return IMAGES / best_of_three(work)


def measure(device: torch.device, root: str, found: dict[str, Any]) -> Iterator[None]:
    """Measure everything on a device into `found`, pausing after each part."""
    environment = describe_environment(device, 0)
    found |= {key: environment[key] for key in ("device", "commit", "threads")}
    found |= {"torch": torch.__version__, "steps": {}, "sampling": {}, "scoring": {}}
    torch.set_float32_matmul_precision("high")  # as in training
    for name in RECIPES:
        torch._dynamo.reset()
        found["steps"][name] = steps_of(name, device, root)
        print(name, found["steps"][name], flush=True)
        yield
    use_full_precision()
    for name in SAMPLED:
        found["sampling"][name] = round(sampling(name, device), 3)
        yield
    for name in SCORED:
        found["scoring"][name] = round(scoring(name, device, root), 2)
        yield


def _checkpoints(rows: list[dict[str, Any]], key: str, title: str, digits: int) -> list[str]:
    """Return the lines of a table of what was measured with published checkpoints."""
    names = list(dict.fromkeys(name for row in rows for name in row[key]))
    lines = ["", f"## {title}", "", f"| device | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for row in rows:
        if row[key]:
            shown = " | ".join(f"{row[key][name]:.{digits}f}" if name in row[key] else "-" for name in names)
            lines.append(f"| {row['device']} | {shown} |")
    return lines


def table(rows: list[dict[str, Any]]) -> str:
    """Return what was measured on all devices as Markdown."""
    lines = ["# Devices", "", "`python eval/devices.py --device DEVICE`; the protocol is said at its top.", ""]
    lines += [f"- {row['device']}: torch {row['torch']}, {row['threads']} CPU threads" for row in rows]
    lines += ["", "## Training steps of 128 images", ""]
    lines += ["| device | recipe | plain, ms | compiled, ms | gain | images a second |", "|---|---|" + "---:|" * 4]
    for row in rows:
        for name, spent in row["steps"].items():
            shown, best = " | ".join(f"{spent[way]:.2f}" for way in WAYS), min(spent.values())
            lines.append(f"| {row['device']} | {name} | {shown} | {spent['plain'] / best:.1f} | {128e3 / best:.0f} |")
    lines += _checkpoints(rows, "sampling", f"Seconds for {SAMPLES:,} samples", 2)
    lines += _checkpoints(rows, "scoring", f"Images a second scored at K = {PARTICLES}", 1)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure on one device and write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--root", default="data", help="folder of the image sets")
    options = parser.parse_args()
    path = RESULTS / "devices.json"
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found: dict[str, Any] = {}
    for _ in measure(resolve_device(options.device), options.root, found):
        write_json(path, rows | {f"{found['device']}, {found['threads']} threads": found})
    rows[f"{found['device']}, {found['threads']} threads"] = found
    text = table(list(rows.values()))
    write_text(path.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
