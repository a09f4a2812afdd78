"""Every recipe by the name of its network: the papers' and those of the small networks."""

from __future__ import annotations

from .papers import PAPERS
from .recipe import Recipe
from .tiny import TINY

RECIPES: dict[str, Recipe] = PAPERS | TINY
PARTS = ("clip", "qformer")  # that ``--learn`` names; any other second word of a key is a variant


def parts_of(model: str, variant: str) -> tuple[str, ...]:
    """The parts that have a recipe of their own. A variant with its own recipe has none: the parts' have another variant's constants."""
    return () if f"{model} {variant}" in RECIPES else tuple(part for part in PARTS if f"{model} {part}" in RECIPES)


def recipe_of(model: str, variant: str, part: str | None = None) -> Recipe | None:
    """The recipe of a network: its variant's own if it has one, or the one in which a part of it learns. None if there is none."""
    if part is not None:
        return RECIPES[f"{model} {part}"] if part in parts_of(model, variant) else None
    return RECIPES.get(f"{model} {variant}") or RECIPES.get(model)
