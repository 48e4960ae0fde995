"""A real object store on this machine, and a way to it on which things go wrong.

The store is moto's S3 server in a process of its own, one for a whole run of tests. A test talks to it
through a `Proxy`, a process's own endpoint, which counts requests and holds or cuts them where the test
says so; the driver (s3fs) and everything above it are the real ones.
"""

from __future__ import annotations

import atexit
import functools
import re
import secrets
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BUCKET = "bucket"
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until whoever started this is gone
"""
REQUEST = re.compile(rb"(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP/1\.1\r\n")


@functools.cache
def server_port() -> int:
    """Port of the store, which is started when it is first asked for."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a line for every request
    )
    atexit.register(process.kill)
    assert process.stdout is not None
    return int(process.stdout.readline())


@dataclass
class Trouble:
    """What happens to requests of a method whose path ends in `path`.

    after: bytes of the answer that still get through; None: the request itself does not.
    cut:   the connection is closed there; else it is held until `go` is set.
    times: so many requests meet it.
    """

    method: str
    path: str
    after: int | None = None
    cut: bool = False
    times: int = 1
    happened: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Until it happens."""
        assert self.happened.wait(60), f"no {self.method} of {self.path} came"

    def meet(self) -> None:
        """Called by the connection that it happens to."""
        self.happened.set()
        if self.cut:
            raise ConnectionAbortedError
        self.go.wait(120)


class Proxy(socketserver.ThreadingTCPServer):
    """Passes everything on to the store, but for its troubles. requests: "GET /bucket/key", in order."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.upstream = server_port()
        self.requests: list[str] = []
        self.troubles: list[Trouble] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def trouble(self, method: str, path: str, **options: object) -> Trouble:
        """From now on."""
        self.troubles.append(Trouble(method, path, **options))  # type: ignore[arg-type]
        return self.troubles[-1]

    def count(self, method: str, path: str) -> int:
        """Requests so far of a method whose path ends in `path`."""
        return sum(each.startswith(f"{method} ") and each.endswith(path) for each in self.requests)

    def close(self) -> None:
        """From now on nobody answers at this port."""
        for trouble in self.troubles:
            trouble.go.set()
        self.shutdown()
        self.server_close()

    def met_by(self, method: str, path: str) -> Trouble | None:
        for trouble in self.troubles:
            if trouble.method == method and path.endswith(trouble.path) and trouble.times:
                trouble.times -= 1
                return trouble
        return None


class _Connection(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        self.trouble: Trouble | None = None
        self.passed = 0
        with socket.create_connection(("127.0.0.1", self.server.upstream)) as store:
            answers = threading.Thread(target=self.answers, args=(store,), daemon=True)
            answers.start()
            try:
                while data := self.request.recv(1 << 16):
                    begin = REQUEST.match(data)
                    if begin:
                        method, path = begin[1].decode(), begin[2].decode().split("?")[0]
                        self.server.requests.append(f"{method} {path}")
                        self.trouble, self.passed = self.server.met_by(method, path), 0
                        if self.trouble and self.trouble.after is None:
                            self.trouble.meet()
                    store.sendall(data)
            except OSError:
                pass
            _shut(store, self.request)

    def answers(self, store: socket.socket) -> None:
        try:
            while data := store.recv(1 << 16):
                trouble = self.trouble
                if trouble and trouble.after is not None and self.passed + len(data) > trouble.after:
                    self.request.sendall(data[: trouble.after - self.passed])
                    trouble.meet()
                    data = data[trouble.after - self.passed :]
                    self.trouble = None
                self.request.sendall(data)
                self.passed += len(data)
        except OSError:
            pass
        _shut(store, self.request)


def _shut(*sockets: socket.socket) -> None:
    for each in sockets:
        try:
            each.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Proxy]:
    """The store through a proxy that this process and its children use, with a cache of its own."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    proxy = Proxy()
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": proxy.url,
        "INSTANCE_MOTION_CACHE": str(cache),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # it remembers the endpoint
    fs = s3fs.S3FileSystem()
    if not fs.exists(BUCKET):
        fs.mkdir(BUCKET)
    proxy.requests.clear()
    try:
        yield proxy
    finally:
        proxy.close()
        s3fs.S3FileSystem.clear_instance_cache()


def new_url() -> str:
    """A place in the store that nothing has been put at."""
    return f"s3://{BUCKET}/{secrets.token_hex(6)}/kitti"


def s3() -> object:
    """The driver's file system, which sees the store as it is now."""
    import s3fs

    fs = s3fs.S3FileSystem()
    fs.invalidate_cache()
    return fs


def objects(url: str) -> dict[str, bytes]:
    """Every object below a URL, by name."""
    fs, root = s3(), url.removeprefix("s3://")
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}  # type: ignore[attr-defined]


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a local set, by name."""
    paths = [folder / "shardset.json", *folder.rglob("*.h5")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def entries(cache: Path, kind: str = "h5") -> list[Path]:
    """What is in a cache: h5, lock or download."""
    return sorted(cache.rglob(f"*.{kind}"))


def wait_for(condition, process: subprocess.Popen | None = None) -> None:  # type: ignore[no-untyped-def, type-arg]
    """Until `condition()` holds; a process that ends first is an error."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None, "the process ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)
