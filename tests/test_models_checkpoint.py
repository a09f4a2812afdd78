"""Reading checkpoints: every way a file can be wrong ends in one clear refusal, and no code in a file ever runs."""

import argparse
import json
import os
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fathom.models.checkpoint import Checkpoint, Key, KeyTable, fill, read_checkpoint, read_tensors, strip_prefix
from fathom.models.diffusion.text_context import TextContext, read_text_pack
from fathom.runtime.errors import InputError
from fathom.runtime.files import sha256_of

ANCHOR = "encoder.gamma"


def small():
    return {"encoder.gamma": torch.arange(4.0), "decoder.weight": torch.ones(2, 3)}


def same(got, want):
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.network."])
@pytest.mark.parametrize("form", ["safetensors", "model", "state_dict", "bare", "old-zip"])
def test_every_form_and_prefix_reads_the_same(tmp_path, prefix, form):
    tensors = {prefix + name: tensor for name, tensor in small().items()}
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.ckpt")
    if form == "safetensors":
        save_file(tensors, path)
    elif form == "old-zip":
        torch.save({"model": tensors}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(tensors if form == "bare" else {form: tensors, "epoch": 3}, path)
    found = read_checkpoint(path, ANCHOR)
    same(found.tensors, small())
    assert (found.file, found.nbytes, found.sha256) == (path.name, path.stat().st_size, sha256_of(path))


def test_training_state_beside_the_weights_is_left_alone(tmp_path):
    network = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"model": small(), "optimizer": optimizer.state_dict()}, tmp_path / "last.ckpt")
    same(read_tensors(tmp_path / "last.ckpt"), small())


def test_prefix_is_only_removed_when_all_names_have_it():
    mixed = {"module.encoder.gamma": torch.ones(1), "other": torch.ones(2)}
    with pytest.raises(InputError, match=r"under the prefix 'module\.', and 1 others beside them: other"):
        strip_prefix(mixed, ANCHOR)
    counted = {"model.encoder.gamma": torch.ones(1), "val_rmse.total": torch.tensor(0.0)}  # as Lightning saves metrics
    assert list(strip_prefix(counted, ANCHOR)) == ["encoder.gamma"]
    assert strip_prefix({}, ANCHOR) == {}
    whole = {"qformer.query_tokens": torch.ones(2), "image_encoder.norm": torch.ones(2)}  # the anchor's own module has siblings
    assert strip_prefix(whole, "image_encoder.norm", "query_tokens") == whole
    assert strip_prefix({f"module.{name}": tensor for name, tensor in whole.items()}, "image_encoder.norm", "query_tokens") == whole
    assert strip_prefix(bare := {"encoder.gamma": torch.ones(2), "teacher.encoder.gamma": torch.ones(2)}, ANCHOR) is bare


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("old", [False, True])
def test_pickled_code_never_runs(tmp_path, old):
    mark = tmp_path / "ran"
    torch.save({"model": small(), "extra": Bomb(mark)}, tmp_path / "evil.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(InputError, match="pickled Python code") as caught:
        read_tensors(tmp_path / "evil.pth")
    assert caught.value.exit_code == 3 and "mkdir" in str(caught.value)
    assert not mark.exists()


def test_a_pickled_namespace_is_named(tmp_path):
    torch.save({"model": small(), "args": argparse.Namespace(lr=1)}, tmp_path / "refer.pth")
    with pytest.raises(InputError, match=r"argparse\.Namespace"):
        read_tensors(tmp_path / "refer.pth")


def test_a_half_downloaded_file_says_how_much_is_missing(tmp_path):
    save_file({"a": torch.zeros(1000)}, tmp_path / "whole.safetensors")
    raw = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match=f"cut short: it has {len(raw) // 2:,} bytes; wanted: {len(raw):,} bytes"):
        read_tensors(tmp_path / "half.safetensors")
    (tmp_path / "head.safetensors").write_bytes(raw[:20])
    with pytest.raises(InputError, match="cut short"):
        read_tensors(tmp_path / "head.safetensors")
    torch.save({"model": small()}, tmp_path / "whole.ckpt")
    raw = (tmp_path / "whole.ckpt").read_bytes()
    for length in (len(raw) // 2, len(raw) - 5, 100):
        (tmp_path / "half.ckpt").write_bytes(raw[:length])
        with pytest.raises(InputError, match=r"cut short|broken"):
            read_tensors(tmp_path / "half.ckpt")


HOSTILE = {
    "empty": b"",
    "text": b"not weights at all, but long enough to look at",
    "html": b"<!DOCTYPE html><html>Access denied</html>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3735516436\n",
    "zeros": bytes(64),
    "huge header": struct.pack("<Q", 1 << 62) + b"{}",
    "array header": struct.pack("<Q", 2) + b"[]",
    "bad entry": struct.pack("<Q", 9) + b'{"a": 12}',
    "no json": struct.pack("<Q", 8) + b"\xff" * 8,
    "zip": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_bytes_are_refused(tmp_path, ending, kind):
    path = tmp_path / ("weights" + ending)
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(InputError) as caught:
        read_tensors(path)
    assert caught.value.exit_code == 3 and path.name in str(caught.value)


def test_offsets_that_lie_are_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(InputError, match="broken"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_weights_lie_aligned_in_memory_of_their_own(tmp_path, ending):
    """Unaligned weights are summed in another order on some processors; a mapped file may change under a network that runs."""
    path = tmp_path / f"small.{ending}"
    tensors = {"encoder.gamma": torch.arange(3.0), "odd": torch.arange(7.0), "half": torch.arange(5.0).half(), "last": torch.arange(33.0)}
    save_file(tensors, path) if ending == "safetensors" else torch.save({"model": tensors}, path)
    found = read_checkpoint(path, ANCHOR).tensors
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor) and found[name].data_ptr() % 64 == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="counts memory the Linux way")
def test_a_big_file_is_in_memory_once(tmp_path):
    path = tmp_path / "big.safetensors"
    save_file({"encoder.gamma": torch.ones(16 << 20)}, path)  # 64 MiB
    code = f"""
import re, torch
from fathom.models.checkpoint import read_checkpoint
def peak_kib(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
torch.ones(1 << 20).sum()  # what the first sum loads
before = peak_kib()
found = read_checkpoint({str(path)!r}, {ANCHOR!r}).tensors["encoder.gamma"]
assert found.sum() == 16 << 20
print(peak_kib() - before)
"""
    assert int(subprocess.check_output([sys.executable, "-c", code], text=True)) < 80 << 10


@pytest.mark.parametrize("content", [{"model": {"a": 1}}, [torch.ones(1)], {"model": {}}, {}, torch.ones(2), {1: torch.ones(1)}])
def test_a_pickle_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError, match="no state dict"):
        read_tensors(tmp_path / "x.pth")


