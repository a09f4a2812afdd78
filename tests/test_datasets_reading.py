"""Data sets see what depth-run sees: the same pixels of the same file; and lists as people save them."""

import numpy as np
import PIL.EpsImagePlugin
import pytest
from PIL import Image

from fathom.datasets.kitti import KittiEigen
from fathom.datasets.reading import list_lines, read_rgb
from fathom.runtime.photo.photo import read_photo

DEEP = (np.mgrid[0:24, 0:32][0] * 65535 // 23).astype(np.uint16)
SHADE = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)


def turned(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


PICTURES = {
    "deep.png": (Image.fromarray(DEEP), {}),
    "deep.tif": (Image.fromarray(DEEP), {}),
    "alpha.png": (Image.fromarray(SHADE, "RGBA"), {}),
    "la.png": (Image.fromarray(SHADE[..., :2].copy(), "LA"), {}),
    "palette.png": (Image.fromarray(SHADE[..., :3].copy()).quantize(16), {"transparency": 0}),
    "cmyk.jpg": (Image.fromarray(SHADE, "CMYK"), {}),
    "turned.jpg": (Image.fromarray(SHADE[..., :3].copy()), turned(None)),
    "grey.bmp": (Image.fromarray(SHADE[..., 0].copy()), {}),
    "one.webp": (Image.fromarray(SHADE[..., :3].copy()), {"lossless": True}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_one_file_has_one_look(tmp_path, name):
    image, options = PICTURES[name]
    image.save(tmp_path / name, **options)
    np.testing.assert_array_equal(read_rgb(tmp_path / name), read_photo(tmp_path / name))


def test_sixteen_bits_keep_their_middle(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "g.png")
    assert abs(read_rgb(tmp_path / "g.png").mean() - 127.5) < 1


def test_postscript_called_png_starts_no_other_program(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    monkeypatch.setattr(PIL.EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript was asked for"))
    with pytest.raises(ValueError, match="no picture that can be read"):
        read_rgb(tmp_path / "x.png")


DRIVE, FRAME = "2011_09_26/2011_09_26_drive_0002_sync", "0000000069"
PHOTO = f"{DRIVE}/image_02/data/{FRAME}.png"
DEPTH = f"2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/{FRAME}.png"


@pytest.fixture
def tree(tmp_path):
    for path in (tmp_path / "raw_data" / PHOTO, tmp_path / "data_depth_annotated" / "val" / DEPTH):
        path.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((375, 1242, 3), np.uint8)).save(tmp_path / "raw_data" / PHOTO)
    Image.fromarray(np.full((375, 1242), 2560, np.uint16)).save(tmp_path / "data_depth_annotated" / "val" / DEPTH)
    return tmp_path


LINE = f"{PHOTO} {DEPTH} 721.5377"
FORMS = {
    "plain": LINE.encode(),
    "bom": b"\xef\xbb\xbf" + LINE.encode() + b"\r\n",
    "utf-16": (LINE + "\r\n").encode("utf-16"),
    "back slashes": LINE.replace("/", "\\").encode(),
    "commas": LINE.replace(" ", ",").encode(),
    "tabs": LINE.replace(" ", "\t").encode(),
    "comment": b"# photo depth focal\n\n" + LINE.encode(),
    "jpg": LINE.replace(".png ", ".jpg ", 1).encode(),
    "monodepth2": f"{DRIVE} 69 l\n".encode(),
    "dots": f"./{PHOTO} ./{DEPTH} 721.5377".encode(),
    "quoted": ",".join(f'"{word}"' for word in LINE.split()).encode(),
    "old Mac": LINE.encode() + b"\r\r" + LINE.encode().replace(b"69.png", b"70.png"),
    "whole paths": f"TREE/raw_data/{PHOTO} TREE/data_depth_annotated/val/{DEPTH} 721.5377".encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_lists_as_people_save_them(tree, form):
    (tree / "list.txt").write_bytes(FORMS[form].replace(b"TREE", str(tree).encode()))
    data = KittiEigen(tree, tree / "list.txt")
    assert len(data) == 1 and data[0].depth_m.max() == 10 and data[0].intrinsics[0] == 721.5377


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"{PHOTO} None 721\n{PHOTO} None 721\n".encode(), "all 2 lines .* say None"),
        (f"{PHOTO} elsewhere/1.png 721\n".encode(), "the first is .*elsewhere/1.png.*wanted lines of 'photo depth"),
        (b"just-one-word\n", "'just-one-word' does not name.*wanted lines of"),
        (f"{PHOTO} {DEPTH} wide\n".encode(), "the focal length 'wide'"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "no list of files"),
        (b"\xef\xbb\xbf\r\n", "empty list"),
        (LINE.encode() + b"\n# caf\xe9\n", "line 2 holds bytes that are no UTF-8"),
        (b"a" * 9000, "line 1 has more than 4096 characters"),
    ],
)
def test_lists_of_another_form_are_refused_with_the_line(tree, content, words):
    (tree / "list.txt").write_bytes(content)
    with pytest.raises((ValueError, OSError), match=words):
        KittiEigen(tree, tree / "list.txt")


def test_a_folder_is_no_list(tree):
    with pytest.raises(ValueError, match="is a folder"):
        KittiEigen(tree, tree / "raw_data")


def test_a_list_outside_the_folder_is_refused(tree):
    (tree / "list.txt").write_text("../../etc/passwd ../x.png 1\n")
    with pytest.raises(ValueError, match="outside"):
        KittiEigen(tree, tree / "list.txt")
    assert list_lines(tree / "list.txt") == [["../../etc/passwd", "../x.png", "1"]]
