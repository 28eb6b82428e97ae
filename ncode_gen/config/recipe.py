"""What a model file may say: typed, frozen, checked, and written back as it was read."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from ..errors import UserError
from ..runtime.paths import user_path
from .data import DataSection, DigitsSection
from .earlier import RENAMED, translated
from .features import AutoFeaturesSection, FeaturesSection
from .flows import (
    AutoPosteriorSection,
    FlowSection,
    GaussianPosteriorSection,
    OpenSection,
    PointPosteriorSection,
    PosteriorSection,
)
from .networks import (
    DecoderSection,
    DefaultDecoderSection,
    DefaultEncoderSection,
    EncoderSection,
    GaussianSection,
    LikelihoodSection,
    ObservationSection,
    PixelwiseSection,
)
from .priors import MixtureSection, PriorSection
from .registry import check_key, find_kind, plugin_of
from .section import Section
from .training import ElboSection, LatentSection, ObjectiveSection, TrainingSection

LONGEST_NAME = 200
DIVERGENCE = ("beta", "warmup", "free_nats")  # keys of the KL term
MOST_MASKED = 2**27
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Recipe:
    """A model: data, networks, distributions, objective and training."""

    name: str = "digits-ncode-open"
    """Name of the run folder."""
    seed: int = 0
    """Seed of initial weights, data order and noise."""
    data: DataSection = field(default_factory=DigitsSection)
    encoder: EncoderSection = field(default_factory=DefaultEncoderSection)
    latent: LatentSection = field(default_factory=LatentSection)
    posterior: PosteriorSection = field(default_factory=AutoPosteriorSection)
    flow: FlowSection = field(default_factory=OpenSection)
    decoder: DecoderSection = field(default_factory=DefaultDecoderSection)
    likelihood: LikelihoodSection = field(default_factory=GaussianSection)
    observation: ObservationSection = field(default_factory=PixelwiseSection)
    objective: ObjectiveSection = field(default_factory=ElboSection)
    prior: PriorSection = field(default_factory=MixtureSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    features: FeaturesSection = field(default_factory=AutoFeaturesSection)

    @property
    def sections(self) -> dict[str, Section]:
        """The sections by name."""
        return {name: getattr(self, name) for name in SECTIONS}

    @property
    def epochs(self) -> int:
        """Passes over the training images in all, those of the observation's own phase included."""
        return self.training.epochs + self.observation.phase_epochs

    @property
    def chosen_features(self) -> FeaturesSection:
        """The feature network of scores, where "auto" is that of the image set."""
        if self.features.kind != "auto":
            return self.features
        found: FeaturesSection = section("features", kind=self.data.features)
        return found

    @property
    def chosen_posterior(self) -> PosteriorSection:
        """The posterior, where "auto" is what the objective needs."""
        if self.posterior.random is not None:
            return self.posterior
        return PointPosteriorSection() if self.objective.random_posterior is False else GaussianPosteriorSection()

    @classmethod
    def load(cls, path: str | Path, *, stored: bool = False) -> Recipe:
        """Read and check a model file.

        Args:
            path: the file.
            stored: see `from_dict`.

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
            raise UserError(f"the model file {path} is not UTF-8 text, which TOML needs; save it as UTF-8") from None
        return cls.parse(text, str(path), stored=stored)

    @classmethod
    def parse(cls, text: str, source: str, *, stored: bool = False) -> Recipe:
        """Read and check TOML text; see `from_dict`."""
        try:
            values = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # Python's limits of numbers and nestings, too
            raise UserError(f"{source} is not valid TOML: {error}") from None
        return cls.from_dict(values, source, stored=stored)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the recipe", *, stored: bool = False) -> Recipe:
        """Return the recipe of a mapping as TOML has it; keys that it lacks have their defaults.

        Args:
            values: keys and values, a mapping for each section.
            source: where they come from, for messages.
            stored: whether a run holds them, so that a version with other keys or defaults may have written them:
                earlier keys are translated, and keys that have no effect are left out, not refused.

        Raises:
            UserError: a key is unknown or has no effect, a value has a wrong type or is out of range, two do not go
                together, or a kind belongs to a plugin that is not loaded.

        >>> recipe = Recipe.from_dict({"flow": {"loop": "closed", "hidden": 8}, "prior": {"kind": "normal"}})
        >>> recipe.flow.loop, recipe.flow.hidden, recipe.training.epochs
        ('closed', 8, 100)
        """
        values = dict(translated(values) if stored else values)
        plugins = values.pop("plugins", [])
        if not isinstance(plugins, list) or not all(isinstance(each, str) for each in plugins):
            raise UserError(f"{source}: plugins must be a list of names of modules, got {plugins!r}")
        arguments: dict[str, Any] = {}
        for key, value in values.items():
            if key in SECTIONS:
                arguments[key] = _section(key, value, source, plugins, stored=stored)
            elif key in ("name", "seed"):
                arguments[key] = value
            else:
                near = difflib.get_close_matches(key, [*SECTIONS, "name", "seed"], n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are name, seed, {', '.join(SECTIONS)}"
                raise UserError(f"{source}: unknown key {key}; {hint}")
        recipe = cls(**arguments)
        if stored:
            cleaned: Any = {name: section.without_unused() for name, section in recipe.sections.items()}
            recipe = dataclasses.replace(recipe, **cleaned)
        recipe.check(source)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Return every key that has an effect, as TOML has it, and the plugins that the kinds come from."""
        plugins = sorted({plugin for section in self.sections.values() if (plugin := plugin_of(section))})
        own = {"name": self.name, "seed": self.seed} | ({"plugins": plugins} if plugins else {})
        left = () if self.observation.pixelwise else ("decoder", "likelihood")
        return own | {name: used for name, each in self.sections.items() if name not in left and (used := each.used())}

    def to_toml(self) -> str:
        """Return the recipe as TOML text with every key that has an effect.

        What has none is left out, so that a run folder can be read by a version with other defaults.

        >>> Recipe.parse(Recipe().to_toml(), "here") == Recipe()
        True
        """
        return tomli_w.dumps(self.to_dict())

    def check(self, source: str = "the recipe") -> None:
        """Raise a `UserError` that names the key, if a value is out of range or without effect, or two do not fit."""
        if type(self.seed) is not int or not 0 <= self.seed <= LARGEST_SEED:
            raise UserError(f"{source}: seed must be a whole number from 0 to {LARGEST_SEED}, got {self.seed!r}")
        name = self.name
        if not isinstance(name, str) or not name.strip() or name.startswith(".") or not name.isprintable():
            raise UserError(f"{source}: name must be a plain folder name, got {name!r}")
        if "/" in name or "\\" in name:
            raise UserError(f"{source}: name must be a plain folder name, got {name!r}")
        if len(name.encode()) > LONGEST_NAME:
            raise UserError(f"{source}: name must have at most {LONGEST_NAME} bytes, it has {len(name.encode())}")
        for section in self.sections.values():
            section.check(source)
        for wrong, reason in self._pairs():
            if wrong:
                raise UserError(f"{source}: {reason}")

    def _pairs(self) -> tuple[tuple[object, str], ...]:
        """Return what does not go together between sections, each with whether it is so."""
        objective, flow, prior = self.objective, self.flow, self.prior
        posterior, bound = self.chosen_posterior, self.objective.random_posterior
        if bound is None:
            bound = posterior.random
        named = f'objective.kind = "{objective.kind}"'
        return (
            (
                posterior.random != bound,
                f'posterior.kind = "{posterior.kind}" is {"random" if posterior.random else "deterministic"}, which '
                f"{named} has no use for; leave posterior.kind out for the default",
            ),
            (
                flow.is_flow and not posterior.takes_flow,
                f'posterior.kind = "{posterior.kind}" takes no flow; set flow.loop = "none"',
            ),
            (
                bound and flow.no_density(),
                f"with {flow.no_density()} the flow has no density, which {named} needs; leave it out, or use the "
                'objective "autoencoder"',
            ),
            (
                not bound and getattr(flow, "log_det_by", "divergence") != "divergence",
                f'flow.log_det_by = "steps" has an effect only with objective.kind = "elbo", got "{objective.kind}"',
            ),
            (
                not flow.is_flow and getattr(objective, "kinetic", 0.0) > 0,
                'objective.kinetic has an effect only with a flow, got flow.loop = "none"',
            ),
            (
                objective.kind == "autoencoder" and prior.kind == "normal",
                f'{named} leaves the latents without a fixed distribution; set prior.kind = "mixture" or "flow"',
            ),
            (
                not bound and prior.joint,
                f'prior.kind = "{prior.kind}" is trained by the evidence lower bound; use a prior that is fitted after '
                'training, or objective.kind = "elbo"',
            ),
            (
                self.training.accumulate > 1 and objective.whole_batch,
                f"{objective.whole_batch} is a loss of the whole batch, which training.accumulate would part; leave it "
                "at 1",
            ),
            *_pairs_of_codes(self),
            (
                posterior.kind == "iaf" and self._masked_weights() > MOST_MASKED,
                f'posterior.kind = "iaf" would have {self._masked_weights():,} weights, more than {MOST_MASKED:,}; '
                "lower posterior.hidden, posterior.layers or posterior.transforms",
            ),
        )

    def _masked_weights(self) -> int:
        """Return the number of weights of an inverse autoregressive posterior, which are allocated to be counted."""
        own = self.posterior.values()
        if self.posterior.kind != "iaf":
            return 0
        width, layers, dim = own["hidden"], own["layers"], self.latent.dim
        between = max(layers - 1, 0) * width**2
        ends = (dim + self.encoder.features) * (width if layers else 2 * dim) + 2 * dim * width * (layers > 0)
        return int(own["transforms"] * (between + ends))


