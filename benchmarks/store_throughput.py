"""Stores against the plainest thing that moves the same bytes: a file copy, and boto3 alone on the same S3 server.

The store digests what it writes; the plain way does not. The S3 server is rclone's, on this machine, so the figures are
of clients and of a loop-back, not of a network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3

from benchmarks._report import Figure, median, options, report
from dailies.store.local import LocalFolder
from tests.servers.s3 import Server, rclone_serving

ROUNDS = 5
MIB = 1 << 20
Way = Callable[[Path, str], None]


def plain_copy(folder: Path) -> tuple[Way, Way]:
    """With the fsync that makes it comparable: who does not wait for the disk has not written yet."""

    def write(source: Path, key: str) -> None:
        target = folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())

    return write, lambda _, key: consume(folder / key)


def local_folder(folder: Path) -> tuple[Way, Way]:
    store = LocalFolder(folder)

    def read(_: Path, key: str) -> None:
        with store.local(key) as path:
            consume(path)

    return lambda source, key: store.put_file(key, source) and None, read


def plain_boto3(server: Server) -> tuple[Way, Way]:
    client: Any = boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )

    def read(target: Path, key: str) -> None:
        client.download_file(server.bucket, key, str(target))
        consume(target)

    return lambda source, key: client.upload_file(str(source), server.bucket, key), read


def s3_store(server: Server) -> tuple[Way, Way]:
    store = server.store(part_size=8 * MIB)

    def read(_: Path, key: str) -> None:
        with store.local(key) as path:
            consume(path)

    return lambda source, key: store.put_file(key, source) and None, read


def consume(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(MIB):
            pass


def rate(way: Way, files: list[tuple[Path, str]], size: int) -> float:
    begin = time.perf_counter()
    for path, key in files:
        way(path, key)
    return size * len(files) / MIB / (time.perf_counter() - begin)


def rounds(pairs: dict[str, tuple[Way, Way]], place: Path, label: str, count: int, size: int) -> list[Figure]:
    """Our way and the plain one take turns, so that whatever disturbs the machine disturbs both."""
    source = place / "source"
    source.write_bytes(os.urandom(size))
    found: dict[str, list[float]] = {f"{name} {what}": [] for name in pairs for what in ("write", "read")}
    for number in range(ROUNDS):
        for name, (write, read) in pairs.items():
            keys = [f"acme/server/videos/v1/{label}/{number}-{each}" for each in range(count)]
            found[f"{name} write"].append(rate(write, [(source, key) for key in keys], size))
            targets = [(place / f"target-{each}", key) for each, key in enumerate(keys)]
            found[f"{name} read"].append(rate(read, targets, size))
    ours, plain = pairs
    figures = [median(f"{name}, {label}", values, "MiB/s") for name, values in found.items()]
    for what in ("write", "read"):
        ratios = [a / b for a, b in zip(found[f"{ours} {what}"], found[f"{plain} {what}"], strict=True)]
        figures.append(median(f"{ours} against {plain}, {what}, {label}", ratios, "×"))
    return figures


def measure(chosen: argparse.Namespace) -> list[Figure]:
    sizes = {"100 × 1 MiB": (100, MIB), "1 × 200 MiB": (1, 200 * MIB)}
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name, rclone_serving(Path(name)) as server:
        place = Path(name)
        kinds: list[dict[str, tuple[Way, Way]]] = [
            {"LocalFolder": local_folder(place / "store"), "file copy": plain_copy(place / "plain")},
            {"S3Store": s3_store(server), "boto3": plain_boto3(server)},
        ]
        for pairs in kinds:
            for label, (count, size) in sizes.items():
                figures += rounds(pairs, place, label, max(count // chosen.part, 1), size // chosen.part)
    return figures


if __name__ == "__main__":
    parser = options("Stores against the plainest way")
    parser.add_argument("--part", type=int, default=1, metavar="N", help="a Nth of the files and of their size")
    report(parser, measure)
