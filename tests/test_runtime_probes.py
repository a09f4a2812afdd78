"""Errors held against what 1 % of every single weight does: by hand, on the small network, and on every network's stages with one wrong weight."""

import numpy as np
import pytest
from weight_trials import stage_trials

from fathom.export.bundle.bundle import write_bundle
from fathom.export.commands import export_command
from fathom.models.network import WeightsOrigin
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.certificate.probes import PROBES, RESOLUTIONS, TOGETHER, StageProbes, pack_probes, sample, unpack_probes

NETWORKS = ("evp-tiny", "evp-refer-tiny", "vpd-tiny", "depthclip-tiny", "moa-depthclip-tiny", "depthblip2-tiny", "llm-mde-tiny")
ALWAYS_FOUND = {"fp32": 1e-4, "fp16": 3e-3}  # where 1 % of a weight moves its stage by more, it is caught


@pytest.fixture
def lines():
    """Three weights that do not resemble each other, the first far stronger, and what rounding does; all as the small sines they are."""
    rng = np.random.default_rng(1)
    directions = np.linalg.qr(rng.normal(size=(4000, 3)))[0].T * np.sqrt(4000)
    rows = [directions[0] * 1e-2, directions[1] * 1e-3, directions[2] * 3e-4, directions.sum(0) * 1e-3]
    noises = rng.normal(size=(4, 4000)) * 5e-4
    return StageProbes.of(("a", "b", "c", TOGETHER), np.array([*rows, *noises])), np.array(rows)


def test_a_wrong_weight_is_told_from_rounding_of_its_size(lines):
    probes, rows = lines
    rng = np.random.default_rng(2)
    for noise in (1e-4, 5e-4, 1e-3):  # an engine may round less or more than was expected
        rounding = rng.normal(size=4000) * noise
        assert probes.suspect(rounding, "fp16") is None
        assert probes.suspect(rounding + 0.2 * rows[1], "fp16") is None  # 0.2 % is a drift, not a fault
        found = probes.suspect(rounding + rows[1], "fp16")
        assert found.weight == "b" and found.change == pytest.approx(0.01, rel=0.1) and "b times 1.010 would make" in found.words
        found = probes.suspect(rounding - rows[0], "fp16")
        assert found.weight == "a" and found.change == pytest.approx(-0.01, rel=0.05)
    assert probes.suspect(rng.normal(size=4000) * 2e-4 + rows[2], "fp16").weight == "c"  # of the size of the rounding itself
    assert probes.suspect(rng.normal(size=4000) * 2e-2 + rows[2], "fp16") is None  # lost in noise a hundred times its size
    assert probes.suspect(np.full(4000, np.nan), "fp16") is None and probes.suspect(np.zeros(4000), "fp32") is None


def test_lines_are_stored_and_read_back(lines):
    probes, rows = lines
    raw = pack_probes({"first": probes, "second": probes})
    assert len(raw) < 2 * 8 * 4000 + 2000  # a byte for each number
    found = unpack_probes(raw)
    assert list(found) == ["first", "second"] and found["second"].weights == probes.weights and found["first"].count == 3
    np.testing.assert_allclose(found["second"].lines[:4] * found["second"].scales[:4, None] / 127, rows, atol=np.abs(rows).max() / 254)
    for broken in (b"", b"{}\n", raw[:-1], raw.replace(b"fathom-probes-1", b"fathom-probes-2"), raw.replace(b"[8, 4000]", b"[4, 4000]")):
        with pytest.raises((ValueError, KeyError)):
            unpack_probes(broken)


def test_samples_are_spread_over_the_outputs_and_relative_to_their_size():
    golden = [np.full((1, 2, 5000), 4.0), np.full((1, 3), -2.0)]
    found = sample([golden[0] * 1.01, golden[1] + 1], golden)
    np.testing.assert_allclose(found, [*[0.01] * 2048, *[0.5] * 3])
    assert len(sample([np.repeat(golden[1], 2, 0)], [golden[1]])) == 3  # an engine for a batch of two is given one case twice


def trials_hold(path, precision, folder, every):
    """Every stage as it is, with all weights 1 % off, and with single ones; returns how many of those were caught."""
    caught = tried = 0
    for stage, trial in stage_trials(path, precision, folder):
        assert not trial.right.caught, (stage, trial.right)
        assert trial.weights, f"stage {stage} has no lines"
        for factor in (1.01, 0.99):
            assert trial.judge(dict.fromkeys(trial.weights, factor)).caught, (stage, factor)
        for name in trial.weights[::every]:
            found = trial.judge({name: 1.01})
            assert found.caught or found.moved < ALWAYS_FOUND[precision], (stage, name, found)
            caught, tried = caught + found.caught, tried + 1
    return caught / tried


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_weight_of_the_small_network(small_network, tmp_path, precision):
    network = small_network.SmallNetwork()
    network.origin = WeightsOrigin("demo")
    write_bundle(network, tmp_path / "small")
    assert trials_hold(tmp_path / "small", precision, tmp_path, 1) > 0.8


def test_networks_with_random_weights_carry_no_lines(small_bundle):
    with BundleDirectory.open(small_bundle) as bundle:
        assert PROBES not in bundle.manifest.files


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_of_every_stage_of_every_small_network(name, tmp_path):
    scene = ["--scene", "kitchen"] if name == "vpd-tiny" else []
    assert export_command.main(["--model", name, *scene, "-o", str(tmp_path / "bundle"), "--quiet"]) == 0
    for precision, least in (("fp32", 0.85), ("fp16", 0.3)):
        assert trials_hold(tmp_path / "bundle", precision, tmp_path, 1) > least


def test_every_precision_has_its_resolution():
    from fathom.runtime.certificate.tolerance import TOLERANCES

    assert RESOLUTIONS.keys() == TOLERANCES.keys()
