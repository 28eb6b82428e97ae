"""Time of drawing 10,000 images from published models: `python eval/sampling.py`.

First the command, `python -m ncode_gen.sample RUN --n 10000 --out FILE.npz`, as a whole, beside the same with freed
memory given back to the system, as it is without `ncode_gen.runtime.allocator`, the same with `--precision bf16`, and a
process that only imports what it needs.
Then, in one process, its parts: reading the model, latents from the prior, pictures, and what the refiner adds; beside
the last, the same images with the cores sharing every operation of a batch of 500 instead of drawing images of their
own, and with the refiner's network evaluated at noise too, or not, as `observation.zero_mean_residual` decides.
Contenders take turns, so that a busy machine slows all alike; medians of `--repeats` are shown.

Writes eval/results/sampling.{json,md}.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from ncode_gen.distributions import LatentModel, Refined
from ncode_gen.runfolder.run import load_run
from ncode_gen.runtime.allocator import SWITCH, keep_freed_memory
from ncode_gen.runtime.files import write_json, write_text

ROOT = Path(__file__).parent.parent
RUNS = ("mnist-ncode-refined", "mnist-ncode-refined-long", "mnist-ncode-autoencoder", "fashion-mnist-ncode-refined")
IMPORTS = "import ncode_gen.sample, ncode_gen.runfolder.run, ncode_gen.data.pictures, numpy, PIL.Image"


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def taking_turns(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each contender."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, work in contenders.items():
            spent[name].append(seconds_of(work))
    return {name: round(median(taken), 2) for name, taken in spent.items()}


def command(run: Path, n: int, repeats: int) -> dict[str, float]:
    """Time the whole command, as it is and with freed memory given back, and its imports alone."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "samples.npz")
        asked = [sys.executable, "-m", "ncode_gen.sample", str(run), "--n", str(n), "--out", out, "--quiet"]
        run_in_root = functools.partial(subprocess.run, check=True, cwd=ROOT)
        contenders: dict[str, Callable[[], object]] = {
            "command": lambda: run_in_root(asked),
            "command, memory given back": lambda: run_in_root(asked, env=os.environ | {SWITCH: "0"}),
            "command, bf16": lambda: run_in_root([*asked, "--precision", "bf16"]),
            "imports": lambda: run_in_root([sys.executable, "-c", IMPORTS]),
        }
        return taking_turns(contenders, repeats)


def one_after_another(function: Callable[..., Tensor], *rows: Tensor, batch: int) -> Tensor:
    """Do what `in_parts` does, the cores sharing every operation."""
    with torch.no_grad():
        return torch.cat([function(*part) for part in zip(*(tensor.split(batch) for tensor in rows), strict=True)])


def parts(run: Path, n: int, repeats: int) -> dict[str, float]:
    """Time the parts of drawing images."""
    held: LatentModel = load_run(run)
    generator = torch.Generator().manual_seed(0)
    latents = held.prior.sample(n, generator)

    noise = torch.randn(n, *held.shape, generator=generator)

    def shared() -> None:
        one_after_another(held.observation.sample, latents, noise, batch=500)

    contenders: dict[str, Callable[[], object]] = {
        "model": lambda: load_run(run),
        "latents": lambda: held.prior.sample(n, generator),
        "pictures": lambda: held.decode(latents),
        "images": lambda: held.sample_images(latents, generator),
        "images, operations shared": shared,
    }
    if isinstance(held.observation, Refined):
        for name, zero_mean in (("zero mean", True), ("not zero mean", False)):
            other = load_run(run)
            cast(Refined, other.observation).refiner.zero_mean_residual = zero_mean
            contenders[f"images, {name}"] = functools.partial(other.sample_images, latents, generator)
    held.sample_images(latents[:200], generator)  # fills the libraries' own buffers
    return taking_turns(contenders, repeats)


def table(found: dict[str, dict[str, Any]], n: int, repeats: int) -> str:
    """Return the tables in Markdown."""
    lines = [
        f"Seconds for {n:,} images on {torch.get_num_threads()} threads of a CPU, torch {torch.__version__}, "
        f"medians of {repeats}: `python eval/sampling.py`.",
        "",
        "| model | command | its imports | command without | memory given back | ratio | in bf16 | ratio "
        "| reading the model | latents | pictures | images |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, took in found.items():
        whole, imports = took["command"], took["imports"]
        given_back, half = (took[f"command, {way}"] - imports for way in ("memory given back", "bf16"))
        rest = " | ".join(f"{took[key]:.1f}" for key in ("model", "latents", "pictures", "images"))
        lines.append(
            f"| {name} | {whole:.1f} | {imports:.1f} | **{whole - imports:.1f}** | {given_back:.1f} "
            f"| {(whole - imports) / given_back:.2f} | {half:.1f} | {half / (whole - imports):.2f} | {rest} |"
        )
    lines += [
        "",
        "Images: pictures with what the refiner adds, where there is one. Cores that draw images of their own, against "
        "cores that share every operation; a refiner that is evaluated once less, against one that is not:",
        "",
        "| model | images of their own | operations shared | ratio | zero mean | not zero mean | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, took in found.items():
        own, shared = took["images"], took["images, operations shared"]
        row = f"| {name} | {own:.1f} | {shared:.1f} | {own / shared:.2f}"
        if "images, zero mean" in took:
            yes, no = took["images, zero mean"], took["images, not zero mean"]
            row += f" | {yes:.1f} | {no:.1f} | {yes / no:.2f} |"
        else:
            row += " | - | - | - |"
        lines.append(row)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Time all, write and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=RUNS, help="folders in checkpoints/")
    parser.add_argument("--n", type=int, default=10000, help="images")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()  # as the commands do
    found: dict[str, dict[str, Any]] = {}
    for name in options.runs:
        run = ROOT / "checkpoints" / name
        found[name] = command(run, options.n, options.repeats) | parts(run, options.n, options.repeats)
        print(name, found[name], flush=True)
    results = ROOT / "eval" / "results"
    write_json(results / "sampling.json", {"threads": torch.get_num_threads(), "images": options.n, "seconds": found})
    text = table(found, options.n, options.repeats)
    write_text(results / "sampling.md", text)
    print(text)


if __name__ == "__main__":
    main()