def _pairs_of_codes(recipe: Recipe) -> tuple[tuple[object, str], ...]:
    """Return what does not go together around codes, labels and the flow of pixels."""
    observation, objective, side = recipe.observation, recipe.objective, recipe.latent.side
    flow_of = f'observation.kind = "{observation.kind}"'
    return (
        (
            objective.matching == observation.pixelwise,
            f'{flow_of} is trained by objective.kind = "{"elbo" if observation.pixelwise else "matching"}", got '
            f'"{objective.kind}"',
        ),
        (
            not observation.pixelwise and recipe.decoder != DefaultDecoderSection(),
            f"{flow_of} has no decoder; leave the section decoder out",
        ),
        (
            not observation.pixelwise and recipe.likelihood != GaussianSection(),
            f"{flow_of} has no likelihood of pixels; leave the section likelihood out",
        ),
        (
            bool(side) != recipe.encoder.maps,
            f'encoder.kind = "{recipe.encoder.kind}" does not go with latent.side = {side}; codes that are maps, of '
            'side above 0, need encoder.kind = "map"',
        ),
        (
            side and recipe.encoder.features % side**2,
            f"encoder.features = {recipe.encoder.features} must be a multiple of latent.side^2 = {side**2}",
        ),
        (
            side and recipe.chosen_posterior.kind not in ("gaussian", "point"),
            f'posterior.kind = "{recipe.posterior.kind}" takes no codes that are maps; set latent.side = 0',
        ),
        (
            recipe.data.classes and not observation.labels,
            f'data.classes has an effect only with observation.kind = "flow", got "{observation.kind}"',
        ),
        (
            recipe.data.classes and getattr(observation, "loop", "") == "static",
            'data.classes has no effect with observation.loop = "static"; leave it out',
        ),
        (
            not recipe.data.classes
            and any(part.values().get("label_dropout", 0.1) != 0.1 for part in (objective, recipe.prior)),
            "label_dropout has an effect only with data.classes, which names labels; leave it out",
        ),
        (
            objective.matching
            and not recipe.chosen_posterior.random
            and any(objective.values()[key] != getattr(type(objective), key) for key in DIVERGENCE),
            f"objective.{', '.join(DIVERGENCE)} have an effect only with a random posterior, got posterior.kind = "
            f'"{recipe.chosen_posterior.kind}"; leave them out',
        ),
        (
            getattr(objective, "latent_noise", 0) and objective.matching and recipe.chosen_posterior.random,
            'objective.latent_noise has an effect only with posterior.kind = "point"',
        ),
    )


