"""Time and memory of controlled flows beside other solvers, in one run: `python eval/speed.py`.

The problem: the field d -> h -> d (tanh) with all weights each sample's own, as a given control (n, P), solved over
[0, 1]; gradients of states and control. Ours: `ControlledODE`, called as it is (compiled code of `ncode_gen`), the
plain loop in torch, and that loop under torch.compile. Beside them torchdiffeq: rk4 with the same steps, dopri5 (1e-4),
and its adjoint (rk4, same steps, the control as a parameter); torchode's dopri5 where it is installed.

All contenders of a size take turns in one process, in blocks of 30 ms or one call, so that a busy machine slows all
alike; medians are shown. Peak memory is that of a process of its own, less what it held before (Linux only). Bandwidth
is that of summing a tensor of 1 GiB. Then: a closed loop that rebuilds all weights, by plain autograd and by
checkpoints; and the time to the first step of `python -m ncode_gen.train`, and to the first compiled one, with an empty
and with a warm compiler cache.

Writes eval/results/speed.{json,md,png}.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torchdiffeq
from solves import Call, closed, contenders, problem
from steps import phase_of
from torch import Tensor

from ncode_gen.config import Recipe
from ncode_gen.figures.style import COLOURS
from ncode_gen.runtime.files import write_atomically, write_json, write_text

RESULTS = Path(__file__).parent / "results"
SIZES = ((16, 16, 8), (32, 64, 8), (64, 128, 8), (128, 256, 4))
BATCHES = (64, 256, 1024)
SHOWN = ("ncode_gen", "plain loop", "compiled loop", "torchdiffeq rk4", "torchdiffeq dopri5", "odeint_adjoint rk4")
CHECKPOINTED = (128, 256, 4)


def forward(call: Call, control: Tensor, x: Tensor, _: Tensor) -> None:
    """Solve without gradients."""
    with torch.no_grad():
        call(control, x)


def both(call: Call, control: Tensor, x: Tensor, cotangent: Tensor) -> None:
    """Solve and find the gradients."""
    torch.autograd.grad(call(control, x), (control, x), cotangent)


def timed(
    calls: dict[str, Call], work: Callable[[Call, Tensor, Tensor, Tensor], None], given: tuple[Tensor, Tensor, Tensor]
) -> dict[str, float]:
    """Return the median milliseconds of each contender, all taking turns."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    sizes = {}
    for name, call in calls.items():
        work(call, *given)
        start = time.perf_counter()
        work(call, *given)
        taken = time.perf_counter() - start
        sizes[name] = max(
            1, min(10, int(0.03 / taken))
        )  # calls of a block: short ones follow each other, as in training
        spent[name].append(taken)
    whole = sum(size * spent[name][0] for name, size in sizes.items())
    for _ in range(max(5, min(15, int(6 / whole)))):
        for name, call in calls.items():
            for _ in range(sizes[name]):
                start = time.perf_counter()
                work(call, *given)
                spent[name].append(time.perf_counter() - start)
    return {name: 1e3 * sorted(taken[1:])[(len(taken) - 1) // 2] for name, taken in spent.items()}


def bandwidth() -> float:
    """Return the bytes that are read from memory in a second, by all threads."""
    numbers = torch.ones(2**28)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - start)
    return numbers.numel() * 4 / best


def held_kib(what: str) -> int:
    """Return VmRSS (held now) or VmHWM (held at most) of this process in KiB, from Linux's /proc."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(what))


def child_memory(job: str) -> float:
    """In a process of its own: return the MiB that forward and backward need at their peak, beyond what was held."""
    name, *numbers = job.split("|")
    dim, hidden, steps, batch = map(int, numbers)
    call: Call
    if name.startswith("closed"):
        call, given = closed(name.removeprefix("closed "), dim, hidden, steps, batch)
    else:
        call, given = contenders(dim, hidden, steps)[name], problem(dim, hidden, batch)
    both(call, *given)  # compiles, and fills the libraries' own buffers
    gc.collect()
    before = held_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    both(call, *given)
    return (held_kib("VmHWM") - before) / 1024


def in_child(job: str) -> float:
    """Run `child_memory` in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", job]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def child_first_step(path: str) -> None:
    """In a process of its own: print the time of day after the first step and the first compiled one."""
    recipe = Recipe.load(path)
    compiled = dataclasses.replace(recipe.training, compile="on")
    phase = phase_of(dataclasses.replace(recipe, training=compiled), torch.device("cpu"))
    assert phase.step is not None and phase.step.compiled is not None
    loss = phase.step.compiled
    for parts, _ in phase.batches(phase.sizes()):
        phase.update(parts)
        if loss.calls == 1:
            print("first step at", time.time(), flush=True)
        elif loss.calls > loss.plain_calls:
            print("compiled step at", time.time(), flush=True)
            break


def first_steps(recipe: str) -> dict[str, float]:
    """Return the seconds from the command to the first step and the first compiled one, cache empty and warm."""
    found = {}
    path = Path(__file__).parent.parent / "models" / f"{recipe}.toml"
    with tempfile.TemporaryDirectory() as scratch:
        # torchode needs another typeguard than tyro; if PYTHONPATH lends it, the program must not see it.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        places = {"TORCHINDUCTOR_CACHE_DIR": f"{scratch}/torch", "XDG_CACHE_HOME": f"{scratch}/ncode"}
        for which in ("empty", "warm", "warm, again"):
            command = [sys.executable, __file__, "--first-step-of", str(path)]
            start = time.time()
            done = subprocess.run(command, capture_output=True, text=True, env={**inherited, **places}, check=True)
            for line in done.stdout.splitlines():
                name, found_at, moment = line.rpartition(" at ")
                if found_at and name in ("first step", "compiled step"):
                    found[f"{name}, {which}"] = float(moment) - start
    return found


def measure_closed() -> dict[str, Any]:
    """Measure the closed loop that rebuilds all weights, by plain autograd and by checkpoints."""
    dim, hidden, steps = CHECKPOINTED
    loops = {gradient: closed(gradient, dim, hidden, steps, 256) for gradient in ("backprop", "checkpoint")}
    calls = {name: call for name, (call, _) in loops.items()}
    found = {
        "milliseconds": timed(calls, both, loops["backprop"][1]),
        "memory_mib": {name: in_child(f"closed {name}|{dim}|{hidden}|{steps}|256") for name in loops},
    }
    print(found, flush=True)
    return found


def measure(sizes: tuple[tuple[int, int, int], ...], batches: tuple[int, ...]) -> dict[str, Any]:
    """Measure everything."""
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchdiffeq": torchdiffeq.__version__,
        "bandwidth": bandwidth(),
        "rows": [],
    }
    for dim, hidden, steps in sizes:
        torch._dynamo.reset()
        calls = contenders(dim, hidden, steps)
        for batch in batches:
            given = problem(dim, hidden, batch)
            name = f"{dim}, {hidden}, {steps}"
            row: dict[str, Any] = {"size": name, "batch": batch, "bytes": given[0].numel() * 4, "nfe": 4 * steps}
            # The compiler takes its time anew for every shape, so its loop is timed at one batch.
            chosen = {call: f for call, f in calls.items() if batch == 256 or call != "compiled loop"}
            for kind, work in (("forward", forward), ("both", both)):
                row[kind] = timed(chosen, work, given)
            print(name, batch, {key: round(value, 2) for key, value in row["both"].items()}, flush=True)
            if batch == 256:
                jobs = [call for call in calls if call not in ("torchode dopri5", "compiled loop")]
                row["memory_mib"] = {call: in_child(f"{call}|{dim}|{hidden}|{steps}|{batch}") for call in jobs}
            found["rows"].append(row)
    found["closed"] = measure_closed()
    found["first_step_s"] = {recipe: first_steps(recipe) for recipe in ("digits/ncode-open", "digits/ncode-closed")}
    return found


