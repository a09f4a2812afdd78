"""Downloads from a local server that answers as the hub does: a redirect to where the bytes are, and ranges of them."""

import dataclasses
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from fathom.models import hub
from fathom.models.hub import HubFile, download
from fathom.runtime.errors import ChecksumError, InputError

BYTES = np.random.default_rng(0).bytes(300_000)
FILE = HubFile("owner/name", "df101c7", "model.safetensors", len(BYTES), hashlib.sha256(BYTES).hexdigest())


@pytest.fixture
def server(monkeypatch):
    state = SimpleNamespace(requests=[], data=BYTES, stop_after=None, ranges=True, shift=0)

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            state.requests.append((self.path, self.headers.get("Range")))
            if self.path == "/owner/name/resolve/df101c7/model.safetensors":
                self.send_response(302)
                self.send_header("Location", "/cdn/blob?signature=x")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path != "/cdn/blob?signature=x":
                self.send_error(404)
                return
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers and state.ranges else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start + state.shift}-{len(state.data) - 1}/{len(state.data)}")
            body = state.data[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.stop_after])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def test_follows_the_redirect_once_and_then_has_the_file(server, tmp_path):
    told = []
    path = download(FILE, tmp_path, lambda done, total: told.append((done, total)))
    assert path.read_bytes() == BYTES and told[-1] == (len(BYTES), len(BYTES))
    assert len(server.requests) == 2 and list(tmp_path.iterdir()) == [path]
    assert download(FILE, tmp_path) == path and len(server.requests) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:1000]], ids=["a bit", "cut short"])
def test_a_damaged_file_is_downloaded_again(server, tmp_path, monkeypatch, damage):
    path = download(FILE, tmp_path)
    path.write_bytes(damage(BYTES))
    with monkeypatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(InputError, match=r"model\.safetensors is damaged, and HF_HUB_OFFLINE.*--weights"):
            download(FILE, tmp_path)
        assert len(server.requests) == 2
    assert download(FILE, tmp_path) == path and path.read_bytes() == BYTES and len(server.requests) == 4


@pytest.mark.parametrize("ranges", [True, False])
def test_goes_on_where_the_connection_broke(server, tmp_path, ranges):
    server.stop_after = 100_000
    with pytest.raises(InputError, match=r"after 100,000 of 300,000 bytes|cannot be reached"):
        download(FILE, tmp_path)
    (part,) = tmp_path.iterdir()
    assert part.name.endswith(".part") and part.stat().st_size == 100_000
    server.stop_after, server.ranges = None, ranges
    assert download(FILE, tmp_path).read_bytes() == BYTES
    assert server.requests[-1] == ("/cdn/blob?signature=x", "bytes=100000-")


def test_an_interruption_keeps_what_arrived(server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "CHUNK", 50_000)

    def interrupt(done, total):
        if done >= 150_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(FILE, tmp_path, interrupt)
    assert next(tmp_path.iterdir()).stat().st_size == 150_000
    assert download(FILE, tmp_path).read_bytes() == BYTES and server.requests[-1][1] == "bytes=150000-"


def test_another_part_than_the_rest_is_not_added(server, tmp_path):
    server.stop_after = 100_000
    with pytest.raises(InputError):
        download(FILE, tmp_path)
    server.stop_after, server.shift = None, 7
    with pytest.raises(InputError, match="another part than the one from byte 100,000"):
        download(FILE, tmp_path)
    assert next(tmp_path.iterdir()).stat().st_size == 100_000
    server.shift = 0
    assert download(FILE, tmp_path).read_bytes() == BYTES


def test_wrong_bytes_are_refused_and_removed(server, tmp_path):
    server.data = BYTES[:-1] + bytes([BYTES[-1] ^ 1])
    with pytest.raises(ChecksumError, match=r"--weights"):
        download(FILE, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_size_is_refused_before_it_is_fetched(server, tmp_path):
    server.data = BYTES + b"x"
    with pytest.raises(InputError, match=r"300,001 bytes.*wanted: 300,000"):
        download(FILE, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(hub.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        with pytest.raises(InputError, match=r"1,000 bytes free; wanted: 300,000"):
            download(FILE, tmp_path)
        assert not server.requests
    (tmp_path / f"{FILE.sha256[:8]}-model.safetensors.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space left on device"):
        download(FILE, tmp_path)


def test_offline_says_what_to_fetch_from_where(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(InputError, match=r"resolve/df101c7/model\.safetensors.*cannot be reached.*300,000 bytes.*--weights"):
        download(FILE, tmp_path)


def test_a_file_that_is_not_there(server, tmp_path):
    with pytest.raises(InputError, match="404"):
        download(HubFile("owner/other", "df101c7", "a.bin", 5, "0" * 64), tmp_path)


def test_depth_export_downloads_what_was_not_given(server, tmp_path, monkeypatch, capsys):
    """A file of the published kind stands in for the 3.7 GB; the small network's names and sizes are the published ones but for the widths."""
    from fathom.export.commands.export_command import main
    from fathom.models import catalog

    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path / "cache"))
    weights = (catalog.DEMO_WEIGHTS / "depthclip-tiny.safetensors").read_bytes()
    server.data = weights
    pinned = dataclasses.replace(FILE, nbytes=len(weights), sha256=hashlib.sha256(weights).hexdigest())
    monkeypatch.setitem(catalog.NETWORKS, "depthclip-tiny", dataclasses.replace(catalog.NETWORKS["depthclip-tiny"], hub=pinned))
    assert main(["--model", "depthclip-tiny", "-o", str(tmp_path / "bundle"), "--quiet"]) == 0
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["network"]["weights"]["sha256"] == pinned.sha256
    asked = len(server.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["--model", "depthclip-tiny", "-o", str(tmp_path / "again"), "--quiet"]) == 0 and len(server.requests) == asked
    assert main(["--model", "evp", "-o", str(tmp_path / "evp"), "--quiet"]) == 3
    assert "MykolaL/evp_depth/resolve/df101c7/model.safetensors" in capsys.readouterr().err


def test_only_commits_are_pinned():
    with pytest.raises(ValueError, match="a commit"):
        HubFile("owner/name", "main", "a.bin", 5, "0" * 64)


def test_a_pin_that_is_known_in_part_says_so():
    assert HubFile("owner/name", "a" * 40, "model.bin", 5, "0" * 64).doubt == ""
    assert "7 of 40 digits of its commit and 8 of 64 digits of its SHA-256" in HubFile("owner/name", "df101c7", "model.bin", 5, "0" * 8).doubt
    assert "40 digits" not in HubFile("owner/name", "a" * 40, "model.bin", 5, "0" * 8).doubt
