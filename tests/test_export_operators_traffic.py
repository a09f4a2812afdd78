"""Bytes and roofline times of the operators: counted from the stages that EVP exports at its own sizes, against a count by hand and the table in the docs."""

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fathom
from fathom.export.graph.onnx_graph import export_graph
from fathom.export.operators import traffic
from fathom.export.operators.operators import use_operators
from fathom.models.diffusion.metric_bins import BinsConfig, MetricBins, MetricBinsExport
from fathom.models.network import Stage
from fathom.runtime.artefact.spec import StageSpec, TensorSpec

DOCS = (Path(fathom.__file__).parent / "docs" / "plugins.md").read_text()
LAYERS = [(1024, 80)] * 5 + [(256, 160)] * 5  # positions and width of a head of EVP's collected layers on a canvas of 512


class Norm(nn.Module):
    """A group norm with SiLU between two convolutions."""

    def __init__(self, channels):
        super().__init__()
        self.before, self.norm, self.after = nn.Conv2d(2, channels, 1), nn.GroupNorm(32, channels), nn.Conv2d(channels, 2, 1)

    def forward(self, x):
        return self.after(F.silu(self.norm(self.before(x))))


class Attentions(nn.Module):
    """Ten attentions of 8 heads to 40 tokens, with their maps."""

    def __init__(self):
        super().__init__()
        for number, (_, width) in enumerate(LAYERS):
            self.register_buffer(f"key{number}", torch.randn(1, 8, width, 40))
            self.register_buffer(f"value{number}", torch.randn(1, 8, 40, width))

    def forward(self, *queries):
        found = []
        for number, query in enumerate(queries):
            probabilities = torch.softmax(query @ getattr(self, f"key{number}"), dim=-1)
            found += [probabilities @ getattr(self, f"value{number}"), probabilities.mean(dim=1)]
        return tuple(found)


def spec(name, **shapes):
    return tuple(TensorSpec(f"{name}{key}", "float32", ("batch", *shape)) for key, shape in shapes.items())


def stages():
    config = BinsConfig(64, 16, 16, level_channels=(8, 8, 8, 16))  # the widths before the last level do not reach the operator
    sides = {f"x{k}": (channels, 15 << k, 15 << k) for k, channels in enumerate(config.level_channels, 1)}
    inputs = spec("", conv_feats=(config.in_channels, 15, 15), **sides, raw=(1, 480, 480))
    yield Stage(StageSpec("bins", inputs, spec("", depth=(1, 480, 480))), MetricBinsExport(MetricBins(config, 10.0)).eval())
    for name, channels, side in (("vae", 128, 512), ("unet", 640, 32)):
        yield Stage(StageSpec(name, spec("", x=(2, side, side)), spec("", y=(2, side, side))), Norm(channels).eval())
    queries = spec("", **{f"query{k}": (8, *layer) for k, layer in enumerate(LAYERS)})
    results = [both for k, layer in enumerate(LAYERS) for both in spec("", **{f"attended{k}": (8, *layer), f"map{k}": (layer[0], 40)})]
    yield Stage(StageSpec("attention", queries, tuple(results)), Attentions().eval())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    return {stage.spec.name: export_graph(stage, folder).file for stage in stages()}


def by_hand(name):
    """Bytes plain and of the kernel."""
    if name == "bins":
        full, middle, coarse = 480 * 480, 240 * 240, 120 * 120
        plain = 4 * 64 * full + 4 * 64 * middle + 64 * coarse + 4 * full + middle + full  # probabilities and centres, each written and read
        return 4 * plain, 2 * (4 * full + 64 * coarse + middle + full)
    if name == "vae":
        return 2 * 5 * 128 * 512 * 512, 2 * 3 * 128 * 512 * 512
    if name == "unet":
        return 2 * 5 * 640 * 32 * 32, 2 * 2 * 640 * 32 * 32
    plain = kernel = 0
    for positions, width in LAYERS:
        text, ends = 2 * 8 * 40 * width, 8 * 2 * positions * width + positions * 40  # query and attended, map
        plain += text + ends + 5 * 8 * positions * 40  # scores written and read, probabilities written and read twice
        kernel += text + ends
    return 2 * plain, 2 * kernel


OPERATOR = {"bins": "BinsExpectation", "vae": "GroupNormSilu", "unet": "GroupNormSilu", "attention": "CrossAttention"}


@pytest.mark.parametrize("name", OPERATOR)
def test_bytes_are_those_counted_by_hand(files, name):
    found = traffic.saving(onnx.load(str(files[name]), load_external_data=False), OPERATOR[name])
    assert found.places == (10 if name == "attention" else 1)
    assert (found.plain_nbytes, found.kernel_nbytes) == pytest.approx(by_hand(name), rel=2e-3)  # scale and shift, and the constants, are small
    operations = {"bins": 2000 * 480**2, "attention": sum(6 * 8 * n * d * 40 for n, d in LAYERS)}
    assert found.operations == operations.get(name, 0)


def test_times_are_bytes_by_bandwidth_or_operations_by_rate():
    found = traffic.Saving(1, 335 * 10**6, 67 * 10**6, 669 * 10**9)
    assert found.times_us("h100") == pytest.approx((100.0, 1e4))  # 3.35 TB/s and 66.9 TFLOPS
    assert traffic.Saving(1, 0, 1, 9894 * 10**8, "fp16").times_us("h100")[1] == pytest.approx(1e3)  # 989.4 TFLOPS of tensor cores
    assert traffic.Saving(1, 0, 10**9, 0).times_us("orin-agx")[1] == pytest.approx(1e3 / 0.2048)
    assert traffic.Saving(1, 0, 1008 * 10**6, 826 * 10**6).times_us("rtx4090")[1] == pytest.approx(1e3)


def test_the_table_of_the_docs_is_what_the_command_prints(files, capsys):
    assert traffic.main([str(file) for file in files.values()]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6 and printed[0] in DOCS
    for line in printed[2:]:
        assert line in DOCS, line


def test_the_wide_maps_of_the_bins_are_never_written(files):
    """Neither features, relative depth and embedding side by side (321 maps of EVP, 33 here) nor, with the operator, anything of 64 bins."""
    model = onnx.load(str(files["bins"]), load_external_data=False)
    sizes = lambda: {tuple(d.dim_value for d in value.type.tensor_type.shape.dim[1:]) for value in live(model)}  # noqa: E731

    def live(model):
        made = {name for node in model.graph.node for name in node.output}
        return [value for value in model.graph.value_info if value.name in made]

    assert (64, 480, 480) in sizes() and (33, 480, 480) not in sizes()
    use_operators(model, ("BinsExpectation",))
    assert (64, 120, 120) in sizes() and not {(64, 480, 480), (64, 240, 240), (1, 64, 240, 240)} & sizes()


def test_a_stage_without_a_place_has_no_row(files):
    assert traffic.saving(onnx.load(str(files["vae"]), load_external_data=False), "CrossAttention") is None
