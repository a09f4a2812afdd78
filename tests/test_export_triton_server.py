"""A real Triton server loads a repository as it is written, and outlives its callers."""

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tritonclient.grpc")

import triton_server
from test_runtime_run import depth_run
from tritonclient import grpc as triton_grpc

import fathom
from fathom.export.triton.repository import write_repository
from fathom.runtime.pipeline import Pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(triton_server.server_files() is None, reason=f"no nvidia-pytriton; {triton_server.PYTHON} may name its Python"),
]
SIZES = [(60, 100), (48, 64), (90, 70), (200, 160), (33, 500)]


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def files(photos):
    made = []
    for photo in photos:
        raw = io.BytesIO()
        Image.fromarray(photo).save(raw, "jpeg", quality=90)
        made.append(raw.getvalue())
    return made


@pytest.fixture(scope="module")
def artefacts(make_artefacts):
    return make_artefacts(batch=(1, 1, 4))  # every photo alone through the network, so that no batch changes a bit


@pytest.fixture(scope="module")
def maps(artefacts, files, photos, tmp_path_factory):
    """What depth-run writes: of the JPEG files, and of the pixels."""
    folder = tmp_path_factory.mktemp("maps")
    for index, (raw, photo) in enumerate(zip(files, photos, strict=True)):
        (folder / f"file{index}.jpg").write_bytes(raw)
        Image.fromarray(photo).save(folder / f"pixels{index}.png")
    done = depth_run("--engine", artefacts.plan, folder, "-o", folder / "out", "--save", "npy", "--threads", 1)
    assert done.returncode == 0, done.stderr
    return {kind: [np.load(folder / "out" / f"{kind}{index}_depth.npy") for index in range(len(files))] for kind in ("file", "pixels")}


