"""README's short tables: the published models, and N-CODE beside what it is to replace."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

from generation_cells import collected, entry
from generation_pairs import differences
from intervals import interval

__all__ = ["devices_of", "headlines", "published"]

Row = dict[str, Any]
AUTOENCODERS = ("ncode-autoencoder", "node-autoencoder", "anode", "ae", "rae-l2", "wae-mmd")
# Negative ELBO in nats of VAEs by their posterior, MNIST binarised once: Grathwohl et al., "FFJORD", 2019, Table 3.
PUBLISHED = {"FFJORD": 82.82, "Sylvester": 83.32, "IAF": 84.20, "planar": 86.06, "Gaussian": 86.55}


def _score(found: Row, key: str, digits: int, sign: int = 1) -> str:
    score = found["scores"].get(key)
    if score is None:
        return "-"
    return f"{sign * score['value']:.{digits}f} ± {(score['high'] - score['low']) / 2:.{digits}f}"


def devices_of(environment: dict[str, Any]) -> str:
    """Return the devices that a run was trained on, of its environment.json: one after the other, if it was resumed."""
    found = [environment["device"], *(later["device"] for later in environment.get("resumed", []))]
    return ", then ".join(device for i, device in enumerate(found) if i == 0 or device != found[i - 1])


def published(checkpoints: Path) -> str:
    """Return the table of the models in checkpoints/, from their evaluations."""
    lines = [
        "| checkpoint | FID | coverage | NLL (nats) | -ELBO (nats) | trained in | MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    features = {}
    for folder in sorted(checkpoints.iterdir()):
        if not (folder / "evaluation.json").exists():
            continue
        found = json.loads((folder / "evaluation.json").read_text())
        epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        protocol = found["protocol"]
        features[protocol["data"]] = protocol["features"]["name"]
        size = (folder / "weights.safetensors").stat().st_size / 1e6
        cells = [_score(found, "fid", 1), _score(found, "coverage", 3), _score(found, "nll_nats", 2)]
        devices = devices_of(json.loads((folder / "environment.json").read_text()))
        took = _time(sum(row["seconds"] for row in epochs)) + (f" ({devices})" if devices != "cpu" else "")
        cells += [_score(found, "elbo_nats", 2, -1), took, f"{size:.1f}"]
        lines.append(f"| [{folder.name}](checkpoints/{folder.name}) | {' | '.join(cells)} |")
    named = ", ".join(f"{network} for {data}" for data, network in features.items())
    lines += [
        "",
        f"10,000 samples against the whole test set, 95 % intervals; features: {named}. Likelihoods with the number "
        "of particles and the refined solver that each card names. Trained on one or two threads of a CPU, where "
        "nothing else is said.",
    ]
    return "\n".join(lines)


def _mean(cell: Any, key: str, unit: float = 1.0) -> str:
    """Return the mean over a cell's seeds with its interval, in the given unit."""
    centre, half = interval(cell, key)
    return f"{centre / unit:.2f} ± {half / unit:.2f}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _generation(results: Path) -> Iterable[tuple[str, str, str]]:
    """Yield the best N-CODE cell of each image set beside pythae's RAE of its latent size."""
    for data, title in (("mnist", "MNIST"), ("fashion-mnist", "Fashion-MNIST")):
        cells = collected(results / "generation" / data)
        own = {key: group for key, group in cells.items() if key[0].startswith("ncode") and len(group[0]["scores"])}
        best = min(own, key=lambda key: sum(c["scores"]["fid"]["value"] for c in own[key]) / len(own[key]))
        peers = [group for key, group in cells.items() if key[0] == "pythae RAE_L2" and key[3] == "mixture10"]
        same = [group for group in peers if group[0]["dim"] == best[1]]
        floor = entry(cells["floor", 0, 0, "train"], "fid", 2)
        yield (
            f"{title}: FID of 10,000 samples, {best[1]} latent dimensions",
            f"**{entry(own[best], 'fid', 2)}** ({best[0]}, prior {best[3]}, {best[2]} epochs)",
            (
                f"pythae's RAE-L2, 10 Gaussians, {same[0][0]['epochs']} epochs {entry(same[0], 'fid', 2)}; "
                if same
                else ""
            )
            + f"training against test images {floor}",
        )


def _draws(results: Path) -> Iterable[tuple[str, str, str]]:
    """Yield published models' distances over several draws beside those of parts of the training images."""
    for path in sorted(results.glob("draws-*.json")):
        found, name = json.loads(path.read_text()), path.stem.removeprefix("draws-")
        means = {
            kind: f"{mean(found[kind]):.2f} ({min(found[kind]):.2f} to {max(found[kind]):.2f})"
            for kind in ("draws", "parts")
        }
        yield (
            f"FID[{found['features']}]: mean of {len(found['draws'])} draws of {found['count']:,} samples, and range",
            f"**{means['draws']}** ({name})",
            f"{len(found['parts'])} parts of the training images {means['parts']}",
        )


