"""Typing of any operator: the cases that the ``onnx`` package carries for backends, computed typed and untyped by ONNX Runtime."""

import warnings
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from fathom.export.onnxruntime.half_sums import sum_in_fp32
from fathom.export.precision.typed import type_stage
from fathom.runtime.artefact.spec import StageSpec, TensorSpec

SPEC = StageSpec("network", (TensorSpec("x", "float32", (1,)),), (TensorSpec("y", "float32", (1,)),))
OPEN_TO_CHANCE = ("test_bernoulli", "test_training_dropout")  # drawn anew at every run


def cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [case for case in collect_testcases(None) if not case.name.startswith(OPEN_TO_CHANCE)]


def run(model, case):
    model = onnx.load(model)
    sum_in_fp32(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given, _ = case.data_sets[0]
    return session.run(None, {value.name: item for value, item in zip(session.get_inputs(), given, strict=False)})


def judge(case, folder):
    """One word for a case, and what is wrong with it."""
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    if not any(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in model.graph.input):
        return "no floats", ""
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    source, typed = folder / "source.onnx", folder / "typed.onnx"
    source.write_bytes(model.SerializeToString())
    try:
        wanted = run(str(source), case)
    except Exception:  # whatever ONNX Runtime lacks is not what is tried here
        return "not run", ""
    made = type_stage(source, typed, SPEC)
    onnx.checker.check_model(str(typed))
    found = run(str(typed), case)
    half = made.nodes.get("float16", 0)
    for got, truth in zip(found, wanted, strict=True):
        if isinstance(truth, np.ndarray) and truth.dtype == np.float32:
            finite = np.isfinite(truth)
            limit = (1e-2 if half else 1e-5) * max(float(np.abs(truth[finite]).max(initial=0)), 1e-6)
            if not np.allclose(got[finite], truth[finite], rtol=0, atol=limit):
                return "wrong", f"{case.name}: {np.abs(got - truth)[finite].max():.3g} of {limit:.3g}"
    return ("fp16" if half else "fp32"), ""


def all_of(chosen, tmp_path):
    ort.set_default_logger_severity(4)
    try:
        with np.errstate(all="ignore"):
            found = [judge(case, tmp_path) for case in chosen]
    finally:
        ort.set_default_logger_severity(2)
    assert not [words for _, words in found if words]
    return Counter(word for word, _ in found)


def test_every_operator_case_is_valid_typed_and_gives_the_same(tmp_path):
    counts = all_of(cases(), tmp_path)
    assert counts["fp16"] > 900 and counts["fp32"] > 100
