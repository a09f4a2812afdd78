"""Signatures of minisign, and plans that are run only if their owner signed them. ``data/signed`` was made by minisign 0.11 itself."""

import base64
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from fathom.runtime.artefact.signature import check_signature, read_public_key
from fathom.runtime.artefact.trust import Trust
from fathom.runtime.commands import inspection, run
from fathom.runtime.errors import ChecksumError, InputError, UsageError
from fathom.runtime.pipeline import Pipeline

DATA = Path(__file__).parent / "data" / "signed"
ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")


class Owner:
    """Keys and signatures in minisign's form."""

    def __init__(self, number=b"12345678"):
        self.secret, self.number = ed25519.Ed25519PrivateKey.generate(), number
        self.key = base64.b64encode(b"Ed" + number + self.secret.public_key().public_bytes_raw()).decode()

    def sign(self, path, comment="timestamp:0"):
        signature = self.secret.sign(hashlib.blake2b(path.read_bytes()).digest())
        over = self.secret.sign(signature + comment.encode())
        lines = ["untrusted comment: x", base64.b64encode(b"ED" + self.number + signature).decode(), f"trusted comment: {comment}"]
        path.with_name(path.name + ".minisig").write_text("\n".join([*lines, base64.b64encode(over).decode(), ""]))


@pytest.fixture
def minisigned(tmp_path):
    for path in DATA.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


def checked(folder, key="owner.pub"):
    return check_signature((folder / "signed.txt").read_bytes(), folder / "signed.txt", read_public_key(str(folder / key)))


def test_what_minisign_signed_is_signed(minisigned):
    assert checked(minisigned) == "plan of a test, version 3"
    key = read_public_key("RWTjkPjBuQLr7uyBQCPShooZbK/Q40nWmaRbgXs+OKNzSD0p7nO7U4k4")
    assert key == read_public_key(str(minisigned / "owner.pub")) and key.name == "EEEB02B9C1F890E3"  # as minisign calls it


def test_changed_bytes_and_changed_comments_are_refused(minisigned):
    beside = minisigned / "signed.txt.minisig"
    good = beside.read_text()
    beside.write_text(good.replace("version 3", "version 4"))
    with pytest.raises(ChecksumError, match="EEEB02B9C1F890E3 signed"):
        checked(minisigned)
    beside.write_text(good)
    (minisigned / "signed.txt").write_bytes(b"The bytes that were Signed.\n")
    with pytest.raises(ChecksumError):
        checked(minisigned)


def test_signatures_of_other_forms_and_keys_are_refused(minisigned):
    beside = minisigned / "signed.txt.minisig"
    shutil.copy(minisigned / "signed.txt.old", beside)
    with pytest.raises(InputError, match="old form"):
        checked(minisigned)
    Owner().sign(minisigned / "signed.txt")
    with pytest.raises(InputError, match="by the key 3837363534333231"):
        checked(minisigned)
    for text in ("", "one line", "untrusted comment: x\nAAAA\ntrusted comment: y\nAAAA\n", "\xff" * 40):
        beside.write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match="is no signature"):
            checked(minisigned)
    beside.unlink()
    with pytest.raises(InputError, match="is not signed"):
        checked(minisigned)


@pytest.mark.parametrize("word", ["", "no key", "RWQ=", "AAAA" * 14, "no-such-file.pub", "x" * 5000])
def test_what_is_no_key_is_refused(word):
    with pytest.raises(UsageError, match="public key"):
        read_public_key(word)


@pytest.fixture
def signed(tiny, tmp_path):
    """(owner, plan signed by them)."""
    owner, plan = Owner(), tmp_path / "x.plan"
    shutil.copy(tiny.plan, plan)
    owner.sign(plan, "version 3")
    return owner, plan


def with_another_engine(plan, to):
    """A plan that is right in every sum: another weight, its SHA-256 in the manifest, and the manifest's CRC."""
    from hardening.mutate import unzipped, zipped

    members = unzipped(plan.read_bytes())
    data = bytearray(members["engines/encoder.data"])
    data[3] ^= 0x80  # the sign of the first weight
    manifest = json.loads(members["plan.json"])
    manifest["files"]["engines/encoder.data"]["sha256"] = hashlib.sha256(data).hexdigest()
    members |= {"engines/encoder.data": bytes(data), "plan.json": json.dumps(manifest).encode()}
    to.write_bytes(zipped(list(members.items())))


