"""The documented stage table: true to the code, and to an independent count of the published networks."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from fathom.export.commands.stage_table import page, stage_rows

DOCS = Path(__file__).parent.parent / "docs" / "stages.md"
needs_open_clip = pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip is not installed")

# Millions of parameters and GMAC of each stage, counted on the published modules (attention products included). Where folding or a
# different arrangement makes an exported stage smaller, both numbers stand here, and the reason.
COUNTED = [
    ("evp", "nyu", "vae", 34.16, 558.3),
    ("evp", "nyu", "unet", 859.5 - 46.05, 400.1 - 0.87),  # without 32 key/value projections, the time MLP, 22 projections of it
    ("evp", "nyu", "refine", 22.34 + 11.54, 11.9 + 3.7),
    ("evp", "nyu", "decoder", 0.59, 77.7),
    ("evp", "nyu", "bins", 4.49, 17.0 - 8.9),  # the 192 -> 160 part of the log-binomial's 1x1 at half size, without its other copy
    ("evp", "kitti", "vae", 34.16, 309.8),
    ("evp", "kitti", "unet", 859.5 - 46.05, 210.3 - 0.87),
    ("evp", "kitti", "decoder", 0.59, 41.8),
    ("vpd", "nyu", "vae", 34.16, 558.3),
    ("vpd", "nyu", "unet", 859.5 - 71.8, 398.4 - 12.9),  # cross-attention to one token is one vector: no queries, keys, values or outputs
    ("vpd", "nyu", "decoder", 10.94 + 0.59, 3.5 + 77.7),
    ("evp-refer", "refcoco", "text", 123.06 + 1.18, 3.43 + 0.05),
    ("evp-refer", "refcoco", "unet", 859.5 - 27.9, 400.1),  # the text is live: only the timestep is folded
    ("evp-refer", "refcoco", "refine", 22.34, 11.9),
    ("evp-refer", "refcoco", "classifier", 39.18, 54.1),
    pytest.param("depthclip", "nyu", "trunk", 23.53, 24.2, marks=needs_open_clip),
    pytest.param("moa-depthclip", "parity", "visual", 87.85 + 1.98, 4.4 + 0.1, marks=needs_open_clip),  # less the unused output projection
    ("depthblip2", "v1", "image_encoder", 290.6, 77.6),
    # The picture's keys and values are shared by the seven prompts; the first layer's self-attention and queries are constants.
    ("depthblip2", "v1", "qformer", 158.3, 7 * (6.0 - 2.4) + 2.4 - 0.5),
    ("depthblip2", "v2", "image_encoder", 985.9, 260.4),
    ("depthblip2", "v2", "qformer", 161.8, 7 * (6.95 - 3.3) + 3.3 - 0.5),
    ("llm-mde", "official", "vit", 86.6 - 0.8, 17.6),  # adapters merged, no classifier
    ("llm-mde", "official", "prompt", 23.4 + 0.59, 0.12),
    ("llm-mde", "official", "head", 0.82, 9.6),
]


@pytest.fixture(scope="module")
def rows():
    found = {}

    def look(name, variant):
        if (name, variant) not in found:
            found[name, variant] = {row.name: row for row in stage_rows(name, variant)[1]}
        return found[name, variant]

    return look


@pytest.mark.parametrize(("name", "variant", "stage", "millions", "gmac"), COUNTED)
def test_stages_agree_with_a_count_of_the_published_modules(rows, name, variant, stage, millions, gmac):
    row = rows(name, variant)[stage]
    assert row.weights / 1e6 == pytest.approx(millions, rel=0.015, abs=0.02)
    assert row.gmac == pytest.approx(gmac, rel=0.025, abs=0.02)


def test_whole_networks_have_the_published_number_of_parameters():
    assert stage_rows("evp", "nyu")[0] == 933_814_544
    assert stage_rows("depthblip2", "v1")[0] == pytest.approx(290.6e6 + 158.3e6 + 23.8e6, rel=1e-3)


@needs_open_clip
def test_the_documented_page_is_what_the_code_says():
    assert DOCS.read_text() == page(), "run: python -m fathom.export.commands.stage_table > docs/stages.md"
