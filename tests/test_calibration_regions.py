"""Regions from module paths, multiply-adds and modelled time by hand."""

import numpy as np
import pytest

from fathom.calibration.precision.precision_plan import FP32, Choice
from fathom.calibration.precision.regions import find_regions, region_path
from fathom.calibration.search.cards import CARDS
from fathom.calibration.search.cost import CostModel, macs


@pytest.mark.parametrize(
    ("module", "path", "kind"),
    [
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", "down_blocks.0.attentions.1.transformer_blocks.0.attn1", "self-attention"),
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0", "down_blocks.0.attentions.1.transformer_blocks.0.attn2", "cross-attention"),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", "mid_block.attentions.0.transformer_blocks.0.ff", "feed-forward"),
        ("encoder.down_blocks.0.resnets.1.norm1", "encoder.down_blocks.0.resnets.1.norm1", "norm"),
        ("encoder.down_blocks.0.resnets.1.conv1", "encoder.down_blocks.0.resnets.1", "block"),
        ("encoder.layer.3.crossattention.attention.query", "encoder.layer.3.crossattention", "cross-attention"),
        ("visual.transformer.resblocks.4.mlp.c_fc", "visual.transformer.resblocks.4.mlp", "feed-forward"),
        ("visual.transformer.resblocks.4.ln_1", "visual.transformer.resblocks.4.ln_1", "norm"),
        ("bins.log_binomial.mlp.0", "bins", "bins head"),
        ("deconv_layers.3", "deconv_layers.3", "deconvolution"),
        ("refine.2.conv", "refine.2", "refinement"),
        ("text_adapter.fc.0", "text_adapter", "adapter"),
        ("reprogramming.query", "reprogramming", "reprogramming"),
        ("stem.conv", "stem", "block"),
        ("", "(top)", "block"),
    ],
)
def test_a_module_belongs_to_its_region(module, path, kind):
    assert region_path(module) == (path, kind)


def test_every_node_is_in_one_region(calibration_bundles, tmp_path):
    models = calibration_bundles.token_models()
    for model in models:
        graph = calibration_bundles.load_graph(tmp_path / "g", model)
        for most in (100, 3, 1):
            regions = find_regions(model.graph.name, graph, most)
            assert len(regions) <= most
            names = [name for region in regions for name in region.nodes]
            assert sorted(names) == sorted(node.name for node in graph.model.graph.node)
    kinds = {region.path: region.kind for region in find_regions("encoder", calibration_bundles.load_graph(tmp_path / "g", models[0]))}
    assert kinds["blocks.0.norm"] == "norm" and kinds["blocks.0.ff"] == "feed-forward"


def test_graphs_without_module_paths_are_cut_at_their_weights(calibration_bundles, tmp_path):
    model = calibration_bundles.token_models()[1]
    for node in model.graph.node:
        node.name = ""
    graph = calibration_bundles.load_graph(tmp_path / "g", model)
    regions = find_regions("head", graph)
    assert [len(region.nodes) for region in regions] == [2, 4] and regions[0].kind == "deconvolution"
    assert len(find_regions("head", graph, 1)) == 1


def test_macs_and_time_by_hand(calibration_bundles, tmp_path):
    models = calibration_bundles.token_models()
    graph = calibration_bundles.load_graph(tmp_path / "g", models[0])
    model = CostModel(graph)
    tokens, c = 8 * 12, 16
    assert model.work["patch/Conv_0"].macs == tokens * c * 3 * 16
    assert model.work["blocks.0.ff.0/MatMul_0"].macs == tokens * c * 4 * c
    head = CostModel(calibration_bundles.load_graph(tmp_path / "h", models[1]))
    assert head.work["deconv/ConvTranspose_0"].macs == tokens * c * 8 * 4
    read, written, weights = 3 * 32 * 48, c * tokens, c * 48 + c
    traffic = 4 * (read + written + weights) / CARDS["rtx3090"].nbytes_per_ms
    assert model.node_ms("patch/Conv_0", "fp32") == pytest.approx(max(tokens * c * 48 / 17.8e9, traffic))
    assert model.node_ms("patch/Conv_0", "fp16") == pytest.approx(max(tokens * c * 48 / 35.5e9, traffic / 2))


def test_a_large_product_gains_from_fewer_bits_and_a_norm_does_not():
    from onnx import TensorProto, helper, numpy_helper

    from fathom.calibration.graph.stage_graph import StageGraph

    weight = numpy_helper.from_array(np.zeros((2048, 2048), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="a.ff/MatMul_0"),
        helper.make_node("Softmax", ["y"], ["z"], name="a.softmax/Softmax_0"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4096, 2048]) for n in "xz"]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [weight]), opset_imports=[helper.make_opsetid("", 18)])
    graph = StageGraph(model, None)
    assert macs(nodes[0], {"x": (1, 4096, 2048), "w": (2048, 2048), "y": (1, 4096, 2048)}) == 4096 * 2048 * 2048
    cost = CostModel(graph)
    regions = find_regions("g", graph)

    def total(choice):
        return cost.total_ms(dict.fromkeys(regions, choice), {"a.ff/MatMul_0"})

    assert total(FP32) > 1.5 * total(Choice("fp16")) > 1.5 * total(Choice("int8", "mse"))
    assert cost.node_ms("a.softmax/Softmax_0", "int8") == cost.node_ms("a.softmax/Softmax_0", "fp16")
