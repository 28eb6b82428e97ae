"""What a model file may say: typed, frozen, checked, and written back as it was read."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from ..errors import UserError
from ..runtime.paths import user_path
from .consistency import check_recipe, idle_keys

__all__ = [
    "DataRecipe",
    "DecoderRecipe",
    "EncoderRecipe",
    "FlowRecipe",
    "ImageSet",
    "LatentRecipe",
    "ObjectiveRecipe",
    "PriorRecipe",
    "Recipe",
    "TrainingRecipe",
    "changed_keys",
]


ImageSet = Literal["digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "celeba", "folder"]


@dataclass(frozen=True)
class DataRecipe:
    """Which images, and how they are split."""

    name: ImageSet = "digits"
    """Image set; "folder" takes any folder of pictures, named by --data.root."""
    root: str = "data"
    """Folder that holds (or will hold) the downloaded set, or the folder of pictures itself; where that has folders
    train and test (or training, val, ...), these are the split."""
    size: int = 0
    """Side to which pictures are resized and cropped, in pixels; 0 keeps the set's own (32 for a folder)."""
    grey: bool = False
    """Whether colour pictures are turned grey."""
    validation: float = 0.05
    """Share of the training images that is held out to watch training."""
    test: float = 0.15
    """Share of all images held out for scores, in sets without a test split of their own (digits, most folders)."""
    split_seed: int = 0
    """Seed of the splits."""
    limit: int = 0
    """Use only so many training images; 0 for all."""
    range: tuple[float, ...] = ()
    """Which values of pixels of more than 8 bits become black and white, such as 0 4095; by default the usual depth
    that holds the largest value of all pictures (a folder)."""


@dataclass(frozen=True)
class EncoderRecipe:
    """The network from an image to features."""

    kind: Literal["auto", "conv", "residual", "mlp"] = "auto"
    """Convolutions, residual blocks with GroupNorm, or a multilayer perceptron ("auto" up to 12 x 12 pixels)."""
    width: int = 64
    """Channels of the first convolution (doubled as the side is halved), or a quarter of the mlp's width."""
    blocks: int = 1
    """Residual blocks at the smallest size (conv) or at each (residual), or extra hidden layers of the mlp."""
    features: int = 128
    """Number of features given to the posterior and to the control."""


@dataclass(frozen=True)
class DecoderRecipe:
    """The network from a latent to the parameters of the likelihood."""

    kind: Literal["auto", "conv", "residual", "mlp", "ncode"] = "auto"
    """Transposed convolutions, residual blocks with GroupNorm, multilayer perceptron ("auto" up to 12 x 12 pixels), or
    a controlled flow of a feature map."""
    width: int = 64
    """Channels at half the image's size (doubled as the side is halved), or a quarter of the mlp's width."""
    blocks: int = 1
    """Residual blocks at the smallest size (conv) or at each (residual), extra hidden layers of the mlp, or flows at
    each size (ncode)."""
    canvas: Literal["latent", "learned"] = "latent"
    """Where the map of the ncode decoder starts: a linear map of the latent, or one learned canvas for all."""
    steps: int = 2
    """Steps of the midpoint method in each flow of the ncode decoder."""
    likelihood: Literal["bernoulli", "gaussian", "logistic"] = "gaussian"
    """Distribution of a pixel: Bernoulli (dynamically binarised), Gaussian with learned scale, discretised logistic."""


@dataclass(frozen=True)
class LatentRecipe:
    """The latent space."""

    dim: int = 8
    """Number of latent dimensions d."""


