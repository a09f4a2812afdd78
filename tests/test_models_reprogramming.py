"""Reprogramming attention against NumPy float64, for the published sizes' ratio and the paper's."""

import itertools

import numpy as np
import pytest
import torch

from fathom.models.llm_mde.reprogramming import FoldedReprogramming, Reprogramming, ReprogrammingConfig
from fathom.models.random_init import draw_weights

WIDE = ReprogrammingConfig(image_width=12, text_width=10, heads=3, head_width=12, prototypes=9)  # heads as wide as the tokens
NARROW = ReprogrammingConfig(image_width=12, text_width=10, heads=3, head_width=4, prototypes=50, keys_as_values=False)  # d = d_m / K


def _by_hand(module, tokens, prototypes):
    """Eq. 1, one head and one token at a time."""
    config = module.config
    part = {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}

    def project(x, name):
        return (x @ part[f"{name}.weight"].T + part[f"{name}.bias"]).reshape(len(x), config.heads, config.head_width)

    keys = project(prototypes, "key_projection")
    values = keys if config.keys_as_values else project(prototypes, "value_projection")
    out = np.zeros((len(tokens), config.heads, config.head_width))
    queries = project(tokens, "query_projection")
    for token, head in itertools.product(range(len(tokens)), range(config.heads)):
        scores = np.exp(keys[:, head] @ queries[token, head] / np.sqrt(config.head_width))
        out[token, head] = (scores / scores.sum()) @ values[:, head]
    return out.reshape(len(tokens), -1) @ part["out_projection.weight"].T + part["out_projection.bias"]


@pytest.mark.parametrize("config", [WIDE, NARROW])
def test_reprogramming_by_hand(config):
    module = draw_weights(Reprogramming(config), 1).double().eval()
    rng = np.random.default_rng(0)
    tokens, prototypes = rng.normal(size=(2, 5, 12)), rng.normal(size=(config.prototypes, 10))
    wanted = np.stack([_by_hand(module, part, prototypes) for part in tokens])
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.tensor(tokens), torch.tensor(prototypes)), wanted, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(FoldedReprogramming(module, torch.tensor(prototypes))(torch.tensor(tokens)), wanted, rtol=1e-11, atol=1e-12)


def test_the_cheaper_way_is_taken():
    """Wide heads become two products with a softmax between, 36.9 M numbers at official size; narrow ones keep query and keys apart."""
    wide, narrow = (FoldedReprogramming(draw_weights(Reprogramming(c)), torch.zeros(c.prototypes, 10)) for c in (WIDE, NARROW))
    assert wide.one_step and not narrow.one_step
    with torch.device("meta"):
        official = FoldedReprogramming(Reprogramming(ReprogrammingConfig()), torch.zeros(1000, 768))
    assert official.one_step
    assert sum(weight.numel() for weight in official.parameters()) == 24 * 1000 * (768 + 1 + 768) + 768
    assert not hasattr(official, "keys")


def test_values_of_their_own_matter():
    own = draw_weights(Reprogramming(NARROW), 1).eval()
    keys_only = Reprogramming(ReprogrammingConfig(image_width=12, text_width=10, heads=3, head_width=4, prototypes=50)).eval()
    keys_only.load_state_dict({name: tensor for name, tensor in own.state_dict().items() if not name.startswith("value_projection")})
    tokens, prototypes = torch.randn(1, 5, 12), torch.randn(50, 10)
    assert (own(tokens, prototypes) - keys_only(tokens, prototypes)).abs().max() > 0.01


def test_official_parameters():
    """56,679,168 with the unused value projection, as counted from the published code."""
    with torch.device("meta"):
        count = sum(weight.numel() for weight in Reprogramming(ReprogrammingConfig(keys_as_values=False)).parameters())
    assert count == 56_679_168


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        ReprogrammingConfig(heads=0)
