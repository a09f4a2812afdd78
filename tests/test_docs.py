"""What the documentation shows must work: the contract it prints, with the real FastDepth where that is at hand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fathom
from fathom.runtime.artefact.contract import Contract
from fathom.runtime.pipeline import Pipeline

ROOT = Path(fathom.__file__).parent
SHARED = Path(os.environ.get("FATHOM_SHARED") or ROOT.parent / "shared")
NETWORK = SHARED / "weights" / "fastdepth_7.onnx"
PUBLISHED = {  # abs_rel of an evaluation made elsewhere (OpenCV), 0.1 < depth < 9.99 m, FastDepth's crop, no alignment
    "nyu_diningroom_1": 0.0671,
    "nyu_diningroom_2": 0.1062,
    "nyu_diningroom_3": 0.0685,
    "nyu_diningroom_4": 0.0869,
    "nyu_diningroom_5": 0.0698,
    "nyu_basement_00000": 0.0709,
    "nyu_basement_00050": 0.0920,
    "nyu_basement_00100": 0.1219,
    "nyu_cafe_100": 0.0617,
    "nyu_cafe_300": 0.1048,
    "nyu_cafe_500": 0.0972,
}


def shown_contract():
    return json.loads(re.search(r"```json\n(.*?)```", (ROOT / "docs" / "contract.md").read_text(), re.S)[1])


def test_the_contract_in_the_documentation_is_one():
    contract = Contract.from_json(shown_contract())
    assert contract.to_json() == shown_contract()


def test_every_command_in_the_readme_exists():
    setup = (ROOT / "setup.py").read_text()
    named = set(re.findall(r"\bdepth-[a-z]+\b", (ROOT / "README.md").read_text()))
    assert named >= {"depth-export", "depth-build", "depth-run", "depth-inspect"}
    for command in named:
        assert f'"{command} = fathom.' in setup, command


def test_files_that_the_documentation_points_to_are_there():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} points to {target}"
    for source in ROOT.glob("*/*.py"):
        for target in re.findall(r"docs/[a-z_-]+\.md", source.read_text()):
            assert (ROOT / target).exists(), f"{source.name} names {target}"


@pytest.mark.skipif(not NETWORK.is_file(), reason="FastDepth is not here")
def test_the_documented_commands_give_real_metric_depth_of_real_photos(tmp_path):
    (tmp_path / "fastdepth.json").write_text(json.dumps(shown_contract()))
    commands = (
        ("export.commands.export_command", "--onnx", NETWORK, "--contract", tmp_path / "fastdepth.json", "--licence", "MIT", "-o", tmp_path / "fastdepth"),
        ("export.commands.build_command", tmp_path / "fastdepth", "-o", tmp_path / "fastdepth.plan"),
    )
    for module, *words in commands:
        subprocess.run([sys.executable, "-m", f"fathom.{module}", *map(str, words), "--quiet"], check=True, capture_output=True)
    found = {}
    with Pipeline.open(tmp_path / "fastdepth.plan") as pipeline:
        for name in PUBLISHED:
            folder = SHARED / "data" / name
            photo = next(folder.glob("rgb.*"))
            truth_m = np.asarray(Image.open(folder / "depth.png")).astype(np.float64) / json.loads((folder / "meta.json").read_text())["depth_scale"]
            depth = pipeline.predict(np.asarray(Image.open(photo).convert("RGB")), protocol="nyu-benchmark")
            assert depth.kind == "metric"
            use = depth.valid & (truth_m > 0.1) & (truth_m < 9.99)
            found[name] = float(np.mean(np.abs(depth.depth_m[use] - truth_m[use]) / truth_m[use]))
    # The table compares at 224 x 224, this at the photo's 640 x 480, where depth edges are sharper than the network's map.
    for name, published in PUBLISHED.items():
        assert found[name] == pytest.approx(published, abs=0.006), name
    assert np.mean(list(found.values())) == pytest.approx(np.mean(list(PUBLISHED.values())), abs=0.002)
