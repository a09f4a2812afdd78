"""KITTI with the lists of the Eigen split: PNG / 256 metres, the benchmark crop, missing ground truth left out and counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .reading import below, list_lines, read_depth_png, read_rgb
from .sample import Provenance, Sample, fingerprint

CROP_HEIGHT, CROP_WIDTH = 352, 1216
FORM = "lines of 'photo depth [focal length]', or monodepth2's 'drive frame l|r'"
FOCAL_PX = {1242: 721.5377, 1241: 718.856, 1226: 707.0912, 1224: 707.0493, 1238: 718.3351}  # by picture width, one per recording day
PHOTO_PREFIXES = ("", "raw_data", "kitti_dataset/raw_data", "kitti_dataset")
DEPTH_PREFIXES = ("", "data_depth_annotated", "data_depth_annotated/val", "data_depth_annotated/train", "kitti_dataset", "kitti_dataset/data_depth_annotated")


def benchmark_crop(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the 352x1216 crop: from the bottom edge and the horizontal middle, rounded down.

    Raises:
        ValueError: if the picture is smaller than the crop.
    """
    if height < CROP_HEIGHT or width < CROP_WIDTH:
        raise ValueError(f"a KITTI picture of {height}x{width} is smaller than the benchmark crop of {CROP_HEIGHT}x{CROP_WIDTH}")
    top, left = height - CROP_HEIGHT, (width - CROP_WIDTH) // 2
    return slice(top, height), slice(left, left + CROP_WIDTH)


def _by_frame(words: list[str]) -> list[str]:
    """monodepth2's form of the split, "drive frame side", as photo and depth map; other lines as they are."""
    if len(words) != 3 or not words[1].isdigit() or words[2] not in ("l", "r"):
        return words
    camera, drive, frame = f"image_0{2 if words[2] == 'l' else 3}", words[0], f"{int(words[1]):010d}.png"
    return [f"{drive}/{camera}/data/{frame}", f"{drive.rpartition('/')[2]}/proj_depth/groundtruth/{camera}/{frame}"]


class KittiEigen:
    """The pairs of an Eigen list, in its order.

    Args:
        folder: holds ``raw_data`` and ``data_depth_annotated``.
        listing: lines of "photo depth [focal length]"; a depth of ``None``, or one that is not there, leaves the line out.
        crop: whether photo and depth are cut to the benchmark's 352x1216.

    Raises:
        OSError: if the folder, the list, a photo, or every depth map is missing.
        ValueError: if a line does not name two files.
    """

    def __init__(self, folder: Path | str, listing: Path | str, crop: bool = False):
        self.folder, self.crop = Path(folder), crop
        if not self.folder.is_dir():
            raise OSError(f"{self.folder} is no folder")
        self.listing = Path(listing).name
        self.pairs: list[tuple[Path, Path, float | None]] = []
        none = absent = 0
        first: list[str] = []
        for words in list_lines(Path(listing)):
            words = _by_frame(words)
            if len(words) < 2:
                raise ValueError(f"{listing}: the line {' '.join(words)!r} does not name a photo and a depth map; wanted {FORM}")
            if words[1] == "None":
                none += 1
                continue
            depth = below(self.folder, words[1], DEPTH_PREFIXES)
            if depth is None:
                absent, first = absent + 1, first or words
                continue
            photo = below(self.folder, words[0], PHOTO_PREFIXES)
            if photo is None:
                raise OSError(f"{listing} names {words[0]!r}, which is not under {self.folder}")
            try:
                focal = float(words[2]) if len(words) > 2 else None
            except ValueError as error:
                raise ValueError(f"{listing}: the line {' '.join(words)!r} has the focal length {words[2]!r}; wanted {FORM}") from error
            self.pairs.append((photo, depth, focal))
        if not self.pairs:
            if none and not absent:
                raise OSError(f"all {none} lines of {listing} say None instead of a depth map: there is no truth in it; wanted {FORM}")
            raise OSError(
                f"none of the {absent} depth maps of {listing} is under {self.folder} ({none} lines are without one); "
                f"the first is {' '.join(first)!r}; wanted {FORM}"
            )
        self.skipped = (("listed without ground truth", none), ("ground truth file not there", absent))

    @property
    def provenance(self) -> Provenance:
        """Which pairs these are, and how many lines of the list were left out."""
        files = [(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in self.files]
        name = f"{self.listing}{', benchmark crop' if self.crop else ''}"
        return Provenance("kitti", name, fingerprint("kitti", self.crop, files), len(self), skipped=self.skipped)

    @property
    def files(self) -> list[Path]:
        """Photo and depth map of each pair."""
        return [path for pair in self.pairs for path in pair[:2]]

    def origin(self, number: int) -> str:
        """The photo's file."""
        return str(self.pairs[number][0].resolve())

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Sample:
        photo, depth_file, focal = self.pairs[number]
        rgb, depth = read_rgb(photo, paired=True), read_depth_png(depth_file, 256.0)
        if depth.shape != rgb.shape[:2]:
            raise ValueError(f"{depth_file} is {depth.shape[0]}x{depth.shape[1]}, its photo {rgb.shape[0]}x{rgb.shape[1]}")
        height, width = depth.shape
        focal = focal or FOCAL_PX.get(width)
        # the list gives the focal length only; the principal point is taken as the middle of the full picture
        intrinsics = (focal, focal, (width - 1) / 2, (height - 1) / 2) if focal else None
        if self.crop:
            rows, columns = benchmark_crop(height, width)
            rgb, depth = np.ascontiguousarray(rgb[rows, columns]), np.ascontiguousarray(depth[rows, columns])
            if intrinsics:
                intrinsics = (*intrinsics[:2], intrinsics[2] - columns.start, intrinsics[3] - rows.start)
        return Sample(rgb, depth, depth > 0, intrinsics, photo.relative_to(self.folder).with_suffix("").as_posix(), photo.parents[2].name)
