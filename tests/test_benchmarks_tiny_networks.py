"""The run over the small networks: what counts as kept, what it does when one fails, and that the README says what was measured."""

import json

import numpy as np
import pytest

import fathom
from fathom.benchmarks.model_cards import WEIGHTS, read_card
from fathom.benchmarks.studies import tiny_networks, tiny_networks_table
from fathom.benchmarks.studies.mask_agreement import compare_masks
from fathom.benchmarks.studies.tiny_networks import LIMITS, METRICS, NETWORKS, _kept, main
from fathom.benchmarks.studies.tiny_networks_table import BEGIN, END, RESULT, cards_table, replace, table, tables
from fathom.runtime.errors import FathomError

ROOT = tiny_networks.Path(fathom.__file__).parent


def row(abs_rel, rmse, delta1, base=(0.2, 0.5, 0.8)):
    values = (abs_rel, rmse, delta1)
    return dict(zip(METRICS, values, strict=True)) | {"relative": {m: v / b - 1 for m, v, b in zip(METRICS, values, base, strict=True)}}


def facts(**within):
    rows = {"pytorch": row(0.2, 0.5, 0.8), "fp32": row(0.2, 0.5, 0.8), "fp16": row(0.2001, 0.5, 0.8), "int8": row(0.2015, 0.5, 0.8)}
    verdicts = ["vae: 1 int8 regions; INT8 is kept because it saves 22% of 0.03 ms (modelled).", "unet: INT8 is dropped because it saves only 4% of 1 ms."]
    int8 = {"stages": {"vae": "int8", "unet": "fp32"}, "verdicts": verdicts, "kept": [], "settings": "", "images": 3, "tried": 4, "regions": {}}
    found = {"images": 50, "skipped": [], "alignment": "none", "rows": rows}
    return {"weights": {"sha256": "s"}, "fp16": {"kept": []}, "int8": int8, "sets": {"rooms": found}, "within": dict.fromkeys(LIMITS, True) | within}


MACHINES = {"evp-tiny": "Xeon", "depthclip-tiny": "EPYC", "llm-mde-tiny": "Xeon"}


def test_what_is_kept():
    assert all(_kept(facts()["sets"], precision) for precision in LIMITS)
    for precision, values, judged in (
        ("fp32", (0.2, 0.5006, 0.8), True),
        ("fp32", (0.2, 0.5, 0.7991), True),
        ("fp16", (0.2003, 0.5, 0.8), True),
        ("fp16", (0.2, 0.52, 0.78), False),
        ("int8", (0.1979, 0.5, 0.8), True),
        ("int8", (0.1981, 0.52, 0.75), False),
    ):
        sets = facts()["sets"]
        sets["rooms"]["rows"][precision] = row(*values)
        assert _kept(sets, precision) is not judged, (precision, values)
    masks = {"rooms": {"rows": {"fp32": {"oIoU": 1.0}, "fp16": {"oIoU": 0.9995}, "int8": {"oIoU": 0.98}}}}
    assert _kept(masks, "fp16") and not _kept(masks, "int8")


def test_the_table_marks_what_was_not_kept_and_says_where_each_was_measured():
    measured = {name: facts(int8=name != "evp-tiny") | {"system": {"host_processor_model_name": where}} for name, where in MACHINES.items()}
    high = [{"stage": stage, "path": path} for stage, path in (("vae", "a"), ("vae", "b"), ("vae", "c"), ("vae", "d"), ("unet", "e"), ("unet", "e"))]
    measured["llm-mde-tiny"]["fp16"]["kept"] = high
    text = table({"networks": measured | {"vpd-tiny": {"failed": "depth-export ended with 7"}}})
    assert text.endswith("Measured on Xeon: evp-tiny, llm-mde-tiny; on EPYC: depthclip-tiny.")
    assert "; FP32 in FP16 plans: unet:e, 4 regions of vae |" in text and "vae:a" not in text
    assert "| evp-tiny | 50 rooms, at the photos' size | 0.200 | 0.800 | +0.000 % | +0.050 % | **+0.750 %** | vae; unet (too little gain) |" in text
    assert "vpd-tiny | | | | failed: depth-export ended with 7" in text


def test_tables_go_between_their_marks(tmp_path, capsys):
    begin, end = BEGIN.format("x"), END.format("x")
    assert replace(f"a\n{begin}\nold\n{end}\nb", "x", "new") == f"a\n{begin}\nnew\n{end}\nb"
    assert replace("no marks", "x", "new") == "no marks"
    (tmp_path / "page.md").write_text("no marks")
    assert tiny_networks_table.main([str(tmp_path / "page.md")]) == 3 and "no place" in capsys.readouterr().err
    (tmp_path / "page.md").write_text(f"a\n{BEGIN.format('demo weights')}\n{END.format('demo weights')}\n")
    assert tiny_networks_table.main([str(tmp_path / "page.md")]) == 0 and cards_table() in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(("page", "name"), [("README.md", "tiny networks"), ("docs/training.md", "demo weights")])
def test_the_documentation_shows_the_results(page, name):
    text, made = (ROOT / page).read_text(), tables()
    assert BEGIN.format(name) in text
    if name not in made:
        pytest.skip("nothing was measured yet")
    assert replace(text, name, made[name]) == text, f"run python -m fathom.benchmarks.studies.tiny_networks_table {page}"