def _autoencoders(results: Path) -> Iterable[tuple[str, str, str]]:
    """Yield autoencoders of equal networks, epochs and prior, by their flow or penalty."""
    cells = collected(results / "generation" / "mnist")
    found = {
        key[0]: entry(group, "fid", 2)
        for key, group in cells.items()
        if key[1:] == (16, 12, "flow") and key[0] in AUTOENCODERS
    }
    own = found.pop("ncode-autoencoder")
    if found:
        yield (
            "MNIST: FID of autoencoders of equal networks, 16 dimensions, 12 epochs, all with the N-CODE flow as prior",
            f"{own} (ncode-autoencoder)",
            ", ".join(f"{name} {score}" for name, score in sorted(found.items(), reverse=True)),
        )


def _decoders(results: Path) -> Iterable[tuple[str, str, str]]:
    """Yield what decoders of nearly as many parameters lose, all trained with equal encoders and epochs."""
    others = {"conv-decoder": "transposed convolutions", "residual-decoder": "residual blocks with GroupNorm"}
    for data, title, digits in (("mnist", "MNIST", 2), ("fashion-mnist", "Fashion-MNIST", 1)):
        cells = collected(results / "generation" / data)
        shown = {key[0]: group for key, group in cells.items() if key[0].endswith("-decoder") and key[3] == "flow"}
        own = shown.get("ncode-decoder")
        rivals = []
        for name, called in others.items():
            if own is None or name not in shown:
                continue
            found = [{"less": value} for value in differences(own, shown[name], "distortion_nats")]
            if len(found) > 1:
                centre, half = interval(found, "less")
                scores = f"{entry(shown[name], 'distortion_nats', digits)}; {entry(shown[name], 'fid', 1)}"
                rivals.append(f"{called} {scores} (distortion, seed by seed: {centre:+.{digits}f} ± {half:.{digits}f})")
        if own is not None and rivals:
            yield (
                f"{title}: distortion in nats of decoders of nearly as many parameters, {own[0]['epochs']} epochs, "
                f"{len(own)} seeds; FID with a flow prior",
                f"**{entry(own, 'distortion_nats', digits)}**; {entry(own, 'fid', 1)}",
                "; ".join(rivals),
            )


def _likelihood(results: Path) -> Iterable[tuple[str, str, str]]:
    rows = {row["model"]: row for row in json.loads((results / "mnist.json").read_text())["rows"]}
    for own, peer in (("ncode-open", "vae"), ("ncode-open-mixture", "vae-mixture")):
        prior = "a fitted mixture" if "mixture" in own else "N(0, I)"
        ours, theirs = (_score(rows[name], "nll_nats", 2) for name in (own, peer))
        yield (
            f"MNIST: NLL in nats, small networks, prior {prior}",
            f"**{ours}** ({own})",
            f"VAE of the same networks {theirs}",
        )


def _flagship(results: Path) -> Iterable[tuple[str, str, str]]:
    """Yield the best published likelihood beside published ones, which are of other networks and budgets."""
    folder = results.parent.parent / "checkpoints" / "mnist-ncode-open-flow"
    found = json.loads((folder / "evaluation.json").read_text())
    seconds = sum(json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines())
    nll = f"NLL {_score(found, 'nll_nats', 2)}, K = {found['protocol']['particles']}"
    yield (
        f"MNIST: -ELBO in nats, residual networks and a joint flow prior, {_time(seconds)} on a CPU",
        f"**{_score(found, 'elbo_nats', 2, -1)}** (ncode-open-flow; {nll})",
        "as published, for MNIST binarised once for all and other networks: "
        + ", ".join(f"{name} {nats:.2f}" for name, nats in PUBLISHED.items()),
    )


def _posteriors(results: Path) -> Iterable[tuple[str, str, str]]:
    """Yield the posteriors that were trained with equal networks, epochs and prior, in as many seeds."""
    found = collected(results / "generation" / "mnist")
    cells = {key: group for key, group in found.items() if key[3] == "own" and "nll_nats" in group[0]["scores"]}
    if not cells:
        return
    epochs, seeds = max(key[2] for key in cells), max(len(group) for group in cells.values())
    alike = {key[0]: group for key, group in cells.items() if key[2] == epochs and len(group) == seeds}
    shown = {name: entry(group, "nll_nats", 2) for name, group in alike.items()}
    own = ", ".join(f"{name} **{score}**" for name, score in shown.items() if name.startswith("ncode"))
    others = ", ".join(f"{name} {score}" for name, score in shown.items() if not name.startswith("ncode"))
    yield f"MNIST: NLL in nats, small networks, prior N(0, I), {epochs} epochs for all", own, others


