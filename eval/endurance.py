"""What a run survives, tried for real: `python eval/endurance.py` (Linux; a full disk and a read-only one need root).

- Memory: 5,000 steps on the digits; the growth of the process between step 500 and the last.
- A disk that fills up: a small file system in memory, filled when three epochs are done. Training says so and goes on,
  cannot write its weights at the end, and says that; with space again, --resume ends as an undisturbed run.
- A folder that becomes read-only, in the same way.
- A loss that is not a number at step 100: the batch is skipped, counted and told.

Writes eval/results/endurance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from ncode_gen.runfolder.records import JsonLines
from ncode_gen.runfolder.run import METRICS, run_identity
from ncode_gen.runtime.files import write_text

RESULT = Path(__file__).parent / "results" / "endurance.md"
TRAIN = [sys.executable, "-m", "ncode_gen.train"]
SHORT = ["--training.epochs", "40", "--quiet"]
DISK_MIB = 24
POISONED = """
import sys
from ncode_gen.training.step import TrainingStep
real, taken = TrainingStep.__call__, 0
def step(self, images, *rest):
    global taken
    taken += 1
    return real(self, images * float("nan") if taken == 100 else images, *rest)
TrainingStep.__call__ = step
from ncode_gen.command import run_command
from ncode_gen.train import main
run_command(main)
"""


def rows_of(run: Path) -> list[dict[str, float]]:
    """Return what metrics.jsonl tells so far."""
    try:
        return JsonLines(run / METRICS, run_identity(run) or "").read()
    except FileNotFoundError:
        return []


def memory(folder: Path) -> str:
    """Return how much a process grows in 5,000 steps."""
    run = folder / "memory"
    process = subprocess.Popen([*TRAIN, "--training.epochs", "240", "--out", str(run), "--quiet"])
    seen: list[tuple[int, int]] = []
    while process.poll() is None:
        rows = rows_of(run)
        step = int(rows[-1]["step"]) if rows else 0
        # The weights are written when training is over; then come the pictures.
        if step > 500 and not (run / "weights.safetensors").exists():
            status = Path(f"/proc/{process.pid}/status").read_text()
            seen.append((step, int(status.partition("VmRSS:")[2].split()[0])))
        time.sleep(0.5)
    (first, before), (last, after) = seen[0], seen[-1]
    growth = 100 * (after - before) / before
    return f"memory from step {first} to {last}: {before / 1024:.1f} to {after / 1024:.1f} MiB, {growth:+.2f} %"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small file system in memory."""
    place = folder / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


def fill(place: Path) -> None:
    """Write until nothing more fits."""
    with (place / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(os.urandom(4096))
            except OSError:
                return


def make_read_only(place: Path) -> None:
    """Put a read-only view of the run folder over it, which files that are open already do not hinder."""
    run, view = str(place / "run"), place / "view"
    view.mkdir()
    # Made read-only elsewhere: a file that is opened through it meanwhile would forbid that.
    subprocess.run(["mount", "--bind", run, str(view)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(view)], check=True)
    subprocess.run(["mount", "--bind", str(view), run], check=True)


def make_writable(place: Path) -> None:
    """Take the view away."""
    for name in ("run", "view"):
        subprocess.run(["umount", "--lazy", str(place / name)], check=True)


def disturbed(
    folder: Path, whole: Path, name: str, disturb: Callable[[Path], object], mend: Callable[[Path], object]
) -> str:
    """Return how a run ends whose place goes bad after three epochs, and after it was mended."""
    with small_disk(folder) as place:
        run = place / "run"
        process = subprocess.Popen([*TRAIN, *SHORT, "--out", str(run)], stderr=subprocess.PIPE, text=True)
        while len(rows_of(run)) < 3:
            time.sleep(0.02)
        disturb(place)
        _, told = process.communicate()
        mend(place)
        kept = len(rows_of(run))
        resumed = subprocess.run([*TRAIN, "--resume", str(run), "--quiet"], capture_output=True, text=True, check=False)
        if resumed.returncode:
            return f"{name}: could not be resumed: {resumed.stderr}"
        a, b = load_file(whole / "weights.safetensors"), load_file(run / "weights.safetensors")
        same = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    last = told.strip().splitlines()[-1].replace(str(folder), "...")
    return (
        f"{name}: exit code {process.returncode}, {'a' if 'Traceback' in told else 'no'} traceback, the last line is "
        f"{last!r}; {kept} epochs were kept; resumed, the final weights are {'' if same else 'NOT '}those of an "
        "undisturbed run, bit for bit"
    )


def poisoned(folder: Path) -> str:
    """Return how a run takes a loss that is not a number at step 100."""
    run = folder / "nan"
    done = subprocess.run(
        [sys.executable, "-c", POISONED, *SHORT, "--out", str(run)], capture_output=True, text=True, check=False
    )
    skipped = {int(row["epoch"]): int(row["skipped"]) for row in rows_of(run) if row["skipped"]}
    finite = all(bool(value.isfinite().all()) for value in load_file(run / "weights.safetensors").values())
    return (
        f"NaN at step 100: exit code {done.returncode}, told {' '.join(done.stderr.split())!r}, skipped by epoch "
        f"{json.dumps(skipped)}, final weights {'' if finite else 'NOT '}finite"
    )


def main() -> None:
    """Try all, and write what happened."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        lines = [memory(folder), poisoned(folder)]
        whole = folder / "whole"
        subprocess.run([*TRAIN, *SHORT, "--out", str(whole)], check=True)
        lines.append(disturbed(folder, whole, "disk full", fill, lambda place: (place / "filler").unlink()))
        lines.append(disturbed(folder, whole, "read-only folder", make_read_only, make_writable))
    text = "# What a run survives\n\n`python eval/endurance.py`, default model of the digits, on a CPU\n\n"
    text += "".join(f"- {line}\n" for line in lines)
    write_text(RESULT, text)
    print(text)


if __name__ == "__main__":
    main()
