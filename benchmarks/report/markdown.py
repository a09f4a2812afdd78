"""A report as Markdown: the sentences and tables of the page, without its drawings and pictures."""

from __future__ import annotations

from .document import Cell, Listing, Paragraph, Report, Table


def markdown(report: Report) -> str:
    """The whole text."""
    lines = [f"# {report.title}"]
    for section in report.sections:
        blocks = [text for block in section.blocks if (text := _block(block))]
        if blocks or section.level == 2:
            lines += ["", f"{'#' * section.level} {section.title}", *(line for block in blocks for line in ("", block))]
    return "\n".join(lines) + "\n"


def _block(block: object) -> str:
    if isinstance(block, Paragraph):
        return f"**{_cell(block.parts)}**" if block.kind else _cell(block.parts)
    if isinstance(block, Table):
        head = [f"| {' | '.join(block.head)} |", f"|{'---|' * len(block.head)}"]
        return "\n".join(head + [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in block.rows])
    return "\n".join(f"- {_cell(item)}" for item in block.items) if isinstance(block, Listing) else ""


def _cell(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return "".join(map(_cell, cell))
    return (cell if isinstance(cell, str) else cell.text).replace("|", "\\|")
