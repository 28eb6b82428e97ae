import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncode_gen.config import Recipe, find_kind, known_kinds, section
from ncode_gen.config.recipe import SECTIONS
from ncode_gen.errors import UserError

from .conftest import ROOT

MODELS = sorted((ROOT / "models").rglob("*.toml"))
SETS = ("digits", "mnist", "fashion-mnist", "cifar10", "celeba", "folder")
REFINED = ("digits", "mnist", "fashion-mnist")
# No test depends on a clock.
CLOCKLESS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KINDS = ("vae", "node", "ncode-open", "ncode-closed", "ncode-autoencoder", "ncode-refined")


def test_every_model_of_the_study_of_generation_has_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    import generation

    names = [*generation.AUTOENCODERS, *generation.REFINED, *generation.VARIATIONAL, *generation.FLAGSHIPS]
    for name in names:
        assert (ROOT / "models" / "mnist" / f"{name}.toml").is_file()


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_published_model_loads_and_opens_with_what_it_is(path: Any) -> None:
    recipe = Recipe.load(path)
    assert recipe.name == f"{path.parent.name}-{path.stem}"
    assert recipe.data.name == path.parent.name
    comment = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    assert f"python -m ncode_gen.train models/{path.parent.name}/{path.stem}.toml" in comment
    assert "measured" in comment.lower()


def test_the_default_is_the_model_of_the_digits() -> None:
    assert Recipe.load(ROOT / "models" / "digits" / "ncode-open.toml") == Recipe()


def test_baselines_differ_from_the_model_in_the_flow_alone() -> None:
    for name in SETS:
        recipes = {kind: Recipe.load(ROOT / "models" / name / f"{kind}.toml") for kind in KINDS}
        for kind in ("vae", "node", "ncode-closed"):
            same = dataclasses.replace(recipes[kind], name=recipes["ncode-open"].name, flow=recipes["ncode-open"].flow)
            assert same == recipes["ncode-open"], f"{name}/{kind}"


@pytest.mark.parametrize("kind", ["vae", "ncode-open"])
def test_the_mixtures_differ_in_the_prior_alone(kind: str) -> None:
    plain, mixture = (Recipe.load(ROOT / "models" / "mnist" / f"{kind}{end}.toml") for end in ("", "-mixture"))
    assert dataclasses.replace(mixture, name=plain.name, prior=plain.prior) == plain


@pytest.mark.parametrize("data", REFINED)
def test_the_static_refiner_differs_in_its_loop_alone(data: Any) -> None:
    own, static = (Recipe.load(ROOT / "models" / data / f"ncode-refined{end}.toml") for end in ("", "-static"))
    open_loop = section("observation", **(static.observation.used() | {"loop": "open"}))
    assert static.observation != own.observation
    assert dataclasses.replace(static, name=own.name, observation=open_loop) == own


@settings(CLOCKLESS)
@given(
    rate=st.floats(1e-6, 1.0),
    epochs=st.integers(1, 10**6),
    seed=st.integers(0, 2**31),
    name=st.text("abc-_ 0é", min_size=1, max_size=12).filter(str.strip),
)
def test_what_is_written_is_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, rate: Any, epochs: Any, seed: Any, name: Any
) -> None:
    recipe = Recipe(name=name, seed=seed, training=section("training", lr=rate, epochs=epochs))
    path = tmp_path_factory.mktemp("recipe") / "model.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.load(path) == recipe


LETTERS = "az09 ._-/\\\"'\n\0é"
ALL_KINDS = [
    find_kind(name, kind, name) if kind else type(getattr(Recipe(), name))
    for name in SECTIONS
    for kind in known_kinds(name) or ("",)
]
ALL_KEYS = [(cls, key) for cls in ALL_KINDS for key in cls.names()]


def some(cls, key):
    """Return a strategy of values for a key: most are right, some are out of range or of another type."""
    kind = next(each.type for each in msgspec.inspect.type_info(cls).fields if each.name == key)
    text = st.text(LETTERS, max_size=9)
    wrong = st.one_of(st.integers(-(2**40), 2**40), st.floats(), st.booleans(), text, st.just([1]))
    if isinstance(kind, msgspec.inspect.LiteralType):
        return st.one_of(st.sampled_from(kind.values), st.sampled_from(kind.values), wrong)
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return st.one_of(st.lists(st.one_of(st.integers(0, 5000), st.floats(0, 1)), max_size=3), text, st.floats())
    right = {"IntType": st.integers(0, 300), "FloatType": st.floats(0, 1), "BoolType": st.booleans(), "StrType": text}
    return st.one_of(*[right[type(kind).__name__]] * 3, wrong)


