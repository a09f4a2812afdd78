"""The report and the run that makes its results: every number on the page stands in a result, and the page needs nothing but itself."""

import base64
import copy
import dataclasses
import html as html_words
import io
import json
import re

import jsonschema
import numpy as np
import pytest
from other_contracts import with_contract
from PIL import Image
from test_benchmarks_record import SCHEMA

from fathom.benchmarks.accuracy.command import BENCHMARK_PROTOCOL
from fathom.benchmarks.accuracy.pictures import signed_colours, worst_images
from fathom.benchmarks.bench_command import main
from fathom.benchmarks.evaluation.evaluation import Evaluation, Pixels, compared, scored
from fathom.benchmarks.report.build import build_report
from fathom.benchmarks.report.document import Number
from fathom.benchmarks.report.html import html
from fathom.datasets.rooms.rooms import Rooms
from fathom.runtime.artefact.contract import Crop, Protocol, Resize
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.commands.inspection import read_manifest
from fathom.runtime.pipeline import Pipeline

DATA = "rooms:7:3:48x64"
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")
FACTORS = {"%": 100, "MiB": 2**-20, "mm": 1000, "J": 1, "": 1}


@pytest.fixture(scope="module")
def louder(tiny, tmp_path_factory):
    """The plan with an encoder whose kernel is one percent larger, which says that it is FP16."""
    from fathom.export.plan.plan_file import file_facts, write_plan

    path = tmp_path_factory.mktemp("louder") / "louder.plan"
    with PlanFile.open(tiny.plan) as plan:
        sources = {name: bytes(plan.view(name)) for name in plan.manifest.files}
        sources["engines/encoder.data"] = (np.frombuffer(sources["engines/encoder.data"], np.float32) * np.float32(1.01)).tobytes()
        stages = tuple(dataclasses.replace(stage, precision="fp16") for stage in plan.manifest.stages)
        facts = {name: file_facts(source) for name, source in sources.items()}
        write_plan(path, dataclasses.replace(plan.manifest, stages=stages, files=facts, precision="fp16"), sources)
    return path


@pytest.fixture(scope="module")
def results(tiny, louder, tmp_path_factory):
    """A folder made by depth-bench run."""
    folder = tmp_path_factory.mktemp("bench") / "run"
    words = ["run", str(tiny.bundle), "--engine", str(tiny.bundle), "--engine", str(louder), "--data", DATA, "--pytorch", "", "--quick", "--threads", "1"]
    assert main([*words, "-o", str(folder), "--quiet"]) == 0
    return folder, words


def addressed(records, at):
    place = records
    for word in at.split("/"):
        place = place[int(word)] if isinstance(place, list) else place[word]
    return place


def shown_right(text, value):
    """Whether a shown number is the value, rounded to the digits that are shown, in the unit that is shown."""
    number, _, unit = text.partition(" ")
    digits = len(number.partition(".")[2])
    return abs(float(number) - value * FACTORS[unit]) <= 0.5 * 10**-digits * 1.000001 or float(f"{value:.3g}") == float(number)


def strings_of(place):
    if isinstance(place, dict):
        for key, value in place.items():
            yield key
            yield from strings_of(value)
    elif isinstance(place, list):
        for value in place:
            yield from strings_of(value)
    elif isinstance(place, str) and not place.startswith("data:"):
        yield place


