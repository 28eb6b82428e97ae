"""The sections of priors."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from .registry import register
from .section import Count, Many, NotNegative, Section, Share, Width, needs

Layers = Annotated[int, Meta(ge=1, le=1000)]


@dataclass(frozen=True)
class PriorSection(Section):
    """The distribution of latents that is sampled from; `build` takes d.

    Attributes:
        fitted_after: whether it is fitted to the training latents after the model's training.
        joint: whether it is trained with the model, by the same bound.
        network: whether `build` also takes the side of codes that are maps, where they are, and the number of classes.
    """

    section: ClassVar[str] = "prior"
    fitted_after: ClassVar[bool] = True
    joint: ClassVar[bool] = False
    network: ClassVar[bool] = False

    def least_images(self) -> int:
        """Return how many training images it needs."""
        return 2 if self.fitted_after else 1


@register("normal")
class NormalSection(PriorSection):
    """Standard normal."""

    target: ClassVar[str] = "distributions.priors.normal:StandardNormal"
    fitted_after: ClassVar[bool] = False


@register("mixture")
class MixtureSection(PriorSection):
    """A Gaussian mixture, fitted to the training latents after training."""

    target: ClassVar[str] = "distributions.priors.mixture:GaussianMixture"

    components: Count = 10
    """Components of the mixture; 0 to choose their number by held-out latents."""

    def least_images(self) -> int:
        """Return how many training images it needs."""
        return max(2, self.components)


@register("flow")
class FlowPriorSection(PriorSection):
    """An N-CODE flow from a Gaussian mixture, both fitted to the training latents after training."""

    target: ClassVar[str] = "distributions.priors.flow:FlowPrior"

    components: Count = 10
    """Components of the mixture that the flow starts from; 0 to choose their number by held-out latents."""
    hidden: Width = 256
    """Units of each hidden layer of the flow's field."""
    layers: Layers = 3
    """Hidden layers of the flow's field."""
    steps: Width = 4
    """Steps of Runge-Kutta 4 between mixture and latents."""
    iterations: Many = 4000
    """Updates of flow matching, of 1,024 latents each."""

    def least_images(self) -> int:
        """Return how many training images it needs."""
        return max(2, self.components)


@register("deep-flow")
class DeepFlowSection(PriorSection):
    """A flow from N(0, I) to the training latents, by a deep network: for codes that are maps, or have labels."""

    target: ClassVar[str] = "distributions.priors.deep:DeepFlow"
    network: ClassVar[bool] = True

    width: Width = 96
    """Channels, or units, of a layer."""
    layers: Layers = 5
    """Residual blocks."""
    steps: Width = 8
    """Steps of the midpoint method between noise and latents."""
    iterations: Many = 8000
    """Updates of flow matching."""
    batch: Width = 256
    """Latents of an update."""
    label_dropout: Share = 0.1
    """Share of the latents whose label is hidden in training, where there are labels, as guidance needs."""
    guide: Count = 0
    """Channels, or units, of a smaller network that is trained beside the other, for autoguidance; 0 for none."""
    autoguidance: NotNegative = needs("prior.guide above 0", lambda own: own.guide > 0, default=2.0)
    """How far samples are moved away from those of the guide, where there is one; 1 for not at all."""


@register("joint-flow")
class JointFlowSection(PriorSection):
    """An N-CODE flow from N(0, I), trained together with the model, by the same bound."""

    target: ClassVar[str] = "distributions.priors.flow:joint_flow_prior"
    fitted_after: ClassVar[bool] = False
    joint: ClassVar[bool] = True

    hidden: Width = 256
    """Units of each hidden layer of the flow's field."""
    layers: Layers = 1
    """Hidden layers of the flow's field; for one, its density is in closed form and so fast."""
    steps: Width = 4
    """Steps of Runge-Kutta 4 between noise and latents."""
    log_det_by: Literal["divergence", "steps"] = "divergence"
    """Integrate the divergence, or take each step's own Jacobian: slower, and exact with any number of steps."""
