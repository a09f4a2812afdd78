"""docs/papers.md, written from the rows: ``python -m fathom.benchmarks.reproduce.page > docs/papers.md``."""

from __future__ import annotations

from .papers import PAPERS
from .row import Paper, Row

HEAD = """\
# The papers' tables, row by row

Each row of the four papers that is the authors' own, and the command that makes it: `depth-bench reproduce PAPER TABLE ROW --data DATA --weights
FILE`. `depth-bench reproduce` lists them, `--show` prints the commands behind a row, `--tiny` tries it with the small network, `--limit N` measures N
pictures. `-o DIR` keeps what is made, and an interrupted training goes on from it; `--device cuda` trains and measures with PyTorch on a GPU (not yet
run on one). EVP's published file comes from the hub where `--weights` is not given. The numbers are the published ones, not measured here. RefCOCO is
read from its published files (`--data refer:DIR:refcoco:val`; the pickle is read as plain data), VPD takes each picture's scene from its folder, and
`depth-export --texts FILE` makes EVP's text from captions where the checkpoint carries CLIP; `--set captions=1` keeps CLIP instead, and `depth-bench
accuracy --captions FILE` gives each picture its own.
This page is written by `python -m fathom.benchmarks.reproduce.page`.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_paper(paper) for paper in PAPERS.values())])


def _paper(paper: Paper) -> str:
    lines = [f"## {paper.title}", ""]
    for table in paper.tables:
        metrics = list(table.rows[0].published)
        lines += [f"### Table {table.name}: {table.title}", ""]
        lines += [f"| row | `depth-bench reproduce` | {' | '.join(metrics)} | remarks |", "|" + "---|" * (3 + len(metrics))]
        lines += [_row(paper, table.name, row) for row in table.rows]
        lines.append("")
    lines += ["| the paper says | the published code does |", "|---|---|"]
    lines += [f"| {says} | {does} |" for says, does in paper.differences]
    return "\n".join([*lines, ""])


def _row(paper: Paper, table: str, row: Row) -> str:
    return f"| {row.label} | `{paper.name} {table} {row.name}` | {' | '.join(row.published.values())} | {row.note} |"


if __name__ == "__main__":
    print(page(), end="")
