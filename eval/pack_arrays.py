"""A set of arrays in parts of a few dozen megabytes, for machines that take no more at a time, and back again.

    python eval/pack_arrays.py pack FILE.npz FOLDER --size 60     # FOLDER/part-0.zip, part-1.zip, ...
    python eval/pack_arrays.py join FOLDER FILE.npz               # bit for bit the same arrays

Images are written as strips in WebP without loss, which takes two thirds of what zlib takes.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STRIP = 16000  # pixels of a strip's longer side, of at most 16,383


def pack(source: Path, folder: Path, megabytes: int) -> list[Path]:
    """Write the arrays of a file as parts of at most so many megabytes, and return these."""
    folder.mkdir(parents=True, exist_ok=True)
    members: list[tuple[str, bytes]] = []
    about: dict[str, Any] = {}
    with np.load(source) as held:
        for name in held.files:
            values = held[name]
            if values.ndim == 4 and values.dtype == np.uint8 and values.shape[-1] in (1, 3):
                each = max(1, STRIP // values.shape[2])
                about[name] = {"shape": values.shape, "each": each}
                for start in range(0, len(values), each):
                    strip = values[start : start + each].transpose(1, 0, 2, 3)
                    picture = Image.fromarray(
                        strip.reshape(strip.shape[0], -1, strip.shape[3]).repeat(3 // strip.shape[3], 2)
                    )
                    buffer = io.BytesIO()
                    picture.save(buffer, "WEBP", lossless=True, quality=70, method=4)
                    members.append((f"{name}/{start:08d}.webp", buffer.getvalue()))
            else:
                buffer = io.BytesIO()
                np.save(buffer, values)
                members.append((f"{name}.npy", buffer.getvalue()))
    members.insert(0, ("about.json", json.dumps(about).encode()))
    paths, size, archive = list[Path](), 0, None
    for name, content in members:
        if archive is None or size + len(content) > megabytes << 20:
            if archive is not None:
                archive.close()
            paths.append(folder / f"part-{len(paths)}.zip")
            archive, size = zipfile.ZipFile(paths[-1], "w"), 0
        archive.writestr(name, content)
        size += len(content) + 200
    if archive is not None:
        archive.close()
    return paths


def join(folder: Path, target: Path) -> None:
    """Write the arrays of all parts in a folder into one file."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("part-*.zip")):
        with zipfile.ZipFile(path) as archive:
            found |= {name: archive.read(name) for name in archive.namelist()}
    arrays = {name[:-4]: np.load(io.BytesIO(content)) for name, content in found.items() if name.endswith(".npy")}
    for name, about in json.loads(found["about.json"]).items():
        count, height, width, channels = about["shape"]
        values = np.empty(about["shape"], np.uint8)
        for start in range(0, count, about["each"]):
            picture = Image.open(io.BytesIO(found[f"{name}/{start:08d}.webp"])).convert("RGB")
            strip = np.asarray(picture)[..., :channels].reshape(height, -1, width, channels)
            values[start : start + about["each"]] = strip.transpose(1, 0, 2, 3)
        arrays[name] = values
    np.savez(target, **arrays)


def main() -> None:
    """Pack or join from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "join"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--size", type=int, default=60, help="megabytes of a part at most")
    options = parser.parse_args()
    if options.what == "pack":
        for path in pack(options.source, options.target, options.size):
            print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    else:
        join(options.source, options.target)


if __name__ == "__main__":
    main()
