"""VPD: published names and counts, scenes, checkpoints, stages against the unfolded network."""

import re
from pathlib import Path

import pytest
import torch
from closeness import same_output, same_weights
from safetensors.torch import save_file

from fathom.models import catalog
from fathom.models.diffusion.depth_decoder import DecoderConfig
from fathom.models.diffusion.diffusion_checkpoint import published_name
from fathom.models.diffusion.stable_diffusion import BackboneConfig
from fathom.models.diffusion.vpd import DEPTH_HEAD, OFFICIAL, SCENES, VPD, VPDConfig, load_vpd, random_vpd, scene_of_photo, vpd_keys
from fathom.runtime.artefact.spec import check_chain
from fathom.runtime.errors import InputError, UsageError

SMALL = VPDConfig("vpd-tiny", BackboneConfig((16, 32, 64, 64), 8, 2, 64, (16, 32, 64, 64), 8), 8, DecoderConfig(64, (16, 16, 16), 48), 224)
KEYS = Path(__file__).parent / "data" / "keys"
POST_QUANT = {"encoder.encoder_vq.post_quant_conv.weight": (4, 4, 1, 1), "encoder.encoder_vq.post_quant_conv.bias": (4,)}


def published():
    """VPD's list from EVP's: what the two share, and the differences that the reference names."""
    rows = [line.split("\t") for line in (KEYS / "evp_depth.txt").read_text().splitlines()]
    wanted = {name: tuple(int(n) for n in re.findall(r"\d+", shape)) for name, _, shape in rows if name.startswith(("encoder.", "decoder."))}
    wanted = {name: shape for name, shape in wanted.items() if not name.startswith("encoder.aggregation.")}
    wanted = {name.replace("decoder.last_layer_depth.", "last_layer_depth."): shape for name, shape in wanted.items()}
    changed = {"encoder.class_embeddings": (27, 768), "encoder.layer2.0.weight": (640, 640, 3, 3), "encoder.layer2.0.bias": (640,)}
    return wanted | changed | {"encoder.out_layer.0.weight": (1536, 3520, 1, 1)}


@pytest.fixture(scope="module")
def network():
    return random_vpd("kitchen", "nyu", SMALL, seed=1)


@pytest.fixture(scope="module")
def picture(network):
    return network.example_inputs(2)


@pytest.fixture(scope="module")
def truth(network, picture):
    return network.boundaries(picture) | picture


@pytest.fixture(scope="module")
def checkpoint(network):
    tensors = {}
    for own, tensor in network.state_dict().items():
        name = published_name(own, DEPTH_HEAD)
        squeezed = re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight", name)
        tensors[name] = (tensor[..., None, None] if squeezed else tensor).clone()
    return tensors | {name: torch.zeros(shape) for name, shape in POST_QUANT.items()}


def run(stage, tensors):
    out = stage.module(*(tensors[spec.name] for spec in stage.spec.inputs))
    return dict(zip((spec.name for spec in stage.spec.outputs), out if isinstance(out, tuple) else (out,), strict=True))


