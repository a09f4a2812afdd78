"""Stage times: the engines that are timed are really built, timed on a fake GPU, and what comes of it is what ``depth-calibrate`` reads."""

import json

import fake_cuda
import fake_plans
import fake_tensorrt
import pytest

from fathom.calibration.calibrate_command import main as calibrate
from fathom.calibration.search.stage_times import read_stage_times
from fathom.export.commands import build_command
from fathom.export.plan import time_stages
from fathom.export.plan.build_options import BuildOptions
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.plan import PlanFile


@pytest.fixture
def gpu(monkeypatch, tiny, tmp_path):
    """A machine with a fake GPU, on which every precision of the tiny network compiles to the same engines."""
    machine = fake_cuda.Machine()
    fake_cuda.install(monkeypatch, machine)
    fake_tensorrt.install(monkeypatch, machine)
    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path / "cache"))
    machine.built = []

    def build(bundle, options, calibration, scratch, tell):
        machine.built.append((options.precision, calibration))
        fake_plans.gpu_plan(tiny, scratch / "timed.plan", batch=(1, 1, 1), targets=())
        return "10.13.3.9"

    monkeypatch.setattr(time_stages, "build_timed", build)
    return machine


def test_the_command_times_every_stage_and_calibration_decides_by_it(gpu, tiny, tmp_path, capsys):
    path = tmp_path / "times.json"
    words = [str(tiny.bundle), "--backend", "tensorrt", "--stage-times", str(path)]
    assert build_command.main(words) == 0
    assert capsys.readouterr().out.strip() == str(path)
    times = read_stage_times(path, BundleDirectory.open(tiny.bundle).manifest)
    assert times.device == "Fake GPU (sm86), tensorrt 10.13.3.9, batch 1"
    assert {stage: set(found) for stage, found in times.stages.items()} == {"encoder": {"fp32", "fp16", "int8"}, "head": {"fp32", "fp16"}}
    assert [precision for precision, _ in gpu.built] == ["fp32", "fp16", "int8"] and [c is None for _, c in gpu.built] == [True, True, False]
    assert all(ms == 1000 or ms == 1 for found in times.stages.values() for ms in found.values())  # this clock ticks once an event
    assert gpu.leaks() == {} and [p.name for p in tmp_path.iterdir()] == ["times.json"]
    assert build_command.main(words) == 3 and "exists already" in capsys.readouterr().err

    import shutil

    bundle = shutil.copytree(tiny.bundle, tmp_path / "bundle")
    wide = ["--budget", "abs_rel=100%,delta1=100pp,moved=100%"]
    assert calibrate([str(bundle), "--data", "rooms:4:0:48x64", "--stage-times", str(path), *wide, "--json", "-q"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    verdict = next(line["text"] for line in lines if line["kind"] == "verdict" and line["stage"] == "encoder")
    assert "INT8 is dropped because it saves only 0.0%" in verdict and "(measured;" in verdict  # equal engines take equally long


def test_without_a_card_nothing_is_written_and_the_reason_told(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time_stages, "open_device", no_card)
    pytest.importorskip("tensorrt_rtx")
    assert build_command.main([str(tiny.bundle), "--backend", "tensorrt-rtx", "--stage-times", str(tmp_path / "t.json"), "-q"]) == 6
    assert "there is no card" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
    said = []
    options = BuildOptions("tensorrt-rtx", "int8")
    assert time_stages.times_if_possible(tiny.bundle, tmp_path / "x", options, on_message=said.append, on_progress=lambda what, done: None) is None
    assert said == ["no engine can be timed here (there is no card): what INT8 saves is modelled"]
    assert time_stages.times_if_possible(tiny.bundle, tmp_path / "x", BuildOptions(), on_message=said.append, on_progress=lambda what, done: None) is None
    assert len(said) == 1  # nobody asked for engines


def test_a_card_that_the_backend_does_not_build_for_stops_no_export(monkeypatch, tiny, tmp_path):
    """A machine with a Hopper card makes plans for RTX cards all the same."""
    machine = fake_cuda.Machine(capability=(9, 0))
    fake_cuda.install(monkeypatch, machine)
    said = []
    options = BuildOptions("tensorrt-rtx", "int8", ("sm86",))
    assert time_stages.times_if_possible(tiny.bundle, tmp_path / "x", options, on_message=said.append, on_progress=lambda what, done: None) is None
    assert "sm90 is refused" in said[0] and said[0].endswith("what INT8 saves is modelled") and machine.leaks() == {}


def no_card(index):
    from fathom.runtime.errors import EnvironmentMismatchError

    raise EnvironmentMismatchError("there is no card", fix="bring one")


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--backend", "onnxruntime"], 2, "--backend tensorrt or tensorrt-rtx"),
        (["--backend", "tensorrt-rtx", "--precision", "fp16"], 2, "every precision"),
        (["--backend", "tensorrt-rtx", "--target", "sm86"], 2, "every precision"),
    ],
)
def test_flags_that_make_no_sense_are_refused(tiny, tmp_path, capsys, flags, code, words):
    assert build_command.main([str(tiny.bundle), *flags, "--stage-times", str(tmp_path / "t.json"), "-q"]) == code
    assert words in capsys.readouterr().err


def test_a_plan_or_times_but_not_both(tiny, tmp_path, capsys):
    for words in ([], ["-o", str(tmp_path / "x.plan"), "--stage-times", str(tmp_path / "t.json")]):
        with pytest.raises(SystemExit) as stop:
            build_command.main([str(tiny.bundle), *words])
        assert stop.value.code == 2


def test_what_is_timed_as_int8_is_int8(small_bundle, tmp_path):
    """The real compiler, on a bundle that nobody calibrated: the engines hold INT8 where a stage can, and no depth is asked for."""
    pytest.importorskip("tensorrt_rtx")
    bundle = BundleDirectory.open(small_bundle)
    everywhere = time_stages.int8_everywhere(bundle)
    layers = {}
    for precision in ("fp16", "int8"):
        folder = tmp_path / precision
        folder.mkdir()
        options = BuildOptions("tensorrt-rtx", precision, ("sm86",))
        assert time_stages.build_timed(bundle, options, everywhere if precision == "int8" else None, folder, lambda what, done: None).startswith("1.")
        with PlanFile.open(folder / "timed.plan") as plan:
            layers[precision] = [stage.precision for stage in plan.manifest.stages]
            inputs = time_stages._zeros(plan.manifest.specs(), 1)
    assert layers == {"fp16": ["fp16", "fp16"], "int8": ["int8", "int8"]}
    assert [array.shape for array in inputs.values()] == [(1, 3, 32, 48)]
