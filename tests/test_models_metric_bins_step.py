"""EVP's bins in training against the module that is exported: the same depth and the same slopes, in double precision."""

import pytest
import torch

from fathom.models.catalog import load
from fathom.models.training.learners.losses import log_edges
from fathom.models.training.learners.metric_bins_step import metric_depth


@pytest.mark.parametrize("batch", [1, 3])
def test_depth_and_slopes_are_those_of_the_module(batch):
    network = load("evp-tiny", random_init=True, seed=2).double()
    network.requires_grad_(True)
    bins, decoder = network.bins, network.decoder
    side = 2
    torch.manual_seed(0)
    features = torch.randn(
        batch, network.decoder_width if hasattr(network, "decoder_width") else _width(network), side, side, dtype=torch.float64, requires_grad=True
    )

    def run(depth_of):
        levels = decoder(features)
        out = torch.nn.functional.interpolate(levels[-1], scale_factor=2.0, mode="bilinear", align_corners=False)
        raw = network.depth_head(out)
        depth = depth_of(levels, out, raw)
        torch.manual_seed(1)
        (depth * torch.randn_like(depth)).sum().backward()
        slopes = {name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None}
        slopes["features"] = features.grad.clone()
        network.zero_grad()
        features.grad = None
        return depth.detach(), slopes

    depth, slopes = run(lambda levels, out, raw: bins(features, levels, out, raw))
    got, found = run(lambda levels, out, raw: metric_depth(bins, features, levels, raw))
    torch.testing.assert_close(got, depth, rtol=1e-6, atol=1e-9)
    assert found.keys() == slopes.keys() and any("seed_bin" in name for name in slopes)
    for name, slope in slopes.items():
        scale = slope.abs().max().clamp_min(1e-12)
        assert float((found[name] - slope).abs().max() / scale) < 1e-5, name


def _width(network):
    return next(module.in_channels for module in network.decoder.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d))


def test_edges_by_hand():
    """Two columns, one step of ln 2 that the prediction does not make: ln 2 between neighbours of each row, nothing between rows."""
    truth = torch.tensor([[[[1.0, 2.0], [1.0, 2.0]]]])
    flat, valid = torch.full_like(truth, 3.0), torch.ones_like(truth, dtype=torch.bool)
    assert float(log_edges(flat, truth, valid, scales=1)) == pytest.approx(torch.tensor(2.0).log().item())
    assert float(log_edges(5 * truth, truth, valid, scales=1)) == pytest.approx(0, abs=1e-6)  # another scale is no edge
    valid[..., 1] = False
    assert float(log_edges(flat, truth, valid, scales=1)) == 0


def test_edges_see_every_second_row_and_column_at_the_next_scale():
    truth = torch.exp(torch.arange(8.0)).expand(1, 1, 8, 8)  # one more per column
    valid = torch.ones_like(truth, dtype=torch.bool)
    flat = torch.ones_like(truth)
    assert float(log_edges(flat, truth, valid, scales=3)) == pytest.approx(1 + 2 + 4)
