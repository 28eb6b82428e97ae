from typing import Any

import pytest
import torch

from ncode_gen.networks.flow_decoder import FlowDecoder


def stirred(shape=(1, 28, 28), canvas="latent", blocks=1):
    torch.manual_seed(0)
    decoder = FlowDecoder(4, shape, width=4, blocks=blocks, canvas=canvas)
    with torch.no_grad():
        for flow in decoder.levels:
            for parameter in flow.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return decoder.requires_grad_(False)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 13, 20), (1, 8, 8)])
@pytest.mark.parametrize("canvas", ["latent", "learned"])
def test_it_fits_images_of_any_size(shape: Any, canvas: str) -> None:
    assert stirred(shape, canvas)(torch.randn(3, 4)).shape == (3, *shape)


def test_flows_start_as_the_identity() -> None:
    decoder = FlowDecoder(4, (1, 28, 28), width=4, blocks=2)
    flows = [flow for level in decoder.levels for flow in level.flows]
    assert len(flows) == 4
    for flow, (channels, side) in zip(flows, [(8, 7), (8, 7), (4, 14), (4, 14)], strict=True):
        maps = torch.randn(2, channels, side, side)
        torch.testing.assert_close(flow(maps, torch.randn(2, 8)).state, maps)


def test_the_latent_decides_the_flow_of_a_learned_canvas() -> None:
    pictures = stirred(canvas="learned")(torch.randn(2, 4))
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3


@pytest.mark.parametrize("shape, blocks", [((1, 28, 28), 1), ((1, 28, 28), 2), ((3, 6, 5), 1)])
def test_the_film_ends_with_the_picture_and_starts_without_flow(shape: Any, blocks: int) -> None:
    decoder = stirred(shape, blocks=blocks)
    latents = torch.randn(3, 4)
    film = decoder.trajectory(latents, [0.0, 0.3, 0.5, 0.9, 1.0])
    assert film.shape == (5, 3, *shape)
    torch.testing.assert_close(film[-1], decoder(latents))
    torch.testing.assert_close(film[0], decoder._grow(decoder._start(latents), 0))
    assert (film[1:] - film[:-1]).abs().flatten(1).max(1).values.min() > 1e-4


@pytest.mark.parametrize("times", [[0.5, 0.2], [-0.1, 0.5], [0.5, 1.1]])
def test_times_out_of_order_or_range_are_refused(times: Any) -> None:
    with pytest.raises(ValueError, match="times must rise"):
        stirred().trajectory(torch.randn(1, 4), times)


def test_an_unknown_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match="canvas must be"):
        FlowDecoder(4, (1, 8, 8), width=4, blocks=1, canvas="blank")