def table(cls, **keys):
    """Return a recipe in plain values with one section of a kind, beside others that it goes together with."""
    values = {cls.section: keys | ({cls.tag: cls.kind} if cls.kind else {})}
    deterministic = getattr(cls, "random", True) is False or getattr(cls, "random_posterior", True) is False
    if deterministic or keys.get("augment") or keys.get("feedback") == "dynamic":
        values.setdefault("objective", {"kind": "autoencoder"})
    if not getattr(cls, "takes_flow", True):
        values["flow"] = {"loop": "none"}
    if getattr(cls, "matching", False) or not getattr(cls, "pixelwise", True):
        values.setdefault("objective", {"kind": "matching"})
        values.setdefault("observation", {"kind": "flow"})
    if getattr(cls, "maps", False):
        values["latent"] = {"side": 1}
    return values


@settings(CLOCKLESS, max_examples=300)
@given(st.data())
def test_any_keys_are_read_back_the_same_or_refused_by_name(data: Any) -> None:
    keys = data.draw(st.lists(st.sampled_from(ALL_KEYS), max_size=5, unique_by=lambda one: (one[0].section, one[1])))
    values = {}
    for cls, key in keys:
        values.setdefault(cls.section, {cls.tag: cls.kind} if cls.kind else {})[key] = data.draw(some(cls, key))
    try:
        recipe = Recipe.parse(tomli_w.dumps(values), "here")
    except UserError as error:
        said = str(error)
        named = [key for _, key in keys] + [cls.tag for cls, _ in keys]
        assert said.startswith("here: ") and "\n" not in said and any(name in said for name in named)
    else:
        assert Recipe.parse(recipe.to_toml(), "again") == recipe
        written = recipe.to_dict()
        for name, inner in values.items():
            for key, value in inner.items():
                # A key that is accepted has an effect, and so it is written; or it has the value that it has anyway.
                default = getattr(type(getattr(recipe, name))(), key)
                assert written[name].get(key, default) == value


@pytest.mark.parametrize(("cls", "key"), ALL_KEYS, ids=lambda one: getattr(one, "__name__", one))
def test_every_key_belongs_to_its_kinds_alone(cls: Any, key: Any) -> None:
    """A key is accepted where its kind has it, and refused by name and reason with every kind that does not."""
    own = cls().values()[key]
    value = list(own) if isinstance(own, tuple) else own
    assert Recipe.from_dict(table(cls, **{key: value})).sections[cls.section].values()[key] == own
    for kind in known_kinds(cls.section):
        other = find_kind(cls.section, kind, "here")
        if key not in other.names():
            with pytest.raises(UserError, match=rf"{cls.section}\.{key} has no effect with .*\"{kind}\", only with"):
                Recipe.from_dict(table(other, **{key: value}))


