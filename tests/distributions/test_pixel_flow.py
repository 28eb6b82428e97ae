"""The flow of pixels: closed forms of its likelihoods, its controls, its inverse."""

import math
from typing import Any

import pytest
import torch

from ncode_gen.config import Recipe, section
from ncode_gen.control import DenseUNetField, ImageGamma
from ncode_gen.distributions import LatentModel, PixelFlow, build_model
from ncode_gen.distributions.pixel_flow import pixel_flow
from ncode_gen.distributions.priors import DeepFlow, Guidance

SHAPE = (3, 8, 8)


def flow_of(shape: tuple[int, int, int] = SHAPE, **keys: Any) -> PixelFlow:
    torch.manual_seed(0)
    return pixel_flow(32, shape, **{"side": 4, "width": 8, "middle": 2, "hidden": 16, **keys}).eval()


def disturbed(flow: PixelFlow, size: float = 0.05) -> PixelFlow:
    """Return a flow whose weights are none that training starts from."""
    generator = torch.Generator().manual_seed(1)
    for value in flow.parameters():
        value.data += size * torch.randn(value.shape, generator=generator)
    return flow


def gaussian_images(n: int, mean: float, std: float, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """Return images of whole levels from N(mean, std^2), which the flow at its start is the exact one for."""
    drawn = mean + std * torch.randn(n, *shape, generator=torch.Generator().manual_seed(2))
    return (drawn.clamp(0, 1) * 255).round() / 255


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 12, 12)], ids=["exact divergence", "Hutchinson's"])
def test_a_linear_gaussian_flow_has_the_closed_form_likelihood(shape: Any) -> None:
    flow = flow_of(shape).double()
    flow.scaling.centre.fill_(0.5)
    flow.scaling.scale.fill_(0.1)
    images = gaussian_images(4, 0.5, 0.1, shape).double()
    target = flow.target(images, torch.rand(images.shape, dtype=torch.float64))
    found = flow.log_prob_in(target, torch.zeros(4, 32, dtype=torch.float64), 24)
    last = flow.clean_time()
    states = last * (target * 256 / 255 - 0.5 / 255 - 0.5) / 0.1
    own = torch.distributions.Normal(0.0, math.sqrt(last**2 + (1 - last) ** 2))
    expected = (own.log_prob(states) + math.log(last * float(flow.level_step))).flatten(1).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def test_the_bound_of_the_discrete_image_is_the_entropy_where_the_flow_is_exact() -> None:
    """For whole levels of a Gaussian, bits/dim are those of that Gaussian, of which a step of the levels is a bin."""
    flow = flow_of((1, 8, 8))
    flow.take_scale(torch.zeros(1, 1, 8, 8))
    flow.scaling.centre.fill_(0.5)
    flow.scaling.scale.fill_(0.1)
    images, low_high = gaussian_images(2000, 0.5, 0.1, (1, 8, 8)), flow.log_snr_range()
    low, high = low_high
    uniform = (torch.arange(2000) + 0.5) / 2000
    t = (0.5 * (low + (high - low) * uniform)).sigmoid()
    generator = torch.Generator().manual_seed(3)
    noise, codes = torch.randn(images.shape, generator=generator), torch.zeros(2000, 32)
    with torch.no_grad():
        bound = flow.bound(images, codes, noise, t).mean() / (64 * math.log(2))
        target = flow.target(images, torch.rand(images.shape, generator=generator))
        signs = torch.randn(100, 1, 8, 8, generator=generator).sign()
        solved = -flow.log_prob_in(target[:100], codes[:100], 24, signs).mean() / (64 * math.log(2))
    entropy = math.log2(0.1 * 255 * math.sqrt(2 * math.pi * math.e))
    assert abs(float(bound) - entropy) < 0.02 * entropy
    assert abs(float(solved) - entropy) < 0.02 * entropy


CONTROLS = [
    ("input",),
    ("time",),
    ("film",),
    ("film-map",),
    ("low-rank",),
    ("mixture",),
    ("film-map", "low-rank"),
    ("film", "mixture"),
]


