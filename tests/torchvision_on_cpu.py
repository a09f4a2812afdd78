"""Let the torchvision wheel from PyPI be imported where torch is the CPU-only wheel. For development and tests only.

That wheel is compiled for CUDA, so beside a CPU torch its operators cannot be loaded; ``import torchvision`` then fails because it
describes two of them, ``nms`` and ``qnms``, to torch without asking whether they exist, and with it fail open_clip, timm and parts of
transformers. Declaring the two beforehand is enough: everything but the compiled operators works. With a CUDA torch, or with a
torchvision that was itself made for the CPU, nothing of this is wanted and nothing happens.

``conftest.py`` calls ``prepare``; ``python tests/torchvision_on_cpu.py`` makes the whole environment do so, commands included.
"""

import importlib.abc
import importlib.machinery
import sys
import sysconfig
from pathlib import Path

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class DeclareOperators(importlib.abc.MetaPathFinder):
    """Finds nothing; on the first search for torchvision it declares the operators."""

    library = None

    def find_spec(self, fullname, path=None, target=None):
        """Always None: the next finder does the finding."""
        if fullname == "torchvision" and DeclareOperators.library is None:
            found = importlib.machinery.PathFinder.find_spec(fullname, path)
            version = Path(found.origin).with_name("version.py") if found and found.origin else None
            import torch

            if torch.version.cuda is None and version and version.exists() and "+cu" in version.read_text():
                DeclareOperators.library = torch.library.Library("torchvision", "FRAGMENT")  # lives as long as it is referred to
                for operator in ("nms", "qnms"):
                    DeclareOperators.library.define(operator + SCHEMA)
        return None


def prepare() -> None:
    """Install the finder, once."""
    if "torchvision" not in sys.modules and not any(type(finder).__name__ == DeclareOperators.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, DeclareOperators())


def install() -> Path:
    """Copy this file into site-packages with a ``.pth`` line that prepares every Python of this environment."""
    site = Path(sysconfig.get_paths()["purelib"])
    (site / "torchvision_on_cpu.py").write_text(Path(__file__).read_text())
    pth = site / "torchvision_on_cpu.pth"
    pth.write_text("import torchvision_on_cpu; torchvision_on_cpu.prepare()\n")
    return pth


if __name__ == "__main__":
    print(f"wrote {install()}")
