"""A report as one web page: no network, no script, light and dark, on a phone and on paper."""

from __future__ import annotations

from html import escape

from .document import Block, Cell, Given, Listing, Number, Paragraph, Part, Pictures, Plot, Report, Table

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1b1b; --faint: #5d5d5d; --grid: #dcdcdc; --band: #f4f4f2; --alarm: #b3261e;
  --c0: #1f5fa8; --c1: #b6541b; --c2: #2a7d4f; --c3: #8c4799; --c4: #7a6a00; --c5: #b03060 }
@media (prefers-color-scheme: dark) { :root { --paper: #161616; --ink: #ececec; --faint: #a8a8a8; --grid: #3a3a3a; --band: #202020; --alarm: #ff8a80;
  --c0: #79b0f2; --c1: #f0a26b; --c2: #74cf9c; --c3: #d5a0e0; --c4: #d8c659; --c5: #f091b2 } }
* { box-sizing: border-box }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; margin: 0 auto; max-width: 1400px; padding: 1rem }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 }
h2 { border-top: 2px solid var(--ink); font-size: 1.25rem; margin: 2rem 0 .5rem; padding-top: .6rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem }
p { margin: .4rem 0; max-width: 75ch }
.verdict { font-size: 1.1rem; font-weight: 600 }
.alarm { color: var(--alarm); font-weight: 700 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums }
@media screen and (max-width: 700px) { table { width: max-content } }
th, td { border-bottom: 1px solid var(--grid); padding: .3em .8em .3em 0; text-align: left; vertical-align: top }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom }
th, td { max-width: 21em; min-width: 4em }
tbody th { font-weight: 600; min-width: 8em }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)) }
figure { background: var(--band); margin: .5rem 0; max-width: 680px; padding: .6rem }
figcaption { font-size: .87rem; font-weight: 600 }
figure svg { display: block; height: auto; width: 100% }
.strip { display: flex; flex-wrap: wrap; gap: .6rem; margin: .2rem 0 1rem }
.strip figure { background: none; margin: 0; max-width: 200px; padding: 0; width: calc(50% - .6rem) }
.strip figcaption { color: var(--faint); font-weight: 400; overflow-wrap: anywhere }
.strip img { display: block; width: 100% }
ul { margin: .4rem 0; padding-left: 1.2rem }
code { font-size: .9em; overflow-wrap: anywhere }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --faint: #444; --grid: #bbb; --band: #fff;
    --c0: #1f5fa8; --c1: #b6541b; --c2: #2a7d4f; --c3: #8c4799; --c4: #7a6a00; --c5: #b03060 }
  body { font-size: 9.5pt; max-width: none; padding: 0 } table { font-size: 7.5pt } th, td { padding: .2em .6em .2em 0 }
  .wide { overflow: visible } table { width: auto } th, td { min-width: 0 }
  figure, tr, .photo { break-inside: avoid } h2, h3 { break-after: avoid } .plots { grid-template-columns: 1fr 1fr } .strip figure { width: 30mm } }
@page { margin: 14mm }
"""


def html(report: Report) -> str:
    """The whole page. Every number is a ``data`` element whose ``data-at`` says where in the results it stands."""
    lines = ["<!doctype html>", '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">']
    lines += [f"<title>{escape(report.title)}</title>", f"<style>{STYLE}</style></head><body>", f"<h1>{escape(report.title)}</h1>"]
    for section in report.sections:
        lines.append(f"<h{section.level}>{escape(section.title)}</h{section.level}>")
        open_plots = False
        for block in section.blocks:
            if isinstance(block, Plot) != open_plots:
                lines.append("</div>" if open_plots else '<div class="plots">')
                open_plots = not open_plots
            lines.append(_block(block))
        lines += ["</div>"] if open_plots else []
    return "\n".join([*lines, "</body></html>"]) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f'<p class="{block.kind}">{_cell(block.parts)}</p>' if block.kind else f"<p>{_cell(block.parts)}</p>"
    if isinstance(block, Table):
        head = "".join(f'<th scope="col">{escape(word)}</th>' for word in block.head)
        rows = "\n".join(f'<tr><th scope="row">{_cell(row[0])}</th>' + "".join(f"<td>{_cell(cell)}</td>" for cell in row[1:]) + "</tr>" for row in block.rows)
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    if isinstance(block, Plot):
        return f"<figure><figcaption>{escape(block.title)}</figcaption>\n{block.svg}</figure>"
    if isinstance(block, Pictures):
        return "\n".join(_strip(*row) for row in block.rows)
    return "<ul>\n" + "\n".join(f"<li>{_cell(item)}</li>" for item in block.items) + "\n</ul>" if isinstance(block, Listing) else ""


def _strip(name: tuple[Part, ...], pictures: tuple[tuple[Cell, str], ...]) -> str:
    images = "".join(f'<figure><img src="{escape(url)}" alt=""><figcaption>{_cell(caption)}</figcaption></figure>' for caption, url in pictures)
    return f'<div class="photo"><p>{_cell(name)}</p>\n<div class="strip">{images}</div></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, Number):
        return f'<data value="{cell.value!r}" data-at="{escape(cell.at)}" title="{escape(cell.at)} = {cell.value!r}">{escape(cell.text)}</data>'
    if isinstance(cell, Given):
        return f"<code>{escape(cell.text)}</code>" if cell.text.startswith("depth-bench ") else escape(cell.text)
    return escape(cell) if isinstance(cell, str) else "".join(map(_cell, cell))
