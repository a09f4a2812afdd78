"""KITTI in both list styles, with holes in the ground truth and the benchmark crop."""

import numpy as np
import pytest
from PIL import Image

from fathom.datasets.kitti import KittiEigen, benchmark_crop

DAY, DRIVE = "2011_09_26", "2011_09_26_drive_0002_sync"


def write(root, number, height=375, width=1242):
    photo = root / "raw_data" / DAY / DRIVE / "image_02" / "data" / f"{number:010d}.png"
    depth = root / "data_depth_annotated" / "val" / DRIVE / "proj_depth" / "groundtruth" / "image_02" / photo.name
    photo.parent.mkdir(parents=True, exist_ok=True)
    depth.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:height, :width]
    rgb = np.stack([rows % 256, columns % 256, np.full_like(rows, number)], 2).astype(np.uint8)
    values = np.where((rows + columns) % 3 == 0, 256 * 5 + number, 0).astype(np.uint16)
    Image.fromarray(rgb).save(photo)
    Image.fromarray(values).save(depth)
    return rgb, values


def test_lists_of_both_styles_give_the_same_pairs(tmp_path):
    truth = [write(tmp_path, number) for number in (0, 7)]
    zoe = tmp_path / "zoe.txt"
    zoe.write_text(
        "".join(
            f"{DAY}/{DRIVE}/image_02/data/{n:010d}.png {d} 721.5377\n"
            for n, d in [
                (0, f"{DRIVE}/proj_depth/groundtruth/image_02/0000000000.png"),
                (3, "None"),
                (7, f"{DRIVE}/proj_depth/groundtruth/image_02/0000000007.png"),
                (9, f"{DRIVE}/proj_depth/groundtruth/image_02/0000000009.png"),
            ]
        )
    )
    evp = tmp_path / "evp.txt"
    evp.write_text(
        "".join(
            f"/raw_data/{DAY}/{DRIVE}/image_02/data/{n:010d}.png /data_depth_annotated/val/{DRIVE}/proj_depth/groundtruth/image_02/{n:010d}.png\n"
            for n in (0, 7)
        )
    )
    for listing, skipped in ((zoe, (1, 1)), (evp, (0, 0))):
        data = KittiEigen(tmp_path, listing)
        assert len(data) == 2 and tuple(count for _, count in data.skipped) == skipped
        assert tuple(data.provenance.to_json()["skipped"].values()) == skipped
        for sample, (rgb, values) in zip(data, truth, strict=True):
            assert np.array_equal(sample.rgb, rgb)
            assert np.array_equal(sample.depth_m, (values / 256.0).astype(np.float32)) and np.array_equal(sample.valid, values > 0)
            assert sample.scene == DRIVE and sample.intrinsics[0] == 721.5377


def test_the_crop_takes_photo_truth_and_camera_together(tmp_path):
    rgb, values = write(tmp_path, 1)
    listing = tmp_path / "list.txt"
    listing.write_text(
        f"/raw_data/{DAY}/{DRIVE}/image_02/data/0000000001.png /data_depth_annotated/val/{DRIVE}/proj_depth/groundtruth/image_02/0000000001.png\n"
    )
    whole, cut = KittiEigen(tmp_path, listing)[0], KittiEigen(tmp_path, listing, crop=True)[0]
    assert cut.rgb.shape == (352, 1216, 3)
    assert np.array_equal(cut.rgb, rgb[23:375, 13:1229]) and np.array_equal(cut.valid, values[23:375, 13:1229] > 0)
    assert (whole.intrinsics[2] - cut.intrinsics[2], whole.intrinsics[3] - cut.intrinsics[3]) == (13, 23)


@pytest.mark.parametrize(("size", "top", "left"), [((375, 1242), 23, 13), ((370, 1226), 18, 5), ((376, 1241), 24, 12), ((352, 1216), 0, 0)])
def test_crop_places(size, top, left):
    rows, columns = benchmark_crop(*size)
    assert (rows.start, columns.start) == (top, left) and rows.stop - rows.start == 352 and columns.stop - columns.start == 1216


def test_faults_are_named(tmp_path):
    with pytest.raises(ValueError, match="smaller"):
        benchmark_crop(300, 1242)
    listing = tmp_path / "list.txt"
    listing.write_text("a.png None\n")
    with pytest.raises(OSError, match=r"all 1 lines .* say None.*wanted lines of"):
        KittiEigen(tmp_path, listing)
    listing.write_text("")
    with pytest.raises(ValueError, match="empty"):
        KittiEigen(tmp_path, listing)
    with pytest.raises(OSError, match="no folder"):
        KittiEigen(tmp_path / "none", listing)
    _, _ = write(tmp_path, 1)
    listing.write_text(f"a.png {DRIVE}/proj_depth/groundtruth/image_02/0000000001.png\n")
    with pytest.raises(OSError, match=r"a\.png"):
        KittiEigen(tmp_path, listing)