def _width(row: dict[str, Any]) -> int:
    """Sort the fullest row to the front."""
    return -len(row["both"])


def table(found: dict[str, Any]) -> str:
    """Return what was measured as Markdown."""
    names = list(dict.fromkeys(name for row in sorted(found["rows"], key=_width) for name in row["both"]))
    head = f"| d, h, steps | B | {' | '.join(names)} | reads | rk4 | adjoint | achieved |"
    lines = [
        "# Speed",
        "",
        f"{found['threads']} threads, torch {found['torch']}, torchdiffeq {found['torchdiffeq']}, bandwidth "
        f"{found['bandwidth'] / 1e9:.1f} GB/s. Milliseconds, medians, all contenders of a row taking turns.",
        "reads: milliseconds that reading the control twice an evaluation takes at that bandwidth. rk4, adjoint: ",
        "how many times faster ncode_gen is than torchdiffeq's rk4 and odeint_adjoint. achieved: bytes of control, ",
        "twice an evaluation, over the time, in GB/s. ",
        "Command: `python eval/speed.py`.",
    ]
    for kind, title, passes in (("both", "Forward and backward", 2), ("forward", "Forward", 1)):
        lines += ["", f"## {title}", "", head, "|---|---:|" + "---:|" * (len(names) + 4)]
        for row in found["rows"]:
            spent = row[kind]
            read = passes * row["nfe"] * row["bytes"]
            ours = spent["ncode_gen"]
            shown = " | ".join(f"{spent[name]:.2f}" if name in spent else "-" for name in names)
            lines.append(
                f"| {row['size']} | {row['batch']} | {shown} | "
                f"{1e3 * read / found['bandwidth']:.2f} | {spent['torchdiffeq rk4'] / ours:.1f} | "
                f"{spent['odeint_adjoint rk4'] / ours:.1f} | {read / ours / 1e6:.1f} |"
            )
    memory = [row for row in found["rows"] if "memory_mib" in row]
    jobs = list(memory[0]["memory_mib"]) if memory else []
    lines += ["", "## Peak memory of forward and backward, MiB", "", f"| d, h, steps | B | {' | '.join(jobs)} |"]
    lines.append("|---|---:|" + "---:|" * len(jobs))
    for row in memory:
        shown = " | ".join(f"{row['memory_mib'][job]:.0f}" for job in jobs)
        lines.append(f"| {row['size']} | {row['batch']} | {shown} |")
    loop = found["closed"]
    share = loop["memory_mib"]["checkpoint"] / loop["memory_mib"]["backprop"]
    ratio = loop["milliseconds"]["checkpoint"] / loop["milliseconds"]["backprop"]
    lines += [
        "",
        f"## Closed loop that rebuilds all weights, {', '.join(map(str, CHECKPOINTED))}, B = 256",
        "",
        f"Plain autograd: {loop['memory_mib']['backprop']:.0f} MiB, {loop['milliseconds']['backprop']:.0f} ms. "
        f"Checkpoints: {loop['memory_mib']['checkpoint']:.0f} MiB ({share:.0%}), "
        f"{loop['milliseconds']['checkpoint']:.0f} ms ({ratio:.2f} times).",
        "",
        "## Seconds from the command to a training step",
        "",
        "The first steps run uncompiled; then the compiler works, and the first compiled step is taken.",
        "",
        f"| recipe | {' | '.join(next(iter(found['first_step_s'].values())))} |",
        f"|---|{'---:|' * len(next(iter(found['first_step_s'].values())))}",
    ]
    lines += [
        f"| {name} | {' | '.join(f'{s:.1f}' for s in spent.values())} |"
        for name, spent in found["first_step_s"].items()
    ]
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw time over the batch, one panel a size."""
    sizes = list(dict.fromkeys(row["size"] for row in found["rows"]))
    figure, axes = plt.subplots(1, len(sizes), figsize=(13, 3.2), layout="constrained", squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        rows = [row for row in found["rows"] if row["size"] == size]
        batches = [row["batch"] for row in rows]
        for name, colour in zip(SHOWN, COLOURS, strict=False):
            here = [(row["batch"], row["both"][name]) for row in rows if name in row["both"]]
            axis.plot(*zip(*here, strict=True), marker="o", ms=3, color=colour, label=name)
        reads = [2e3 * row["nfe"] * row["bytes"] / found["bandwidth"] for row in rows]
        axis.plot(batches, reads, color="black", ls=":", label="control read twice an evaluation")
        axis.set(xscale="log", yscale="log", title=f"d, h, steps = {size}", xlabel="batch", xticks=batches)
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.minorticks_off()
    axes[0][0].set_ylabel("forward + backward, ms")
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=7, loc="outside right center")
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=130, format="png"))
    plt.close(figure)


def main() -> None:
    """Measure, write and draw; or do one job of a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest size only, and write nothing")
    parser.add_argument("--closed", action="store_true", help="measure the closed loop anew, and keep the rest")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--first-step-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(child_memory(options.memory_of))
    elif options.first_step_of:
        child_first_step(options.first_step_of)
    elif options.quick:
        print(table(measure(SIZES[:1], BATCHES[:2])))
    else:
        path = RESULTS / "speed.json"
        found = (
            {**json.loads(path.read_text()), "closed": measure_closed()} if options.closed else measure(SIZES, BATCHES)
        )
        write_json(path, found)
        write_text(path.with_suffix(".md"), table(found))
        draw(found, path.with_suffix(".png"))
        print(table(found))


if __name__ == "__main__":
    main()
