"""Plans for TensorRT whose engines are the small network of ``conftest`` as the fake package serialises them."""

import dataclasses

from fake_tensorrt import engine_bytes

RELEASES = {"tensorrt": "10.13.3.9", "tensorrt-rtx": "1.7.1.116"}  # of what the fakes claim to be, unless a test says otherwise


def graphs_of(made):
    """The ONNX graphs of the small network by stage, weights inside."""
    import onnx

    return {name: onnx.load(made.bundle / f"stages/{name}.onnx").SerializeToString() for name in ("encoder", "head")}


def gpu_plan(made, path, backend="tensorrt", batch=(1, 2, 4), release=None, targets=("sm86",), contract=None, lies=None, graphs=None, **facts):
    """Write a plan for ``backend``; returns its path.

    Args:
        made: from the fixture ``make_artefacts``.
        lies: stage -> what its engine says differently (see ``fake_tensorrt.engine_bytes``).
        facts: further fields of the manifest.
    """
    from fathom.export.plan.plan_file import file_facts, write_plan
    from fathom.runtime.artefact.manifest import PlanStage
    from fathom.runtime.artefact.plan import PlanFile

    release = release or RELEASES[backend]
    with PlanFile.open(made.plan) as plan:
        manifest = plan.manifest
    graphs = graphs or graphs_of(made)
    sizes = {"encoder": 5000, "head": 700}
    sources = {
        f"engines/{spec.name}.plan": engine_bytes(
            spec, graphs[spec.name], release, batch, targets, {"activation_nbytes": sizes[spec.name]} | (lies or {}).get(spec.name, {})
        )
        for spec in made.specs
    }
    stages = tuple(PlanStage(spec, f"engines/{spec.name}.plan", "fp32") for spec in made.specs)
    manifest = dataclasses.replace(
        manifest,
        stages=stages,
        files={name: file_facts(source) for name, source in sources.items()},
        backend=backend,
        backend_version=release,
        targets=targets,
        batch=batch,
        contract=contract or manifest.contract,
        **facts,
    )
    write_plan(path, manifest, sources, force=True)
    return path
