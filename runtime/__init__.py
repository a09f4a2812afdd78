"""The ground floor: specs, artefact readers, image input and output, backends, pipeline and ``depth-run``. Needs only NumPy and Pillow."""
