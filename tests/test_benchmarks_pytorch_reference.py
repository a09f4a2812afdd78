"""A bundle says which network PyTorch should run beside it, with all that the network was told when it was exported."""

import numpy as np

from fathom.benchmarks.pytorch_reference import open_reference


def test_vpd_runs_for_the_kind_of_room_it_was_exported_for(tiny_bundle):
    bundle = tiny_bundle("vpd-tiny")
    with open_reference(bundle) as reference:
        depth_m = reference.predict(np.zeros((60, 80, 3), np.uint8)).depth_m
    assert depth_m.shape == (60, 80) and np.isfinite(depth_m).all()


def test_the_reference_takes_what_the_export_was_given(tmp_path):
    """Weights of its own and other bins: without them the reference is refused, with them both commands run it."""
    import json
    import shutil

    from fathom.benchmarks.bench_command import main
    from fathom.export.commands.export_command import main as export
    from fathom.models.catalog import DEMO_WEIGHTS

    bins, weights, bundle = "1,1.5,2,2.5,3,3.5,4", str(tmp_path / "own.safetensors"), str(tmp_path / "bundle")
    shutil.copy(DEMO_WEIGHTS / "depthblip2-tiny.safetensors", weights)
    assert export(["--model", "depthblip2-tiny", "--weights", weights, "--bins", bins, "-o", bundle, "--quiet"]) == 0
    words = ["accuracy", "--reference", bundle, "--engine", bundle, "--data", "rooms:1:9", "--threads", "1", "--quiet", "-o", str(tmp_path / "r.json")]
    assert main(words) == 2
    assert main([*words, "--reference-weights", weights]) == 3
    assert main([*words, "--reference-weights", weights, "--reference-bins", bins]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert rows[0]["kind"] == "pytorch" and abs(rows[1]["difference"]["relative"]["abs_rel"]) < 1e-4
    timed = ["latency", bundle, "--pytorch", "eager-fp32", "--rounds", "1", "--warm-up", "1", "--quiet"]
    assert main([*timed, "--weights", weights]) == 6
    assert main([*timed, "--weights", weights, "--bins", bins]) == 0