def test_missing_files_and_foreign_endings(tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_tensors(tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match="is a folder"):
        read_tensors(tmp_path)
    (tmp_path / "x.onnx").write_bytes(b"abc")
    with pytest.raises(InputError, match="unknown ending"):
        read_tensors(tmp_path / "x.onnx")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))
        self.bias = nn.Parameter(torch.zeros(3))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("steps", torch.arange(3))


def table():
    wanted = {"w": Key("weight", (2, 3, 1, 1)), "b": Key("bias", (3,)), "count": Key("count", ()), "k": Key("steps", (3,))}
    return KeyTable(wanted, {"k": torch.arange(3)}, {"count": torch.tensor(0)}, {"unused": (2,), "any": None})


def filled(tensors, **more):
    with torch.device("meta"):
        network = Net()
    have = {"w": torch.ones(2, 3, 1, 1), "b": torch.ones(3), "count": torch.tensor(7), "k": torch.arange(3)} | tensors | more
    fill(network, Checkpoint("x.ckpt", 0, "", {n: t for n, t in have.items() if t is not None}), table(), "net")
    return network


def test_fill_takes_tensors_without_copying_them():
    weight = torch.full((2, 3, 1, 1), 2.0)
    network = filled({"w": weight, "unused": torch.ones(2), "any": torch.ones(5)})
    assert network.weight.data_ptr() == weight.data_ptr() and network.weight.shape == (2, 3)
    assert network.count == 7 and not network.weight.requires_grad and not network.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fill_makes_fp32_of_other_floats(dtype):
    network = filled({"w": torch.full((2, 3, 1, 1), 1.5, dtype=dtype)})
    assert network.weight.dtype == torch.float32 and bool((network.weight == 1.5).all())


def test_fill_supplies_integers_that_may_be_missing_or_float():
    network = filled({"count": None, "k": None})
    assert network.count == 0 and network.steps.tolist() == [0, 1, 2]
    assert filled({"k": torch.arange(3.0)}).steps.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w": None}, r"1 tensor\(s\) missing: w"),
        ({"w": None, "b": None}, r"2 tensor\(s\) missing: b, w"),
        ({"extra": torch.ones(1)}, r"1 tensor\(s\) unexpected: extra"),
        ({"w": torch.ones(2, 3)}, r"misshapen: w \[2, 3\] instead of \[2, 3, 1, 1\]"),
        ({"unused": torch.ones(3)}, r"misshapen: unused \[3\] instead of \[2\]"),
        ({"b": torch.tensor([1.0, float("nan"), 2.0])}, "not finite: b"),
        ({"b": torch.tensor([1.0, float("inf"), 2.0])}, "not finite: b"),
        ({"b": torch.ones(3, dtype=torch.int64)}, r"another kind: b \(torch.int64\)"),
        ({"b": torch.ones(3, dtype=torch.complex64)}, "another kind: b"),
        ({"k": torch.tensor([2, 1, 0])}, "another value"),
    ],
)
def test_fill_refuses_by_name(change, words):
    with pytest.raises(InputError, match=words) as caught:
        filled(change)
    assert caught.value.exit_code == 3


def test_large_finite_numbers_whose_sum_overflows_are_fine():
    assert bool(filled({"b": torch.full((3,), 3e38)}).bias.isfinite().all())