def unsupported(page, records):
    """Numbers of a page that stand in no result: none that is shown where its address says otherwise, none without an address."""
    wrong = []
    body = page[page.index("<body>") :]
    for value, at, text in re.findall(r'<data value="([^"]*)" data-at="([^"]*)"[^>]*>([^<]*)</data>', body):
        found = addressed(records, html_words.unescape(at))
        if float(value) != found or not shown_right(html_words.unescape(text), found):
            wrong.append((at, text))
    for at, inside in re.findall(r'<g id="[^"]*?number:([^"]*)">(.*?)</g>', body, re.S):
        text = re.search(r"<text[^>]*>([^<]*)</text>", inside)[1]
        if not shown_right(html_words.unescape(text), addressed(records, html_words.unescape(at))):
            wrong.append((at, text))
    rest = re.sub(r"<data .*?</data>", "", body, flags=re.S)
    rest = re.sub(r'<g id="[^"]*?number:.*?</g>', "", rest, flags=re.S)
    rest = re.sub(r'<g id="[^"]*?[xy]tick_\d+">.*?</text>', "", rest, flags=re.S)  # scales of axes
    rest = html_words.unescape(re.sub(r"<[^>]*>", "\n", rest))
    words = {" ".join(record["meta"]["argv"]) for record in records.values()}
    words |= {", ".join(f"{name} {version}" for name, version in record["meta"]["version"].items()) for record in records.values()}
    for word in sorted({*strings_of(records), *words}, key=len, reverse=True):
        if len(word) > 3 and any(c.isdigit() for c in word):
            rest = re.sub(rf"(?<![\w.]){re.escape(word)}(?!\w)", " ", rest)
    return wrong + NUMBER.findall(rest)


def test_a_run_leaves_results_that_keep_to_the_schema(results, tiny):
    folder, _ = results
    assert {path.name for path in folder.iterdir()} == {"run.json", "accuracy.json", "latency.json", "report.html", "report.md"}
    accuracy, latency = (json.loads((folder / f"{kind}.json").read_text()) for kind in ("accuracy", "latency"))
    for record in (accuracy, latency):
        jsonschema.validate(record, SCHEMA)
        assert str(tiny.folder) not in json.dumps(record) and str(folder) not in json.dumps(record)
    first, second = latency["rows"]
    for row in (first, second):
        assert [stage["name"] for stage in row["stages"]] == ["encoder", "head"] and len(row["stages"][0]["sample_times_ms"]) == latency["min_query_count"]
        assert row["cold_start_ms"]["total"] >= row["cold_start_ms"]["open"] > 0 and row["memory"]["host_peak_nbytes"] > 20 << 20
        assert row["memory"]["tensors_nbytes"] == 4 * (3 * 48 * 64 + 8 * 24 * 32) and row["energy"]["source"]
    assert [entry["batch"] for entry in second["sweep"]] == [1, 2, 4]  # what the plan was built for
    assert second["memory"]["weights_nbytes"] > 2400
    assert len(accuracy["worst"]) == 5 and [error["name"] for error in accuracy["worst"][0]["errors"]] == ["tiny", "louder.plan"]


def test_what_a_stages_precision_costs_is_what_it_moves(results, tiny):
    folder, _ = results
    accuracy = json.loads((folder / "accuracy.json").read_text())
    encoder, head = accuracy["rows"][1]["stages"]
    with Pipeline.open(tiny.bundle, threads=1) as pipeline:
        maps = [pipeline.predict(sample.rgb).values for sample in list(Rooms(7, 3, (48, 64)))[:4]]
    wanted_m = np.mean([0.01 * np.mean(values - 1) for values in maps])  # depth is 1 + mean(relu(kernel * photo))
    assert encoder["depth_change_m"] == pytest.approx(wanted_m, rel=1e-3) and encoder["precision"] == "fp16"
    assert head["depth_change_m"] == 0 and "stages" not in accuracy["rows"][0]


