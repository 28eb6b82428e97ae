import dataclasses
import typing

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncode_gen.config.recipe import FlowRecipe, ObjectiveRecipe, PriorRecipe, Recipe, TrainingRecipe
from ncode_gen.errors import UserError

from .conftest import ROOT

MODELS = sorted((ROOT / "models").rglob("*.toml"))
SETS = ("digits", "mnist", "fashion-mnist", "cifar10", "celeba", "folder")
COMPARED = (
    *("ae", "rae-l2", "wae-mmd", "beta-vae", "node-autoencoder", "anode", "ncode-autoencoder-closed", "ffjord", "iaf"),
    *("vae-flow", "ncode-open-flow", "conv-decoder", "residual-decoder", "ncode-decoder", "ncode-closed-gains"),
)
REFINED = ("digits", "mnist", "fashion-mnist")
# No test depends on a clock.
CLOCKLESS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KINDS = ("vae", "node", "ncode-open", "ncode-closed", "ncode-autoencoder", "ncode-refined")


def test_every_set_has_every_model():
    expected = {f"{s}/{k}.toml" for s in SETS for k in KINDS} | {
        "mnist/vae-mixture.toml",
        "mnist/ncode-open-mixture.toml",
        "digits/ffjord.toml",
        "digits/iaf.toml",
    }
    expected |= {f"{s}/{k}.toml" for s in ("mnist", "fashion-mnist") for k in COMPARED}
    expected |= {f"{s}/ncode-refined-static.toml" for s in REFINED} | {"mnist/ncode-refined-long.toml"}
    assert {str(path.relative_to(ROOT / "models")) for path in MODELS} == expected


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_model_loads_and_opens_with_what_it_is(path):
    recipe = Recipe.load(path)
    assert recipe.name == f"{path.parent.name}-{path.stem}"
    assert recipe.data.name == path.parent.name
    comment = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    assert f"python -m ncode_gen.train models/{path.parent.name}/{path.stem}.toml" in comment
    assert "measured" in comment.lower()


def test_the_default_is_the_model_of_the_digits():
    assert Recipe.load(ROOT / "models" / "digits" / "ncode-open.toml") == Recipe()


def test_baselines_differ_from_the_model_in_the_flow_alone():
    for name in SETS:
        recipes = {kind: Recipe.load(ROOT / "models" / name / f"{kind}.toml") for kind in KINDS}
        for kind in ("vae", "node", "ncode-closed"):
            same = dataclasses.replace(recipes[kind], name=recipes["ncode-open"].name, flow=recipes["ncode-open"].flow)
            assert same == recipes["ncode-open"], f"{name}/{kind}"


@pytest.mark.parametrize("kind", ["vae", "ncode-open"])
def test_the_mixtures_differ_in_the_prior_alone(kind):
    plain, mixture = (Recipe.load(ROOT / "models" / "mnist" / f"{kind}{end}.toml") for end in ("", "-mixture"))
    assert dataclasses.replace(mixture, name=plain.name, prior=plain.prior) == plain


@pytest.mark.parametrize("data", REFINED)
def test_the_static_refiner_differs_in_its_loop_alone(data):
    own, static = (Recipe.load(ROOT / "models" / data / f"ncode-refined{end}.toml") for end in ("", "-static"))
    refiner = dataclasses.replace(static.refiner, loop="open")
    assert dataclasses.replace(static, name=own.name, refiner=refiner) == own and static.refiner != own.refiner


@settings(CLOCKLESS)
@given(
    rate=st.floats(1e-6, 1.0),
    epochs=st.integers(1, 10**6),
    seed=st.integers(0, 2**31),
    name=st.text("abc-_ 0é", min_size=1, max_size=12).filter(str.strip),
)
def test_what_is_written_is_read_back_the_same(tmp_path_factory, rate, epochs, seed, name):
    recipe = Recipe(name=name, seed=seed, training=TrainingRecipe(rate=rate, epochs=epochs))
    path = tmp_path_factory.mktemp("recipe") / "model.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.load(path) == recipe


LETTERS = "az09 ._-/\\\"'\n\0é"
HINTS = {
    f"{section}.{name}": hint
    for section, kind in typing.get_type_hints(Recipe).items()
    if dataclasses.is_dataclass(kind)
    for name, hint in typing.get_type_hints(kind).items()
}


def some(hint):
    """Return a strategy of values for a key: most are right, some are out of range or of another type."""
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    text = st.text(LETTERS, max_size=9)
    if typing.get_origin(hint) is tuple:
        return st.one_of(st.lists(st.one_of(st.integers(0, 5000), st.floats(0, 1)), max_size=3), text, st.floats())
    right = {int: st.integers(0, 300), float: st.floats(0, 1), bool: st.booleans(), str: text}[hint]
    wrong = st.one_of(st.integers(-(2**40), 2**40), st.floats(), st.booleans(), text, st.just([1]))
    return st.one_of(right, right, right, wrong)


