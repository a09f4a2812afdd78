"""Other people's files given as engines or bundles are recognised, and the user is told what to do with them."""

import struct

import pytest

from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.errors import InputError


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.onnx", b"\x08\x08\x12\x07pytorch", "depth-export --onnx"),
        ("a.engine", b"ftrt" + bytes(60), "TensorRT engine alone"),
        ("a.plan", b"ptrt" + bytes(60), "TensorRT engine alone"),
        ("a.safetensors", struct.pack("<Q", 2) + b"{}", "--weights"),
        ("a.pth", b"PK\x03\x04" + bytes(40), "--weights"),
        ("a.ckpt", b"\x80\x02" + bytes(40), "--weights"),
        ("a.plan", b"\x08\x08\x12\x07pytorch", "ONNX file.*depth-export --onnx"),
        ("pytorch_model.bin", b"PK\x03\x04" + bytes(26) + b"archive/data.pkl", "PyTorch checkpoint.*--weights"),
        ("a.plan", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
        ("a.plan", b"<!DOCTYPE html>", "web page"),
        ("a.plan", b"\x1f\x8b\x08" + bytes(30), "compressed file.*unpack"),
        ("a.xml", b"<?xml version='1.0'?>", "OpenVINO"),
        ("a.tflite", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        ("a.gguf", b"GGUF\3\0\0\0", "GGUF"),
        ("a.jpg", b"\xff\xd8\xff\xe0", "a picture.*photos after it"),
        ("a.json", b"{}", "JSON"),
        ("b/bundle.json", b"{}", "give the whole bundle: .*/b$"),
    ],
)
def test_what_is_no_plan_is_recognised(tmp_path, name, content, words):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        PlanFile.open(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.onnx", "holds ONNX files .model.onnx.*depth-export --onnx"),
        ("model.safetensors", "holds checkpoints .model.safetensors.*--weights"),
        ("evp/bundle.json", "holds evp.*give .*evp"),
        ("evp.plan", "holds evp.plan"),
        ("readme.txt", "holds no bundle.json"),
    ],
)
def test_folders_that_are_no_bundle_are_recognised(tmp_path, name, words):
    (tmp_path / "f" / name).parent.mkdir(parents=True)
    (tmp_path / "f" / name).write_bytes(b"")
    with pytest.raises(InputError, match=words):
        BundleDirectory.open(tmp_path / "f")


def test_a_plan_or_an_onnx_file_is_no_bundle_to_build(tmp_path):
    (tmp_path / "x.plan").write_bytes(b"PK\x03\x04" + bytes(40))
    (tmp_path / "x.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    for name, words in (("x.plan", "built already"), ("x.onnx", "depth-export --onnx"), ("nothing", "does not exist")):
        with pytest.raises(InputError, match=words):
            BundleDirectory.open(tmp_path / name)
