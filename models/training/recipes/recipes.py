"""Every recipe by the name of its network: the papers' and those of the small networks."""

from __future__ import annotations

from .papers import PAPERS
from .recipe import Recipe
from .tiny import TINY

RECIPES: dict[str, Recipe] = PAPERS | TINY


def recipe_of(model: str, variant: str | None, part: str | None = None) -> Recipe | None:
    """The recipe of a network: its variant's own if it has one, or the one in which a part of it learns. None if there is none."""
    return RECIPES.get(f"{model} {part}") if part else RECIPES.get(f"{model} {variant}") or RECIPES.get(model)