@settings(CLOCKLESS, max_examples=300)
@given(st.data())
def test_any_keys_are_read_back_the_same_or_refused_by_name(data):
    keys = data.draw(st.lists(st.sampled_from(sorted(HINTS)), max_size=5, unique=True))
    values = {}
    for key in keys:
        section, name = key.split(".")
        values.setdefault(section, {})[name] = data.draw(some(HINTS[key]), label=key)
    try:
        recipe = Recipe.parse(tomli_w.dumps(values), "here")
    except UserError as error:
        told = str(error)
        assert told.startswith("here: ") and "\n" not in told and any(key.split(".")[1] in told for key in keys)
    else:
        assert Recipe.parse(recipe.to_toml(), "again") == recipe
        for section, inner in values.items():
            for name, value in inner.items():
                held = getattr(getattr(recipe, section), name)
                assert (list(held) if isinstance(held, tuple) else held) == value


WRONG = {
    "unknown key": ("[training]\nepoch = 3", r"training\.epoch; did you mean training\.epochs\?"),
    "unknown section": ("[trainig]\nepochs = 3", r"unknown key trainig; did you mean training\?"),
    "far from any key": ("[training]\nxyzzy = 3", "known are"),
    "wrong type": ('[training]\nepochs = "three"', r"training\.epochs must be of type int, got 'three'"),
    "a number for a flag": ("[data]\ngrey = 1", r"data\.grey must be of type bool"),
    "a flag for a number": ("[training]\nepochs = true", r"training\.epochs must be of type int"),
    "wrong choice": ('[flow]\nloop = "opne"', "did you mean 'open'"),
    "a value for a section": ("flow = 3", r"flow must be a table \[flow\]"),
    "zero batch": ("[training]\nbatch = 0", r"training\.batch must be at least 1"),
    "negative steps": ("[flow]\nsteps = -1", r"flow\.steps must be at least 1"),
    "share above one": ("[data]\nvalidation = 1.5", r"data\.validation must be at least 0 and below 1"),
    "stage outside its step": (
        '[refiner]\nkind = "flow"\nstage = 0.0',
        r"refiner\.stage must be above 0 and at most 1",
    ),
    "not a number": ("[training]\nrate = nan", r"training\.rate must be above 0"),
    "no density": ('[flow]\nloop = "closed"\nfeedback = "dynamic"', "has no density"),
    "idle feedback": ('[flow]\nloop = "open"\nfeedback = "weights"', r"flow\.feedback = 'weights' has an effect only"),
    "idle feedback control": (
        '[flow]\nloop = "closed"\nfeedback = "weights"\nfeedback_control = "gains"',
        r"flow\.feedback_control = 'gains' has an effect only",
    ),
    "idle rank": ("[flow]\nrank = 2", r"flow\.rank = 2 has an effect only with"),
    "idle tolerance": ("[flow]\ntolerance = 1e-6", r"flow\.tolerance = 1e-06 has an effect only with"),
    "no prior": ('[objective]\nkind = "autoencoder"\n[prior]\nkind = "normal"', 'prior.kind = "mixture"'),
    "path in the name": ('name = "../up"', "plain folder name"),
    "no TOML": ("[training", "no valid TOML"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_recipe_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "model.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        Recipe.load(path)
    assert str(path) in str(error.value) and error.value.code == 2


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(UserError, match="no model file at"):
        Recipe.load(tmp_path / "none.toml")


def test_what_has_no_effect_is_not_written():
    text = Recipe(flow=FlowRecipe(loop="none"), prior=PriorRecipe("normal")).to_toml()
    assert "feedback" not in text and "components" not in text and "canvas" not in text and "loop" in text


@pytest.mark.parametrize(
    ("section", "key", "value", "word"),
    [
        ("prior", "hidden", 7, "prior.kind"),
        ("decoder", "canvas", "learned", "ncode"),
        ("objective", "discrepancy", 5.0, "wae"),
        ("objective", "decoder_penalty", 0.1, "autoencoder"),
        ("prior", "joint", True, "flow"),
    ],
)
def test_what_has_no_effect_is_refused(section, key, value, word):
    recipe = dataclasses.replace(Recipe(), **{section: dataclasses.replace(getattr(Recipe(), section), **{key: value})})
    with pytest.raises(UserError, match=f"{section}.{key} .*{word}"):
        recipe.check()


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"flow": FlowRecipe(augment=2)}, "flow.augment"),
        ({"flow": FlowRecipe(loop="iaf"), "objective": ObjectiveRecipe("autoencoder")}, "iaf"),
        ({"flow": FlowRecipe(loop="iaf", hidden=2**20)}, r'"iaf" would have [\d,]+ weights'),
        ({"objective": ObjectiveRecipe("autoencoder"), "prior": PriorRecipe("flow", joint=True)}, "prior.joint"),
        ({"objective": ObjectiveRecipe(particles=4, free_nats=2.0)}, "free_nats"),
    ],
)
def test_what_does_not_go_together_is_refused(sections, word):
    with pytest.raises(UserError, match=word):
        Recipe(**sections).check()
