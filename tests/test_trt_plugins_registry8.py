"""The registries of the real TensorRT 8.5 and 8.6, whose packages need no GPU for this: FATHOM_TENSORRT_PYTHON has one of them, FATHOM_TENSORRT_INCLUDE
names its headers.
"""

import json
import os
import subprocess
from pathlib import Path

import kernel_host
import onnx
import plugin_host
import pytest

import fathom
from fathom.export.lowering.lowering import lower_stage
from fathom.export.operators.choice import parse_choices
from fathom.export.operators.plugin_graph import write_plugin_graph
from fathom.export.operators.rewritten_bundle import rewrite_bundle
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.trt_plugins import build_plugins
from fathom.trt_plugins.functions import default_attributes

PYTHON = os.environ.get("FATHOM_TENSORRT_PYTHON", "")


def nodes_of(path):
    """The operators of a graph as the parser meets them, and every one once more with no attributes."""
    found = []
    for node in onnx.load(str(path), load_external_data=False).graph.node:
        if node.domain == "fathom":
            given = {a.name: (a.type, onnx.helper.get_attribute_value(a)) for a in node.attribute}
            facts = {"operator": node.op_type, "outputs": len(node.output), "defaults": list(default_attributes(node.op_type).items())}
            found += [{**facts, "name": node.name, "attributes": given}, {**facts, "name": f"{node.name}.plain", "attributes": {}}]
    return found


def environment(folder):
    """For another Python: this package and no other of ours."""
    (folder / "fathom").symlink_to(Path(fathom.__file__).parent)
    return {**os.environ, "FATHOM_PARENT": str(folder), "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.skipif(not PYTHON, reason="FATHOM_TENSORRT_PYTHON names no Python with TensorRT 8")
@pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")
def test_creators_of_the_real_registry_make_every_plugin_of_the_lowered_graphs(operator_bundle, tmp_path):
    (tmp_path / "parent").mkdir()
    env = environment(tmp_path / "parent")
    ask = subprocess.run([PYTHON, "-c", "import tensorrt; print(tensorrt.__version__)"], env=env, capture_output=True, text=True, check=True)
    version = ask.stdout.split()[-1]
    release = version[:3]
    headers = [folder for folder in plugin_host.header_folders() if ".".join(map(str, build_plugins.tensorrt_version(folder))) == release]
    if release not in ("8.5", "8.6") or not headers:
        pytest.skip(f"no headers for TensorRT {version}, or it is no TensorRT 8")
    library = plugin_host.HostPlugins(headers[0], tmp_path).path
    bundle = rewrite_bundle(BundleDirectory.open(operator_bundle), parse_choices("BinsExpectation,GroupNormSilu,CrossAttention"), tmp_path / "rewritten")
    nodes = []
    for stage in bundle.manifest.stages:
        (folder := tmp_path / "lowered" / stage.spec.name).mkdir(parents=True)
        lowered = lower_stage(bundle.path(stage.file), folder, stage.spec, release)
        nodes += nodes_of(write_plugin_graph(lowered.graph))
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))
    script = [PYTHON, str(Path(__file__).with_name("registry8.py")), str(library), str(tmp_path / "nodes.json")]
    done = subprocess.run(script, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {}
    for node in nodes:
        made[node["operator"]] = made.get(node["operator"], 0) + 1
    assert made == {"GroupNormSilu": 4, "CrossAttention": 2, "BinsExpectation": 2}
    assert done.stdout.split(maxsplit=1)[0] == version and json.loads(done.stdout.split(maxsplit=1)[1]) == made
