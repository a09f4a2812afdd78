"""The operators as ONNX functions in domain ``fathom``: their bodies are the same mathematics in plain operators, computed in FP32, long sums
in two steps (first along the last axis).

A model that carries the functions runs anywhere, and the checker infers its shapes; where the plugins are loaded ``without_bodies`` leaves
the nodes alone, so that TensorRT's parser asks the plugin registry for them.
"""

from __future__ import annotations

import math
import re

import onnx
from onnx import helper, parser

DOMAIN, DOMAIN_VERSION, OPSET = "fathom", 1, 18
OLDER = (  # what is written otherwise before opset 18
    (r", num_outputs = \d+", ""),
    (r"ReduceMean<keepdims = (\d)>\((\w+), axis(\d)\)", r"ReduceMean<axes = [\3], keepdims = \1>(\2)"),
    (r"ReduceMean<keepdims = (\d)>\((\w+), last\)", r"ReduceMean<axes = [-1], keepdims = \1>(\2)"),
)
BINS, STIRLING_EPS = 64, 1e-7


def coefficients() -> list[float]:
    """Stirling's log binomial coefficients of 63 over k, as in ``csrc/bins_expectation.cuh``."""
    n, terms = BINS - 1 + STIRLING_EPS, [k + STIRLING_EPS for k in range(BINS)]
    return [n * math.log(n) - k * math.log(k) - (n - k) * math.log(n - k + STIRLING_EPS) for k in terms]


def _floats(values: list[float]) -> str:
    return ", ".join(repr(float(value)) for value in values)


SOFTPLUS = """
  {to}_soft = Softplus({of})
  {to}_large = Constant<value_float = 20.0>()
  {to}_linear = Greater({of}, {to}_large)
  {to} = Where({to}_linear, {of}, {to}_soft)"""
RESIZE = 'Resize<mode = "linear", coordinate_transformation_mode = "align_corners">'

BINS_EXPECTATION = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
BinsExpectation <alpha: float = 300.0, least_temperature: float = 0.0212, greatest_temperature: float = 50.0>
(shape, centers, attractors) => (depth) {{
  raw = Cast<to = 1>(shape){SOFTPLUS.format(to="positive", of="raw")}
  floor = Constant<value_float = 0.0001>()
  one = Constant<value_float = 1.0>()
  raised = Add(positive, floor)
  p0, p1, t0, t1 = Split<axis = 1, num_outputs = 4>(raised)
  p_sum = Add(p0, p1)
  t_sum = Add(t0, t1)
  success = Div(p0, p_sum)
  failure = Sub(one, success)
  tau = Div(t0, t_sum)
  least = Constant<value_float: float = @least_temperature>()
  greatest = Constant<value_float: float = @greatest_temperature>()
  range = Sub(greatest, least)
  above_least = Mul(tau, range)
  temperature = Add(above_least, least)
  success_clipped = Clip(success, floor, one)
  failure_clipped = Clip(failure, floor, one)
  success_log = Log(success_clipped)
  failure_log = Log(failure_clipped)
  log_odds = Sub(success_log, failure_log)
  numbers = Constant<value = float[1, {BINS}, 1, 1] {{{_floats(list(range(BINS)))}}}>()
  coefficients = Constant<value = float[1, {BINS}, 1, 1] {{{_floats(coefficients())}}}>()
  scaled = Mul(numbers, log_odds)
  logits = Add(scaled, coefficients)
  cooled = Div(logits, temperature)
  probabilities = Softmax<axis = 1>(cooled)
  coarse = Cast<to = 1>(centers)
  pull = Cast<to = 1>(attractors)
  batch_and_bins = Shape<start = 0, end = 2>(centers)
  middle_sides = Shape<start = 2>(attractors)
  middle_size = Concat<axis = 0>(batch_and_bins, middle_sides)
  middle = {RESIZE}(coarse, , , middle_size){SOFTPLUS.format(to="soft_pull", of="pull")}
  axis1 = Constant<value_ints = [1]>()
  axis2 = Constant<value_ints = [2]>()
  pulls = Unsqueeze(soft_pull, axis2)
  pulled_from = Unsqueeze(middle, axis1)
  distance = Sub(pulls, pulled_from)
  strength = Constant<value_float: float = @alpha>()
  weighed = Mul(distance, strength)
  squared = Mul(weighed, distance)
  divisor = Add(squared, one)
  steps = Div(distance, divisor)
  shift = ReduceMean<keepdims = 0>(steps, axis1)
  pulled = Add(middle, shift)
  full_sides = Shape<start = 2>(shape)
  full_size = Concat<axis = 0>(batch_and_bins, full_sides)
  full = {RESIZE}(pulled, , , full_size)
  terms = Mul(probabilities, full)
  expected = ReduceSum<keepdims = 1>(terms, axis1)
  depth = CastLike(expected, shape)
}}
"""

GROUP_NORM_SILU = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
GroupNormSilu <groups: int = 32, epsilon: float = 0.00001>(x, scale, shift) => (y) {{
  wide = Cast<to = 1>(x)
  sizes = Shape(x)
  batch = Constant<value_ints = [0]>()
  rest = Constant<value_ints = [-1]>()
  group_count = Constant<value_int: int = @groups>()
  flat = Constant<value_ints = [1]>()
  group_sizes = Reshape(group_count, flat)
  grouped_sizes = Concat<axis = 0>(batch, group_sizes, rest)
  grouped = Reshape(wide, grouped_sizes)
  last = Constant<value_ints = [-1]>()
  axis2 = Constant<value_ints = [2]>()
  row_means = ReduceMean<keepdims = 1>(wide, last)
  grouped_means = Reshape(row_means, grouped_sizes)
  mean = ReduceMean<keepdims = 1>(grouped_means, axis2)
  centred = Sub(grouped, mean)
  squares = Mul(centred, centred)
  square_rows = Reshape(squares, sizes)
  row_variances = ReduceMean<keepdims = 1>(square_rows, last)
  grouped_variances = Reshape(row_variances, grouped_sizes)
  variance = ReduceMean<keepdims = 1>(grouped_variances, axis2)
  floor = Constant<value_float: float = @epsilon>()
  raised = Add(variance, floor)
  deviation = Sqrt(raised)
  normed = Div(centred, deviation)
  channels = Shape<start = 1, end = 2>(x)
  plane_shape = Concat<axis = 0>(batch, channels, rest)
  planes = Reshape(normed, plane_shape)
  column = Concat<axis = 0>(channels, flat)
  scale_column = Reshape(scale, column)
  shift_column = Reshape(shift, column)
  scaled = Mul(planes, scale_column)
  z = Add(scaled, shift_column)
  gate = Sigmoid(z)
  gated = Mul(z, gate)
  shaped = Reshape(gated, sizes)
  y = CastLike(shaped, x)
}}
"""

