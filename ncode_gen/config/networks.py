"""The sections of encoders, decoders, likelihoods and observations."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from .registry import register
from .section import Depth, Many, Positive, Section, Width, needs


@dataclass(frozen=True)
class EncoderSection(Section):
    """The network from an image to features; `build` takes the shape (C, H, W) of the images.

    Attributes:
        maps: whether the features are maps; `build` then takes their side too.
    """

    section: ClassVar[str] = "encoder"
    maps: ClassVar[bool] = False

    features: Width = 128
    """Number of features given to the posterior and to the control."""


@dataclass(frozen=True)
class SizedEncoderSection(EncoderSection):
    """An encoder of some width and depth."""

    width: Width = 64
    """Channels of the first convolution, doubled as the side is halved; a quarter of a perceptron's width."""
    blocks: Depth = 1
    """Residual blocks: of conv at the smallest size, of residual at each; a perceptron's extra hidden layers."""


@register("auto")
class DefaultEncoderSection(SizedEncoderSection):
    """A multilayer perceptron up to 12 x 12 pixels, else convolutions."""

    target: ClassVar[str] = "networks.encoders:auto_encoder"


@register("conv")
class ConvEncoderSection(SizedEncoderSection):
    """Strided convolutions."""

    target: ClassVar[str] = "networks.encoders:ConvEncoder"


@register("residual")
class ResidualEncoderSection(SizedEncoderSection):
    """Residual blocks with GroupNorm."""

    target: ClassVar[str] = "networks.encoders:ResidualEncoder"


@register("map")
class MapEncoderSection(SizedEncoderSection):
    """Residual blocks down to maps of side `latent.side`, for codes that are maps."""

    target: ClassVar[str] = "networks.encoders:MapEncoder"
    maps: ClassVar[bool] = True

    features: Width = 4096
    """Number of features, a multiple of `latent.side` squared, given to the posterior and to the control."""


@register("mlp")
class MLPEncoderSection(SizedEncoderSection):
    """A multilayer perceptron, for tiny images."""

    target: ClassVar[str] = "networks.encoders:MLPEncoder"


@dataclass(frozen=True)
class DecoderSection(Section):
    """The network from a latent to the parameters of the likelihood; `build` takes d and the output's shape."""

    section: ClassVar[str] = "decoder"


@dataclass(frozen=True)
class SizedDecoderSection(DecoderSection):
    """A decoder of some width and depth."""

    width: Width = 64
    """Channels at half the image's size, doubled as the side is halved; a quarter of a perceptron's width."""
    blocks: Depth = 1
    """Residual blocks: of conv at the smallest size, of residual at each; a perceptron's extra hidden layers."""


@register("auto")
class DefaultDecoderSection(SizedDecoderSection):
    """A multilayer perceptron up to 12 x 12 pixels, else transposed convolutions."""

    target: ClassVar[str] = "networks.decoders:auto_decoder"


@register("conv")
class ConvDecoderSection(SizedDecoderSection):
    """Transposed convolutions."""

    target: ClassVar[str] = "networks.decoders:ConvDecoder"


@register("residual")
class ResidualDecoderSection(SizedDecoderSection):
    """Residual blocks with GroupNorm."""

    target: ClassVar[str] = "networks.decoders:ResidualDecoder"


@register("mlp")
class MLPDecoderSection(SizedDecoderSection):
    """A multilayer perceptron, for tiny images."""

    target: ClassVar[str] = "networks.decoders:MLPDecoder"


@register("ncode")
class FlowDecoderSection(DecoderSection):
    """Controlled flows of a feature map: the N-CODE decoder."""

    target: ClassVar[str] = "networks.flow_decoder:FlowDecoder"

    width: Width = 64
    """Channels at half the image's size; doubled as the side is halved."""
    blocks: Annotated[int, Meta(ge=1, le=1000)] = 1
    """Flows at each size."""
    canvas: Literal["latent", "learned"] = "latent"
    """Where the feature map starts: a linear map of the latent, or one learned map for all latents."""
    steps: Annotated[int, Meta(ge=1, le=1000)] = 2
    """Steps of the midpoint method in each flow."""


@dataclass(frozen=True)
class LikelihoodSection(Section):
    """The distribution of a pixel given the decoder's output."""

    section: ClassVar[str] = "likelihood"


@register("bernoulli")
class BernoulliSection(LikelihoodSection):
    """Bernoulli; images are dynamically binarised."""

    target: ClassVar[str] = "distributions.likelihoods:Bernoulli"


@register("gaussian")
class GaussianSection(LikelihoodSection):
    """Gaussian with one learned scale; images are uniformly dequantised."""

    target: ClassVar[str] = "distributions.likelihoods:Gaussian"


@register("logistic")
class LogisticSection(LikelihoodSection):
    """Discretised logistic of 256 levels."""

    target: ClassVar[str] = "distributions.likelihoods:DiscretisedLogistic"


@dataclass(frozen=True)
class ObservationSection(Section):
    """The distribution of an image given its latent.

    Attributes:
        phase_epochs: epochs of a training phase of its own, after the model's; 0 for none.
        pixelwise: whether it has the decoder and the likelihood of the recipe.
        labels: whether classes may condition it.
    """

    section: ClassVar[str] = "observation"
    pixelwise: ClassVar[bool] = True
    labels: ClassVar[bool] = False

    @property
    def phase_epochs(self) -> int:
        """Epochs of a training phase of its own."""
        return 0


