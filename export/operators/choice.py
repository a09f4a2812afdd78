"""Which operators of domain ``fathom`` go into which stages: what ``depth-build --operators`` says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...runtime.artefact.operator_use import OPERATORS
from ...runtime.errors import UsageError


@dataclass(frozen=True)
class OperatorChoice:
    """One operator, everywhere or in one stage.

    Args:
        operator: one of ``OPERATORS``.
        stage: of the bundle; empty for all.
    """

    operator: str
    stage: str = ""


def parse_choices(text: str) -> tuple[OperatorChoice, ...]:
    """``GroupNormSilu`` for every stage, ``vae:GroupNormSilu`` for one; several with commas between.

    Raises:
        UsageError: for a name that is no operator, or one that is given twice.
    """
    choices = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        stage, _, operator = word.rpartition(":")
        if operator not in OPERATORS:
            raise UsageError(f"--operators: there is no operator {operator!r}", wanted=f"{', '.join(OPERATORS)}, each alone or as STAGE:OPERATOR")
        choices.append(OperatorChoice(operator, stage))
    if len(set(choices)) != len(choices):
        raise UsageError(f"--operators {text}: one of them is named twice")
    return tuple(choices)


def check_stages(choices: Iterable[OperatorChoice], stages: Iterable[str]) -> None:
    """Raise UsageError if a choice names a stage that the bundle does not have."""
    known = tuple(stages)
    for choice in choices:
        if choice.stage and choice.stage not in known:
            raise UsageError(f"--operators {choice.stage}:{choice.operator}: the bundle has no stage {choice.stage!r}", wanted=", ".join(known))