def relative(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def test_official_names_and_shapes_are_the_published_ones(checkpoint):
    with torch.device("meta"):
        network = VPD(OFFICIAL, "office")
    table = vpd_keys(network)
    assert {name: key.shape for name, key in table.wanted.items()} == published()
    assert table.ignored == POST_QUANT
    assert checkpoint.keys() == published().keys() | POST_QUANT.keys()
    parts = (network.vae, network.unet, network.aggregation, network.decoder, network.depth_head)
    assert round(sum(p.numel() for part in parts for p in part.parameters()) / 1e6, 1) == 905.2
    assert round(sum(p.numel() for p in network.aggregation.parameters()) / 1e6, 2) == 10.94


def test_tiny_is_small(network):
    assert sum(p.numel() for p in network.parameters()) < 4_000_000


def test_contract_is_the_published_protocol():
    with torch.device("meta"):
        contract = VPD(OFFICIAL, "office").contract
    single, benchmark = contract.protocols
    assert (contract.input.window, contract.input.canvas, contract.output.far) == ((480, 480), (512, 512), 10.0)
    assert (benchmark.lefts, benchmark.fill_lefts, benchmark.flip) == ((0, 160), (), True)
    assert [(step.op, step.height, step.width) for step in single.steps] == [("resize", 480, 480)]


def test_stages_and_what_was_folded(network):
    stages = network.stages()
    check_chain(tuple(stage.spec for stage in stages))
    assert [stage.spec.name for stage in stages] == ["vae", "unet", "decoder"]
    assert [tensor.shape[1] for tensor in stages[1].spec.outputs] == [16, 32, 64, 64]
    assert stages[0].folded == {"log_variance_row": 4}
    assert stages[1].folded == {"text_adapter": 1, "time_embedding": 1, "resnet_time_projection": 22, "cross_attention_vector": 16}
    assert stages[2].folded == {"batch_norm": 4}


def test_every_stage_equals_the_unfolded_network_alone_and_chained(network, picture, truth):
    chained = dict(picture)
    for stage in network.stages():
        alone = run(stage, truth)
        chained |= run(stage, chained)
        for spec in stage.spec.outputs:
            spec.bind(tuple(alone[spec.name].shape), {"batch": 2})
            assert relative(alone[spec.name], truth[spec.name]) < 1e-5
            assert relative(chained[spec.name], truth[spec.name]) < 1e-5
    assert truth["depth"].std() > 0.3 and truth["depth"].min() > 0 and truth["depth"].max() < 10


def test_a_single_token_gets_all_the_attention(network):
    """The folded vector is W_o W_v c + b_o, whatever the image shows."""
    attention = network.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    context = network.text(torch.tensor([[network.row]])).double()
    weights = {name: tensor.double() for name, tensor in attention.state_dict().items()}
    want = context[0, 0] @ weights["to_v.weight"].T @ weights["to_out.0.weight"].T + weights["to_out.0.bias"]
    folded = network.stages()[1].module.mid_block.attentions[0].transformer_blocks[0].attn2.vector
    assert relative(folded[0, 0].double(), want) < 1e-6


def test_the_scene_matters_and_must_be_one_of_the_27(checkpoint, tmp_path, network, picture, truth):
    assert len(SCENES) == 27 and (SCENES[0], SCENES[6], SCENES[14], SCENES[26]) == ("printer_room", "kitchen", "excercise_room", "bookstore")
    save_file(checkpoint, tmp_path / "vpd.safetensors")
    kitchen, cafe = (load_vpd(tmp_path / "vpd.safetensors", scene, "nyu", SMALL) for scene in ("kitchen", "cafe"))
    assert same_weights(kitchen, network) and same_output(kitchen.boundaries(picture)["depth"], truth["depth"])
    assert relative(cafe.boundaries(picture)["depth"], truth["depth"]) > 1e-3
    assert kitchen.config_json()["scene"] == "kitchen"
    with pytest.raises(UsageError, match=r"printer_room, bathroom.*bookstore"):
        load_vpd(tmp_path / "vpd.safetensors", "spaceship", "nyu", SMALL)


def test_a_scene_chosen_with_each_photo_is_the_fixed_one(checkpoint, tmp_path, picture):
    """27 vectors for each attention in the place of one: no bigger than that, and no weight of the text is left in the stages."""
    save_file(checkpoint, tmp_path / "vpd.safetensors")
    free = load_vpd(tmp_path / "vpd.safetensors", None, "nyu", SMALL)
    rows = torch.tensor([[SCENES.index("cafe")], [SCENES.index("study")]])
    wanted = torch.cat(
        [load_vpd(tmp_path / "vpd.safetensors", s, "nyu", SMALL).boundaries(picture)["depth"][k : k + 1] for k, s in enumerate(("cafe", "study"))]
    )
    tensors = {**picture, "scene": rows}
    assert relative(free.boundaries(tensors)["depth"], wanted) < 1e-5
    for stage in free.stages():
        tensors |= run(stage, tensors)
    assert relative(tensors["depth"], wanted) < 1e-5
    unet = free.stages()[1]
    assert [spec.name for spec in unet.spec.inputs] == ["latent", "scene"] and unet.folded["cross_attention_vector"] == 27 * 16
    vectors = [tensor for name, tensor in unet.module.state_dict().items() if name.endswith("attn2.vectors")]
    assert len(vectors) == 16 and all(tensor.shape[0] == 27 for tensor in vectors)
    assert free.contract.text.classes == SCENES and free.config_json()["scene"] is None


def test_pth_with_prefix_and_without_what_may_be_missing(checkpoint, network, tmp_path, picture, truth):
    tensors = {"module." + n: t for n, t in checkpoint.items() if n not in POST_QUANT and not n.endswith("num_batches_tracked")}
    torch.save({"model": tensors}, tmp_path / "vpd.pth")
    loaded = load_vpd(tmp_path / "vpd.pth", "kitchen", "nyu", SMALL)
    assert same_weights(loaded, network) and same_output(loaded.boundaries(picture)["depth"], truth["depth"])


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("study_room_0004_rgb_00012", 3),
        ("office_kitchen_0001a", 6),
        ("nyu_office_0", 25),
        ("home_office_0004", 7),
        ("bathroom_0001", 1),
        ("bookstore_0001d", 26),
        ("attic_0001", None),
    ],
)
def test_the_scene_of_a_photo_is_the_first_that_its_name_holds(name, row):
    """The rows that the published code takes for these folders; study_room and office_kitchen are rows 5 and 19, which it never takes."""
    found = scene_of_photo(name)
    assert (SCENES.index(found) if found else None) == row


