"""Mapped weights that have been copied take no memory: their pages go back to the system while a stage opens."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..artefact.plan import PlanFile

EVERY_S = 0.02


class PageDropper:
    """Use around the opening of a stage.

    ONNX Runtime copies most weights into a layout of its own. The mapped pages that it has read stay in memory until the system needs the
    space, so that a large stage takes its weights twice. A thread drops them every ``EVERY_S`` seconds; the few that are still needed are read
    again.

    Args:
        plan: open.
        name: of the file of weights in it.
    """

    def __init__(self, plan: PlanFile, name: str):
        self._plan, self._name, self._done = plan, name, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(EVERY_S):
            self._plan.drop_pages(self._name)

    def __enter__(self) -> PageDropper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._plan.drop_pages(self._name)
