"""What the model card of demo weights says they reach, read from the table that ``depth-train`` wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).parents[1] / "models" / "weights"
ERRORS = ("abs_rel", "rmse")  # less is better; of every other metric of a card, more


@dataclass(frozen=True)
class CardResult:
    """One data set of a card.

    Args:
        data: its name.
        images: how many pictures.
        network: metric -> value of the network.
        blind: title of a guess that never looks at the picture -> metric -> value.
    """

    data: str
    images: int
    network: dict[str, float]
    blind: dict[str, dict[str, float]]

    @property
    def indoor(self) -> bool:
        """Whether the data are the indoor part of a set."""
        return ", indoor" in self.data

    def words(self) -> str:
        """The network's first and last metric: ``abs_rel 0.123, delta1 0.850``."""
        names = list(self.network)
        return ", ".join(f"{name} {self.network[name]:.3f}" for name in dict.fromkeys((names[0], names[-1])))

    def blind_words(self) -> str:
        """The same of the best guess, by the first metric (of which less is better only for an error)."""
        if not self.blind:
            return ""
        best = self._best_blind(next(iter(self.network)))
        return f"{best[0]}: " + CardResult(self.data, self.images, best[1], {}).words()

    def title(self) -> str:
        """The data in words of a reader: pairs marked for testing are real photos."""
        return re.sub(r"^[^,]+, use (\w+)", r"real pairs marked \1", self.data)

    def worse_metrics(self) -> dict[str, tuple[str, float]]:
        """Metrics by which a guess that never looks at the picture is better: the best guess by each, and its value."""
        found = {}
        for metric, own in self.network.items() if self.blind else ():
            guess, values = self._best_blind(metric)
            if values[metric] < own if metric in ERRORS else values[metric] > own:
                found[metric] = (guess, values[metric])
        return found

    def _best_blind(self, metric: str) -> tuple[str, dict[str, float]]:
        return (min if metric in ERRORS else max)(self.blind.items(), key=lambda item: item[1][metric])


def read_card(name: str, folder: Path = WEIGHTS) -> tuple[CardResult, ...]:
    """Results of a network's card in its order; empty where there is no card.

    Args:
        name: of the network.
        folder: where weights and cards lie.
    """
    card = folder / f"{name}.md"
    if not card.is_file():
        return ()
    found: dict[str, CardResult] = {}
    metrics: list[str] = []
    for line in card.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|") or len(cells) < 4:
            continue
        if cells[:3] == ["data", "images", "who"]:
            metrics = cells[3:]
        elif metrics and re.fullmatch(r"\d+", cells[1]) and len(cells) == 3 + len(metrics):
            values = dict(zip(metrics, map(float, cells[3:]), strict=True))
            if cells[2] == f"**{name}**":
                found[cells[0]] = CardResult(cells[0], int(cells[1]), values, {})
            elif cells[0] in found:
                found[cells[0]].blind[cells[2]] = values
    return tuple(found.values())


def trained(name: str, folder: Path = WEIGHTS) -> bool:
    """Whether demo weights ship for the network."""
    return (folder / f"{name}.safetensors").is_file()