SECTIONS: tuple[str, ...] = tuple(each.name for each in dataclasses.fields(Recipe) if each.name not in ("name", "seed"))
_DEFAULTS: dict[str, Any] = {each.name: each.default_factory for each in dataclasses.fields(Recipe)}


def _section(name: str, values: object, source: str, plugins: list[str], *, stored: bool = False) -> Section:
    """Return a section of a table of TOML; of a stored one, keys of other kinds are left out."""
    default: type[Section] = _DEFAULTS[name]
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: {name} must be a table [{name}], got {values!r}")
    own = dict(values)
    kind = own.pop(default.tag, default.kind) if default.kind else ""
    cls = find_kind(name, kind, source, plugins) if default.kind else default
    for key in list(own):
        if key not in cls.names() and key in RENAMED.get(name, {}):
            raise UserError(f"{source}: {name}.{key} is called {name}.{RENAMED[name][key]} now")
        try:
            check_key(key, cls, source)
        except UserError:
            if not stored:
                raise
            del own[key]
    return cls.read(own, source)


def section(name: str, /, **keys: Any) -> Any:
    """Return a section of a recipe by its name, with its kind and keys as in a model file; others have their defaults.

    Raises:
        UserError: there is no such section, kind or key, or a value has a wrong type or is out of range.

    >>> Recipe(flow=section("flow", loop="closed", hidden=8)).flow.hidden
    8
    """
    if name not in SECTIONS:
        raise UserError(f"a recipe has no section {name!r}; known are {', '.join(SECTIONS)}")
    return _section(name, keys, "section", [])


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
