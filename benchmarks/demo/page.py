"""The web page of the demo: the pictures, and what the cards say about the networks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..model_cards import CardResult, read_card

STYLE = """
body { background: #181818; color: #ebebeb; font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; padding: 0 1em }
img { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .25em .9em .25em 0; text-align: left; border-bottom: 1px solid #383838; vertical-align: top }
.faint { color: #a0a0a0 }
.alarm { color: #ff6e6e; font-weight: bold }
a { color: #8ab4f8 }
"""


def page(names: Sequence[str], notes: Sequence[str], words_network: str, untrained: bool) -> str:
    """HTML.

    Args:
        names: of the depth networks, as in the picture.
        notes: sentences below the heading.
        words_network: the network of ``masks.png``, or "".
        untrained: the notes are a warning.
    """
    lines = ["<!doctype html>", '<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">']
    lines += ["<title>Fathom: depth of photos</title>", f"<style>{STYLE}</style>", "<h1>Depth of photos, by small networks</h1>"]
    lines += [f'<p class="{"alarm" if untrained else "faint"}">{escape(note)}</p>' for note in notes]
    lines += ['<p><a href="overview.png"><img src="overview.png" alt="photos, true depth and the depth of each network"></a></p>']
    if words_network:
        lines += [f"<h2>{escape(words_network)}: what the words mean</h2>", '<p><img src="masks.png" alt="photos, true masks and drawn masks"></p>']
    rows = [(name, result) for name in (*names, *((words_network,) if words_network else ())) for result in read_card(name)]
    if rows:
        lines += ["<h2>What their cards say</h2>", "<table><tr><th>network<th>pictures it never saw<th>reached<th>best blind guess</tr>"]
        lines += [_card_row(name, result) for name, result in rows]
        lines += ["</table>", "<p>abs_rel is the mean of |depth - truth| / truth, delta1 the share of pixels within a quarter of the truth; IoU is"]
        lines += ["what mask and truth share. A blind guess never looks at the picture. The cards are in <code>models/weights/</code>.</p>"]
    lines += ["<h2>Files</h2>", "<ul>"]
    lines += ['<li><a href="report.html">report.html</a>: how exact and how fast each network is on this machine</li>']
    lines += [f'<li><a href="depth/{escape(name)}/">depth/{escape(name)}/</a>: 16-bit PNG in millimetres, NPY, colours</li>' for name in names]
    lines += ["</ul>", "</html>"]
    return "\n".join(lines) + "\n"


def _card_row(name: str, result: CardResult) -> str:
    cells = (name, f"{result.data} ({result.images})", ", ".join(f"{metric} {value:.3f}" for metric, value in result.network.items()), result.blind_words())
    return "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>"