@pytest.fixture(scope="module")
def server(artefacts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    write_repository(artefacts.plan, folder / "models")
    with triton_server.TritonServer(folder / "models", folder, fathom.__path__[0]) as running:
        yield running


def by_grpc(client, name, **inputs):
    asked = []
    for tensor, value in inputs.items():
        array = np.array([[value]], dtype=np.object_) if isinstance(value, bytes) else value
        asked.append(triton_grpc.InferInput(tensor, list(array.shape), "BYTES" if isinstance(value, bytes) else triton_server.NAMES[array.dtype.name]))
        asked[-1].set_data_from_numpy(array)
    return client.infer(name, asked)


def test_the_repository_is_loaded_as_it_is(server):
    for name in ("tiny", "tiny-encoder", "tiny-head", "tiny-photo"):
        status, raw = server.get(f"/v2/models/{name}/config")
        config = json.loads(raw)
        assert status == 200 and config["name"] == name and config["parameters"]["fathom.unit"]["string_value"] == "m"
    metrics = server.get("/metrics", server.metrics_port)[1].decode()
    assert 'nv_inference_request_success{model="tiny-photo"' in metrics and "nv_inference_queue_duration_us" in metrics


def test_200_requests_of_8_clients_give_the_maps_of_depth_run(server, files, photos, maps):
    wrong, answered = [], []

    def work(client):
        grpc = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") if client % 2 else None
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        for turn in range(25):
            index, kind = (client + turn) % len(files), ("file", "pixels")[(client // 2 + turn) % 2]
            inputs = {"photo": files[index]} if kind == "file" else {"pixels": photos[index][None]}
            if grpc:
                found = by_grpc(grpc, "tiny-photo", **inputs).as_numpy("depth_m")
            else:
                status, answer = triton_server.post(server.http_port, "tiny-photo", *triton_server.body(inputs), connection=connection)
                assert status == 200, answer
                found = answer["depth_m"]
            answered.append(client)
            if found.dtype != np.float32 or found.tobytes() != maps[kind][index].tobytes() or found.shape != (1, *SIZES[index]):
                wrong.append((client, turn, kind, index))

    threads = [threading.Thread(target=work, args=(client,)) for client in range(8)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(answered)} requests in {time.monotonic() - start:.2f} s")
    assert len(answered) == 200 and not wrong


def test_the_ensemble_in_the_server_gives_the_networks_own_tensor(server, artefacts):
    tensor = np.random.default_rng(5).normal(size=(3, 3, 48, 64)).astype(np.float32)
    with Pipeline.open(artefacts.plan, threads=1) as pipeline:
        wanted = pipeline.backend.run({"image": tensor})["depth"]
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    assert by_grpc(client, "tiny", image=tensor).as_numpy("depth").tobytes() == wanted.tobytes()
    with pytest.raises(Exception, match="batch"):
        by_grpc(client, "tiny", image=np.zeros((5, 3, 48, 64), np.float32))
    with pytest.raises(Exception, match="shape"):
        by_grpc(client, "tiny", image=np.zeros((1, 3, 48, 63), np.float32))


def malformed(files):
    """Model, header, bytes and claimed length of 50 requests that must be refused."""
    body, photo = triton_server.body, "tiny-photo"
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    bomb = io.BytesIO()
    Image.new("L", (1, 1)).save(bomb, "png")
    huge = bomb.getvalue().replace((1).to_bytes(4, "big") * 2, (60000).to_bytes(4, "big") * 2, 1)  # a header that promises 3.6 gigapixels
    for cut in (0, 1, 10, 100, len(files[0]) // 2):
        yield photo, *body({"photo": files[0][:cut]}), None
    for junk in (
        b"not a JPEG",
        b"\xff\xd8\xff\xe0" + bytes(500),
        b"\x89PNG\r\n\x1a\n",
        huge,
        b"GIF89a",
        bytes(100_000),
        b"<svg/>",
        b"%PDF-1.4",
        b"\x80\x04cos",
    ):
        yield photo, *body({"photo": junk}), None
    for shape in (
        [8, 8, 3],
        [1, 8, 8, 4],
        [1, 8, 24],
        [2, 8, 8, 3],
        [1, 8, 8, 3, 1],
        [5, 8, 8, 3],
        [0, 8, 8, 3],
        [1, 0, 8, 3],
        [-1, 8, 8, 3],
        [1, -8, -8, 3],
        [],
    ):
        yield photo, *body({"pixels": pixels}, shape=shape), None
    for shape in ([1, 26755, 26755, 3], [1, 2**31, 2**31, 3], [1, 2**62, 4, 3], [4, 2**33, 1, 3]):
        yield photo, *body({"pixels": pixels}, shape=shape), None
        yield photo, *body({"pixels": pixels}, shape=shape, parameters={"binary_data_size": 2**31 - 1}), None
    for claimed in (2**31 - 1, 2**31, 2**32 + 7):
        yield photo, *body({"photo": b"x"}, parameters={"binary_data_size": claimed}), None
        yield photo, *body({"photo": b"x"}), claimed
    for words in ({"datatype": "FP32"}, {"datatype": "NONE"}, {"name": "foto"}, {"datatype": 3}, {"shape": "all"}):
        yield photo, *body({"pixels": pixels}, **words), None
    yield photo, *body({}), None
    yield photo, *body({"photo": files[0], "pixels": pixels}), None
    yield photo, *body({"photo": files[0], "prompt": b"a cup"}), None
    yield photo, *body({"photo": files[0], "camera": np.float32([[-1, 0, 0, 0]])}), None
    yield photo, b"{", b"", None
    yield photo, b"[" * 5000, b"", None


def test_50_malformed_requests_are_refused_and_the_server_goes_on(server, files, maps):
    before, requests, told = server.resident_mb(), list(malformed(files)), {}
    assert len(requests) == 50
    for model, head, raw, length in requests:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=3 if length else 60)
            status, words = triton_server.post(server.http_port, model, head, raw, length, connection)
        except (TimeoutError, ConnectionError, http.client.HTTPException):
            assert length, (head[:300], "no answer")  # it waits for the 2 GB that were claimed, until the caller leaves
            continue
        finally:
            connection.close()
        # An empty batch is a 500 of Triton's own; what reaches the model is told as the caller's mistake.
        assert status in (400, 404, 500) and json.loads(words)["error"], (head[:300], status, words)
        told[status] = told.get(status, 0) + 1
    print(told, f"{server.resident_mb() - before:.0f} MB more")
    assert server.process.poll() is None and server.ready()
    status, answer = triton_server.post(server.http_port, "tiny-photo", *triton_server.body({"photo": files[0]}))
    assert status == 200 and answer["depth_m"].tobytes() == maps["file"][0].tobytes()
    assert server.resident_mb() < before + 200


def test_clients_killed_in_the_middle_cost_nobody_anything(server, files, photos, maps, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(files[3])
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import triton_server
raw = open({str(tmp_path / "photo.jpg")!r}, "rb").read()
print("begun", flush=True)
while True:
    triton_server.post({server.http_port}, "tiny-photo", *triton_server.body({{"photo": raw}}))
"""
    for round_number in range(5):
        client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        client.stdout.readline()
        time.sleep(0.05 + 0.03 * round_number)
        client.send_signal(signal.SIGKILL)
        client.wait()
        status, answer = triton_server.post(server.http_port, "tiny-photo", *triton_server.body({"pixels": photos[1][None]}))
        assert status == 200 and answer["depth_m"].tobytes() == maps["pixels"][1].tobytes()
    half = http.client.HTTPConnection("127.0.0.1", server.http_port)
    head, raw = triton_server.body({"photo": files[0]})
    half.putrequest("POST", "/v2/models/tiny-photo/infer")
    half.putheader("Content-Length", str(len(head) + len(raw)))
    half.putheader("Inference-Header-Content-Length", str(len(head)))
    half.endheaders()
    half.send(head + raw[: len(raw) // 2])
    half.close()
    assert server.ready()
