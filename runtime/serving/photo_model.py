"""The photo model of a Triton repository: its Python backend hands requests to the lean runtime.

Made by ``depth-triton``; the ``model.py`` it writes imports ``TritonPythonModel`` from here. Inputs (one of the first two in each request):

- ``photo``: BYTES [n, 1], picture files as they are (JPEG, PNG, …)
- ``pixels``: UINT8 [n, H, W, 3], RGB
- ``prompt``: BYTES [n, 1], the same for the whole request; ``camera``: FP32 [n, 4], fx, fy, cx, cy, likewise

Outputs: ``depth_m`` FP32 [n, H, W] in metres, NaN where there is none (``depth_relative`` or ``mask`` for networks of those kinds), and ``facts``
BYTES [n, 1], JSON. Source: Triton's Python backend, ``initialize``, ``execute``, ``finalize``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FathomError, InputError, UsageError
from ..pipeline import Pipeline
from ..sequences import zip_equal
from .photo_service import OUTPUTS, Ask, PhotoService, facts_of, map_of

FACTS = "facts"
ARTEFACTS = ("network.plan", "network")  # a plan (file) or a bundle (directory), beside model.py


class TritonPythonModel:
    """What Triton's Python backend calls, one request list at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the plan beside ``model.py`` and run it once; the model is READY after that.

        Args:
            args: of the Python backend; ``model_repository`` is the model's folder.

        Raises:
            FathomError: if the plan cannot run here; Triton shows the words and does not load the model.
        """
        import triton_python_backend_utils  # only there inside of Triton

        self._triton = triton_python_backend_utils
        parameters = {key: value.get("string_value", "") for key, value in json.loads(args["model_config"]).get("parameters", {}).items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        path = next((folder / name for name in ARTEFACTS if (folder / name).exists()), folder / ARTEFACTS[0])
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else None
        threads = int(parameters.get("fathom.threads") or 0) or None
        self._pipeline = Pipeline.open(path, device, threads)
        self._service = PhotoService(self._pipeline, parameters.get("fathom.protocol") or None)
        self._output = OUTPUTS[self._pipeline.contract.output.kind]
        for words in self._pipeline.remarks:
            print(words, file=sys.stderr)
        self._service.warm_up()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in their order; what is wrong with one request is its own error."""
        asks = [self._ask(request) for request in requests]
        answers = iter(self._answers([ask for ask in asks if not isinstance(ask, FathomError)]))
        return [self._response(request, ask if isinstance(ask, FathomError) else next(answers)) for request, ask in zip_equal(requests, asks)]

    def finalize(self) -> None:
        """Free everything."""
        self._service.close()
        self._pipeline.close()

    def _ask(self, request: Any) -> Ask | FathomError:
        try:
            photo, pixels, prompt, camera = (self._array(request, name) for name in ("photo", "pixels", "prompt", "camera"))
            if (photo is None) == (pixels is None):
                raise InputError("both photo and pixels" if photo is not None else "neither photo nor pixels", wanted="one of them in each request")
            photos = tuple(bytes(item) for item in photo.ravel()) if photo is not None else tuple(pixels)
            if not photos:
                raise InputError("a request without a photo")
            words = None if prompt is None else _one(prompt, "prompt").decode("utf-8")
            lens = None if camera is None else tuple(float(value) for value in _one(camera, "camera"))
            return Ask(photos, words, lens)
        except FathomError as error:
            return error
        except (ValueError, TypeError) as error:
            return InputError(str(error))

    def _array(self, request: Any, name: str) -> np.ndarray | None:
        tensor = self._triton.get_input_tensor_by_name(request, name)
        return None if tensor is None else tensor.as_numpy()

    def _answers(self, asks: list[Ask]) -> list[Any]:
        try:
            return self._service.answer(asks)
        except Exception as error:  # a server outlives one request's fault, whatever it was
            return [FathomError(f"internal error ({type(error).__name__}: {error})")] * len(asks)

    def _response(self, request: Any, answer: Any) -> Any:
        if not isinstance(answer, FathomError) and len({depth.values.shape for _, depth in answer}) > 1:
            answer = InputError("the photos of this request have several sizes", wanted="one size per request, as one tensor holds all maps")
        if isinstance(answer, FathomError):
            return self._triton.InferenceResponse(output_tensors=[], error=self._error(answer))
        wanted, tensors = set(request.requested_output_names()), []
        if not wanted or self._output in wanted:
            tensors.append(self._triton.Tensor(self._output, np.stack([map_of(depth) for _, depth in answer])))
        if not wanted or FACTS in wanted:
            texts = [[json.dumps(facts_of(depth)).encode()] for _, depth in answer]
            tensors.append(self._triton.Tensor(FACTS, np.array(texts, dtype=np.object_)))
        return self._triton.InferenceResponse(output_tensors=tensors)

    def _error(self, error: FathomError) -> Any:
        kind, code = self._triton.TritonError, "INVALID_ARG" if isinstance(error, (InputError, UsageError)) else "INTERNAL"
        return kind(str(error), getattr(kind, code)) if hasattr(kind, code) else kind(str(error))  # codes came with release 23.09


def _one(array: np.ndarray, name: str) -> Any:
    """What all rows of an input say.

    Raises:
        InputError: if they differ.
    """
    rows = [row.ravel().tolist() for row in array]
    if any(row != rows[0] for row in rows):
        raise InputError(f"{name} differs between the photos of one request", wanted="one for all", fix="send them in requests of their own")
    return rows[0][0] if array.dtype == np.object_ else rows[0]
