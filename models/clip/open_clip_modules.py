"""open_clip's towers and tokenizer without the rest of that package: no torchvision, no timm, no transformers.

``import open_clip`` also loads its image transforms and its adapters for other libraries, and with them torchvision, whose wheels fit exactly
one build of torch. The towers need one name of it: the class by which open_clip recognises frozen batch norms, which none of CLIP's networks has.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from torch import nn

PACKAGE = "fathom_open_clip"  # open_clip's folder under a name of our own, so that ``import open_clip`` elsewhere still gets all of it
MODULES = ("utils", "transformer", "modified_resnet", "model", "tokenizer", "zero_shot_metadata")


class NotLoaded(nn.Module):
    """Stands in for a class that open_clip's towers import and that no network here uses."""

    def __init__(self, *_, **__):
        raise NotImplementedError("this part of open_clip is not loaded")


def load_open_clip() -> ModuleType:
    """A package with open_clip's modules ``transformer``, ``modified_resnet``, ``model``, ``tokenizer`` and ``zero_shot_metadata``, loaded on first use.

    Raises:
        ModuleNotFoundError: if open_clip, or something that its tokenizer needs, is not installed.
    """
    if PACKAGE in sys.modules:
        return sys.modules[PACKAGE]
    found = find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")
    package = _module(PACKAGE)
    package.__path__ = list(found.submodule_search_locations)
    adapters = {f"{PACKAGE}.timm_model": _module("timm_model", TimmModel=NotLoaded), f"{PACKAGE}.hf_model": _module("hf_model", HFTextEncoder=NotLoaded)}
    sys.modules.update({PACKAGE: package, **adapters})
    try:
        with _frozen_batch_norm():
            import_module(f"{PACKAGE}.utils")
        for name in MODULES:
            import_module(f"{PACKAGE}.{name}")
    except BaseException:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        raise
    return package


def _module(name: str, **names: type) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=name == PACKAGE)
    vars(module).update(names)
    return module


@contextmanager
def _frozen_batch_norm():
    """While it lasts ``torchvision.ops.misc`` holds one class and nothing of torchvision is loaded."""
    names = ("torchvision", "torchvision.ops", "torchvision.ops.misc")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    stand_ins = [_module(name, FrozenBatchNorm2d=NotLoaded) for name in names]
    sys.modules.update(zip(names, stand_ins, strict=True))
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)
