"""The web page of the demo: a viewer, every map beside its error, masks, and what the cards say about the networks. It needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..model_cards import CardResult, read_card
from .pictures import WORST
from .viewer_data import TRUTH

HERE = Path(__file__).parent
VIEWER = """
<div class="choices" id="photos" aria-label="photos"></div>
<div class="choices" id="maps" aria-label="maps"></div>
<p id="words" aria-live="polite"></p>
<div class="panels">
<div class="panel"><div class="stage"><img id="photo" alt="the photo"><img id="depth" alt="its depth in colours"><div class="edge" id="edge"></div></div>
<input id="slider" type="range" min="0" max="100" value="50" aria-label="photo or depth">
<p class="bar"><span id="near"></span><img src="pictures/bar.png" alt="warm to cold"><span id="far"></span></p></div>
<div class="panel"><div class="stage"><img id="error" alt="where it is wrong"><div class="none faint" id="no-error"></div></div>
<p class="faint">Where it is wrong: dark is right, bright is WORST off or more, grey is unknown.</p></div>
<div class="panel"><div class="stage"><canvas id="cloud" tabindex="0" aria-label="the depth as points; arrow keys turn it"></canvas></div>
<p class="faint">The same depth as points: drag to turn, wheel to come closer, double click to return. <span id="camera"></span></p></div>
</div>
""".replace("WORST", f"{WORST:.0%}")


def page(groups: Sequence[tuple[str, Sequence[str]]], photos: Sequence[dict[str, Any]], notes: Sequence[str], words_network: str, untrained: bool) -> str:
    """HTML.

    Args:
        groups: title and names of the depth networks that stand together.
        photos: from ``viewer_data.write_pictures``.
        notes: sentences below the heading.
        words_network: the network of ``masks.png``, or "".
        untrained: the notes are a warning.
    """
    names = [name for _, members in groups for name in members]
    lines = ["<!doctype html>", '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">']
    lines += ["<title>Fathom: depth of photos</title>", f"<style>\n{(HERE / 'style.css').read_text('utf-8')}</style></head><body>"]
    lines += ["<h1>Depth of photos, by small networks</h1>"]
    lines += [f'<p class="{"alarm" if untrained else "faint"}">{escape(note)}</p>' for note in notes]
    if worse := verdicts([*names, *([words_network] if words_network else [])]):
        lines += ["<ul>", *(f'<li class="alarm">{escape(text)}</li>' for text in worse), "</ul>"]
    lines += ['<p><a href="report.html">How exact and how fast each network is on this machine</a> · <a href="overview.png">everything as one picture</a></p>']
    lines += ["<h2>Look closely</h2>", VIEWER.strip(), "<h2>Side by side</h2>"]
    lines += [f'<p class="faint">Each photo has one scale for all its maps. Below each map: where it is wrong, bright is {WORST:.0%} off or more.</p>']
    lines += [text for photo in photos for text in _row(photo, groups)]
    if words_network:
        lines += [f"<h2>Asked in words: {escape(words_network)}</h2>", '<p><img src="masks.png" alt="photos, true masks and drawn masks"></p>']
    lines += _cards([*names, *([words_network] if words_network else [])])
    lines += ["<h2>Files</h2>", "<ul>"]
    lines += [f'<li><a href="depth/{escape(name)}/">depth/{escape(name)}/</a>: 16-bit PNG in millimetres, NPY, colours</li>' for name in names]
    lines += ["</ul>", '<script src="viewer-data.js"></script>', f"<script>\n{(HERE / 'viewer.js').read_text('utf-8')}</script>", "</body></html>"]
    return "\n".join(lines) + "\n"


def verdicts(names: Sequence[str]) -> list[str]:
    """A sentence for every kind of pictures on which a guess that never looks is better, with all networks that it beats by the same metrics."""
    beaten: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in names:
        for result in read_card(name):
            if worse := result.worse_metrics():
                metric, (guess, value) = next(iter(worse.items()))
                words = f"{name} ({metric} {result.network[metric]:.3f}, {guess} {value:.3f})"
                beaten.setdefault((result.title(), tuple(worse)), []).append(words)
    return [f"Worse than a blind guess on {title}, by {_listed(metrics)}: {_listed(found)}." for (title, metrics), found in beaten.items()]


def _listed(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _row(photo: dict[str, Any], groups: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    scale = f"colours from {photo['near']:.1f} m (warm) to {photo['far']:.1f} m (cold)"
    lines = [f'<section class="row"><header><h3>{escape(photo["title"])}</h3><span class="faint">{scale}</span></header><div class="groups">']
    first = f'<figure><img loading="lazy" src="pictures/{photo["folder"]}/photo.jpg" alt=""><figcaption>photo</figcaption></figure>'
    truth = _figure(TRUTH, photo["maps"][TRUTH]) if TRUTH in photo["maps"] else ""
    lines += [f'<div class="group"><p class="faint">&nbsp;</p><div class="maps">{first}{truth}</div></div>']
    for title, members in groups:
        figures = "".join(_figure(name, photo["maps"][name]) for name in members)
        lines += [f'<div class="group"><p class="faint">{escape(title) or "&nbsp;"}</p><div class="maps">{figures}</div></div>']
    return [*lines, "</div></section>"]


def _figure(name: str, found: dict[str, Any]) -> str:
    error = f'<img class="error" loading="lazy" src="pictures/{found["error"]}" alt="error of {escape(name)}">' if found["error"] else ""
    words = "<br>".join(escape(part) for text in found["words"] for part in text.split("   "))
    map_image = f'<img loading="lazy" src="pictures/{found["file"]}" alt="depth by {escape(name)}">'
    return f"<figure>{map_image}{error}<figcaption><b>{escape(name)}</b><br>{words}</figcaption></figure>"


def _cards(names: Sequence[str]) -> list[str]:
    rows = [(name, result) for name in names for result in read_card(name)]
    if not rows:
        return []
    lines = ["<h2>What their cards say</h2>", '<div class="wide"><table><tr><th>network<th>pictures it never saw<th>reached<th>best blind guess</tr>']
    lines += [_card_row(name, result) for name, result in rows]
    lines += ["</table></div>", "<p>abs_rel is the mean of |depth - truth| / truth, delta1 the share of pixels within a quarter of the truth; IoU is"]
    return [*lines, "what mask and truth share. A blind guess never looks at the picture. The cards are in <code>models/weights/</code>.</p>"]


def _card_row(name: str, result: CardResult) -> str:
    cells = (name, f"{result.title()} ({result.images})", ", ".join(f"{metric} {value:.3f}" for metric, value in result.network.items()), result.blind_words())
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
