"""Which results belong together: the accuracy (of depth, or of masks) and the latency of one network, row by row, shown by one protocol."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from ..record.record import read_record
from .document import Results
from .measure import DEPTH, MEASURES, Measure

IDENTITY = ("manifest_sha256", "backend", "precision", "device")


@dataclass(frozen=True)
class Engine:
    """One row: where it stands in either result, or None.

    Args:
        name: as in the latency, else as in the accuracy.
        accuracy, latency: number of its row.
    """

    name: str
    accuracy: int | None
    latency: int | None


@dataclass(frozen=True)
class Network:
    """What was measured of one network; ``accuracy`` may be a result of masks."""

    name: str
    accuracy: Results | None
    latency: Results | None
    engines: tuple[Engine, ...]

    @property
    def measure(self) -> Measure:
        """What its accuracy is judged by."""
        return MEASURES[self.accuracy.record["kind"]] if self.accuracy else DEPTH

    @property
    def records(self) -> tuple[Results, ...]:
        """Those that there are."""
        return tuple(results for results in (self.accuracy, self.latency) if results is not None)


def read_networks(paths: Iterable[str | Path]) -> list[Network]:
    """Read results and put them together by network, in the order in which they are named.

    Raises:
        InputError: if one is broken; if two are of the same kind and network; if accuracy and latency of an engine were measured by
            different protocols.
    """
    found: dict[str, dict[str, Results]] = {}
    records = [(Path(path), read_record(path, (*MEASURES, "latency"))) for path in paths]
    names = {_network_of(record) for _, record in records}
    for path, record in records:
        name, kind = _network_of(record), "accuracy" if record["kind"] in MEASURES else "latency"
        kinds = found.setdefault(name, {})
        if kind in kinds:
            raise InputError(f"{path} is a second result of {kind} for {name}", wanted="one of each kind for a network", fix="depth-bench compare or history")
        kinds[kind] = Results(kind if len(names) == 1 else f"{name}/{kind}", record)
    return [_together(name, kinds.get("accuracy"), kinds.get("latency")) for name, kinds in found.items()]


def _network_of(record: dict[str, Any]) -> str:
    if record["kind"] == "latency":
        return record["network"]["name"]
    networks = {row["network"] for row in record["rows"]}
    if len(networks) != 1:
        raise InputError(f"a result of accuracy holds the networks {', '.join(sorted(networks))}", wanted="one network in a result that is reported")
    return networks.pop()


def _together(name: str, accuracy: Results | None, latency: Results | None) -> Network:
    rows_a = accuracy.record["rows"] if accuracy else []
    rows_l = latency.record["rows"] if latency else []
    used: set[int] = set()
    engines = []
    for place, row in enumerate(rows_l):
        match = next((k for k, other in enumerate(rows_a) if k not in used and _same(row, other)), None)
        if match is not None:
            used.add(match)
            _refuse_mixed(latency.record, row, rows_a[match])
        engines.append(Engine(row["name"], match, place))
    engines += [Engine(row["name"], place, None) for place, row in enumerate(rows_a) if place not in used]
    return Network(name, accuracy, latency, tuple(engines))


def _same(timed: dict[str, Any], scored: dict[str, Any]) -> bool:
    """Whether both rows are of one engine; PyTorch's accuracy is that of its eager FP32 mode alone."""
    if timed.get("mode") not in (None, "eager-fp32"):
        return False
    return all(timed.get(key) == scored.get(key) for key in IDENTITY)


def _refuse_mixed(latency: dict[str, Any], timed: dict[str, Any], scored: dict[str, Any]) -> None:
    if latency["protocol"] != scored["protocol"]:
        raise InputError(
            f"{timed['name']} was timed by the protocol {latency['protocol']} and scored by {scored['protocol']}",
            wanted="latency and accuracy of one protocol in a row",
            fix=f"measure one of them again with --protocol {scored['protocol']}",
        )
