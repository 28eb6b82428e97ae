"""Train the small classifiers whose last hidden layer scores samples: `python eval/train_features.py [NAME ...]`.

Writes checkpoints/features/NAME.safetensors and its card NAME.md. Seed 0, AdamW 2e-3 with a cosine, random shifts of
one pixel; the digits use the default split of `ncode_gen.data`. Four minutes a 28-pixel set on 2 CPU cores. That of
CIFAR-10 learns from JPEG copies of these images, in ROOT/cifar10-jpeg/train/CLASS/ and ROOT/cifar10-jpeg/test/CLASS/.
"""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ncode_gen.config import section
from ncode_gen.data.images import TensorImages
from ncode_gen.data.sets import load_data
from ncode_gen.metrics.classifier import SmallClassifier
from ncode_gen.metrics.features import CLASSIFIERS
from ncode_gen.runtime.files import write_atomically, write_text

FOLDER = Path(__file__).parent.parent / "checkpoints" / "features"
DATA: dict[str, Any] = {
    "digits-classifier": "digits",
    "mnist-classifier": "mnist",
    "fashion-classifier": "fashion-mnist",
    "cifar10-classifier": "folder",
}
EPOCHS = {"digits-classifier": 60, "mnist-classifier": 6, "fashion-classifier": 4, "cifar10-classifier": 6}
JPEG = "cifar10-jpeg"
SEED, BATCH, RATE = 0, 128, 2e-3


def accuracy(network: SmallClassifier, images: TensorImages) -> float:
    """Return the share of images whose class is found."""
    assert images.labels is not None
    with torch.no_grad():
        found = torch.cat([network(batch).argmax(1) for batch in images.batches(500)])
    return float((found == images.labels).double().mean())


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Move a batch by at most one pixel, the same way for the whole batch."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    down, right = torch.randint(3, (2,)).tolist()
    return padded[..., down : down + images.shape[-2], right : right + images.shape[-1]]


def train(name: str, root: str) -> None:
    """Train one classifier and write its weights and card."""
    torch.manual_seed(SEED)
    pictures = DATA[name] == "folder"
    shown = f"{JPEG}, a lossy copy of CIFAR-10" if pictures else DATA[name]
    split = "folders train and test" if pictures else "default split of `ncode_gen.data`"
    splits = load_data(section("data", name=DATA[name], root=f"{root}/{JPEG}" if pictures else root))
    train_set, test_set = splits.train, splits.test
    assert isinstance(train_set, TensorImages) and isinstance(test_set, TensorImages)
    assert train_set.labels is not None
    network = SmallClassifier(*CLASSIFIERS[name])
    steps = EPOCHS[name] * (len(train_set) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    start = time.perf_counter()
    for _ in range(EPOCHS[name]):
        order = torch.randperm(len(train_set))[: len(train_set) // BATCH * BATCH]
        for images, labels in zip(train_set.batches(BATCH, order), train_set.labels[order].split(BATCH), strict=True):
            loss = nn.functional.cross_entropy(network(shifted(images)), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    score = accuracy(network, test_set)
    seconds = time.perf_counter() - start
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    write_atomically(FOLDER / f"{name}.safetensors", lambda partial: save_file(tensors, partial))
    parameters = sum(p.numel() for p in network.parameters())
    card = f"""# {name}

A convolutional classifier of {shown}; its last hidden layer ({SmallClassifier.FEATURES} features) scores samples.

| | |
|---|---|
| data | {shown}, {split}, {len(train_set)} training images |
| recipe | {EPOCHS[name]} epochs, batch {BATCH}, AdamW {RATE}, cosine, shifts of one pixel; {parameters} parameters |
| seed | {SEED} |
| command | `python eval/train_features.py {name}` |
| score | test accuracy {100 * score:.2f} % ({len(test_set)} images) |
| time | {seconds:.0f} s on {torch.get_num_threads()} CPU threads, torch {torch.__version__.split("+")[0]} |
| date | {datetime.date.today().isoformat()} |
"""
    write_text(FOLDER / f"{name}.md", card)
    print(f"{name}: test accuracy {100 * score:.2f} %, {seconds:.0f} s")


def main() -> None:
    """Train the named classifiers, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*CLASSIFIERS, []], default=list(CLASSIFIERS))
    parser.add_argument("--root", default="data", help="folder of the image sets")
    options = parser.parse_args()
    for name in options.names or CLASSIFIERS:
        train(name, options.root)


if __name__ == "__main__":
    main()
