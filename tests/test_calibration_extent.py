"""How much a calibration may take: disk, trials and hours."""

import dataclasses
import math

import numpy as np
import pytest

from fathom.calibration.calibrate import Settings, calibrate
from fathom.calibration.calibrate_command import main
from fathom.calibration.estimate import Extent, Pace, fit, least, phases_s
from fathom.calibration.graph.chain import Chain
from fathom.calibration.observation import flow as flow_module
from fathom.calibration.observation import observe as observe_module
from fathom.calibration.observation.flow import Flow
from fathom.calibration.observation.images import Chosen
from fathom.calibration.observation.journal import Journal
from fathom.calibration.observation.observe import prepare_photos, silent
from fathom.calibration.observation.photo import Photo
from fathom.calibration.observation.split import split
from fathom.calibration.precision.precision_plan import Choice
from fathom.calibration.precision.regions import Region
from fathom.calibration.schedule import Schedule
from fathom.calibration.search.fit import Fit
from fathom.calibration.search.mixtures import Mixtures
from fathom.calibration.search.objective import Budget, Score
from fathom.calibration.search.sensitivity import Sensitivity
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import InputError

LOOSE = Budget(0.05, 0.05, 0.05)
EVP = Pace((6.0, 9.0, 1.0, 0.2, 0.2), (3.0, 16.0, 3.0, 1.0, 1.0))  # seconds on two cores, about
EVP_EXTENT = Extent(400, 16, 32, 1.0, 48, (20, 48, 30, 8, 12), 20)
ONCE = (1, 1, 1, 1, 1)
pytestmark = pytest.mark.usefixtures("rooms_once")


@pytest.fixture(scope="module")
def bundle(token_bundle):
    return token_bundle()


def test_a_small_journal_gives_the_same_ranges_and_stays_small(bundle, tmp_path, monkeypatch):
    """Six photos through two stages, once with room for all and once for a single window on its way and a single one that stays."""
    data, opened = Chosen("rooms:8:1:48x64"), BundleDirectory.open(bundle)
    plenty = calibrate(opened, data, Settings(LOOSE), tmp_path / "a")
    window = Flow(Chain(opened), data, Journal(tmp_path / "w", {})).window_nbytes()
    assert window == 4 * (3 * 32 * 48 + 16 * 8 * 12 + 16 * 24)  # picture, features, depth
    monkeypatch.setattr(flow_module, "GROUP_NBYTES", window)
    monkeypatch.setattr(flow_module, "HELD_NBYTES", window)
    most, real = 0, Journal.put

    def put(self, name, arrays, **how):
        nonlocal most
        real(self, name, arrays, **how)
        most = max(most, sum(file.stat().st_size for file in self.folder.glob("item_*")))

    monkeypatch.setattr(Journal, "put", put)
    little = calibrate(opened, data, Settings(LOOSE), tmp_path / "b")
    assert little.table.to_json() == plenty.table.to_json() and little.plan == plenty.plan
    assert 0 < most < 2 * window + 4096  # one that stays, one on its way, and the archives' own headers


@pytest.mark.parametrize(("photos", "windows"), [(512, 1), (512, 16)])
def test_the_journal_of_evp_stays_below_4_gb_whatever_the_protocol(bundle, tmp_path, monkeypatch, photos, windows):
    flow = Flow(Chain(BundleDirectory.open(bundle)), Chosen("rooms:3"), Journal(tmp_path / "j", {}))
    monkeypatch.setattr(Flow, "window_nbytes", lambda self: 63_000_000)  # of EVP at 480x480
    many = [Photo(number, str(number), str(number), windows) for number in range(photos)]
    hold = set(range(0, 16 * 8, 8))
    groups = flow.groups(many, hold)
    held = sum(flow.holds(photo, window) for photo in many for window in range(windows))
    assert held == min(16 * windows, 31) and sum(map(len, groups)) == photos * windows
    assert (held + max(map(len, groups))) * 63_000_000 < 3.4e9
    assert len(groups) == flow.group_count(photos * windows)