def test_a_number_has_one_value_under_one_label():
    """In the README, in docs/training.md and on the cards: a network, its pictures, how they were measured, and a metric name one number."""
    said = {}
    for name in NETWORKS:
        for result in read_card(name):
            for metric, value in result.network.items():
                said.setdefault((name, result.data, metric), set()).add(value)
    lines, name = table_rows((ROOT / "README.md").read_text(), "tiny networks"), ""
    for cells in lines:
        name = cells[0] or name
        if cells[2] != "overlap":
            for metric, value in zip(("abs_rel", "delta1"), cells[2:4], strict=True):
                said.setdefault((name, cells[1], metric), set()).add(float(value))
    assert len(said) > 60 and all(len(values) == 1 for values in said.values())
    sizes = {label.split(",")[-1].strip() if "median" not in label else label.split(",")[-2].strip() for _, label, _ in said}
    assert sizes == {"at the network's size", "at the photos' size"}  # every label says which of the two protocols it is


@pytest.mark.parametrize("name", NETWORKS)
def test_the_weights_that_ship_are_loaded_and_are_those_of_the_card(name):
    """Every small network that the demo shows: a loader that grew stricter must not lose one."""
    from fathom.models.catalog import load

    words = dict(zip(NETWORKS[name][::2], NETWORKS[name][1::2], strict=True))
    origin = load(name, scene=words.get("--scene")).origin
    assert origin.kind == "demo" and origin.sha256 in (WEIGHTS / f"{name}.md").read_text()


def test_docs_and_cards_agree():
    for cells in table_rows((ROOT / "docs" / "training.md").read_text(), "demo weights"):
        for result, text in zip(read_card(cells[0]), (cells[2], cells[4]), strict=False):
            indoor = f" ({result.images} indoor)" if ", indoor," in result.data else ""
            assert text == result.words() + indoor, cells[0]


def table_rows(text, name):
    """The rows of a table between its marks, as lists of cells."""
    rows = text.split(BEGIN.format(name))[1].split(END.format(name))[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("|")]


def test_a_result_holds_no_folder_of_the_machine():
    if RESULT.is_file():
        text = RESULT.read_text()
        assert "/tmp" not in text and "/home" not in text and "/root" not in text


def test_one_that_fails_does_not_stop_the_others_and_nothing_is_measured_twice(tmp_path, monkeypatch, capsys):
    asked = []

    def run(self, sets):
        asked.append(self.name)
        if self.name == "vpd-tiny":
            raise FathomError("no memory")
        return facts()

    monkeypatch.setattr(tiny_networks.Trial, "run", run)
    monkeypatch.setattr(tiny_networks, "_weights_sha256", lambda name: "s")
    words = ["--work", str(tmp_path / "w"), "-o", str(tmp_path / "r.json")]
    assert main(words) == 4
    assert asked == list(NETWORKS) and "vpd-tiny: no memory" in capsys.readouterr().err
    record = json.loads((tmp_path / "r.json").read_text())["results"]
    assert list(record["networks"]) == list(NETWORKS) and record["networks"]["vpd-tiny"] == {"failed": "no memory"} and record["limits"] == LIMITS
    asked.clear()
    assert main(words) == 4 and asked == ["vpd-tiny"]
    asked.clear()
    assert main([*words, "--only", "evp-tiny"]) == 4 and asked == ["evp-tiny"]
    asked.clear()
    monkeypatch.setattr(tiny_networks, "_weights_sha256", lambda name: "other" if name == "llm-mde-tiny" else "s")
    monkeypatch.setattr(tiny_networks.Trial, "run", lambda self, sets: asked.append(self.name) or facts())
    assert main(words) == 0 and asked == ["vpd-tiny", "llm-mde-tiny"]
    asked.clear()
    monkeypatch.setattr(tiny_networks, "ROOMS", "rooms:50:9")
    assert main(words) == 0 and asked == list(NETWORKS)
    assert main([*words, "--only", "evp"]) == 2
    assert main([*words, "--pairs", str(tmp_path / "none")]) == 3


def test_masks_are_compared_pixel_by_pixel(monkeypatch):
    from types import SimpleNamespace

    photo = np.zeros((4, 10, 3), np.uint8)
    pytorch, plan = np.zeros((4, 10), np.float32), np.zeros((4, 10), np.float32)
    pytorch[0, :5], plan[0, 1:7] = 1, 1

    class Fake:
        def __init__(self, mask):
            self.mask = mask

        def __enter__(self):
            return self

        def __exit__(self, *rest):
            pass

        def predict(self, photo, prompt):
            return SimpleNamespace(kind="mask", values=self.mask if prompt == "the chair" else self.mask * 0)

    monkeypatch.setattr("fathom.benchmarks.studies.mask_agreement.open_reference", lambda bundle: Fake(pytorch))
    monkeypatch.setattr("fathom.benchmarks.studies.mask_agreement.Pipeline", SimpleNamespace(open=lambda path, threads: Fake(plan)))
    found = compare_masks("b", {"int8": "p"}, [SimpleNamespace(rgb=photo)], ("the chair", "the bed"))
    assert found["pytorch"] == {"asked": 2, "drawn": pytest.approx(5 / 80)}
    assert found["int8"] == {"changed_pixels": pytest.approx((3 / 40) / 2), "most_changed": pytest.approx(3 / 40), "oIoU": pytest.approx(4 / 7)}
