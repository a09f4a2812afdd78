"""A bundle whose output means something else."""

import dataclasses
import shutil

from fathom.runtime.artefact.manifest_json import manifest_bytes
from fathom.runtime.commands.inspection import read_manifest


def with_output(bundle, folder, **changes):
    """A copy of a bundle in ``folder``, its contract's output with these changes."""
    shutil.copytree(bundle, folder)
    manifest = read_manifest(bundle)
    contract = dataclasses.replace(manifest.contract, output=dataclasses.replace(manifest.contract.output, **changes))
    (folder / "bundle.json").write_bytes(manifest_bytes(dataclasses.replace(manifest, contract=contract)))
    return folder
