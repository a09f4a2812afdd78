"""A bundle with another contract."""

import dataclasses
import shutil

from fathom.runtime.artefact.manifest_json import manifest_bytes
from fathom.runtime.commands.inspection import read_manifest


def with_contract(bundle, folder, contract):
    """A copy of a bundle in ``folder`` with another contract."""
    shutil.copytree(bundle, folder)
    (folder / "bundle.json").write_bytes(manifest_bytes(dataclasses.replace(read_manifest(bundle), contract=contract)))
    return folder


def with_output(bundle, folder, **changes):
    """The same, its contract's output with these changes."""
    contract = read_manifest(bundle).contract
    return with_contract(bundle, folder, dataclasses.replace(contract, output=dataclasses.replace(contract.output, **changes)))
