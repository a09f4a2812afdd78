"""TorchScript archives read as data: equal to torch.jit.load, and nothing in them ever runs."""

import contextlib
import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from fathom.models.clip.torchscript_archive import is_torchscript, read_torchscript
from fathom.runtime.errors import InputError

warnings.filterwarnings("ignore", message=".*torch.jit.*")


class Leaf(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2, 2))
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight) + self.count


class Tree(nn.Module):
    """Views, half and double precision, an empty tensor, and the plain attributes TorchScript also pickles."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Leaf(), nn.BatchNorm2d(4))
        base = torch.randn(6, 5)
        self.turned = nn.Parameter(base.t())
        self.part = nn.Parameter(base[1:3, 2:4])
        self.register_buffer("small", torch.randn(3).half())
        self.register_buffer("exact", torch.randn(3).double())
        self.register_buffer("nothing", torch.zeros(0, 4))
        self.sizes, self.rates, self.flags, self.word, self.none = [1, 2], [0.5], [True], "quickgelu", None

    def forward(self, x):
        spare = self.part.sum() + self.small.sum() + self.exact.sum() + self.nothing.sum() + self.turned.sum()
        return self.layers(x) + spare + self.sizes[0] + self.rates[0] + float(self.flags[0])


def save(module: nn.Module, path: Path, trace: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(module, torch.randn(1, 3, 5, 5)) if trace else torch.jit.script(module)
        torch.jit.save(scripted, str(path))
    return path


@pytest.mark.parametrize("trace", [False, True], ids=["scripted", "traced"])
def test_every_tensor_is_the_one_that_torch_jit_load_gives(tmp_path, trace):
    torch.manual_seed(0)
    path = save(Tree().eval(), tmp_path / "tree.pt", trace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = torch.jit.load(str(path), map_location="cpu").state_dict()
    found = read_torchscript(path)
    assert set(found) == set(truth)
    for name, tensor in truth.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor.detach()), name


def test_only_torchscript_archives_are_recognised(tmp_path):
    assert is_torchscript(save(Leaf(), tmp_path / "leaf.pt"))
    torch.save({"a": torch.ones(2)}, tmp_path / "plain.pt")
    (tmp_path / "text.pt").write_text("no zip")
    assert not is_torchscript(tmp_path / "plain.pt")
    assert not is_torchscript(tmp_path / "text.pt")
    assert not is_torchscript(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="No such file"):
        read_torchscript(tmp_path / "absent.pt")


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def leaf(tmp_path) -> dict[str, bytes]:
    return members(save(Leaf(), tmp_path / "leaf.pt"))


def tree(body: bytes) -> bytes:
    """A pickle, protocol 2, of a module record whose attribute ``x`` is what ``body`` leaves on the stack."""
    return b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00x" + body + b"sb."


class Explosive:
    """Would write a file if a real unpickler ever saw it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (Path(self.path), "ran"))


def test_code_in_the_pickle_is_refused_and_does_not_run(tmp_path, leaf):
    proof = tmp_path / "proof"
    for number, protocol in enumerate((2, 4)):
        leaf["leaf/data.pkl"] = pickle.dumps({"a": Explosive(str(proof))}, protocol=protocol)
        with pytest.raises(InputError):
            read_torchscript(write(tmp_path / f"bad{number}.pt", leaf))
    assert not proof.exists()


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


def tensor(offset: int, size: bytes, stride: bytes, storage: bytes = STORAGE) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J" + struct.pack("<i", offset) + size + stride + b"\x89ccollections\nOrderedDict\n)RtR"


def archive(path: Path, body: bytes, numbers: bytes = bytes(16)) -> Path:
    return write(path, {"m/data.pkl": tree(body), "m/constants.pkl": b"\x80\x02).", "m/data/0": numbers})


def test_a_tree_written_by_hand_is_read(tmp_path):
    path = archive(tmp_path / "m.pt", tensor(1, b"K\x03\x85", b"K\x01\x85"), struct.pack("<4f", 1, 2, 3, 4))
    assert read_torchscript(path)["x"].tolist() == [2, 3, 4]


