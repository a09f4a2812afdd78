"""Energy, clocks and conditions, from files, lines and a library that stand in for a machine with counters."""

import ctypes
import os
import time

import numpy as np
import pytest

from fathom.benchmarks.latency.pacing import dropped, fixed_rate
from fathom.benchmarks.latency.sweep import sweep
from fathom.benchmarks.machine import conditions, energy
from fathom.benchmarks.machine.conditions import Conditions
from fathom.benchmarks.machine.energy import NvmlMeter, RaplMeter, energy_per_query, rail_w
from fathom.benchmarks.machine.nvml import Nvml
from fathom.benchmarks.machine.system import host
from fathom.runtime.errors import FathomError


def zone(folder, number, uj, limit=1000000):
    path = folder / f"intel-rapl:{number}"
    path.mkdir(exist_ok=True)
    (path / "energy_uj").write_text(f"{uj}\n")
    (path / "max_energy_range_uj").write_text(f"{limit}\n")


def test_rapl_counts_packages_and_their_overflow(tmp_path):
    zone(tmp_path, 0, 900000)
    zone(tmp_path, 1, 100)
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0, which must not count twice
    meter = RaplMeter(tmp_path)
    zone(tmp_path, 0, 950000)
    assert meter.joules() == pytest.approx(0.05)
    zone(tmp_path, 0, 50000)  # over its end
    zone(tmp_path, 1, 300100)
    assert meter.joules() == pytest.approx(0.05 + 0.1 + 0.3)
    with pytest.raises(OSError, match="no RAPL"):
        RaplMeter(tmp_path / "nothing")


class Library:
    """NVML with one GPU."""

    def __init__(self):
        self.energy_mj, self.reasons, self.open = 1_000_000, 0x1 | 0x8 | 0x40, False

    def nvmlInit_v2(self):
        self.open = True
        return 0

    def nvmlShutdown(self):
        self.open = False

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        return 0 if index.value == 0 else 2

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, value):
        value._obj.value = self.energy_mj
        return 0

    def nvmlDeviceGetPowerUsage(self, handle, value):
        value._obj.value = 71500
        return 0

    def nvmlDeviceGetClockInfo(self, handle, kind, value):
        value._obj.value = {1: 1740, 2: 9501}[kind.value]
        return 0

    def nvmlDeviceGetTemperature(self, handle, sensor, value):
        return 3  # not supported

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle, value):
        assert isinstance(value._obj, ctypes.c_ulonglong)
        value._obj.value = self.reasons
        return 0


def test_nvml_in_its_units():
    library = Library()
    nvml = Nvml(0, library)
    wanted = {"sm_clock_mhz": 1740, "memory_clock_mhz": 9501, "temperature_c": None, "power_w": 71.5, "throttling": ["hardware slowdown", "hardware thermal"]}
    assert nvml.sample() == wanted and nvml.energy_j() == 1000.0 and nvml.power_limit_w() is None
    nvml.close()
    nvml.close()
    assert not library.open
    with pytest.raises(OSError, match="no GPU 1"):
        Nvml(1, Library())
    library = Library()
    meter, clock = NvmlMeter(Nvml(0, library)), iter(range(100))

    def query():
        library.energy_mj += 500

    found = energy_per_query(meter, query, least_s=3, clock=lambda: float(next(clock)))
    assert found["source"].startswith("NVML") and found["joules_per_query"] == pytest.approx(0.5) and found["queries"] >= 3
    assert found["power_w"] == pytest.approx(0.5 * found["queries"] / (found["queries"] + 2), rel=0.2)


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        ("RAM 2448/7772MB SWAP 0/3886MB CPU [2%@729,0%@729] GR3D_FREQ 0% cpu@41C VDD_IN 4010mW/3993mW VDD_CPU_GPU_CV 470mW/468mW", 4.01),
        ("RAM 1903/3964MB CPU [5%@102] PMIC@100C GPU@27C POM_5V_IN 2043/2000 POM_5V_GPU 40/40", 2.043),
        ("RAM 1903/3964MB CPU [5%@102] GPU@27C", None),
    ],
)
def test_the_input_rail_of_a_jetson(line, watts):
    assert rail_w(line) == watts


