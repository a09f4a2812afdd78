"""The four papers by their short names, and the search for a row."""

from __future__ import annotations

from collections.abc import Iterator

from ...runtime.errors import UsageError
from . import depthblip2, evp, llm_mde, moa_depthclip
from .row import Paper, Row, Table

PAPERS: dict[str, Paper] = {module.PAPER.name: module.PAPER for module in (evp, depthblip2, llm_mde, moa_depthclip)}


def every_row() -> Iterator[tuple[Paper, Table, Row]]:
    """All rows in the papers' order."""
    return ((paper, table, row) for paper in PAPERS.values() for table in paper.tables for row in table.rows)


def find_row(paper: str, table: str, row: str) -> Row:
    """The row of that name.

    Raises:
        UsageError: if there is none; says which there are.
    """
    if paper not in PAPERS:
        raise UsageError(f"there is no paper {paper!r}", wanted=f"one of {', '.join(PAPERS)}")
    tables = {found.name: found for found in PAPERS[paper].tables}
    if table not in tables:
        raise UsageError(f"{paper} has no table {table!r}", wanted=f"one of {', '.join(tables)}")
    rows = {found.name: found for found in tables[table].rows}
    if row not in rows:
        raise UsageError(f"table {table} of {paper} has no row {row!r} of its own", wanted=f"one of {', '.join(rows)}")
    return rows[row]