def test_details_look_at_the_maps_that_were_scored(tiny, louder, tmp_path, monkeypatch):
    """By the papers' protocol for the data, which is not the bundle's first and shows the middle alone, and with each photo's camera."""
    from fathom.export.plan.plan_file import write_plan

    monkeypatch.setitem(BENCHMARK_PROTOCOL, "rooms", "middle")
    contract = read_manifest(tiny.bundle).contract
    middle = Protocol("middle", (Crop(36, 48, "center"), Resize(48, 64, "bilinear")), (0,), (), False, "a test")
    contract = dataclasses.replace(contract, protocols=(*contract.protocols, middle), output=dataclasses.replace(contract.output, focal_px=50.0))
    bundle = with_contract(tiny.bundle, tmp_path / "bundle", contract)
    with PlanFile.open(louder) as plan:
        write_plan(tmp_path / "x.plan", dataclasses.replace(plan.manifest, contract=contract), {name: bytes(plan.view(name)) for name in plan.manifest.files})
    words = ["accuracy", "--engine", str(bundle), "--engine", str(tmp_path / "x.plan"), "--data", DATA, "--threads", "1", "--quiet", "--details"]
    assert main([*words, "-o", str(tmp_path / "r.json")]) == 0
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["rows"][1]["protocol"] == "middle"
    wanted_m = []
    with Pipeline.open(tmp_path / "bundle", threads=1) as pipeline:
        for sample in list(Rooms(7, 3, (48, 64)))[:4]:
            scale = sample.intrinsics[0] * 64 / 48 / 50
            wanted_m.append(np.mean(0.01 * (pipeline.predict(sample.rgb, "middle", sample.intrinsics).values[6:42, 8:56] - scale)))
    encoder, head = record["rows"][1]["stages"]
    assert encoder["depth_change_m"] == pytest.approx(np.mean(wanted_m), rel=1e-3) and head["depth_change_m"] == 0
    assert len(record["worst"]) == 5
    for image in record["worst"]:
        assert [error["name"] for error in image["errors"]] == ["bundle", "x.plan"]
        for error in image["errors"]:
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(error["picture"].partition(",")[2]))).convert("RGB"))
            assert (picture[:15] == 128).all() and (picture[:, :20] == 128).all() and (picture[30:120, 40:160] != 128).any()


def test_error_pictures_show_what_the_evaluation_compared():
    """A clamp, a stretch or a fit that makes the score makes the picture too."""
    truth_m, prediction = np.array([[1.0, 2.0, 4.0, 9.0]]), np.array([[1.0, 2.0, 4.0, 90.0]], np.float32)
    everywhere = np.ones((1, 4), bool)
    evaluation = Evaluation("x", "a test", 1e-3, 10, clamp_m=(1e-3, 10))
    seen, mask, uncovered = scored(evaluation, prediction, everywhere, truth_m, everywhere)
    found, truth = compared(evaluation, Pixels(seen[mask], truth_m[mask], 0))
    assert found.tolist() == [1, 2, 4, 10] and truth.tolist() == [1, 2, 4, 9] and uncovered == 0


def test_every_number_on_the_page_stands_in_a_result(results):
    folder, _ = results
    records = {kind: json.loads((folder / f"{kind}.json").read_text()) for kind in ("accuracy", "latency")}
    page = (folder / "report.html").read_text()
    assert page.count("<data ") > 120 and page.count("number:") > 3
    assert unsupported(page, records) == []
    changed = re.sub(r'(data-at="latency/rows/0/latency_ms/photo/p50"[^>]*>)([\d.]+)', r"\g<1>98765.4", page, count=1)
    assert [text for _, text in unsupported(changed, records)] == ["98765.4"]
    assert unsupported(page.replace("</h1>", "</h1><p>It is 7.31 times as fast.</p>", 1), records) == ["7.31"]
    other = copy.deepcopy(records)
    other["accuracy"]["rows"][1]["means"]["abs_rel"] += 0.01
    assert unsupported(page, other)


def test_the_slowest_layers_and_the_parts_of_a_photo_are_named(results, tmp_path):
    folder, _ = results
    latency = json.loads((folder / "latency.json").read_text())
    layers = [{"stage": "encoder", "name": f"conv{k} + silu{k}", "p50_ms": 1.25 / (k + 1), "share": 0.5 / (k + 1)} for k in range(12)]
    latency["rows"][1] |= {"layers": layers, "photo_parts_ms": {"copy_in": 0.125, "network": 1.5, "host": -0.25}}
    jsonschema.validate(latency, SCHEMA)
    (tmp_path / "latency.json").write_text(json.dumps(latency))
    page = html(build_report([folder / "accuracy.json", tmp_path / "latency.json"]))
    assert "Slowest layers" in page and "conv0 + silu0" in page and "conv9 + silu9" in page and "conv10" not in page  # ten of them
    assert unsupported(page, {"accuracy": json.loads((folder / "accuracy.json").read_text()), "latency": latency}) == []
    assert "copy in, ms" in page and 'data-at="latency/rows/1/photo_parts_ms/copy_in"' in page
    assert not re.search("Slowest layers|Where a photo", (folder / "report.html").read_text())  # ONNX Runtime tells of neither