def test_no_counter_is_said_to_be_none(monkeypatch, tmp_path):
    found = energy_per_query(None, lambda: None)
    assert found["joules_per_query"] is None and "not measured" in found["source"]
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr("fathom.benchmarks.machine.nvml.LIBRARIES", ("libno-such-thing.so",))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert energy.open_meter(on_gpu=True) is None


def test_a_jetsons_program_is_listened_to(monkeypatch, tmp_path):
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\nfor k in 1 2 3 4 5; do echo 'VDD_IN 2000mW/2000mW'; done\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    ticks = iter(range(100))
    meter = energy.TegrastatsMeter(clock=lambda: 0.5 * next(ticks))
    for _ in range(200):
        if meter.joules() >= 4:
            break
        time.sleep(0.02)
    assert meter.joules() == pytest.approx(4 * 0.5 * 2)  # five lines, half a second apart, at two watts
    meter.close()


def test_conditions_name_what_was_seen(monkeypatch, tmp_path):
    (tmp_path / "stat").write_text("cpu 1000 0 200 5000 0 0 0 40 0 0\n")
    (tmp_path / "cpuinfo").write_text("cpu MHz\t\t: 2000.0\ncpu MHz\t\t: 3000.0\n")
    cpu = tmp_path / "cpu0"
    (cpu / "thermal_throttle").mkdir(parents=True)
    (cpu / "thermal_throttle/core_throttle_count").write_text("7\n")
    (tmp_path / "thermal_zone0").mkdir()
    (tmp_path / "thermal_zone0/temp").write_text("51000\n")
    monkeypatch.setattr(conditions, "CPU", cpu)
    monkeypatch.setattr(conditions, "THERMAL", tmp_path)
    monkeypatch.setattr(conditions, "EVERY_S", 0.0)
    watched = Conditions(tmp_path)
    watched.sample()
    (cpu / "thermal_throttle/core_throttle_count").write_text("9\n")
    (tmp_path / "thermal_zone0/temp").write_text("88500\n")
    (tmp_path / "stat").write_text("cpu 1000 0 200 5000 0 0 0 45 0 0\n")
    watched.sample()
    found = watched.close()
    assert found["readings"]["cpu_clock_mhz"] == {"min": 2500, "max": 2500, "last": 2500}
    assert found["readings"]["cpu_temperature_c"] == {"min": 51.0, "max": 88.5, "last": 88.5}
    assert found["throttling"] == ["processor thermal"] and found["sample_size"] == 2 and found["stolen"] > 0 and found["others_busy"] == 0


def test_the_host_in_mlperfs_words():
    found = host()
    assert found["host_processor_core_count"] == os.cpu_count() and found["host_processor_model_name"] and "Linux" in found["operating_system"]


def test_frames_that_find_the_network_busy_are_dropped():
    assert dropped([40.0] * 5, 10) == (5, 0)
    assert dropped([100.0] * 5, 10) == (5, 0)  # finished just in time
    assert dropped([150.0] * 4, 10) == (7, 3)  # every second frame: 0, 2, 4, 6 taken, 1, 3, 5 lost
    assert dropped([250.0, 10.0, 10.0], 10) == (5, 2)  # one hiccup costs two frames
    assert fixed_rate([40.0] * 10)[2] == {"rate_hz": 30, "frames": 19, "dropped": 9, "drop_rate": 9 / 19}


def test_batches_grow_until_they_fail():
    class Backend:
        def __init__(self):
            self.seen = []

        def run(self, inputs, keep=frozenset()):
            size = inputs["image"].shape[0]
            self.seen.append(size)
            if size > 4:
                raise FathomError("no memory is left")

    backend = Backend()
    found = sweep(backend, {"image": np.zeros((1, 3))}, 64, 3, 1e6)
    assert [entry["batch"] for entry in found] == [1, 2, 4, 8] and found[-1]["skip_reason"] == "no memory is left"
    assert [len(entry["sample_times_ms"]) for entry in found[:-1]] == [3, 3, 3]
    assert [entry["batch"] for entry in sweep(Backend(), {"image": np.zeros((1, 3))}, 2, 3, 1e6)] == [1, 2]