@pytest.mark.parametrize("loop", ["open", "closed"])
@pytest.mark.parametrize("control", CONTROLS, ids="+".join)
def test_every_control_moves_each_sample_its_own_way_and_learns(control: Any, loop: Any) -> None:
    flow = disturbed(flow_of(control=control, loop=loop), 0.1)
    codes, noise = torch.randn(3, 32), torch.randn(1, *SHAPE).expand(3, -1, -1, -1)
    images = flow.sample(codes, noise)
    assert (images[0] - images[1]).abs().max() > 1e-4
    alone = torch.cat([flow.sample(code.unsqueeze(0), noise[:1]) for code in codes])
    torch.testing.assert_close(images, alone, rtol=0, atol=1e-4)
    flow.matching_error(torch.rand(3, *SHAPE), codes, noise, torch.rand(3)).mean().backward()
    assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in flow.parameters())
    gamma = [value for name, value in flow.named_parameters() if "gamma" in name]
    assert gamma and all(bool((value.grad != 0).any()) for value in gamma if value.grad is not None)


def test_blocks_of_depthwise_convolutions_have_fewer_weights() -> None:
    dense, depthwise = (flow_of(width=32, block=block) for block in ("dense", "depthwise"))
    few, many = (sum(value.numel() for value in flow.flow.field.parameters()) for flow in (depthwise, dense))
    assert few < 0.7 * many
    assert depthwise.sample(torch.randn(2, 32), torch.randn(2, *SHAPE)).shape == (2, *SHAPE)


def test_a_static_flow_knows_no_code() -> None:
    flow = disturbed(flow_of(loop="static"))
    noise = torch.randn(2, *SHAPE)
    torch.testing.assert_close(flow.sample(torch.randn(2, 32), noise), flow.sample(torch.randn(2, 32), noise))


def test_a_control_is_laid_out_as_it_is_read() -> None:
    """A scale of one block over space, set by hand, changes that block's maps alone and at its own place."""
    field = DenseUNetField((1, 8, 8), ("film-map", "film", "low-rank"), side=4, width=8, middle=2, rank=2)
    control = torch.arange(field.control_size, dtype=torch.float32).unsqueeze(0)
    parts = field.unpacked(control)
    sites = parts.sites
    assert parts.first is None and parts.time is None and len(sites) == 2
    maps = control[:, : field.map_channels * 16].view(1, 4, 4, field.map_channels)
    vectors = control[:, field.map_channels * 16 :]
    for i, site in enumerate(sites):
        assert site.scale is not None and site.down is not None and site.up is not None
        coarse = torch.nn.functional.interpolate(
            maps.permute(0, 3, 1, 2)[:, 16 * i : 16 * i + 8], (8, 8), mode="bilinear"
        )
        expected = coarse + vectors[:, 16 * i : 16 * i + 8, None, None]
        torch.testing.assert_close(site.scale, expected)
        start = 32 + 32 * i
        torch.testing.assert_close(site.down.flatten(1), vectors[:, start : start + 16])
        torch.testing.assert_close(site.up.flatten(1), vectors[:, start + 16 : start + 32])


def test_the_inverse_leads_back_to_the_same_image() -> None:
    flow = disturbed(flow_of(), 0.02)
    images, codes = 0.2 + 0.6 * torch.rand(4, *SHAPE), torch.randn(4, 32)
    with torch.no_grad():
        noise = flow.invert(images, codes, 128)
        back = flow.sampler(128)(codes, noise)
    assert -10 * math.log10(float((back - images).square().mean())) > 40


