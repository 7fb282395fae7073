"""Ten frames a second of a film as JPEG files, beside the ffmpeg binary that writes the same.

The binary is the one in the wheel `imageio-ffmpeg`, or the one on the PATH; without either our own speed is all there
is. Its `-q:v 3` and our default are equally sharp (46 dB of brightness on this film). Its colours are off: it leaves
them coded as in the film, and JPEG knows one coding only.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from benchmarks._report import Figure, median, options, report
from dailies.media.frames import write_frames
from dailies.media.pictures import Pictures

SIZE, RATE = (1920, 1080), 30
MADE_SECONDS, TIMES = 10, 6
TICKS = Fraction(10)
ROUNDS = 5
SHARPNESS = "3"


def measure(chosen: argparse.Namespace) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = film(folder / "film.mp4")
        seconds = MADE_SECONDS * TIMES
        ways: dict[str, Callable[[], object]] = {
            "decode alone": lambda: deque(Pictures(path).each(), maxlen=0),
            "write_frames": lambda: write_frames(path, folder / "ours", TICKS),
        }
        if binary := _ffmpeg():
            ways["ffmpeg"] = lambda: _write_with(binary, path, folder / "theirs")
        rounds = [{way: _timed(work) for way, work in ways.items()} for _ in range(chosen.rounds)]
        if binary:
            _check_the_same_count(folder / "ours", folder / "theirs")
    figures = [median(way, [seconds / each[way].wall for each in rounds], "× realtime") for way in ways]
    figures += [
        median(f"{way}, on one core", [seconds / each[way].cpu for each in rounds], "× realtime") for way in ways
    ]
    if binary:
        faster = [each["ffmpeg"].wall / each["write_frames"].wall for each in rounds]
        cheaper = [each["ffmpeg"].cpu / each["write_frames"].cpu for each in rounds]
        figures.append(median("write_frames over ffmpeg", faster, "× its speed", at_least=1.0, note=_version(binary)))
        figures.append(median("ffmpeg over write_frames", cheaper, "× its processor time"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [*figures, Figure("peak memory, film made in it", peak, "MiB")]


def film(path: Path) -> Path:
    """Grain over a slow pan; the same seconds again and again, as only the first of them need encoding."""
    part = path.with_name("part.mp4")
    with av.open(str(part), "w") as output:
        stream: Any = output.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "24"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(MADE_SECONDS * RATE):
            frame = av.VideoFrame.from_ndarray(_picture(number), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with av.open(str(path), "w") as output, av.open(str(part)) as source:
        stream = output.add_stream_from_template(source.streams.video[0])
        for turn in range(TIMES):
            source.seek(0)
            for packet in source.demux(video=0):
                if packet.dts is not None and packet.pts is not None:
                    ahead = round(turn * MADE_SECONDS / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + ahead, packet.dts + ahead, stream
                    output.mux(packet)
    return path


def _picture(number: int) -> np.ndarray[Any, Any]:
    width, height = SIZE
    wide, grain = _texture()
    left = number * 6 % width & ~1
    noise = np.roll(grain, (number * 37 % height, number * 101 % width), axis=(0, 1))
    brightness = np.clip(wide[:, left : left + width] + noise, 16, 235).astype(np.uint8)
    colour = (wide[::2, left : left + width : 2] // 4).astype(np.uint8)
    chroma = np.stack([colour + 100, 156 - colour]).reshape(height // 2, width)
    return np.concatenate([brightness, chroma])


@lru_cache(maxsize=1)
def _texture() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Twice as wide as the picture, which pans over it; and the grain of the film."""
    width, height = SIZE
    rng = np.random.default_rng(7)
    whole = np.zeros((height, 2 * width))
    for cells, weight in ((6, 0.5), (20, 0.3), (90, 0.2)):
        noise = Image.fromarray(rng.integers(16, 235, (cells, 2 * cells), dtype=np.uint8))
        whole += weight * np.asarray(noise.resize((2 * width, height), Image.Resampling.BICUBIC))
    return whole.astype(np.int16), rng.normal(0, 5, (height, width)).astype(np.int16)


def _write_with(binary: str, path: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = str(folder / "frame_%010d.jpg")
    rate = ["-vf", f"fps={TICKS}", "-q:v", SHARPNESS]
    subprocess.run([binary, "-nostdin", "-v", "error", "-i", str(path), *rate, files], check=True)


@dataclass(frozen=True)
class Spent:
    """Seconds; those of the processor say the same on a busy machine."""

    wall: float
    cpu: float


def _timed(work: Callable[[], object]) -> Spent:
    began, used = time.perf_counter(), _processor()
    work()
    return Spent(time.perf_counter() - began, _processor() - used)


def _processor() -> float:
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in each)


def _check_the_same_count(ours: Path, theirs: Path) -> None:
    counts = [len(list(folder.glob("*.jpg"))) for folder in (ours, theirs)]
    if counts[0] != counts[1]:
        raise RuntimeError(f"not the same work: {counts[0]} files and {counts[1]}")


def _ffmpeg() -> str | None:
    try:
        return str(import_module("imageio_ffmpeg").get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return shutil.which("ffmpeg")


def _version(binary: str) -> str:
    said = subprocess.run([binary, "-version"], capture_output=True, text=True, check=True).stdout
    return " ".join(said.split()[:3])


if __name__ == "__main__":
    parser = options("Frames of a film as JPEG files")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    report(parser, measure)