@dataclass(frozen=True)
class FlowRecipe:
    """The flow between the posterior's base and the latent; its control comes from the encoder."""

    loop: Literal["none", "static", "open", "closed", "iaf"] = "open"
    """None (plain VAE), one control for all (NODE), control from the encoder, or from encoder and current state; or, to
    compare with, an inverse autoregressive flow of the library zuko (pip install "ncode_gen[zuko]")."""
    feedback: Literal["gain", "weights", "dynamic"] = "gain"
    """How a closed loop follows the state; "dynamic" has no density and suits the autoencoder objective alone."""
    feedback_control: Literal["same", "all", "low-rank", "gains", "shared"] = "same"
    """What of the feedback "gain" is each sample's own: what `control` says, all its weights, low-rank updates, gains
    and biases, or nothing."""
    hidden: int = 32
    """Units of each hidden layer of the field."""
    layers: int = 1
    """Hidden layers of the field; 0 for an affine field."""
    control: Literal["all", "last", "low-rank", "gains"] = "all"
    """What of the field is each sample's own: all weights, the last layer, low-rank updates, or gains and biases."""
    rank: int = 4
    """Rank of the updates of control (or feedback_control) = "low-rank"."""
    dynamics: bool = False
    """Whether the control of the open loop moves by itself, theta' = g(t, theta)."""
    gamma: int = 32
    """Width of a hidden layer between the features and the control; 0 for a linear map."""
    augment: int = 0
    """Extra dimensions of the state that start at zero (ANODE); they leave no density, and suit autoencoders alone."""
    time: bool = True
    """Whether the field sees the time."""
    activation: Literal["tanh", "softplus", "silu"] = "tanh"
    """Activation of the field."""
    method: str = "rk4"
    """Solver: euler, midpoint, heun, rk4, rk2:SHARE; dopri5 or tsit5, adaptive for each sample; torchdiffeq:NAME."""
    steps: int = 4
    """Steps on [0, 1] of a fixed-step solver."""
    tolerance: float = 1e-4
    """Relative and absolute tolerance of a step of an adaptive solver."""
    log_det_by: Literal["divergence", "steps"] = "divergence"
    """Integrate the divergence, or take each step's own Jacobian: dearer, and exact with any number of steps."""
    grid: Literal["even", "random"] = "even"
    """Time grid in training; a random one keeps the flow from fitting the error of an even one."""


@dataclass(frozen=True)
class ObjectiveRecipe:
    """What is minimised."""

    kind: Literal["elbo", "autoencoder", "wae"] = "elbo"
    """Negative evidence lower bound; reconstruction with a penalty of latents; or with their distance to N(0, I)."""
    warmup: float = 0.1
    """Share of training over which the weight of the KL term rises from 0 to `beta`."""
    beta: float = 1.0
    """Final weight of the KL term."""
    particles: int = 1
    """Draws of an image's latent in a training step; above 1 the importance-weighted bound is maximised."""
    free_nats: float = 0.0
    """KL divergence, in nats an image, that costs nothing."""
    kinetic: float = 0.0
    """Weight of the integral of |dx/dt|^2 along the posterior's flow, for paths that are easy to solve."""
    latent_penalty: float = 0.05
    """Weight of half the squared norm of the latent (autoencoder)."""
    latent_noise: float = 0.0
    """Standard deviation of what is added to the latent in training, so that near latents decode alike
    (autoencoder); against `latent_penalty` it sets how fine the code is, as a posterior of fixed variance would."""
    decoder_penalty: float = 0.0
    """Weight of the squared norm of the decoder's weights (autoencoder, wae), the L2 of RAE-L2."""
    discrepancy: float = 100.0
    """Weight of the maximum mean discrepancy between latents and N(0, I) (wae)."""
    noisy_targets: bool = False
    """Whether to learn from noisy images, binarised or dequantised, instead of the images (autoencoder, wae)."""

    @property
    def draws_targets(self) -> bool:
        """Whether the model learns from targets drawn from the images, as a likelihood needs."""
        return self.kind == "elbo" or self.noisy_targets


@dataclass(frozen=True)
class PriorRecipe:
    """The distribution of latents from which samples are drawn."""

    kind: Literal["normal", "mixture", "flow"] = "mixture"
    """Standard normal; a Gaussian mixture fitted to the training latents after training; or an N-CODE flow from one."""
    components: int = 10
    """Components of the mixture, or of the flow's base; 0 to choose their number by held-out latents."""
    hidden: int = 256
    """Units of each hidden layer of the flow's field."""
    layers: int = 3
    """Hidden layers of the flow's field; for one, as a joint flow needs, its density is in closed form and so fast."""
    steps: int = 4
    """Steps of Runge-Kutta 4 between noise and latents."""
    updates: int = 4000
    """Updates of flow matching, of 1,024 latents each, after the autoencoder's training."""
    joint: bool = False
    """Whether the flow is trained together with the autoencoder, by the same bound, instead of afterwards."""


