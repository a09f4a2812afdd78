"""A real tritonserver out of the wheel of nvidia-pytriton, and plain HTTP requests to it."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PYTHON = "FATHOM_TRITON_PYTHON"  # of an environment with nvidia-pytriton, which wants an older NumPy than exporting does
NAMES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64", "int32": "INT32"}
TYPES = {name: np.dtype(dtype) for dtype, name in NAMES.items()}


def server_files():
    """Python with nvidia-pytriton, the folder of that package and the name of its release of Python; None if there is none."""
    python = os.environ.get(PYTHON, sys.executable)
    code = "import sys, onnxruntime, PIL, importlib.util as u; print(u.find_spec('pytriton').submodule_search_locations[0], '%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return (python, *done.stdout.split()) if done.returncode == 0 else None


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


class TritonServer:
    """Serves a repository until it is left; ``folder`` takes its backends and log."""

    def __init__(self, repository, folder, package_root):
        python, package, release = server_files()
        package, self.backends = Path(package), folder / "backends"
        shutil.copytree(package / "tritonserver" / "backends", self.backends)
        stub = self.backends / "python" / "triton_python_backend_stub"
        shutil.copy(package / "tritonserver" / "python_backend_stubs" / release / stub.name, stub)
        stub.chmod(0o755)
        (self.backends / "python" / "fathom").symlink_to(package_root)  # the stub ignores PYTHONPATH, but this folder is on its path
        (self.backends / "onnxruntime").mkdir()
        shutil.copy(Path(__file__).with_name("triton_stand_in") / "model.py", self.backends / "onnxruntime" / "model.py")
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        environment = {**os.environ, "LD_LIBRARY_PATH": str(package.parent / "nvidia_pytriton.libs"), "OMP_NUM_THREADS": "1"}
        environment["PATH"] = f"{Path(python).parent}:{environment['PATH']}"
        self.log = folder / "server.log"
        flags = [f"--model-repository={repository}", f"--backend-directory={self.backends}", "--allow-gpu-metrics=false"]
        flags += [f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")]
        flags += [f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), (self.http_port, self.grpc_port, self.metrics_port), strict=True)]
        with open(self.log, "wb") as log:
            binary = package / "tritonserver" / "bin" / "tritonserver"
            self.process = subprocess.Popen([str(binary), *flags], stdout=log, stderr=log, env=environment)

    def __enter__(self):
        deadline = time.monotonic() + 60
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise AssertionError(self.log.read_text()[-6000:])
            time.sleep(0.2)
        return self

    def ready(self):
        try:
            return self.get("/v2/health/ready")[0] == 200
        except OSError:
            return False

    def get(self, path, port=None):
        connection = http.client.HTTPConnection("127.0.0.1", port or self.http_port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def children(self):
        """Processes of the models."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(number) for number in found]

    def resident_mb(self):
        """Memory of the server and its models."""
        numbers = [self.process.pid, *self.children()]
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in numbers) * os.sysconf("SC_PAGESIZE") / 1e6

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def body(inputs, **changes):
    """Header and bytes of one request in Triton's binary form; ``changes`` overwrite facts of the first input."""
    described, raw = [], []
    for name, value in inputs.items():
        if isinstance(value, bytes):
            data, about = len(value).to_bytes(4, "little") + value, {"datatype": "BYTES", "shape": [1, 1]}
        else:
            data, about = value.tobytes(), {"datatype": NAMES[value.dtype.name], "shape": list(value.shape)}
        described.append({"name": name, **about, "parameters": {"binary_data_size": len(data)}})
        raw.append(data)
    if described:
        described[0].update(changes)
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    return head, b"".join(raw)


def post(port, model, head, raw, length=None, connection=None):
    """Send a request; returns status and, by name, the output arrays, or the error's words."""
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    if length is not None:
        headers["Content-Length"] = str(length)
    connection.request("POST", f"/v2/models/{model}/infer", head + raw, headers)
    answer = connection.getresponse()
    got = answer.read()
    if answer.status != 200:
        return answer.status, got.decode(errors="replace")
    size = int(answer.getheader("Inference-Header-Content-Length", len(got)))
    place, found = size, {}
    for output in json.loads(got[:size])["outputs"]:
        data = got[place : place + output["parameters"]["binary_data_size"]]
        place += len(data)
        found[output["name"]] = data[4:] if output["datatype"] == "BYTES" else np.frombuffer(data, TYPES[output["datatype"]]).reshape(output["shape"])
    return answer.status, found