CROSS_ATTENTION = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
CrossAttention <scale: float = 1.0>(query, keys, values) => (attended, head_mean) {{
  query_wide = Cast<to = 1>(query)
  keys_wide = Cast<to = 1>(keys)
  values_wide = Cast<to = 1>(values)
  factor = Constant<value_float: float = @scale>()
  query_scaled = Mul(query_wide, factor)
  scores = MatMul(query_scaled, keys_wide)
  probabilities = Softmax<axis = -1>(scores)
  attended_wide = MatMul(probabilities, values_wide)
  axis1 = Constant<value_ints = [1]>()
  map_wide = ReduceMean<keepdims = 0>(probabilities, axis1)
  attended = CastLike(attended_wide, query)
  head_mean = CastLike(map_wide, query)
}}
"""

BODIES = {"BinsExpectation": BINS_EXPECTATION, "GroupNormSilu": GROUP_NORM_SILU, "CrossAttention": CROSS_ATTENTION}


def body(operator: str, opset: int = OPSET) -> str:
    """The text of an operator's body for graphs of an opset, 15 or later; a body of another opset than its graph's is not valid ONNX."""
    text = BODIES[operator]
    for newer, older in OLDER if opset < OPSET else ():
        text = re.sub(newer, older, text)
    return text.replace(f'["" : {OPSET}]', f'["" : {opset}]')


def add_functions(model: onnx.ModelProto) -> None:
    """Give a model the bodies of all operators of the domain that its nodes use, and the domain's version. In place; may be repeated.

    Raises:
        ValueError: if a node names an operator that the domain does not have.
    """
    used = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
    unknown = [name for name in used if name not in BODIES]
    if unknown:
        raise ValueError(f"the domain {DOMAIN} has no operator {', '.join(unknown)}, only {', '.join(BODIES)}")
    present = {function.name for function in model.functions if function.domain == DOMAIN}
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    model.functions.extend(parser.parse_function(body(name, opset)) for name in used if name not in present)
    if used and not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))


def default_attributes(operator: str) -> dict[str, float | int]:
    """What an operator's attributes are where a node does not give them."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in parser.parse_function(BODIES[operator]).attribute_proto}


def without_bodies(model: onnx.ModelProto) -> None:
    """Remove the bodies, for a parser that has the plugins: it would expand a body instead of calling the plugin."""
    kept = [function for function in model.functions if function.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(kept)