WRONG = {
    "unknown key": ("[training]\nepoch = 3", r"training\.epoch; did you mean training\.epochs\?"),
    "unknown section": ("[trainig]\nepochs = 3", r"unknown key trainig; did you mean training\?"),
    "far from any key": ("[training]\nxyzzy = 3", "known are"),
    "wrong type": ('[training]\nepochs = "three"', r"training\.epochs must be of type int, got 'three'"),
    "a number for a flag": ('[data]\nname = "cifar10"\ngrey = 1', r"data\.grey must be of type bool"),
    "a flag for a number": ("[training]\nepochs = true", r"training\.epochs must be of type int"),
    "wrong choice": ('[flow]\nloop = "opne"', "did you mean 'open'"),
    "a value for a section": ("flow = 3", r"flow must be a table \[flow\]"),
    "zero batch": ("[training]\nbatch = 0", r"training\.batch must be at least 1"),
    "negative steps": ("[flow]\nsteps = -1", r"flow\.steps must be at least 1"),
    "share above one": ("[data]\nvalidation = 1.5", r"data\.validation must be below 1"),
    "a stage outside its step": (
        '[observation]\nkind = "refined"\nalpha = 0.0',
        r"observation\.alpha must be above 0",
    ),
    "not a number": ("[training]\nlr = nan", r"training\.lr must be above 0"),
    "an earlier name": ("[training]\nrate = 0.1", r"training\.rate is called training\.lr now"),
    "no density": ('[flow]\nloop = "closed"\nfeedback = "dynamic"', "has no density"),
    "no prior": ('[objective]\nkind = "autoencoder"\n[prior]\nkind = "normal"', 'prior.kind = "mixture"'),
    "path in the name": ('name = "../up"', "plain folder name"),
    "no TOML": ("[training", "not valid TOML"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path, text: Any, message: Any) -> None:
    path = tmp_path / "model.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        Recipe.load(path)
    assert str(path) in str(error.value) and error.value.code == 2


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model file at"):
        Recipe.load(tmp_path / "none.toml")


def test_what_has_no_effect_is_not_written() -> None:
    text = Recipe(flow=section("flow", loop="none"), prior=section("prior", kind="normal")).to_toml()
    assert "feedback" not in text and "components" not in text and "canvas" not in text and "loop" in text


LIBRARY = {"method": "torchdiffeq:dopri8"}
NO_EFFECT = [
    # A key of another kind: the reason is the kind.
    ("flow", {"loop": "none", "hidden": 999}, "hidden", 'flow.loop = "none"'),
    ("flow", {"loop": "static", "gamma": 5}, "gamma", 'flow.loop = "static"'),
    ("flow", {"loop": "static", "feedback": "gain"}, "feedback", "only with closed"),
    ("flow", {"loop": "open", "feedback": "weights"}, "feedback", "only with closed"),
    ("flow", {"loop": "closed", "dynamics": True}, "dynamics", "only with open"),
    ("decoder", {"kind": "conv", "canvas": "learned"}, "canvas", "only with ncode"),
    ("decoder", {"kind": "residual", "steps": 3}, "steps", "only with ncode"),
    ("posterior", {"kind": "gaussian", "transforms": 3}, "transforms", "only with iaf"),
    ("objective", {"kind": "elbo", "mmd_weight": 5.0}, "mmd_weight", "only with wae"),
    ("objective", {"kind": "elbo", "decoder_penalty": 0.1}, "decoder_penalty", "only with autoencoder, wae"),
    ("objective", {"kind": "wae", "latent_noise": 0.1}, "latent_noise", "only with autoencoder"),
    ("objective", {"kind": "autoencoder", "beta": 2.0}, "beta", "only with elbo"),
    ("observation", {"kind": "pixelwise", "alpha": 0.7}, "alpha", "only with refined"),
    ("observation", {"kind": "pixelwise", "epochs": 3}, "epochs", "only with refined"),
    ("prior", {"kind": "normal", "components": 3}, "components", "only with mixture, flow"),
    ("prior", {"kind": "mixture", "hidden": 7}, "hidden", "only with flow, joint-flow"),
    ("prior", {"kind": "flow", "log_det_by": "steps"}, "log_det_by", "only with joint-flow"),
    ("data", {"name": "digits", "root": "here"}, "root", "only with mnist"),
    ("data", {"name": "mnist", "grey": True}, "grey", "only with cifar10"),
    ("data", {"name": "mnist", "test": 0.5}, "test", "only with digits, arrays, folder"),
    ("data", {"name": "cifar10", "workers": 3}, "workers", "only with celeba, folder"),
    # A key that another key of the section makes idle: the reason is that key.
    ("flow", {"method": "dopri5", "steps": 77}, "steps", "a flow.method of fixed steps"),
    ("flow", LIBRARY | {"steps": 77}, "steps", "a flow.method of fixed steps"),
    ("flow", {"method": "rk4", "tolerance": 1e-6}, "tolerance", "an adaptive flow.method"),
    ("flow", {"rank": 2}, "rank", "low-rank"),
    ("flow", {"layers": 0, "hidden": 8}, "hidden", "flow.layers above 0"),
    ("flow", {"layers": 0, "activation": "silu"}, "activation", "flow.layers above 0"),
    ("flow", {"layers": 0, "time": False}, "time", "flow.layers above 0"),
    (
        "flow",
        {"loop": "closed", "feedback": "weights", "feedback_control": "film"},
        "feedback_control",
        'flow.feedback = "gain"',
    ),
    ("posterior", {"kind": "iaf", "layers": 0, "hidden": 8}, "hidden", "posterior.layers above 0"),
    ("objective", {"beta": 0.0, "warmup": 0.5}, "warmup", "objective.beta above 0"),
    ("objective", {"beta": 0.0, "free_nats": 1.0}, "free_nats", "objective.beta above 0"),
]


@pytest.mark.parametrize(("name", "values", "key", "reason"), NO_EFFECT, ids=str)
def test_a_key_without_effect_is_refused_with_its_reason(name: Any, values: Any, key: Any, reason: Any) -> None:
    with pytest.raises(UserError) as error:
        Recipe.from_dict({name: values})
    said = str(error.value)
    assert f"{name}.{key}" in said and reason in said and "effect" in said


@pytest.mark.parametrize(
    ("values", "key", "reason"),
    [
        ({"decoder": {"kind": "ncode", "blocks": 0}}, "decoder.blocks", "at least 1"),
        ({"posterior": {"kind": "iaf"}}, "posterior.kind", "takes no flow"),
        ({"flow": {"loop": "none"}, "objective": {"kinetic": 1.0}}, "objective.kinetic", "flow.loop"),
        ({"posterior": {"kind": "point"}}, "posterior.kind", "elbo"),
        ({"posterior": {"kind": "gaussian"}, "objective": {"kind": "wae"}}, "posterior.kind", "wae"),
        ({"flow": {"log_det_by": "steps"}, "objective": {"kind": "autoencoder"}}, "flow.log_det_by", "elbo"),
        ({"flow": {"grid": "random", "method": "dopri5"}}, "flow.grid", "flow.method"),
        ({"objective": {"particles": 4, "free_nats": 2.0}}, "free_nats", "particles"),
        ({"objective": {"kind": "autoencoder"}, "prior": {"kind": "joint-flow"}}, "prior.kind", "lower bound"),
        ({"objective": {"kind": "wae"}, "training": {"accumulate": 2}}, "training.accumulate", "whole batch"),
        ({"flow": {"augment": 2}}, "flow.augment", "no density"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(values: Any, key: str, reason: str) -> None:
    with pytest.raises(UserError) as error:
        Recipe.from_dict(values)
    assert key in str(error.value) and reason in str(error.value)


def test_masked_weights_are_counted_before_they_are_allocated() -> None:
    with pytest.raises(UserError, match=r'"iaf" would have [\d,]+ weights'):
        Recipe.from_dict({"posterior": {"kind": "iaf", "hidden": 2**20, "layers": 2}, "flow": {"loop": "none"}})


FLOW = {"observation": {"kind": "flow"}, "objective": {"kind": "matching"}, "flow": {"loop": "none"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"kind": "matching", "label_dropout": 0.5}}, "label_dropout .* only with data.classes"),
        ({"prior": {"kind": "deep-flow", "label_dropout": 0.5}}, "label_dropout .* only with data.classes"),
        (
            {"posterior": {"kind": "point"}, "objective": {"kind": "matching", "beta": 0.5}},
            "objective.beta, warmup, free_nats have an effect only with a random posterior",
        ),
        ({"training": {"ema": 0.5, "ema_images": 100}}, "training.ema = 0.5 has an effect only with"),
        ({"objective": {"kind": "elbo"}}, "is trained by objective.kind"),
        ({"decoder": {"width": 9}}, "has no decoder"),
        ({"likelihood": {"kind": "bernoulli"}}, "has no likelihood of pixels"),
        ({"latent": {"side": 2}}, 'need encoder.kind = "map"'),
        ({"objective": {"kind": "matching", "latent_noise": 0.1}}, "only with posterior.kind"),
    ],
)
def test_what_has_no_effect_on_a_flow_of_pixels_is_refused(changes: Any, message: str) -> None:
    Recipe.from_dict(FLOW)
    with pytest.raises(UserError, match=message):
        Recipe.from_dict({**FLOW, **changes})
