"""The ground floor: specs, artefact readers, image input and output, backends, pipeline and ``depth-run``. Needs only NumPy and Pillow."""

_HOMES = {"Pipeline": "pipeline", "DepthMap": "photo.depth_map", "Intrinsics": "photo.depth_map", "read_photo": "photo.photo", "FathomError": "errors"}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
