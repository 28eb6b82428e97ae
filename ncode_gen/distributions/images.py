"""Images of a model: sampled, decoded, reconstructed, and on their way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from ..control import ControlledODE
from ..runtime.parts import in_parts
from ..solvers import SolveOptions, Times
from .joint import JointModel, uncast_method
from .priors import Guidance, LabelledPrior

Adjust = Callable[[SolveOptions], SolveOptions]
Start = Literal["mean", "fresh", "inverted"]


class ImageModel(JointModel):
    """A model, with what it makes of latents."""

    @torch.no_grad()
    @uncast_method
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        batch: int = 500,
        adjust: Adjust | None = None,
        refine: bool = True,
        labels: Tensor | None = None,
        guidance: float = 1.0,
        autoguidance: float | None = None,
        evaluations: int | None = None,
    ) -> Tensor:
        """Sample images from the prior and the observation.

        Args:
            n: number of images.
            generator: random numbers, on the CPU; the default generator if None.
            batch: images decoded at a time.
            adjust: changes the options that the prior's flow is solved with.
            refine: whether images are sampled given their latents, where the observation can; else they are means.
            labels: numbers of the classes, (n,), -1 for any; all of any class if None.
            guidance: how far velocities of a label are moved away from those of any, in prior and observation.
            autoguidance: how far velocities of the prior are moved away from those of its guide; as the recipe says if
                None.
            evaluations: how often a flow of pixels may be evaluated for an image; as the recipe says if None.

        Returns:
            Images (n, C, H, W) in [0, 1].

        Raises:
            ValueError: no images, or labels, guidance or evaluations of a model that has none.
        """
        if n < 1:
            raise ValueError(f"the number of samples must be at least 1, got {n}")
        one_hot = self.one_hot(labels, n)
        prior = self.prior.with_options(adjusted(self.prior.active_flow, adjust))
        if isinstance(self.prior, LabelledPrior):
            latents = cast(LabelledPrior, prior).sample(n, generator, Guidance(one_hot, guidance, autoguidance))
        elif autoguidance not in (None, 1.0):
            raise ValueError("the prior of this model has no guide, so no autoguidance")
        else:
            latents = prior.sample(n, generator)
        if not refine:
            return self.decode(latents, batch=batch, labels=labels)
        settings: Any = {"labels": labels, "guidance": guidance, "evaluations": evaluations}
        return self.sample_images(latents, generator, batch=batch, **settings)

    @torch.no_grad()
    @uncast_method
    def sample_images(
        self,
        latents: Tensor,
        generator: torch.Generator | None = None,
        *,
        batch: int = 500,
        labels: Tensor | None = None,
        guidance: float = 1.0,
        evaluations: int | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return images (n, C, H, W) in [0, 1] sampled given latents (n, d), or means where nothing can be added.

        Args:
            latents: (n, d).
            generator: random numbers, on the CPU; those of an image do not depend on `batch`.
            batch: images at a time.
            labels: see `sample`.
            guidance: see `sample`.
            evaluations: see `sample`.
            noise: standard normal numbers (n, C, H, W), such as `invert` finds, instead of random ones.
        """
        draw = self.observation.sampler(evaluations, guidance)
        if not self.observation.stochastic or len(latents) == 0:
            return self.decode(latents, batch=batch)
        noise = self.pixel_noise(len(latents), generator) if noise is None else noise.to(self.device, self.dtype)
        conditions = self.conditions(self.checked_latents(latents), self.one_hot(labels, len(latents)))
        return in_parts(draw, conditions, noise, batch=batch)

    @torch.no_grad()
    @uncast_method
    def encode(self, images: Tensor, *, batch: int = 500) -> Tensor:
        """Return the latents (n, d) of images (n, C, H, W) in [0, 1]: the mean's, if the posterior is random.

        Raises:
            ValueError: a wrong shape or range, or a NaN.
        """
        parts = self.checked(images).split(batch)
        return torch.cat([self.posterior.encode(self.features(part)) for part in parts])

    @torch.no_grad()
    @uncast_method
    def decode(self, latents: Tensor, *, batch: int = 500, labels: Tensor | None = None) -> Tensor:
        """Return the expected images (n, C, H, W) in [0, 1] of latents (n, d), and labels as in `sample`."""
        conditions = self.conditions(self.checked_latents(latents), self.one_hot(labels, len(latents)))
        return in_parts(self.observation.mean, conditions, batch=batch)

    @torch.no_grad()
    @uncast_method
    def reconstruct(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        *,
        start: Start = "mean",
        evaluations: int | None = None,
        batch: int = 500,
    ) -> Tensor:
        """Return images (n, C, H, W) in [0, 1] decoded from the latents of others.

        Args:
            images: (n, C, H, W) in [0, 1].
            generator: random numbers, on the CPU.
            start: "mean" for expected images; of a flow of pixels also "fresh" for the images that random noise flows
                to, and "inverted" for those that each image's own noise, found by `invert`, flows back to.
            evaluations: see `sample`.
            batch: images at a time.

        Raises:
            ValueError: a start that is unknown, or that needs a flow of pixels.
        """
        latents = self.encode(images, batch=batch)
        if start == "mean":
            return self.decode(latents, batch=batch)
        if start not in get_args(Start):
            raise ValueError(f"start must be one of {', '.join(get_args(Start))}, got {start!r}")
        noise = self.invert(images, latents, evaluations=evaluations, batch=batch) if start == "inverted" else None
        return self.sample_images(latents, generator, evaluations=evaluations, noise=noise, batch=batch)

    @torch.no_grad()
    @uncast_method
    def invert(self, images: Tensor, latents: Tensor, *, evaluations: int | None = None, batch: int = 500) -> Tensor:
        """Return the noise x(0), (n, C, H, W), from which a flow of pixels leads to images under their latents.

        Latent and noise together are the full code of an image.

        Args:
            images: (n, C, H, W) in [0, 1].
            latents: (n, d).
            evaluations: see `sample`.
            batch: images at a time.

        Raises:
            ValueError: the observation is no flow from noise to the image.
        """

        def back(part: Tensor, codes: Tensor) -> Tensor:
            return self.observation.invert(part, self.conditions(codes), evaluations)

        return in_parts(back, self.checked(images), self.checked_latents(latents), batch=batch)

    @torch.no_grad()
    @uncast_method
    def image_trajectories(
        self, latents: Tensor, times: Times, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return how images arise along the flows of the observation, by name: (T, n, C, H, W) in [0, 1] each.

        Args:
            latents: (n, d).
            times: rising times in [0, 1], shape (T,).
            generator: random numbers, on the CPU.
        """
        latents = latents.to(self.device, self.dtype)
        noise = self.pixel_noise(len(latents), generator)
        return self.observation.trajectories(self.conditions(latents), noise, cast(Any, times))


def adjusted(flow: ControlledODE | None, adjust: Adjust | None) -> SolveOptions | None:
    """Return the options of a flow, adjusted; None where nothing is changed or there is no flow."""
    return None if flow is None or adjust is None else adjust(flow.options)
