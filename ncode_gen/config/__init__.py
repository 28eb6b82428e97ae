"""What a model file may say: one frozen dataclass a kind of component, and the registry of kinds.

>>> Recipe.from_dict({"flow": {"loop": "none"}, "prior": {"kind": "normal"}}).flow.loop
'none'
"""

from .data import DataSection
from .features import FeaturesSection
from .flows import FlowSection, PosteriorSection
from .networks import DecoderSection, EncoderSection, LikelihoodSection, ObservationSection
from .priors import PriorSection
from .recipe import Recipe, changed_keys, section
from .registry import find_kind, known_kinds, load_plugins, register
from .section import Count, Depth, Many, NotNegative, Positive, Section, Seed, Share, Width, needs
from .training import LatentSection, ObjectiveSection, TrainingSection

__all__ = [
    "Count",
    "DataSection",
    "DecoderSection",
    "Depth",
    "EncoderSection",
    "FeaturesSection",
    "FlowSection",
    "LatentSection",
    "LikelihoodSection",
    "Many",
    "NotNegative",
    "ObjectiveSection",
    "ObservationSection",
    "Positive",
    "PosteriorSection",
    "PriorSection",
    "Recipe",
    "Section",
    "Seed",
    "Share",
    "TrainingSection",
    "Width",
    "changed_keys",
    "find_kind",
    "known_kinds",
    "load_plugins",
    "needs",
    "register",
    "section",
]