def test_the_page_needs_nothing_but_itself(results):
    folder, _ = results
    page = (folder / "report.html").read_text()
    assert not re.search(r"<script|<link|@import|<iframe|<object", page)
    assert all(url.startswith(("data:", "#")) for url in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert not re.findall(r"url\((?!#)[^)]*\)", page)
    assert "prefers-color-scheme: dark" in page and "@media print" in page and 'name="viewport"' in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and {ref for ref in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page) for ref in ref if ref} <= set(ids)
    assert not re.search(r"#0[1-4]0[1-4]0[0-5]", page)  # every stand-in colour became one of the page's
    text = (folder / "report.md").read_text()
    assert "| louder.plan |" in text and "## tiny test" in text and "<" not in text.replace("<data", "")


STRANGE = ("a $x$ b $", r"_half \1 \g<0> (", '<b>"&id="1" #040400')


def test_names_are_names_and_nothing_else(results, tmp_path):
    """No formulas, no patterns, no tags, none left out of a legend for how it begins."""
    folder, _ = results
    accuracy, latency = (json.loads((folder / f"{kind}.json").read_text()) for kind in ("accuracy", "latency"))
    for record in (accuracy, latency):
        record["rows"] = [copy.deepcopy(record["rows"][place]) for place in (0, 1, 1)]
        for row, name in zip(record["rows"], STRANGE, strict=True):
            row["name"], row["network"] = name, r"net \1 $5$ )'"
            for stage in row.get("stages", ()):
                stage["name"] = f"_{stage['name']} $1$"
        (tmp_path / f"{record['kind']}.json").write_text(json.dumps(record | ({"network": latency["network"] | {"name": row["network"]}})))
    page = html(build_report([tmp_path / "accuracy.json", tmp_path / "latency.json"]))
    texts = [html_words.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", page)]
    for name in STRANGE:
        assert texts.count(name) == 3, name  # accuracy against latency, the distribution, and the batches
    assert texts.count("_encoder $1$") == 3 and "_encoder $1$, fp16" in texts
    ids = re.findall(r'<[^>]*\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and {ref for pair in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page) for ref in pair if ref} <= set(ids)
    assert "<b>" not in page and len(re.findall(r"<svg", page)) == 8


@pytest.mark.parametrize("url", ["https://example.org/a.png", 'data:image/png;base64,AAAA" onerror="alert()'])
def test_a_page_shows_only_pictures_that_the_result_holds(results, tmp_path, capsys, url):
    folder, _ = results
    record = json.loads((folder / "accuracy.json").read_text())
    record["worst"][0]["errors"][0]["picture"] = url
    (tmp_path / "r.json").write_text(json.dumps(record))
    assert main(["report", str(tmp_path / "r.json"), "-o", str(tmp_path / "r.html")]) == 3
    assert "wanted: the picture itself" in capsys.readouterr().err and not (tmp_path / "r.html").exists()


def test_a_few_images_are_said_to_be_few(tiny, louder, tmp_path):
    """Two images, drawn again and again, are no bounds for the mean of others."""
    words = ["accuracy", "--engine", str(tiny.bundle), "--engine", str(louder), "--data", DATA, "--threads", "1", "--quiet", "--limit"]
    for count, few in ((2, True), (6, False)):
        assert main([*words, str(count), "-o", str(tmp_path / f"{count}.json")]) == 0
        assert main(["report", str(tmp_path / f"{count}.json"), "-o", str(tmp_path / f"{count}.md"), "--quiet"]) == 0
        text = (tmp_path / f"{count}.md").read_text()
        assert ("Scored on 2 of 7 images: too few to tell engines apart" in text) == few
        assert ("Intervals: percentile bootstrap over images" in text) != few
        first, *others = (line for line in text.splitlines() if line.startswith("| louder.plan |"))
        assert (" to " in first) != few and (len(others) == 1) != few  # nor do they say how far whole maps are off


def test_mixed_protocols_and_strange_results_are_refused(results, tmp_path, capsys):
    folder, _ = results
    for kind in ("accuracy", "latency"):
        (tmp_path / f"{kind}.json").write_text((folder / f"{kind}.json").read_text())
    mixed = json.loads((folder / "latency.json").read_text())
    mixed["protocol"] = "windows"
    (tmp_path / "mixed.json").write_text(json.dumps(mixed))

    def report(*names, output="r.html"):
        code = main(["report", *(str(tmp_path / name) for name in names), "-o", str(tmp_path / output)])
        return code, capsys.readouterr().err

    code, words = report("accuracy.json", "mixed.json")
    assert code == 3 and "timed by the protocol windows and scored by single-image" in words and not (tmp_path / "r.html").exists()
    code, words = report("latency.json", "mixed.json")
    assert code == 3 and "second result of latency" in words
    assert report("latency.json", output="r.txt")[0] == 2
    (tmp_path / "x.json").write_text("{}")
    assert report("x.json")[0] == 3
    for names in (["accuracy.json"], ["latency.json"], ["accuracy.json", "latency.json"]):
        assert report(*names)[0] == 0
        page = (tmp_path / "r.html").read_text()
        assert ("There is no result" in page or "there is no result" in page) == (len(names) == 1)
        (tmp_path / "r.html").unlink()


def test_the_verdict_takes_the_fastest_that_is_exact_enough(results, tmp_path):
    folder, _ = results
    accuracy, latency = (json.loads((folder / f"{kind}.json").read_text()) for kind in ("accuracy", "latency"))
    for row, ms in zip(latency["rows"], (40.0, 20.0), strict=True):
        row["latency_ms"]["photo"]["p50"] = ms
    latency["rows"][1]["difference"]["ratio"]["photo"]["p50"] = 0.5

    def verdict(loss):
        accuracy["rows"][1]["difference"]["relative"]["abs_rel"] = loss
        for record in (accuracy, latency):
            (tmp_path / f"{record['kind']}.json").write_text(json.dumps(record))
        parts = build_report([tmp_path / "accuracy.json", tmp_path / "latency.json"]).sections[0].blocks[0].parts
        return "".join(part if isinstance(part, str) else part.text for part in parts)

    latency["conditions"]["others_busy"] = 0.0
    assert verdict(0.004).startswith("louder.plan takes 20.0 ms for a photo, 0.50 of the time of tiny and reaches abs_rel ")
    assert verdict(0.004).endswith(", +0.400 % beside tiny.")
    assert verdict(0.04).startswith("tiny takes 40.0 ms")
    assert verdict(None).startswith("tiny takes 40.0 ms")  # what the faster one loses is not known
    calm = html(build_report([tmp_path / "accuracy.json", tmp_path / "latency.json"]))
    latency["conditions"]["others_busy"] = 0.65
    verdict(0.0)
    busy = html(build_report([tmp_path / "accuracy.json", tmp_path / "latency.json"]))
    assert "machine was busy" in busy and "machine was busy" not in calm
    for record in (accuracy, latency):
        record |= {"network": latency["network"] | {"name": "other"}} if record is latency else {}
        record["rows"] = [row | {"network": "other"} for row in record["rows"]]
        (tmp_path / f"other-{record['kind']}.json").write_text(json.dumps(record))
    both = build_report([*(folder / f"{kind}.json" for kind in ("accuracy", "latency")), *sorted(tmp_path.glob("other-*.json"))])
    assert [section.title for section in both.sections if section.level == 2] == ["In short", "tiny test", "other"]


def test_a_run_goes_on_where_it_stopped(results, tmp_path, capsys):
    folder, words = results
    again = tmp_path / "again"
    again.mkdir()
    for path in folder.iterdir():
        (again / path.name).write_bytes(path.read_bytes())
    before = (again / "accuracy.json").read_bytes()
    (again / "latency.json").unlink()
    (again / "report.html").unlink()
    assert main([*words, "-o", str(again)]) == 0
    said = capsys.readouterr().err
    assert "accuracy.json is there already" in said and "depth-bench latency" in said and said.startswith("about ")
    assert (again / "accuracy.json").read_bytes() == before and (again / "report.html").exists()
    assert main([*words[:-2], "--threads", "2", "-o", str(again)]) == 3 and "another run" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert main([*words, "-o", str(tmp_path / "mine")]) == 3
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_history_names_what_got_worse(results, tmp_path, capsys):
    folder, _ = results
    record = json.loads((folder / "latency.json").read_text())
    draw = np.random.default_rng(0)
    for number, factor in enumerate((1.0, 1.0, 1.5)):
        for row in record["rows"]:
            samples = (10 * factor * draw.normal(1, 0.01, 30)).tolist()
            row["sample_times_ms"] = {"photo": samples}
            row["latency_ms"] = {"photo": row["latency_ms"]["photo"] | {"p50": float(np.median(samples))}}
            row["stages"] = []
        record["meta"] |= {"date": f"2026-01-0{number + 1}T00:00:00+00:00", "commit": f"c0ffee{number}"}
        (tmp_path / f"{'zab'[number]}.json").write_text(json.dumps(record))
    (tmp_path / "notes.json").write_text("{}")
    assert main(["history", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.count("got worse in photo ms with commit c0ffee2") == 2 and "c0ffee1." not in text
    assert [line.split(" | ")[-1].rstrip(" |") for line in text.splitlines() if line.startswith("| tiny")] == ["first", "same", "worse"]
    assert main(["history", str(tmp_path), "-o", str(tmp_path / "h.html")]) == 0
    records = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("[zab].json")}
    assert unsupported((tmp_path / "h.html").read_text(), records) == []
    first = json.loads((tmp_path / "z.json").read_text())
    first["rows"] = first["rows"][:1]  # the second engine came later
    (tmp_path / "z.json").write_text(json.dumps(first))
    assert main(["history", str(tmp_path), "-o", str(tmp_path / "h.html"), "--force"]) == 0
    marks = [float(x) for x in re.findall(r'<use xlink:href="#[^"]*" x="([\d.]+)" y="[\d.]+" style="fill: var\(--c[01]\)', (tmp_path / "h.html").read_text())]
    assert len(marks) == 3 + 2 + 2 and marks[3:5] == marks[1:3]  # two lines, of which the second begins at the second result, and the legend
    (tmp_path / "empty").mkdir()
    assert main(["history", str(tmp_path / "empty")]) == 3


def test_numbers_as_they_are_shown():
    for value, unit, text in (
        (0.123456, "metric", "0.1235"),
        (-0.00123, "share", "-0.123 %"),
        (3 << 20, "mib", "3.00 MiB"),
        (0.00027, "mm", "0.27 mm"),
        (123.4, "ms", "123"),
        (9.876, "ms", "9.88"),
    ):
        assert Number("x", value, unit).text == text


def test_error_maps_show_the_sign():
    share = np.array([[0.0, 0.6, -0.6, 0.25]])
    colours = signed_colours(share, np.array([[True, True, True, False]]))
    white, red, blue, grey = colours[0].astype(int)
    assert white.tolist() == [255, 255, 255] and red[0] > red[2] + 100 and blue[2] > blue[0] + 100 and grey.tolist() == [128, 128, 128]


def test_the_worst_images_are_the_worst_of_all_rows():
    def row(values):
        return {"groups": [{"ids": [name], "scores": [{"values": {"abs_rel": value}}]} for name, value in values.items()]}

    names = {name: k / 10 for k, name in enumerate("abcdefg")}
    assert worst_images([row(names)]) == ["g", "f", "e", "d", "c"]
    assert worst_images([row(names), row(names | {"a": 9.0})]) == ["a", "g", "f", "e", "d"]
