"""The reader of plain pickles, against what Python's own pickler wrote; and that nothing in such a file is executed."""

import os
import pickle

import pytest

from fathom.datasets.referring.plain_pickle import read_plain_pickle

SENTENCES = [{"tokens": ["the", "cup"], "raw": "The cup, left", "sent_id": 7, "sent": "the cup left"}, {"raw": "caf\u00e9", "sent_id": 2**40}]
REFS = [
    {"ref_id": number, "image_id": 581857, "split": "val", "sentences": SENTENCES, "box": (1.5, -2, None, True), "few": [], "file_name": f"COCO_{number}.jpg"}
    for number in range(2500)  # more than one batch of the pickler
]
PYTHON_2 = b"(lp0\n(dp1\nS'sent_ids'\np2\n(lp3\nI0\naI1\nasS'split'\np4\nS'train'\np5\nsS'ann_id'\nL1719310L\nsa."


@pytest.mark.parametrize("protocol", range(6))
def test_equals_what_was_written(protocol):
    assert read_plain_pickle(pickle.dumps(REFS, protocol)) == REFS


def test_the_text_form_of_python_2():
    assert read_plain_pickle(PYTHON_2) == [{"sent_ids": [0, 1], "split": "train", "ann_id": 1719310}]


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(protocol, tmp_path):
    target = tmp_path / "made"
    with pytest.raises(ValueError, match="nothing is executed"):
        read_plain_pickle(pickle.dumps([1, Attack(str(target))], protocol))
    assert not target.exists()


@pytest.mark.parametrize("data", [b"", b"hello", b"a.", b"]u.", b"(.", b"(I1\nd.", b"\x80\x04]\x94(e", pickle.dumps(REFS)[:-40]])
def test_damage_is_an_error_of_this_reader(data):
    with pytest.raises(ValueError):
        read_plain_pickle(data)
