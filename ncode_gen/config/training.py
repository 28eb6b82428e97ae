"""The sections of the objective and of training."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from .registry import register
from .section import Many, NotNegative, Positive, Section, Share, Width, needs


@dataclass(frozen=True)
class LatentSection(Section):
    """The latent space."""

    section: ClassVar[str] = "latent"

    dim: Width = 8
    """Number of latent dimensions d."""
    side: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Side of codes that are coarse maps, of d / side^2 channels; 0 for codes that are vectors."""

    def check_pairs(self) -> None:
        """Refuse a map that d numbers cannot fill."""
        if self.side and self.dim % self.side**2:
            raise ValueError(
                f"latent.dim = {self.dim} is no number of channels times latent.side^2 = {self.side**2}; use "
                f"{max(1, round(self.dim / self.side**2)) * self.side**2}"
            )


@dataclass(frozen=True)
class ObjectiveSection(Section):
    """What is minimised; `build` takes the model.

    Attributes:
        random_posterior: whether it needs a posterior with a density, or one without; None for either.
        matching: whether it trains a flow observation, else a pixelwise one.
        least_batch: images that a batch needs.
        whole_batch: the key that makes it a loss of the whole batch, which cannot be parted; None if none does.
    """

    section: ClassVar[str] = "objective"
    random_posterior: ClassVar[bool | None] = False
    matching: ClassVar[bool] = False
    least_batch: ClassVar[int] = 1

    @property
    def whole_batch(self) -> str | None:
        """The key that makes it a loss of the whole batch."""
        return None

    @property
    def uses_stochastic_targets(self) -> bool:
        """Whether the model learns from stochastic targets, binarised or dequantised, as a likelihood needs."""
        return True


@register("elbo")
class ElboSection(ObjectiveSection):
    """The negative evidence lower bound."""

    target: ClassVar[str] = "training.objective:Elbo"
    random_posterior: ClassVar[bool] = True

    warmup: Share = needs("objective.beta above 0", lambda own: own.beta > 0, default=0.1)
    """Share of training over which the weight of the KL term rises from 0 to `beta`."""
    beta: NotNegative = 1.0
    """Final weight of the KL term."""
    particles: Width = 1
    """Samples of an image's latent in a training step; above 1 the importance-weighted bound is maximised."""
    free_nats: NotNegative = needs("objective.beta above 0", lambda own: own.beta > 0, default=0.0)
    """KL divergence, in nats an image, that costs nothing."""
    kinetic: NotNegative = 0.0
    """Weight of the integral of |dx/dt|^2 along the posterior's flow, for paths that are easy to solve."""

    @property
    def whole_batch(self) -> str | None:
        """The key that makes it a loss of the whole batch."""
        return "objective.free_nats" if self.free_nats else None

    def check_pairs(self) -> None:
        """Refuse free nats of many particles."""
        if self.particles > 1 and self.free_nats > 0:
            raise ValueError(
                "objective.free_nats belongs to the bound of one particle; leave it out with objective.particles > 1"
            )


@dataclass(frozen=True)
class DeterministicSection(ObjectiveSection):
    """Reconstruction of images from deterministic codes."""

    decoder_penalty: NotNegative = 0.0
    """Weight of the squared norm of the decoder's weights, the L2 of RAE-L2."""
    stochastic_targets: bool = False
    """Whether to learn from stochastic targets, binarised or dequantised, instead of the images."""

    @property
    def uses_stochastic_targets(self) -> bool:
        """Whether the model learns from stochastic targets."""
        return self.stochastic_targets


@register("autoencoder")
class AutoencoderSection(DeterministicSection):
    """Reconstruction, with a penalty of latents."""

    target: ClassVar[str] = "training.objective:Autoencoder"

    latent_penalty: NotNegative = 0.05
    """Weight of half the squared norm of the latent."""
    latent_noise: NotNegative = 0.0
    """Standard deviation of what is added to the latent in training, so that near latents decode alike; against
    `latent_penalty` it sets how fine the code is, as a posterior of fixed variance would."""