@dataclass(frozen=True)
class RefinerRecipe:
    """The flow from noise to what the decoder leaves out of an image; the latent is its control."""

    kind: Literal["none", "flow"] = "none"
    """None: samples are the decoder's pictures, which are means and so blurred; or a flow of pixels from these, which
    is trained when encoder and decoder are."""
    loop: Literal["static", "open"] = "open"
    """What the latent decides beside the picture that it shows: nothing (one flow for all), or gains and biases of the
    whole U-net."""
    width: int = 64
    """Channels of its U-net at the first resolution (doubled as the side is halved)."""
    blocks: int = 1
    """Its blocks at each resolution, on the way down and on the way up."""
    noise: float = 1.0
    """Standard deviation of the noise that it starts from, in units of that of what the decoder leaves out."""
    steps: int = 4
    """Steps, of two stages each, between noise and what the decoder leaves out; compare some, fewer may do better."""
    stage: float = 0.5
    """The share of a step ahead at which its second stage lies (0.5 is the midpoint method, 1 Heun's). The less it is,
    the sharper are images of few steps."""
    centred: bool = False
    """Whether the decoder's pictures are taken to be the mean of the images of a latent. The U-net is then not asked at
    noise alone: with one step, once an image instead of twice."""
    epochs: int = 10
    """Passes over the training images, after those of `training`; its batch, warmup, decay, clip, ema, precision and
    accumulate hold for the refiner too."""
    rate: float = 2e-3
    """Peak learning rate of AdamW."""


@dataclass(frozen=True)
class TrainingRecipe:
    """How the weights are found."""

    epochs: int = 100
    """Passes over the training images."""
    batch: int = 64
    """Images in a batch."""
    rate: float = 2e-3
    """Peak learning rate of AdamW."""
    decay: float = 0.0
    """Weight decay of AdamW."""
    warmup: float = 0.03
    """Share of the steps over which the learning rate rises; it then falls along a half cosine."""
    clip: float = 50.0
    """Largest norm of the gradient of the loss (nats an image); 0 for no limit."""
    ema: float = 0.999
    """Decay of the moving average of the weights, a step; 0 for none."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Precision of encoder and decoder; the flow, likelihood and prior stay in float32. The loss of fp16 is scaled; a
    CPU without arithmetic for bf16 takes float32 instead, and says so."""
    accumulate: int = 1
    """Parts of a batch whose gradients are added up one after the other, to save memory."""
    max_skipped: int = 20
    """Batches in a row that may be skipped because a loss, gradient or solve was not finite, before training stops."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step; "auto" does where the run is long enough to repay it."""
    validate_every: int = 1
    """Epochs between validations."""
    picture_every: int = 10
    """Epochs between the sample and reconstruction grids in TensorBoard."""
    workers: int = 2
    """Reading processes for sets too large for memory."""


