"""Train one of pythae's own models, for `eval/generation.py`; to be run by a Python that has pythae and ncode_gen.

    python -m venv peers && peers/bin/pip install pythae .
    peers/bin/python eval/pythae_peer.py RAE_L2 mnist --out F.npz

The package's model, trainer and samplers; encoder, decoder, images and their split, latent size and epochs are ours.
Loss weights and learning rate are pythae's defaults, but for Adam at 1e-3 with a cosine, since its 1e-4 is meant for a
hundred epochs. Writes samples of each of its samplers, reconstructions of the test images (uint8, n x C x H x W), the
seconds of training and the number of parameters.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pythae.data.datasets import BaseDataset
from pythae.models import RAE_L2, VAE, WAE_MMD, RAE_L2_Config, VAEConfig, WAE_MMD_Config
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.samplers import GaussianMixtureSampler, GaussianMixtureSamplerConfig, NormalSampler
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn

from ncode_gen.config import section
from ncode_gen.data.sets import load_data
from ncode_gen.networks.decoders import ResidualDecoder
from ncode_gen.networks.encoders import ResidualEncoder

MODELS = {"RAE_L2": (RAE_L2, RAE_L2_Config), "VAE": (VAE, VAEConfig), "WAE_MMD": (WAE_MMD, WAE_MMD_Config)}
FEATURES, WIDTH, BLOCKS, RATE = 256, 32, 1, 1e-3


class Encoder(BaseEncoder):
    """Our residual encoder with the heads that pythae asks for."""

    def __init__(self, shape: tuple[int, int, int], dim: int, *, random: bool) -> None:
        BaseEncoder.__init__(self)
        self.body = ResidualEncoder(shape, WIDTH, BLOCKS, FEATURES)
        self.mean = nn.Linear(FEATURES, dim)
        self.log_variance = nn.Linear(FEATURES, dim) if random else None

    def forward(self, x: Tensor) -> ModelOutput:
        """Return the embedding and, for a random posterior, its log-variance."""
        features = self.body(x)
        output = ModelOutput(embedding=self.mean(features))
        if self.log_variance is not None:
            output["log_covariance"] = self.log_variance(features)
        return output


class Decoder(BaseDecoder):
    """Our residual decoder, its pixels in [0, 1]."""

    def __init__(self, shape: tuple[int, int, int], dim: int) -> None:
        BaseDecoder.__init__(self)
        self.body = ResidualDecoder(dim, shape, WIDTH, BLOCKS)

    def forward(self, z: Tensor) -> ModelOutput:
        """Return pictures (n, C, H, W)."""
        return ModelOutput(reconstruction=torch.sigmoid(self.body(z)))


def bytes_of(images: Tensor) -> NDArray[np.uint8]:
    """Return images in [0, 1] as whole numbers from 0 to 255."""
    pixels: NDArray[np.uint8] = (images.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return pixels


def main() -> None:
    """Train, sample, reconstruct, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("data", help="name of the image set")
    parser.add_argument("--root", default="data", help="folder of the image sets")
    parser.add_argument("--latent", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    splits = load_data(section("data", name=options.data, root=options.root))
    train, validation, test = (torch.cat(list(part.batches(1000))) for part in vars(splits).values())
    torch.manual_seed(options.seed)
    kind, config = MODELS[options.model]
    shape = splits.train.shape
    model = kind(
        config(input_dim=shape, latent_dim=options.latent),
        encoder=Encoder(shape, options.latent, random=options.model == "VAE"),
        decoder=Decoder(shape, options.latent),
    )
    with tempfile.TemporaryDirectory() as scratch:
        training = BaseTrainerConfig(
            output_dir=scratch,
            num_epochs=options.epochs,
            learning_rate=RATE,
            per_device_train_batch_size=128,
            per_device_eval_batch_size=500,
            scheduler_cls="CosineAnnealingLR",
            scheduler_params={"T_max": options.epochs},
            seed=options.seed,
            no_cuda=not torch.cuda.is_available(),
        )
        labels = [torch.zeros(len(images)) for images in (train, validation)]
        start = time.perf_counter()
        BaseTrainer(
            model, BaseDataset(train, labels[0]), BaseDataset(validation, labels[1]), training_config=training
        ).train()
        seconds = time.perf_counter() - start
    model.eval()
    torch.manual_seed(options.seed)
    mixture = GaussianMixtureSampler(model, GaussianMixtureSamplerConfig(n_components=10))
    mixture.fit(train)
    drawn = {
        "mixture10": mixture.sample(options.samples, batch_size=500, return_gen=True),
        "normal": NormalSampler(model).sample(options.samples, batch_size=500, return_gen=True),
    }
    with torch.no_grad():
        copies = torch.cat([model({"data": part}).recon_x for part in test.split(500)])
    found: dict[str, Any] = {name: bytes_of(images) for name, images in drawn.items()}
    found["reconstructions"] = bytes_of(copies.view(len(test), *shape))
    found |= {"seconds": seconds, "parameters": sum(parameter.numel() for parameter in model.parameters())}
    np.savez_compressed(options.out, **found)


if __name__ == "__main__":
    main()