@register("wae")
class WassersteinSection(DeterministicSection):
    """Reconstruction, with the distance of latents to N(0, I)."""

    target: ClassVar[str] = "training.objective:Wasserstein"
    least_batch: ClassVar[int] = 2

    mmd_weight: NotNegative = 100.0
    """Weight of the maximum mean discrepancy (MMD) between latents and N(0, I)."""

    @property
    def whole_batch(self) -> str | None:
        """The key that makes it a loss of the whole batch."""
        return 'objective.kind = "wae"'


@register("matching")
class MatchingSection(ObjectiveSection):
    """Flow matching of a flow observation, and the KL divergence of the posterior."""

    target: ClassVar[str] = "training.matching:Matching"
    random_posterior: ClassVar[bool | None] = None
    matching: ClassVar[bool] = True

    times: Literal["uniform", "logit-normal", "log-snr"] = needs(
        "objective.likelihood below 1", lambda own: own.likelihood < 1, default="uniform"
    )
    """How times are drawn: uniform, more of them in the middle, or uniform in the log-SNR 2 log(t / (1 - t))."""
    weighting: Literal["plain", "min-snr"] = needs(
        "objective.likelihood below 1", lambda own: own.likelihood < 1, default="plain"
    )
    """Weight of the velocity's error at the times drawn: 1, or min(SNR, 5) / SNR of the error of the noise."""
    likelihood: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of each batch with likelihood weighting: times uniform in log-SNR, and the weights with which the loss is a
    bound on -log P(u | z), in nats a pixel. With 1, and beta = 1, the whole is an evidence lower bound."""
    beta: NotNegative = 0.03
    """Weight of the KL divergence, in nats a pixel; without effect for a deterministic posterior."""
    warmup: Share = needs("objective.beta above 0", lambda own: own.beta > 0, default=0.1)
    """Share of training over which the weight of the KL term rises from 0 to `beta`."""
    free_nats: NotNegative = needs("objective.beta above 0", lambda own: own.beta > 0, default=0.0)
    """KL divergence, in nats an image, that costs nothing; with a large `beta`, the target that it is held at."""
    latent_noise: NotNegative = 0.0
    """Standard deviation of what is added to a deterministic code in training."""
    label_dropout: Share = 0.1
    """Share of the images whose label is hidden in training, where there are labels, as guidance needs."""

    @property
    def whole_batch(self) -> str | None:
        """The key that makes it a loss of the whole batch."""
        return "objective.free_nats" if self.free_nats else None

    @property
    def uses_stochastic_targets(self) -> bool:
        """No: images are learnt as they are."""
        return False


@dataclass(frozen=True)
class TrainingSection(Section):
    """How the weights are found."""

    section: ClassVar[str] = "training"

    epochs: Many = 100
    """Passes over the training images."""
    batch: Annotated[int, Meta(ge=1, le=2**30)] = 64
    """Images in a batch."""
    lr: Positive = 2e-3
    """Peak learning rate of AdamW."""
    weight_decay: NotNegative = 0.0
    """Weight decay of AdamW."""
    warmup: Share = 0.03
    """Share of the steps over which the learning rate rises; it then falls along a half cosine."""
    grad_clip: NotNegative = 50.0
    """Largest norm of the gradient of the loss (nats an image); 0 for no limit."""
    ema: Share = needs("training.ema_images = 0", lambda own: own.ema_images == 0, default=0.999)
    """Decay of the moving average of the weights, a step; 0 for none."""
    ema_images: Annotated[int, Meta(ge=0, le=2**40)] = 0
    """Half-life of the moving average in images, whatever the batch; 0 to use `ema`."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Precision of encoder and decoder; flow, likelihood and prior stay in float32. The loss of fp16 is scaled; a CPU
    without native bf16 takes float32 instead, and says so."""
    accumulate: Annotated[int, Meta(ge=1, le=2**30)] = 1
    """Parts of a batch whose gradients are added up one after the other, to save memory."""
    max_skipped: Annotated[int, Meta(ge=0, le=2**40)] = 20
    """Batches in a row that may be skipped because a loss, gradient or solve was not finite, before training stops."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step; "auto" does where the run is long enough to repay it."""
    validate_every: Many = 1
    """Epochs between validations."""
    picture_every: Many = 10
    """Epochs between the sample and reconstruction grids in TensorBoard."""
