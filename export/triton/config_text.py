"""``config.pbtxt``: Triton's model configuration as text, written and read by the protobuf classes of ``tritonclient`` alone."""

from __future__ import annotations

from typing import Any

from ...runtime.errors import InputError, missing_package


def load_protobuf() -> Any:
    """The module ``tritonclient.grpc.model_config_pb2``.

    Raises:
        EnvironmentMismatchError: if ``tritonclient`` is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise missing_package("tritonclient", "triton", "Triton's own description of a model configuration") from error
    return model_config_pb2


def config_text(config: Any) -> str:
    """A ``ModelConfig`` as the text of a ``config.pbtxt``."""
    from google.protobuf import text_format

    return text_format.MessageToString(config)


def read_config(text: str, where: str) -> Any:
    """The ``ModelConfig`` in the text of a ``config.pbtxt``.

    Raises:
        InputError: if a field is unknown or misspelt, or a value is of another kind; ``where``, line and column are named.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, load_protobuf().ModelConfig())
    except text_format.ParseError as error:
        raise InputError(f"{where}:{error}", wanted="fields and values of Triton's ModelConfig") from error