def test_a_text_pack_replaces_all_scenes(checkpoint, tmp_path):
    save_file(checkpoint, tmp_path / "vpd.safetensors")
    rows = torch.randn(27, 64)
    save_file({"class_embeddings": rows}, tmp_path / "text.safetensors")
    loaded = load_vpd(tmp_path / "vpd.safetensors", "cafe", "nyu", SMALL, tmp_path / "text.safetensors")
    assert torch.equal(loaded.text.class_embeddings, rows)


def test_an_evp_checkpoint_is_recognised(tmp_path):
    torch.save({"model": {"encoder.gamma": torch.ones(1), "encoder.aggregation.layer1.conv1.bias": torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"EVP checkpoint.*--model evp"):
        load_vpd(tmp_path / "x.pth", "kitchen", "nyu", SMALL)


def test_what_does_not_fit_is_refused_by_name(checkpoint, tmp_path):
    name = "encoder.encoder_vq.post_quant_conv.bias"
    for change, words in (({name: torch.ones(5)}, f"misshapen: {name}"), ({"last_layer_depth.2.bias": None}, "missing: last_layer_depth.2.bias")):
        save_file({n: t for n, t in {**checkpoint, **change}.items() if t is not None}, tmp_path / "x.safetensors")
        with pytest.raises(InputError, match=words):
            load_vpd(tmp_path / "x.safetensors", "kitchen", "nyu", SMALL)


def test_catalog_gives_vpd(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "DEMO_WEIGHTS", tmp_path)
    assert catalog.load("vpd-tiny", scene="office").name == "vpd-tiny"
    assert catalog.load("vpd-tiny").contract.text.kind == "choice"
    with pytest.raises(InputError, match="vpd needs weights"):
        catalog.load("vpd", scene="office")
    with pytest.raises(ValueError, match="window"):
        VPDConfig(nyu_window=470)
    with pytest.raises(ValueError, match="no variant"):
        random_vpd("office", "kitti", SMALL)


def test_the_ways_to_know_a_room_that_were_measured_say_the_same():
    """``studies.vpd_scenes`` compares what they cost: a row of vectors, of keys and values, and the room's text with all projections."""
    from fathom.benchmarks.studies.vpd_scenes import FORMS, CrossAttentions, cross_attentions
    from fathom.models.diffusion.stable_diffusion import TINY_BACKBONE

    torch.manual_seed(0)
    places, contexts = cross_attentions(TINY_BACKBONE), torch.randn(27, 1, TINY_BACKBONE.context_width)
    assert {side: len(found) for side, found in places.items()} == {64: 5, 32: 5, 16: 5, 8: 1}
    maps = [torch.randn(1, side * side, found[0][1].to_q.in_features) for side, found in places.items()]
    vectors, *others = (CrossAttentions(places, form, contexts)(maps, contexts[5:6] if form == "text" else torch.tensor([[5]])) for form in FORMS)
    for other in others:
        for ours, theirs in zip(vectors, other, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert not torch.equal(vectors[0], maps[0])