def planted(harms, limit, seen=None):
    """Regions whose INT8 moves the depth by so much each (``seen``: on the photo of the screening), a budget, and what tries mixtures of them; FP16 moves
    nothing."""
    lines = {}
    for number, harm in enumerate(seen or harms):
        region = Region("s", f"r{number}", "block", (f"n{number}",))
        lines[region] = Sensitivity(region, {Choice("int8", "mse"): Score(0, 0, 0, 0, harm), Choice("fp16"): Score(0, 0, 0, 0, 0.0)})

    class Evaluator:
        def score(self, plan):
            return Score(0, 0, 0, 0, math.fsum(harms[int(nodes[0][1:])] for nodes, choice in plan["s"].items() if choice.precision == "int8"))

    class Costs:
        def cost_ms(self, chosen):
            return math.fsum(0.5 if choice.precision == "int8" else 1.0 for choice in chosen.values())

        def saved_ms(self, region, now, above):
            return 0.5

    return lines, Mixtures(Evaluator(), Costs(), Budget(1.0, 1.0, limit))


@pytest.mark.parametrize("seed", range(4))
def test_sixty_regions_are_fitted_in_twenty_trials(seed):
    drawn = np.sort(np.random.default_rng(seed).exponential(size=60))
    harms = (0.5 * drawn / drawn.sum()).tolist()
    limit = 0.4 * sum(harms)
    lines, mixtures = planted(harms, limit)
    start = {region: Choice("int8", "mse") for region in lines}
    found = Fit(mixtures, lines, ("fp32", "fp16", "int8"), {})(start)
    assert mixtures.trials <= 20
    kept = [int(region.path[1:]) for region, choice in found.items() if choice.precision == "int8"]
    best = int(np.searchsorted(np.cumsum(harms), limit))  # the mildest ones that fit
    assert sum(harms[k] for k in kept) <= limit and len(kept) >= best - 1


@pytest.mark.parametrize("faulty", [(3,), (20,), (37,), (5, 30), (33, 34), (0, 1)])
def test_what_one_photo_ranks_low_is_found_and_raised_alone(faulty):
    """Of forty regions one or two move the depth on the selecting photos, and the photo of the screening told nothing of them."""
    harms = [0.0004 + 0.03 * (number in faulty) for number in range(40)]
    lines, mixtures = planted(harms, 0.02, seen=[0.001 + 1e-5 * number for number in range(40)])
    found = Fit(mixtures, lines, ("fp32", "fp16", "int8"), {})(dict.fromkeys(lines, Choice("int8", "mse")))
    assert {int(region.path[1:]) for region, choice in found.items() if choice.precision == "fp16"} == set(faulty)
    assert mixtures.trials <= 20


def test_few_regions_are_screened_on_more_photos():
    """48 looks at regions in all, so that a screening takes as long for one region as for 48."""
    assert EVP_EXTENT.screen == 1
    few = dataclasses.replace(EVP_EXTENT, regions=1)  # five stages in one piece each
    assert few.screen == 9 and dataclasses.replace(few, select=4).screen == 4
    one, many = (phases_s(EVP, extent, ONCE)["screening"] for extent in (few, dataclasses.replace(few, select=1)))
    assert 5 < one / many < 9  # opening a stage takes no longer


def test_evp_in_two_hours_and_a_half():
    """32 photos, 48 regions: what the least of the machine allows; and every bound is kept."""
    whole = dataclasses.replace(EVP_EXTENT, observe=16, select=8, prove=8)
    for hours in (2.5, 4.0):
        found = fit(EVP, whole, ONCE, 3600 * hours)
        assert math.fsum(phases_s(EVP, found, ONCE).values()) <= 3600 * hours
        assert found.observe >= 16 and found.select >= 4 and found.prove >= 4 and found.trials >= 8 and found.regions >= 4
    large = fit(EVP, EVP_EXTENT, ONCE, 3600 * 12)
    small = fit(EVP, EVP_EXTENT, ONCE, 3600 * 3)
    assert small.observe < large.observe and fit(EVP, EVP_EXTENT, ONCE, 60) is None
    assert fit(EVP, EVP_EXTENT, ONCE, math.fsum(phases_s(EVP, least(EVP_EXTENT), ONCE).values()) + 1) is not None