def test_a_changed_engine_with_a_matching_manifest_runs_only_without_the_key(signed, tmp_path):
    owner, plan = signed
    trust = Trust.of(None, owner.key)
    with Pipeline.open(plan, trust=trust) as pipeline:
        assert "signed by the key 3837363534333231: version 3" in pipeline.remarks
    forged = tmp_path / "y.plan"
    with_another_engine(plan, forged)
    Pipeline.open(forged).close()  # whole in itself: SHA-256 alone cannot tell
    with pytest.raises(InputError, match="is not signed"):
        Pipeline.open(forged, trust=trust)
    shutil.copy(f"{plan}.minisig", f"{forged}.minisig")  # the owner's signature of the other plan
    with pytest.raises(ChecksumError, match="is not what the key"):
        Pipeline.open(forged, trust=trust)
    Owner(number=b"another!").sign(forged)
    with pytest.raises(InputError, match="by the key"):
        Pipeline.open(forged, trust=trust)
    Owner().sign(forged)  # a key that calls itself the owner's
    with pytest.raises(ChecksumError, match="is not what the key"):
        Pipeline.open(forged, trust=trust)
    owner.sign(forged)
    Pipeline.open(forged, trust=trust).close()


def test_bundles_are_signed_by_their_manifest(tiny, tmp_path):
    owner, bundle = Owner(), tmp_path / "bundle"
    shutil.copytree(tiny.bundle, bundle)
    owner.sign(bundle / "bundle.json")
    trust = Trust.of(None, owner.key)
    Pipeline.open(bundle, trust=trust).close()
    weights = bundle / "stages" / "encoder.onnx.data"
    weights.write_bytes(bytes(reversed(weights.read_bytes())))
    with pytest.raises(ChecksumError):
        Pipeline.open(bundle, verify=False, trust=trust)  # trust reaches down to every file, whatever verify says
    bundle_json = bundle / "bundle.json"
    bundle_json.write_text(bundle_json.read_text() + " ")
    with pytest.raises(ChecksumError, match="is not what the key"):
        Pipeline.open(bundle, trust=trust)


def test_depth_run_takes_what_was_signed_or_pinned(signed, tmp_path, capsys):
    from PIL import Image

    owner, plan = signed
    Image.new("RGB", (64, 48), (90, 120, 60)).save(tmp_path / "p.png")
    (tmp_path / "owner.pub").write_text(f"untrusted comment: minisign public key\n{owner.key}\n")

    def depth_run(*words, engine=plan):
        return run.main(["--engine", str(engine), str(tmp_path / "p.png"), "-o", str(tmp_path / "o"), "--force", "-q", *words])

    assert inspection.main([str(plan)]) == 0
    pinned = capsys.readouterr().out.split()[-1]
    assert len(pinned) == 64
    assert depth_run("--require-key", owner.key) == 0
    assert depth_run("--require-key", str(tmp_path / "owner.pub"), "--require-sha256", pinned) == 0
    assert depth_run("--require-sha256", pinned[:-1] + "0123456789abcdef"[int(pinned[-1], 16) - 1]) == 10
    assert depth_run("--require-sha256", "abc") == 2 and depth_run("--require-key", "abc") == 2
    forged = tmp_path / "forged.plan"
    with_another_engine(plan, forged)
    assert depth_run("--require-sha256", pinned, engine=forged) == 10
    assert depth_run("--require-key", owner.key, engine=forged) == 3
    shutil.copy(f"{plan}.minisig", f"{forged}.minisig")
    assert depth_run("--require-key", owner.key, engine=forged) == 10
    assert depth_run(engine=forged) == 0


def test_a_cluster_runs_what_was_pinned_too(tiny, tmp_path, capsys):
    """Asked before Ray is: many machines on a plan that nobody meant are no better than one."""
    command = ["--engine", str(tiny.plan), str(tmp_path), "-o", str(tmp_path / "out"), "--ray", "-q"]
    assert run.main([*command, "--require-sha256", "0" * 64]) == 10
    assert "wanted: 000000000000…" in capsys.readouterr().err and not (tmp_path / "out").exists()
