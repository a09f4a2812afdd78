"""How the published EVP and VPD evaluations show a photo to the network, for windows of the published size and scaled-down ones."""

from __future__ import annotations

from ...runtime.artefact.contract import Contract, Crop, ImageInput, OutputContract, Pad, Protocol, Require, Resize

NYU_SIZE = (480, 640)
KITTI_CROP = (352, 1216)
CANVAS_MARGIN = 32  # pixels right of and below the window, so that the canvas is a multiple of 64
FEATURE_SCALE = 32  # window pixels per pixel of the aggregated features
MIN_DEPTH_M = 1e-3
ROOMS_FOCAL_WIDTHS = 0.824  # of the mean camera of ``datasets.rooms``, which sees 62.5 degrees across


def depth_contract(window: int, max_depth_m: float, protocols: tuple[Protocol, ...], focal_widths: float = 0.0) -> Contract:
    """A square window at the top left of a canvas, normalised to [-1, 1], and metric depth at the window's size.

    Args:
        focal_widths: focal length of the camera that the metres are for, in widths of a photo squeezed to the window; 0: they are for any.
    """
    half = (0.5, 0.5, 0.5)
    canvas = window + CANVAS_MARGIN
    image = ImageInput("image", (window, window), (canvas, canvas), half, half)
    output = OutputContract("depth", "metric", "m", MIN_DEPTH_M, max_depth_m, "far", "bilinear-corners", focal_widths * window, focal_widths > 0)
    return Contract(image, output, protocols)


def nyu_single_image(window: int) -> Protocol:
    """Any photo, squeezed below a black bar (40 rows of 480), as the published single-image script does."""
    bar = round(40 * window / NYU_SIZE[0])
    steps = (Resize(window - bar, window, "bilinear-corners"), Pad(bar, 0, 0, 0))
    return Protocol("single-image", steps, (0,), (), False, "EVP inference.py: 440x480 and 40 black rows on top" + _scaled(window, NYU_SIZE[0]))


def squeezed_single_image(window: int, full: int) -> Protocol:
    """Any photo squeezed to the window: what the published test code does without its sliding windows."""
    source = f"test code without --shift_window_test: squeezed to {full}x{full}" + _scaled(window, full)
    return Protocol("single-image", (Resize(window, window, "bilinear-corners"),), (0,), (), False, source)


def nyu_benchmark(window: int, count: int, source: str) -> Protocol:
    """``count`` full-height windows over a 480x640 photo, each also mirrored. Scaled-down networks see the photo scaled down."""
    height, width = NYU_SIZE
    steps, width = _shaped((Require(height, width),), window, height, width)
    return _sliding("nyu-benchmark", steps, window, width, count, source + _scaled(window, height))


def kitti_benchmark(window: int, count: int, source: str) -> Protocol:
    """``count`` full-height windows over the 352x1216 benchmark crop, each also mirrored."""
    height, width = KITTI_CROP
    steps, width = _shaped((Crop(height, width, "bottom-center"),), window, height, width)
    return _sliding("kitti-benchmark", steps, window, width, count, source + _scaled(window, height))


def _shaped(steps: tuple, window: int, height: int, width: int) -> tuple[tuple, int]:
    if window == height:
        return steps, width
    width = round(width * window / height)
    return (*steps, Resize(window, width, "bilinear-antialias")), width


def _sliding(name: str, steps: tuple, window: int, width: int, count: int, source: str) -> Protocol:
    """The published stride is rounded down, so the last windows may leave columns uncovered; one more window fills those."""
    room = width - window
    stride = room // (count - 1)
    lefts = tuple(stride * i for i in range(count))
    return Protocol(name, steps, lefts, () if lefts[-1] == room else (room,), True, source)


def _scaled(window: int, full: int) -> str:
    return "" if window == full else f"; everything scaled from {full} to {window} rows"
