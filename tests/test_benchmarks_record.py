"""The form of results: the schema that ships, what is refused, and the statistics against published tables and by counting."""

import argparse
import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import fathom
from fathom.benchmarks.accuracy import command as accuracy_command
from fathom.benchmarks.latency import command as latency_command
from fathom.benchmarks.record import statistics
from fathom.benchmarks.record.record import header, read_record, read_study, short, study, write_record
from fathom.runtime.errors import InputError

ROOT = Path(fathom.__file__).parent
SCHEMA = json.loads((ROOT / "benchmarks/record/schemas/result.schema.json").read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.name)
def test_results_that_ship_keep_to_the_schema(path):
    record = read_record(path)
    jsonschema.validate(record, SCHEMA)
    assert record["meta"]["argv"][:2] == ["python", "-m"] and record["meta"]["date"] and record["meta"]["commit"]
    assert "/root/" not in path.read_text() and "/tmp/" not in path.read_text()


def test_the_schema_refuses_what_is_no_result():
    good = study("x", {})
    jsonschema.validate(good, SCHEMA)
    for change in ({"format": "other"}, {"version": 2}, {"kind": "latency"}, {"results": 1}, {"meta": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(good | change, SCHEMA)


def test_broken_results_are_refused(tmp_path):
    write_record(tmp_path / "good.json", study("x", {"a": 1}))
    assert read_study(tmp_path / "good.json") == {"a": 1} and read_study(tmp_path / "none.json") == {}
    with pytest.raises(InputError, match="of kind 'study'"):
        read_record(tmp_path / "good.json", ("latency",))
    for content, words in (
        ("[]", "no result"),
        ("{", "no JSON"),
        ("[" * 100000, "no JSON"),
        (json.dumps(study("x", {}) | {"version": 7}), "version 7"),
        (json.dumps(header("latency", []) | {"rows": [{}], "system": {}}), "rows are broken"),
        (json.dumps(header("latency", []) | {"rows": []}), "system is missing"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=words):
            read_record(tmp_path / "bad.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_record(tmp_path / "none.json")
    with pytest.raises(ValueError):
        write_record(tmp_path / "nan.json", study("x", {"a": math.nan}))
    assert not (tmp_path / "nan.json").exists()


@pytest.mark.parametrize("command", [accuracy_command, latency_command], ids=["accuracy", "latency"])
def test_the_recorded_command_repeats_the_measurement(command):
    """Every flag that a command has comes back from the words that its record keeps; not where and how the result is shown."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    command.add_arguments(parser)
    words, unlike = [], {"output", "force", "json", "quiet"}
    for action in parser._actions:
        if not action.option_strings:
            words += ["bundle"]
        elif action.option_strings[0] == "--budget":
            words += ["--budget", "abs_rel=0.5%", "--budget", "delta1=1%"]
        elif action.option_strings[0] == "--details":
            words += ["--details"]
        elif action.nargs != 0:
            words += [action.option_strings[0], "7" if action.type else f"some {action.dest}"]
    given = vars(parser.parse_args(words))
    again = vars(parser.parse_args(command._argv(argparse.Namespace(**given))[2:]))
    assert {name: value for name, value in again.items() if name not in unlike} == {name: value for name, value in given.items() if name not in unlike}


def test_folders_of_the_machine_stay_out_of_commands():
    words = ["depth-bench", "/home/me/x.plan", "pairs:/home/me/data:test", "nyu:/data/x.mat", "rooms:5:8"]
    assert [short(word) for word in words] == ["depth-bench", "x.plan", "pairs:data:test", "nyu:x.mat", "rooms:5:8"]


@pytest.mark.parametrize(("freedom", "wanted"), [(1, 12.706), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)])
def test_students_t_is_that_of_the_printed_tables(freedom, wanted):
    assert statistics.t_quantile(0.975, freedom) == pytest.approx(wanted, abs=6e-4)


def test_students_t_far_out():
    assert statistics.t_quantile(0.9995, 10) == pytest.approx(4.587, abs=6e-4)
    assert statistics.t_quantile(0.95, 5) == pytest.approx(2.015, abs=6e-4)


def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say():
    draw = np.random.default_rng(3)
    inside = sum(low <= 5 <= high for low, high in (statistics.interval_of_mean(draw.normal(5, 2, 40)) for _ in range(200)))
    assert 180 <= inside <= 199  # 95 % of 200, a little less for few samples
    inside = sum(low <= 5 <= high for low, high in (statistics.interval_of_median(draw.normal(5, 2, 41)) for _ in range(200)))
    assert 180 <= inside <= 200
    base = draw.uniform(1, 100, 50)
    low, high = statistics.interval_of_relative_change(base * 1.1, base)
    assert low == pytest.approx(0.1) and high == pytest.approx(0.1)  # pairs are drawn together: their own spread does not count
    assert statistics.interval_of_relative_change([1.0, 2.0], [0.0, 0.0]) is None
    with pytest.raises(ValueError, match="no pairs"):
        statistics.interval_of_ratio([1, 2], [1])
    with pytest.raises(ValueError, match="no sample"):
        statistics.interval_of_mean([])
