"""Comparisons keep their promise on a fake clock, gates break with the right code, and strangers are refused."""

import copy
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

from fathom.benchmarks.bench_command import main
from fathom.benchmarks.compare import change
from fathom.benchmarks.compare.compare import compare
from fathom.benchmarks.latency import latency
from fathom.benchmarks.record.record import header
from fathom.runtime.errors import EnvironmentMismatchError, InputError

STAGES = {"vae": 30.0, "unet": 90.0, "bins": 12.0}
SYSTEM = {
    "host_processor_model_name": "a processor",
    "host_processor_core_count": 2,
    "host_memory_capacity_gib": 8.0,
    "operating_system": "Linux",
    "accelerators_per_node": 0,
    "accelerator_model_name": "",
    "power_mode": "",
    "host_processor_governor": "performance",
    "accelerator_power_limit_w": None,
}


class Clock:
    """Time that passes only where somebody works. The machine has moods: a session is off as a whole, drifts, and stutters."""

    def __init__(self, seed):
        self.now, self.draw = 0.0, random.Random(seed)
        self.session, self.drift = self.draw.gauss(0, 0.01), 0.0

    def perf_counter(self):
        return self.now

    def work(self, ms):
        self.drift = 0.95 * self.drift + self.draw.gauss(0, 0.004)
        stutter = 1.6 if self.draw.random() < 0.02 else 1.0
        self.now += ms / 1e3 * (1 + self.session + self.drift) * stutter * self.draw.lognormvariate(0, 0.02)


class Network:
    """A backend of three stages on that clock."""

    stages, concurrent, remarks = (), 1, ()

    def __init__(self, clock, slower=None):
        self.clock, self.times = clock, STAGES | (slower or {})

    def run(self, inputs, keep=frozenset()):
        for ms in self.times.values():
            self.clock.work(ms)

    def stage_times_ms(self, inputs, runs):
        found = {}
        for stage, ms in self.times.items():
            start = self.clock.now
            self.clock.work(ms)
            found[stage] = [1e3 * (self.clock.now - start)]
        return found

    def close(self):
        pass


def session(monkeypatch, seed, slower=None, rounds=30, names=("x.plan",), second=None):
    """A record as depth-bench latency writes it, from the real code on the fake clock."""
    clock = Clock(seed)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    monkeypatch.setattr(latency, "interval_of_median", lambda samples: (0.0, 0.0))  # not looked at here, and slow
    monkeypatch.setattr(latency, "interval_of_ratio", lambda samples, base: (0.0, 0.0))
    facts = {"backend": "onnxruntime", "device": "cpu", "threads": 2, "network": "x", "precision": "fp32", "manifest_sha256": "0"}
    subjects = [latency.Subject(name, Network(clock, second if k else slower), facts=facts) for k, name in enumerate(names)]
    latency.take_turns(subjects, latency.Query({}, stages=True), rounds, 2)
    about = {"system": SYSTEM, "scenario": "SingleStream", "protocol": "p", "input_shape": [1], "photo_shape": [1], "prompt": None}
    return {"latency": header("latency", []) | about | {"conditions": {"throttling": []}, "rows": latency.to_json(subjects)}}


def test_of_a_hundred_comparisons_of_a_thing_with_itself_at_most_five_say_otherwise(monkeypatch):
    wrong = same = 0
    for seed in range(100):
        verdicts = compare(session(monkeypatch, 2 * seed), session(monkeypatch, 2 * seed + 1))
        assert len(verdicts) == 1 + len(STAGES)
        wrong += any(verdict.found.word in ("better", "worse") for verdict in verdicts)
        same += sum(verdict.found.word == "same" for verdict in verdicts)
    assert wrong <= 5