HOSTILE = {
    "a call of os.system": b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R",
    "a call of a builtin": b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R",
    "a parameter rebuilt by torch": b"ctorch._utils\n_rebuild_parameter\n)R",
    "an object of a real class": b"cpathlib\nPath\n)\x81",
    "an object with arguments": b"c__torch__\nM\nK\x01\x85\x81",
    "STACK_GLOBAL": b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93",
    "INST": b"(X\x02\x00\x00\x00lsios\nsystem\n",
    "OBJ": b"(cos\nsystem\nX\x02\x00\x00\x00lso",
    "an extension code": b"\x82\x01",
    "a memo entry that is not there": b"h\x09",
    "a missing mark": b"t",
    "a storage that is no tuple": b"K\x01Q",
    "an unknown storage kind": tensor(0, b"K\x04\x85", b"K\x01\x85", STORAGE.replace(b"FloatStorage", b"UntypedStuff")),
    "a storage of another size": tensor(0, b"K\x04\x85", b"K\x01\x85", STORAGE.replace(b"K\x04tQ", b"K\x05tQ")),
    "a storage that is not there": tensor(0, b"K\x04\x85", b"K\x01\x85", STORAGE.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007")),
    "a storage above the folder": tensor(0, b"K\x04\x85", b"K\x01\x85", STORAGE.replace(b"X\x01\x00\x00\x000", b"X\x0b\x00\x00\x00../data.pkl")),
    "a view beyond the storage": tensor(1, b"K\x04\x85", b"K\x01\x85"),
    "a negative offset": tensor(-1, b"K\x04\x85", b"K\x01\x85"),
    "a negative size": tensor(0, b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
    "a negative stride": tensor(3, b"K\x04\x85", b"J\xff\xff\xff\xff\x85"),
    "a huge view of one number": tensor(0, b"J\xff\xff\xff\x7f\x85", b"K\x00\x85"),
    "a stride of another rank": tensor(0, b"K\x04\x85", b")"),
    "a number as text": b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"X\x01\x00\x00\x000)))ccollections\nOrderedDict\n)RtR",
    "a dotted attribute": b"c__torch__\nM\n)\x81}X\x03\x00\x00\x00a.bK\x01sb",
    "a cut-off pickle": b"X\xff\xff\x00\x00x",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=[name.replace(" ", "-") for name in HOSTILE])
def test_hostile_trees_are_refused(tmp_path, body):
    with pytest.raises(InputError) as refusal:
        read_torchscript(archive(tmp_path / "m.pt", body))
    assert refusal.value.exit_code == 3 and "m.pt" in str(refusal.value)


def test_modules_that_contain_each_other_are_refused(tmp_path):
    knot = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00xh\x00sb."
    with pytest.raises(InputError, match="contain each other"):
        read_torchscript(write(tmp_path / "m.pt", {"m/data.pkl": knot, "m/constants.pkl": b"\x80\x02)."}))


def test_a_module_shared_exponentially_often_is_refused(tmp_path):
    levels = b"X\x02\x00\x00\x00aac__torch__\nM\n)\x81q\x00"
    for number in range(40):  # each module holds the one before twice: 2^40 ways down
        below, here = b"h" + bytes([number]), bytes([number + 1])
        levels += (
            b"X\x02\x00\x00\x00" + b"%02d" % number + b"c__torch__\nM\n)\x81q" + here + b"}(X\x01\x00\x00\x00a" + below + b"X\x01\x00\x00\x00b" + below + b"ub"
        )
    root = b"\x80\x02c__torch__\nM\n)\x81}(" + levels + b"ub."
    with pytest.raises(InputError, match="contain each other"):
        read_torchscript(write(tmp_path / "m.pt", {"m/data.pkl": root, "m/constants.pkl": b"\x80\x02)."}))


def test_broken_zips_are_refused(tmp_path, leaf):
    truths = {
        "no tree": {name: data for name, data in leaf.items() if not name.endswith("data.pkl")},
        "two folders": {**leaf, "other/data.pkl": b""},
        "big end first": {**leaf, "leaf/byteorder": b"big"},
    }
    for number, content in enumerate(truths.values()):
        with pytest.raises(InputError):
            read_torchscript(write(tmp_path / f"{number}.pt", content))
    with pytest.raises(InputError, match="compressed"):
        read_torchscript(write(tmp_path / "small.pt", leaf, zipfile.ZIP_DEFLATED))
    whole = (tmp_path / "leaf.pt").read_bytes()
    for cut in (10, len(whole) // 2, len(whole) - 5):
        (tmp_path / "cut.pt").write_bytes(whole[:cut])
        with pytest.raises(InputError):
            read_torchscript(tmp_path / "cut.pt")
    numbers = leaf["leaf/data/0"]
    (tmp_path / "flipped.pt").write_bytes(whole.replace(numbers, bytes(len(numbers))))
    with pytest.raises(InputError, match="broken"):  # the zip's own checksum
        read_torchscript(tmp_path / "flipped.pt")


def test_any_byte_may_be_wrong_without_anything_but_a_refusal(tmp_path, leaf):
    generator = torch.Generator().manual_seed(1)
    original = leaf["leaf/data.pkl"]
    for _ in range(300):
        changed = bytearray(original)
        for position, value in torch.randint(0, 1 << 16, (3, 2), generator=generator).tolist():
            changed[position % len(changed)] = value % 256
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in {**leaf, "leaf/data.pkl": bytes(changed)}.items():
                archive.writestr(name, data)
        (tmp_path / "fuzz.pt").write_bytes(buffer.getvalue())
        with contextlib.suppress(InputError):
            read_torchscript(tmp_path / "fuzz.pt")
