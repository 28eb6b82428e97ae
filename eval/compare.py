"""Train and score models of one image set side by side: `python eval/compare.py mnist vae ncode-open`.

Each model is trained by its recipe in models/ with the seed that it names, then scored by `ncode_gen.evaluate`; a
finished run is not run again. Writes eval/results/DATASET.json and DATASET.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ncode_gen.runtime.files import write_json, write_text

ROOT = Path(__file__).parent.parent
COLUMNS = ("nll_nats", "elbo_nats", "bits_per_dim", "fid", "kid", "precision", "recall", "mse", "nfe")


def finished(data: str, model: str, root: str, evaluate: list[str]) -> dict[str, Any]:
    """Train and score one model, unless that is done, and return its row."""
    run = ROOT / "runs" / f"{data}-{model}"
    if not (run / "weights.safetensors").exists():
        begin = [f"models/{data}/{model}.toml", "--out", str(run.relative_to(ROOT))]
        resume = ["--resume", str(run.relative_to(ROOT))] if (run / "state").exists() else begin
        subprocess.run([sys.executable, "-m", "ncode_gen.train", *resume, "--data.root", root], cwd=ROOT, check=True)
    if not (run / "evaluation.json").exists():
        subprocess.run(
            [sys.executable, "-m", "ncode_gen.evaluate", str(run.relative_to(ROOT)), *evaluate], cwd=ROOT, check=True
        )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "evaluation.json").read_text())
    return {
        "model": model,
        "epochs": len(rows),
        "median_epoch_seconds": sorted(row["seconds"] for row in rows)[len(rows) // 2],
        "training_seconds": round(sum(row["seconds"] for row in rows), 1),
        "protocol": result["protocol"],
        "scores": result["scores"],
    }


def table(data: str, rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    keys = [key for key in COLUMNS if any(key in row["scores"] for row in rows)]
    protocol = rows[0]["protocol"]
    lines = [
        f"# {data}",
        "",
        f"{protocol['test_images']} test images, {protocol['likelihood']}; {protocol['n']} samples, features "
        f"{protocol['features']['name']}; K = {protocol['particles']} particles; seed {protocol['seed']}; "
        "95 % intervals.",
        "Likelihoods with the solver refined until they move by less than 0.05 nats; time on "
        f"{protocol['environment']['threads']} threads of {protocol['environment']['device']}.",
        "",
        "| model | " + " | ".join(keys) + " | solver | gap of the coarse one | epochs | s/epoch | s in all |",
        "|---|" + "---:|" * len(keys) + "---|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = []
        for key in keys:
            score = row["scores"].get(key)
            half = (score["high"] - score["low"]) / 2 if score else 0
            cells.append("-" if score is None else f"{score['value']:.4g}" + (f" ±{half:.2g}" if half else ""))
        solver = row["protocol"].get("solver", {})
        gap = f"{solver['nll_gap_nats']:.3f}" if solver else "-"
        cells += [solver.get("refined", "-"), gap, str(row["epochs"])]
        cells += [f"{row['median_epoch_seconds']:.1f}", f"{row['training_seconds']:.0f}"]
        lines.append(f"| {row['model']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="image set, a folder of models/")
    parser.add_argument("models", nargs="+", help="recipes in models/DATA/")
    parser.add_argument("--root", default="data", help="folder of the image sets")
    parser.add_argument("--n", default="10000", help="samples that are scored")
    parser.add_argument("--particles", default="128", help="particles of the likelihood")
    options = parser.parse_args()
    evaluate = ["--n", options.n, "--particles", options.particles, "--data.root", options.root]
    rows = [finished(options.data, model, options.root, evaluate) for model in options.models]
    results = ROOT / "eval" / "results"
    write_json(results / f"{options.data}.json", {"rows": rows})
    text = table(options.data, rows)
    write_text(results / f"{options.data}.md", text)
    print(text)


if __name__ == "__main__":
    main()
