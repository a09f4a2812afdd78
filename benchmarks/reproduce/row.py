"""What one row of a paper's table is: the network, the data, the training, the evaluation, and the numbers that were published."""

from __future__ import annotations

from dataclasses import dataclass, field

DATA = ("nyu", "kitti", "refcoco")
CAPTIONS = ("", "each", "mean")


@dataclass(frozen=True)
class Training:
    """How the row's weights are made, for ``depth-train``.

    Args:
        part: of the training data, in the words of the ``--data`` grammar behind the data (``scene=bedroom:count=75``).
        shots: pictures drawn from it; 0 for all.
        seed: of the draw and of everything else.
        flags: of ``depth-train``, without dashes: ``{"lr": "2e-5"}``.
    """

    part: str = ""
    shots: int = 0
    seed: int = 0
    flags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        name: its short name on the command line, unique in its table.
        network: of the catalog.
        published: metric -> number as printed, in the paper's order; ``oiou`` is in per cent.
        label: how the paper calls it.
        variant: of the network, where not its first.
        data: a word of ``DATA``.
        part: of the test data, as in ``Training.part``.
        protocol: how photos are shown; "" for the network's first.
        evaluation: of ``published.EVALUATIONS``; "" for masks.
        training: None where published weights are measured.
        settings: of the network (``--set``), the same for training and export.
        options: of ``depth-export``, without dashes.
        captions: ``each`` where every picture has one, in training and test; ``mean`` where one text is made from all of them; "" for none.
        start: the file that the row begins with, where it is not the network's usual one (``steps.STARTS``).
        note: where the row's run differs from the paper, or the paper from its code.

    Raises:
        ValueError: for data or captions of another kind, or a row without numbers.
    """

    name: str
    network: str
    published: dict[str, str]
    label: str
    variant: str = ""
    data: str = "nyu"
    part: str = ""
    protocol: str = "nyu-benchmark"
    evaluation: str = "nyu-eigen"
    training: Training | None = None
    settings: dict[str, int] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    captions: str = ""
    start: str = ""
    note: str = ""

    def __post_init__(self):
        if self.data not in DATA or not self.published:
            raise ValueError(f"row {self.name}: data of {', '.join(DATA)} and published numbers were wanted")
        if self.captions not in CAPTIONS:
            raise ValueError(f"row {self.name}: captions {self.captions!r}, wanted each, mean or nothing")


@dataclass(frozen=True)
class Table:
    """A table: its number in the paper, what it shows, and its rows."""

    name: str
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Paper:
    """A paper: its short name, title, where the authors' code does otherwise, and the tables whose rows are its own.

    Args:
        differences: (what the paper says, what the published code does).
    """

    name: str
    title: str
    differences: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