def test_only_a_few_names_are_listed():
    with pytest.raises(InputError, match=r"20 tensor\(s\) unexpected.* and 12 more"):
        filled({f"extra{i:02}": torch.ones(1) for i in range(20)})


def test_text_context_is_the_written_formula():
    context = TextContext((1, 5, 6))
    generator = torch.Generator().manual_seed(0)
    for tensor in context.state_dict().values():
        tensor.normal_(generator=generator)
    w = {name: tensor.double() for name, tensor in context.state_dict().items()}
    text = w["class_embeddings"]
    hidden = text @ w["text_adapter.fc.0.weight"].T + w["text_adapter.fc.0.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    want = text + w["gamma"] * (hidden @ w["text_adapter.fc.2.weight"].T + w["text_adapter.fc.2.bias"])
    torch.testing.assert_close(context().detach().double(), want, atol=1e-5, rtol=1e-5)


def test_text_pack_is_read_strictly(tmp_path):
    text = torch.randn(1, 5, 6)
    save_file({"context": text}, tmp_path / "pack.safetensors")
    assert torch.equal(read_text_pack(tmp_path / "pack.safetensors", "context", (1, 5, 6)), text)
    for tensors in ({"context": text, "more": text + 1}, {"text": text}, {"context": text[0]}, {"context": text.long()}):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "bad.safetensors")
        with pytest.raises(InputError, match="exactly 'context'"):
            read_text_pack(tmp_path / "bad.safetensors", "context", (1, 5, 6))
    save_file({"context": text * float("inf")}, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="not finite"):
        read_text_pack(tmp_path / "bad.safetensors", "context", (1, 5, 6))
    torch.save({"context": text}, tmp_path / "pack.pt")
    with pytest.raises(InputError, match="no text pack"):
        read_text_pack(tmp_path / "pack.pt", "context", (1, 5, 6))


@pytest.mark.parametrize("name", ["best.pth.tar", "UP.SAFETENSORS", "weights.model", "EMA.PTH", "light.ckpt"])
def test_files_as_training_scripts_call_and_fill_them(tmp_path, name):
    tensors = {ANCHOR: torch.arange(5.0), "other": torch.ones(2)}
    path = tmp_path / name
    if name == "UP.SAFETENSORS":
        save_file(tensors, path)
    elif name == "EMA.PTH":
        torch.save({"model_ema": tensors, "epoch": 3}, path)
    elif name == "light.ckpt":
        torch.save({"state_dict": {f"model.{key}": value for key, value in tensors.items()} | {"val_rmse.total": torch.tensor(0.0)}}, path)
    else:
        torch.save({"model": tensors}, path)
    found = read_checkpoint(path, ANCHOR).tensors
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_a_checkpoint_of_something_else_says_what_it_holds(tmp_path):
    torch.save({"optimizer": {"lr": 1.0}, "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="no state dict, but optimizer, epoch"):
        read_checkpoint(tmp_path / "x.pth", ANCHOR)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"state_dict": {"model": t}, "epoch": 1},
        lambda t: {"checkpoint": {"model": {"module": t}}, "optimizer": {"state": {}}},
        lambda t: {"generator": t, "lr": 0.1},
        lambda t: {"ema_model": t, "steps": torch.tensor(3)},
        lambda t: {name: nn.Parameter(tensor) for name, tensor in t.items()},
    ],
    ids=["state_dict, model", "checkpoint, model, module", "any key", "ema_model", "parameters"],
)
def test_weights_are_found_however_deep_they_lie(tmp_path, wrap):
    torch.save(wrap(small()), tmp_path / "x.pth")
    found = read_checkpoint(tmp_path / "x.pth", ANCHOR).tensors
    same(found, small())
    assert not any(tensor.requires_grad for tensor in found.values())


def test_two_networks_in_one_file_are_named_not_guessed(tmp_path):
    torch.save({"student": small(), "teacher": small()}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="several state dicts: student, teacher"):
        read_checkpoint(tmp_path / "x.pth", ANCHOR)


def test_what_a_file_is_decides_not_its_ending(tmp_path):
    save_file(small(), tmp_path / "x.pth")
    same(read_tensors(tmp_path / "x.pth"), small())
    torch.save(small(), tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="rename it"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: torch.jit.script(nn.Linear(2, 2)).save(str(f)), "TorchScript archive.*state_dict"),
        (lambda f: zipfile.ZipFile(f, "w").writestr("in.safetensors", b""), "a zip of in.safetensors.*unpack"),
        (lambda f: f.write_bytes(b"GGUF" + bytes(60)), "GGUF"),
        (lambda f: f.mkdir() or save_file(small(), f / "model.safetensors"), "a folder with 1 checkpoints.*give .*model.safetensors"),
        (lambda f: f.mkdir() or (f / "model.safetensors.index.json").write_text("{}"), "weights in several files"),
    ],
    ids=["TorchScript", "zip", "GGUF", "folder", "shards"],
)
def test_what_is_no_checkpoint_is_named(tmp_path, make, words):
    make(tmp_path / "x.pt" if "GGUF" not in words else tmp_path / "x.gguf")
    with pytest.raises(InputError, match=words):
        read_tensors(next(tmp_path.iterdir()))
