"""TensorRT-RTX engines of every tiny network, built ahead of time, up to the point where a GPU is needed."""

import pytest

from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.errors import EnvironmentMismatchError
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.tensorrt.compatibility import RTX_MAGIC, VERSION_AT, check_header

TINY = ("evp-tiny", "evp-refer-tiny", "vpd-tiny", "depthclip-tiny", "moa-depthclip-tiny", "depthblip2-tiny", "llm-mde-tiny")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_plans_of_every_tiny_network(name, tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("open_clip" if "depthclip" in name else "torch")
    from fathom.export.bundle.bundle import write_bundle
    from fathom.export.plan.build import build_plan
    from fathom.export.plan.build_options import BuildOptions
    from fathom.models import catalog

    scene = "kitchen" if "scene" in catalog.NETWORKS[name].options else None
    write_bundle(catalog.load(name, random_init=True, scene=scene), tmp_path / "bundle", release=True)
    build_plan(tmp_path / "bundle", tmp_path / "x.plan", BuildOptions("tensorrt-rtx", "fp16", ("sm86", "sm89", "sm120"), (1, 1, 2)))
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    with PlanFile.open(tmp_path / "x.plan") as plan:
        assert plan.manifest.targets == ("sm86", "sm89", "sm120") and plan.manifest.backend_version == trt.__version__
        for stage in plan.manifest.stages:
            with plan.view(stage.engine) as engine:
                assert engine[: len(RTX_MAGIC)] == RTX_MAGIC
                assert ".".join(str(part) for part in engine[VERSION_AT]) == trt.__version__
                try:
                    check_header(trt, runtime, engine, stage.spec.name)
                except EnvironmentMismatchError as error:  # no GPU here: it is the card that is missing, not the release
                    assert "cannot run here" in str(error)
    try:
        Pipeline.open(tmp_path / "x.plan").close()
    except EnvironmentMismatchError as error:
        assert "need an NVIDIA GPU" in str(error) or "is sm" in str(error)