@pytest.mark.parametrize("evaluations", [1, 2, 3, 8])
def test_evaluations_are_as_many_as_said(evaluations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, calls = flow_of(shift=2.0), list[int]()
    inner = DenseUNetField.velocity_of

    def counted(*given: Any) -> torch.Tensor:
        calls.append(1)
        return inner(*given)

    monkeypatch.setattr(DenseUNetField, "velocity_of", counted)
    flow.sampler(evaluations)(torch.randn(2, 32), torch.randn(2, *SHAPE))
    assert len(calls) == (evaluations if evaluations != 3 else 2)
    with pytest.raises(ValueError, match="at least 1"):
        flow.sampler(0)


def test_the_mean_is_what_images_of_many_noises_are_on_average() -> None:
    """Where the flow is exact for N(centre, scale^2), the mean image is the centre."""
    flow = flow_of()
    torch.testing.assert_close(flow.mean(torch.randn(2, 32)), torch.full((2, *SHAPE), 0.5))


def recipe(**sections: Any) -> Recipe:
    parts: dict[str, Any] = {
        "latent": {"dim": 32, "side": 4},
        "encoder": {"kind": "map", "width": 8, "features": 128},
        "flow": {"loop": "none"},
        "observation": {"kind": "flow", "width": 8, "middle": 1, "hidden": 8},
        "objective": {"kind": "matching"},
        "prior": {"kind": "deep-flow", "width": 8, "layers": 1, "iterations": 2},
    }
    return Recipe.from_dict({**parts, **sections})


def test_labels_move_samples_and_guidance_moves_them_further() -> None:
    model: LatentModel = build_model(recipe(data={"classes": ["a", "b", "c"]}), (1, 8, 8)).eval()
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        value.data += 0.1 * torch.randn(value.shape, generator=generator)
    model.prior.finish()
    labels = torch.tensor([0, 1, -1])

    def drawn(**keys: Any) -> torch.Tensor:
        return model.sample(3, torch.Generator().manual_seed(1), **keys)

    plain, labelled, guided = drawn(), drawn(labels=labels), drawn(labels=labels, guidance=2.0)
    torch.testing.assert_close(plain[2], labelled[2])
    torch.testing.assert_close(plain[2], guided[2], rtol=0, atol=1e-5)
    assert all((one[:2] - other[:2]).abs().max() > 1e-4 for one, other in ((plain, labelled), (labelled, guided)))
    for wrong in (torch.tensor([0, 1, 3]), torch.tensor([0, 1])):
        with pytest.raises(ValueError, match="labels must be 3 numbers from -1 to 2"):
            drawn(labels=wrong)


def test_autoguidance_moves_samples_away_from_those_of_the_guide() -> None:
    model = build_model(recipe(prior={"kind": "deep-flow", "width": 8, "layers": 1, "guide": 8}), (1, 8, 8)).eval()
    prior = model.prior
    assert isinstance(prior, DeepFlow) and prior.guide is not None
    generator = torch.Generator().manual_seed(0)
    for value in prior.flow.parameters():
        value.data += 0.1 * torch.randn(value.shape, generator=generator)
    prior.finish()

    def drawn(auto: float | None) -> torch.Tensor:
        return prior.sample(4, torch.Generator().manual_seed(1), Guidance(auto=auto))

    own, none, more = drawn(1.0), drawn(0.0), drawn(2.0)
    assert (own - none).abs().max() > 1e-3 and (more - none).norm() > (own - none).norm()
    torch.testing.assert_close(drawn(None), more, rtol=0, atol=0)  # the default
    prior.guide.load_state_dict(prior.flow.state_dict())
    torch.testing.assert_close(drawn(3.0), own, rtol=0, atol=1e-4)


def test_flow_and_guide_learn_the_same_each_for_itself() -> None:
    prior = DeepFlow(32, side=4, width=8, layers=1, guide=8)
    assert prior.guide is not None
    codes = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    prior.fit(codes)
    batch = (*prior.pairs(codes, 0)(0), torch.rand(64, generator=torch.Generator().manual_seed(1)))
    both, guide = prior.loss(*batch), prior.guide
    prior.guide = None
    own = prior.loss(*batch)
    prior.flow = guide
    torch.testing.assert_close(own + prior.loss(*batch), both)


def test_settings_that_a_model_has_not_are_refused() -> None:
    model = build_model(recipe(), (1, 8, 8)).eval()
    with pytest.raises(ValueError, match="no labels"):
        model.sample(2, labels=torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="no labels, so no guidance"):
        model.sample(2, guidance=2.0)
    with pytest.raises(ValueError, match="has no guide for autoguidance"):
        model.prior.finish()
        model.sample(2, autoguidance=2.0)
    plain = build_model(Recipe(), (1, 8, 8)).eval()
    with pytest.raises(ValueError, match="no autoguidance"):
        plain.sample(2, autoguidance=2.0)
    with pytest.raises(ValueError, match="no flow of pixels"):
        plain.sample(2, evaluations=4)
    with pytest.raises(ValueError, match="no flow from noise"):
        plain.reconstruct(torch.rand(2, 1, 8, 8), start="inverted")
    with pytest.raises(ValueError, match="start must be one of"):
        plain.reconstruct(torch.rand(2, 1, 8, 8), start="random")  # type: ignore[arg-type]


def test_gamma_refuses_codes_that_do_not_fit() -> None:
    field = DenseUNetField((1, 8, 8), side=4, width=8)
    with pytest.raises(ValueError, match="no map of side 4"):
        ImageGamma(30, 4, 0, field)


def test_a_flow_of_pixels_is_described_and_resolved_by_its_section() -> None:
    chosen = section("observation", kind="flow", control=["low-rank"], rank=2)
    assert chosen.chosen_control == ("low-rank",) and chosen.rank == 2