def test_the_time_is_told_before_and_as_it_goes(bundle, tmp_path):
    told = []
    calibrate(BundleDirectory.open(bundle), Chosen("rooms:6:1:48x64"), Settings(LOOSE), tmp_path / "j", on_message=told.append)
    assert told[0].startswith("this will take about ") and all(word in told[0] for word in ("observing", "screening", "trials", "proof"))
    assert told[1].startswith("observing took ") and "left: about" in told[1] and "observing" not in told[1].split("left:")[1]
    assert told[2].startswith("screening took ") and "trials" in told[2].split("left:")[1]


def test_hours_cut_what_is_done_and_too_few_are_refused(bundle, tmp_path, capsys, monkeypatch):
    assert main([str(bundle), "--data", "rooms:6:1:48x64", "--hours", "0", "-q"]) == 2
    assert main([str(bundle), "--data", "rooms:6:1:48x64", "--hours", "1e-7", "-q"]) == 2
    assert "too few on this machine" in capsys.readouterr().err
    monkeypatch.setattr("fathom.calibration.schedule.measure_pace", lambda chain, flow, photo: Pace((1.0, 1.0), (10.0, 10.0)))
    told = []
    settings = Settings(LOOSE, precisions=("fp32", "fp16", "int8"), hours=2.0)
    result = calibrate(BundleDirectory.open(bundle), Chosen("rooms:48:1:48x64"), settings, tmp_path / "j", on_message=told.append)
    splits = result.table.data["splits"]
    assert "to fit into 2 h" in told[0] and 16 <= len(splits["observe"]) <= 24 and len(splits["select"]) < 12
    assert result.table.images == len(splits["observe"]) + len(splits["select"])


def test_a_resumed_run_in_hours_counts_the_photos_that_were_looked_at(bundle, tmp_path, monkeypatch):
    """Less memory is free when it is taken up again, so that every tensor would want a pass of its own and fewer photos would fit into the hours."""
    monkeypatch.setattr("fathom.calibration.schedule.measure_pace", lambda chain, flow, photo: Pace((1.0, 1.0), (10.0, 10.0)))
    chain, data, plan = Chain(BundleDirectory.open(bundle)), Chosen("rooms:48:1:48x64"), observe_module._plan

    def parts(name):
        flow = Flow(chain, data, Journal(tmp_path / name, {}))
        found = split(prepare_photos(chain, data, flow.journal, silent), set(), "rooms")
        return found, Schedule(chain, flow, found, 4, 1 << 33, (), 3.0, lambda text: None).parts

    everything, first = parts("j")
    assert first == everything  # three hours are enough for all of them
    monkeypatch.setattr(observe_module, "_plan", lambda *facts: [[name] for names in plan(*facts) for name in names])
    assert parts("alone")[1] != first
    assert parts("j")[1] == first


def test_a_journal_in_hours_is_of_its_regions(bundle, tmp_path):
    def tick(what, total):
        if what == "pictures through the stages":
            raise KeyboardInterrupt

    opened, data, settings = BundleDirectory.open(bundle), Chosen("rooms:6:1:48x64"), Settings(LOOSE, hours=2.0)
    with pytest.raises(KeyboardInterrupt):
        calibrate(opened, data, settings, tmp_path / "j", tick)
    with pytest.raises(InputError, match="regions 48, now 4"):
        calibrate(opened, data, dataclasses.replace(settings, regions=4), tmp_path / "j")


def test_a_search_out_of_time_keeps_the_best_it_has_seen(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("fathom.calibration.schedule.Schedule.out_of_time", lambda self: True)
    result = calibrate(BundleDirectory.open(bundle), Chosen("rooms:6:1:48x64"), Settings(LOOSE, hours=100.0), tmp_path / "j")
    assert {r.choice.precision for r in result.plan.regions} <= {"fp16", "bf16", "fp32"}  # nothing was screened in INT8
    assert result.plan.proof["within"] and next(v for v in result.plan.variants if v.chosen).within