def _expressivity(results: Path) -> Iterable[tuple[str, str, str]]:
    cells = json.loads((results / "expressivity.json").read_text())

    def seeds(task: str, model: str) -> list[Row]:
        return [row for name, row in cells.items() if name.startswith(f"{task}/{model}/")]

    shown = []
    for model in ("N-CODE open", "NODE"):
        errors = [row["mse"] for row in seeds("mirror 2-D", model)]
        shown.append(f"{median(errors):.0e}, {sum(e < 1e-3 for e in errors)} of {len(errors)} seeds below 1e-3")
    yield "reflection x -> -x in the plane: mean square error", f"**{shown[0]}**", f"NODE {shown[1]}"
    shown = []
    for model in ("N-CODE open", "NODE"):
        rows = seeds("annuli 2-D", model)
        good = sum(row["accuracy"] >= 0.995 for row in rows)
        nfe = sum(row["nfe"] for row in rows) / len(rows)
        accuracy = median(row["accuracy"] for row in rows)
        shown.append(f"{accuracy:.1%}, {good} of {len(rows)} seeds above 99.5 %, NFE {nfe:.0f}")
    yield "annuli: accuracy of a linear read-out", f"**{shown[0]}**", f"NODE {shown[1]}"


def _supervised(results: Path) -> Iterable[tuple[str, str, str]]:
    cells = json.loads((results / "classification.json").read_text())
    for data, title in (("mnist", "MNIST"), ("fashion-mnist", "Fashion-MNIST")):
        models = ("NODE", "ANODE", "N-CODE open", "N-CODE closed", "gamma alone")
        found = {model: _mean(cells[f"{data}/{model}"], "accuracy", unit=0.01) for model in models}
        yield (
            f"{title}: accuracy in %, flow in 8 dimensions",
            f"open **{found['N-CODE open']}**, closed **{found['N-CODE closed']}**",
            f"NODE {found['NODE']}, ANODE {found['ANODE']}; gamma without a flow {found['gamma alone']}",
        )


def _density(results: Path) -> Iterable[tuple[str, str, str]]:
    cells = json.loads((results / "density.json").read_text())
    for density in ("rings", "spirals"):
        closed = _mean(cells[f"{density}/N-CODE closed, weights"], "nll")
        static = _mean(cells[f"{density}/static, two hidden layers"], "nll")
        yield f"{density} in the plane: NLL in nats", f"**{closed}** (closed loop)", f"static flow {static}"


def _speed(results: Path) -> Iterable[tuple[str, str, str]]:
    found = json.loads((results / "speed.json").read_text())
    rows = [row["both"] for row in found["rows"] if row["batch"] == 256]
    ratios = [[row[name] / row["ncode_gen"] for row in rows] for name in ("torchdiffeq rk4", "odeint_adjoint rk4")]
    yield (
        f"speed: forward and backward, batch 256, {found['threads']} CPU threads, {len(rows)} sizes",
        f"**{min(ratios[0]):.0f} to {max(ratios[0]):.0f}** and **{min(ratios[1]):.0f} to {max(ratios[1]):.0f} times**",
        "torchdiffeq's rk4, and its odeint_adjoint",
    )


def _devices(results: Path) -> Iterable[tuple[str, str, str]]:
    """Yield the training step that gains most from being compiled, on each device."""
    for row in json.loads((results / "devices.json").read_text()).values():
        if row["steps"]:
            name, spent = max(row["steps"].items(), key=lambda item: item[1]["plain"] / item[1]["compiled"])
            yield (
                f"speed: a training step of {name}, compiled, on {row['device']}",
                f"**{spent['compiled']:.1f} ms**, {128e3 / spent['compiled']:,.0f} images a second",
                f"the same step, not compiled, {spent['plain']:.1f} ms",
            )


def headlines(results: Path) -> str:
    """Return a row for each claim, from the studies' results."""
    lines = ["| | N-CODE | beside it |", "|---|---|---|"]
    generative = (_generation, _draws, _autoencoders, _decoders, _flagship, _likelihood, _posteriors)
    for make in (*generative, _expressivity, _supervised, _density, _speed, _devices):
        lines += [f"| {what} | {own} | {other} |" for what, own, other in make(results)]
    return "\n".join(lines)