def test_twenty_milliseconds_in_one_stage_are_found_in_its_row_every_time(monkeypatch):
    others = 0
    for seed in range(100):
        verdicts = compare(session(monkeypatch, 2 * seed), session(monkeypatch, 2 * seed + 1, {"unet": STAGES["unet"] + 20}))
        found = {verdict.quantity: verdict.found for verdict in verdicts}
        assert found["stage unet ms"].word == "worse", seed
        assert found["stage unet ms"].low <= 20 / 90 <= found["stage unet ms"].high
        others += found["stage vae ms"].word == "worse" or found["stage bins ms"].word == "worse"
    assert others <= 5


def test_one_session_finds_less(monkeypatch):
    wrong = 0
    for seed in range(100):
        verdicts = compare(session(monkeypatch, seed, names=("a.plan", "b.plan"), rounds=60), None)
        wrong += any(verdict.found.word in ("better", "worse") for verdict in verdicts)
        assert {verdict.row for verdict in verdicts} == {"b.plan"} and verdicts[0].design == "one session"
    assert wrong <= 5
    for seed in range(20):
        record = session(monkeypatch, seed, names=("a.plan", "b.plan"), rounds=200, second={name: 0.93 * ms for name, ms in STAGES.items()})
        assert next(v.found.word for v in compare(record, None) if v.quantity == "host ms") == "better", seed


def test_a_common_row_takes_the_mood_of_a_session_out(monkeypatch):
    def with_anchor(seed, mood):
        record = session(monkeypatch, seed, names=("pytorch eager-fp32", "x.plan"))
        for row in record["latency"]["rows"]:
            row["sample_times_ms"]["host"] = [mood * ms for ms in row["sample_times_ms"]["host"]]
        record["latency"]["rows"][0] |= {"backend": "pytorch", "mode": "eager-fp32"}
        return record

    verdicts = compare(with_anchor(0, 1.0), with_anchor(1, 1.7))  # a machine that was busy with something else the second time
    judged = {(verdict.row, verdict.quantity): verdict for verdict in verdicts}
    assert judged["x.plan", "host ms"].found.word in ("same", "cannot tell")
    assert "over pytorch eager-fp32" in judged["x.plan", "host ms"].design
    assert abs(judged["x.plan", "host ms"].found.change) < 0.03


def test_pairs_of_images():
    draw = np.random.default_rng(0)
    base = draw.uniform(0.05, 0.5, 60)
    assert change.pairs(base, base, 3).word == "same" and change.pairs(base, base, 3).change == 0
    assert change.pairs(base, base * 1.01, 3).word == "worse" and change.pairs(base, base * 0.99, 3).word == "better"
    assert change.pairs(base, base * 1.01, 3, larger_is_better=True).word == "better"
    assert change.pairs(base, base + draw.normal(0, 0.1, 60), 3).word == "cannot tell"
    assert change.pairs(base[:3], base[:3], 1).reason.startswith("3 images")
    wrong = sum(change.pairs(a, a + draw.normal(0, 0.02, 60), 1).word in ("better", "worse") for a in [base] * 200)
    assert wrong <= 16  # 5 % of 200, and two standard deviations more


def test_few_rounds_tell_nothing(monkeypatch):
    verdicts = compare(session(monkeypatch, 0, rounds=5), session(monkeypatch, 1, rounds=5))
    assert all(verdict.found.word == "cannot tell" and "5 rounds" in verdict.found.reason for verdict in verdicts)


def test_strangers_are_refused_unless_told(monkeypatch):
    a, b = session(monkeypatch, 0), session(monkeypatch, 1)

    def changed(**facts):
        other = copy.deepcopy(b)
        other["latency"] |= {key: value for key, value in facts.items() if key in other["latency"]}
        other["latency"]["system"] = SYSTEM | {key: value for key, value in facts.items() if key in SYSTEM}
        return other

    for other, allow, kind, words in (
        (changed(host_processor_model_name="another"), "machine", EnvironmentMismatchError, "'a processor' in A and is 'another' in B"),
        (changed(host_processor_governor="powersave"), "clocks", EnvironmentMismatchError, "governor"),
        (
            changed(conditions={"throttling": ["hardware thermal"]}),
            "clocks",
            EnvironmentMismatchError,
            "by nothing in A and by hardware thermal in B",
        ),
        (changed(protocol="windows"), "protocol", InputError, "another protocol"),
        (changed(photo_shape=[2]), "protocol", InputError, "another photo_shape"),
    ):
        with pytest.raises(kind, match=words):
            compare(a, other)
        assert compare(a, other, [allow])
    threads = copy.deepcopy(b)
    threads["latency"]["rows"][0]["threads"] = 1
    with pytest.raises(InputError, match="threads was 2 and is 1"):
        compare(a, threads)
    other = copy.deepcopy(b)
    other["latency"]["rows"] = [other["latency"]["rows"][0] | {"name": name} for name in ("y.plan", "z.plan")]
    with pytest.raises(InputError, match="nothing to compare"):
        compare(a, other)