@register("pixelwise")
class PixelwiseSection(ObservationSection):
    """Independent pixels under the decoder's output; samples are decoder means, which are blurry."""

    target: ClassVar[str] = "distributions.observation:Pixelwise"


Control = Literal["input", "time", "film", "film-map", "low-rank", "mixture"]


@register("flow")
class FlowObservationSection(ObservationSection):
    """A flow from noise to the image, whose control the code decides; it is trained with the encoder."""

    target: ClassVar[str] = "distributions.pixel_flow:pixel_flow"
    pixelwise: ClassVar[bool] = False
    labels: ClassVar[bool] = True

    loop: Literal["static", "open", "closed"] = "open"
    """What decides the control: nothing (one flow for all, as I-CFM), the code, or the code and the current state."""
    control: tuple[Control, ...] = needs(
        'observation.loop = "open" or "closed"', lambda own: own.loop != "static", default=("film-map",)
    )
    """Which weights are each sample's own, one or more: biases of the first layer over space (input), what is added to
    the features of the time (time), FiLM, FiLM over space (film-map), updates of low rank of a kernel of each block, or
    mixtures of shared kernels."""
    width: Width = 64
    """Channels of the U-net at its first resolution; doubled as the side is halved."""
    blocks: Annotated[int, Meta(ge=1, le=1000)] = 1
    """Blocks at each resolution but the coarsest, on the way down and on the way up."""
    middle: Annotated[int, Meta(ge=1, le=1000)] = 4
    """Blocks at the coarsest resolution."""
    hidden: Width = needs('observation.loop = "open" or "closed"', lambda own: own.loop != "static", default=128)
    """Channels of the hidden maps of gamma, which maps the code to the control."""
    rank: Annotated[int, Meta(ge=1, le=1024)] = needs(
        '"low-rank" in observation.control', lambda own: "low-rank" in own.chosen_control, default=8
    )
    """Rank of an update of a kernel."""
    kernels: Annotated[int, Meta(ge=1, le=1024)] = needs(
        '"mixture" in observation.control', lambda own: "mixture" in own.chosen_control, default=4
    )
    """Shared kernels of a mixture."""
    block: Literal["dense", "depthwise"] = "dense"
    """What a block is made of: two 3 x 3 convolutions, or one depthwise 5 x 5 and two 1 x 1, with fewer weights."""
    fourier: bool = False
    """Whether the U-net is also given sine and cosine of the pixels at periods of 1 to 4 grey levels, which likelihoods
    need and samples do not."""
    method: Literal["euler", "midpoint", "heun", "rk4"] = "midpoint"
    """Solver from noise to images."""
    steps: Width = 4
    """Steps of the solver; the field is evaluated once (euler), twice or four times (rk4) in each."""
    shift: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    """How the times of the steps lie: above 1 more of them near the image, below 1 near the noise."""
    reflow: Annotated[int, Meta(ge=0, le=2**40)] = 0
    """Epochs of tuning after all else, so that one or two evaluations give nearly what many do; 0 for none. A finished
    run takes them with --resume."""
    reflow_lr: Positive = needs("observation.reflow above 0", lambda own: own.reflow > 0, default=3e-4)
    """Peak learning rate of this tuning."""

    @property
    def phase_epochs(self) -> int:
        """Epochs of a training phase of its own."""
        return self.reflow

    def arguments(self) -> dict[str, Any]:
        """Return the keys of the flow."""
        return {key: value for key, value in self.values().items() if key not in ("reflow", "reflow_lr")}

    @property
    def chosen_control(self) -> tuple[Control, ...]:
        """The weights that are each sample's own; none of a static flow."""
        return () if self.loop == "static" else self.control

    def check_pairs(self) -> None:
        """Refuse a control that is none."""
        if not self.control:
            raise ValueError('observation.control must name at least one control; use loop = "static" for none')


@register("refined")
class RefinedSection(ObservationSection):
    """Decoder means, to which a flow of pixels adds a sample of the residual; it is trained after the model."""

    target: ClassVar[str] = "distributions.observation:refined"

    loop: Literal["static", "open"] = "open"
    """What the latent decides beside the decoder mean: nothing (one flow for all), or the FiLM of the whole U-net."""
    width: Width = 64
    """Channels of the U-net at the first resolution; doubled as the side is halved."""
    blocks: Annotated[int, Meta(ge=1, le=1000)] = 1
    """Blocks at each resolution, on the way down and on the way up."""
    noise: Positive = 1.0
    """Standard deviation of the noise that the flow starts from, in units of the residual's."""
    steps: Width = 4
    """Steps, of two stages each, from noise to residual; compare some, fewer may do better."""
    alpha: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Where the second stage of a step lies, as a share of the step: 0.5 is the midpoint method, 1 Heun's. The less it
    is, the sharper are images of few steps."""
    zero_mean_residual: bool = False
    """Whether the residual is taken to have mean zero under each latent. The U-net is then not evaluated at noise: with
    one step, once an image instead of twice."""
    epochs: Many = 10
    """Passes over the training images, after those of `training`, whose other keys hold for this phase too."""
    lr: Positive = 2e-3
    """Peak learning rate of AdamW in this phase."""

    def arguments(self) -> dict[str, Any]:
        """Return the keys of the refiner."""
        return {key: value for key, value in self.values().items() if key not in ("epochs", "lr")}

    @property
    def phase_epochs(self) -> int:
        """Epochs of a training phase of its own."""
        return self.epochs