@dataclass(frozen=True)
class Recipe:
    """A model: data, networks, flow, objective, prior and training."""

    name: str = "digits-ncode-open"
    """Name of the run folder."""
    seed: int = 0
    """Seed of initial weights, data order and noise."""
    data: DataRecipe = field(default_factory=DataRecipe)
    encoder: EncoderRecipe = field(default_factory=EncoderRecipe)
    latent: LatentRecipe = field(default_factory=LatentRecipe)
    flow: FlowRecipe = field(default_factory=FlowRecipe)
    decoder: DecoderRecipe = field(default_factory=DecoderRecipe)
    objective: ObjectiveRecipe = field(default_factory=ObjectiveRecipe)
    prior: PriorRecipe = field(default_factory=PriorRecipe)
    refiner: RefinerRecipe = field(default_factory=RefinerRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)

    @property
    def epochs(self) -> int:
        """Passes over the training images in all, those of the refiner included."""
        return self.training.epochs + (self.refiner.epochs if self.refiner.kind != "none" else 0)

    @classmethod
    def load(cls, path: str | Path, *, stored: bool = False) -> Recipe:
        """Read and check a model file.

        Args:
            path: the file.
            stored: see `parse`.

        Raises:
            UserError: the file is missing or no TOML, a key is unknown, a value has a wrong type or is out of range.
        """
        path = user_path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")  # some editors put a byte-order mark at the start
        except FileNotFoundError:
            raise UserError(f"no model file at {path}; see the folder models/ for those that exist") from None
        except OSError as error:
            raise UserError(f"cannot read the model file {path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise UserError(f"the model file {path} is no text in UTF-8, which TOML needs; save it as UTF-8") from None
        return cls.parse(text, str(path), stored=stored)

    @classmethod
    def parse(cls, text: str, source: str, *, stored: bool = False) -> Recipe:
        """Read and check TOML text; keys that it lacks have their defaults.

        Args:
            text: the text.
            source: where it comes from, for messages.
            stored: whether a run holds it, so that a version with other keys or defaults may have written it: keys
                that have no effect are then left out, not refused.

        Raises:
            UserError: as for `load`.
        """
        try:
            values = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # Python's limits of numbers and nestings, too
            raise UserError(f"{source} is no valid TOML: {error}") from None
        recipe: Recipe = _from_mapping(cls, values, source, "")
        if stored:
            recipe = recipe._without_idle_keys()
        recipe.check(source)
        return recipe

    def _without_idle_keys(self) -> Recipe:
        """Return the recipe with the default of every key that has no effect in it."""
        usual, found = Recipe(), self
        for key, without_effect, _ in idle_keys(self):
            section, name = key.split(".")
            if without_effect:
                value = getattr(getattr(usual, section), name)
                changed = dataclasses.replace(getattr(found, section), **{name: value})
                found = dataclasses.replace(found, **{section: changed})
        return found

    def to_toml(self) -> str:
        """Return the recipe as TOML text with every key that has an effect.

        What has none is left out, so that a run folder can be read by a version with other defaults.

        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.toml"
        >>> _ = file.write_text(Recipe().to_toml())
        >>> Recipe.load(file) == Recipe()
        True
        """
        values = dataclasses.asdict(self)
        values["data"]["range"] = list(self.data.range)
        for key, without_effect, _ in idle_keys(self):
            section, name = key.split(".")
            if without_effect:
                values[section].pop(name, None)
        return tomli_w.dumps(values)

    def check(self, source: str = "the recipe") -> None:
        """Raise a `UserError` that names the key, if a value is out of range or two do not go together."""
        check_recipe(self, Recipe(), source)


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two parsed TOML files: by dotted key, both values (None where there is none).

    >>> changed_keys({"flow": {"steps": 2}, "seed": 0}, {"flow": {"steps": 4}, "seed": 0})
    {'flow.steps': (2, 4)}
    """
    a, b = _flat(before), _flat(after)
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _from_mapping(cls: type[Any], values: dict[str, Any], source: str, prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise UserError(f"{source}: unknown key {prefix}{key}; {hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise UserError(f"{source}: {prefix}{key} must be a table [{prefix}{key}], got {value!r}")
            arguments[key] = _from_mapping(typing.cast(type, hints[key]), value, source, f"{prefix}{key}.")
        else:
            arguments[key] = _checked(hints[key], value, source, f"{prefix}{key}")
    return cls(**arguments)


def _checked(hint: Any, value: Any, source: str, key: str) -> Any:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{source}: {key} must be one of {', '.join(map(repr, choices))}, got {value!r}{guess}")
        return value
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise UserError(f"{source}: {key} must be a list of numbers, got {value!r}")
        return tuple(_checked(typing.get_args(hint)[0], each, source, key) for each in value)
    if type(value) is not hint or isinstance(hint, types.GenericAlias):
        raise UserError(f"{source}: {key} must be of type {hint.__name__}, got {value!r}")
    return value