def accuracy(abs_rel, name="x.plan"):
    rows = []
    for title, values in (("x (PyTorch)", [0.1 + 0.01 * k for k in range(12)]), (name, abs_rel)):
        groups = [{"ids": [str(k)], "scores": [{"values": {"abs_rel": value, "delta1": 0.9}}]} for k, value in enumerate(values)]
        backend = "pytorch" if "PyTorch" in title else "onnxruntime"
        rows.append({"name": title, "backend": backend, "means": {"abs_rel": float(np.mean(values)), "delta1": 0.9}, "groups": groups})
    about = {"system": SYSTEM, "data": {"content_sha256": "d"}, "evaluation": {"name": "full"}}
    return header("accuracy", []) | about | {"rows": rows}


def test_gates_break_with_their_codes(monkeypatch, tmp_path, capsys):
    base = [0.1 + 0.01 * k for k in range(12)]
    for folder, values, slower in (("a", base, None), ("b", [1.004 * v for v in base], None), ("c", [1.02 * v for v in base], {"unet": 200.0})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "accuracy.json").write_text(json.dumps(accuracy(values)))
        (tmp_path / folder / "latency.json").write_text(json.dumps(session(monkeypatch, len(folder), slower)["latency"]))

    def gated(side, *gates, before="a"):
        (tmp_path / "gate.json").write_text(json.dumps({"gates": list(gates)}))
        code = main(["compare", str(tmp_path / before), str(tmp_path / side), "--gate", str(tmp_path / "gate.json")])
        return code, "".join(capsys.readouterr())

    fast, exact = {"row": "*.plan", "metric": "latency_ms.host.p50", "max": 180}, {"metric": "abs_rel", "max_change": 0.005}
    assert gated("b", fast, exact)[0] == 0
    code, words = gated("c", fast)
    assert code == 9 and "x.plan: latency_ms.host.p50" in words and "worse" in words
    code, words = gated("c", fast, exact)
    assert code == 4 and "abs_rel" in words and "+2.000%" in words and "latency_ms.host.p50" in words
    assert gated("c", {"metric": "stages.unet.latency_ms.p50", "max_change": 0.1})[0] == 9
    assert gated("b", {"metric": "samples_per_second.host", "min": 5})[0] == 0
    assert gated("b", {"metric": "samples_per_second.host", "min": 50})[0] == 9
    code, words = gated("b", {"metric": "memory.host_peak_nbytes", "max": 1e9})
    assert code == 3 and "was not measured" in words
    assert gated("b", {"row": "other*", **exact})[0] == 3
    for bad in ({"metric": "abs_rel"}, {"metric": "abs_rel", "max": True}, {"metric": "abs_rel", "max": 1, "min": 0}, {"max": 1}, 3):
        assert gated("b", bad)[0] == 3


def test_the_command(monkeypatch, tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.json").write_text(json.dumps(session(monkeypatch, seed)["latency"]))
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["quantity"] for line in lines} == {"host ms", *(f"stage {stage} ms" for stage in STAGES)}
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "where it lies" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--allow", "everything"]) == 2
    assert main(["compare", str(tmp_path / "none.json"), str(tmp_path / "b.json")]) == 3
