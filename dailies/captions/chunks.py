"""The crop at ten samples a second as WebM files: small enough to keep, and any browser plays them.

    writer = ChunkWriter(folder)
    writer.add(120, strip)                              # 12 s on the player's timeline, which is also the file's
    chunks = writer.close()
    for index, strip in read_chunks([chunk.path for chunk in chunks], 120, 150): …

The same samples give the same bytes on any machine: one encoder thread, and nothing in the files that tells a clock or
a library's version.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from dailies.canonical import write_atomically
from dailies.captions.ocr import Gray
from dailies.errors import Missing, Unreadable

CHUNK_FRAMES = 256
NAME = "chunk_{:010d}.webm"
SIZE_TAG = "SIZE"
# Constant quality. Letters of 20 pixels read the same up to a quantiser of about 40.
OPTIONS = {
    "deadline": "realtime",
    "cpu-used": "8",
    "crf": "24",
    "b": "0",
    # No frame that is never shown, none that waits for later ones: one picture in, one out.
    "lag-in-frames": "0",
    "auto-alt-ref": "0",
    "row-mt": "0",
    "flags": "+bitexact",
}


@dataclass(frozen=True)
class Chunk:
    """Both indexes are of samples that are in it."""

    path: Path
    first_index: int
    last_index: int


class ChunkWriter:
    """`add` in rising order; an index given twice counts once, with the later picture. A missing one shows the last."""

    def __init__(self, folder: Path, rate: Fraction = Fraction(10)) -> None:
        self.folder = folder
        self.rate = Fraction(rate)
        self._chunks: list[Chunk] = []
        self._held: tuple[int, NDArray[np.uint8]] | None = None
        self._file: _File | None = None

    def add(self, index: int, picture: NDArray[np.uint8]) -> None:
        """`picture`: (height, width) grey or (height, width, 3) red, green, blue; all of one size."""
        if self._held and index < self._held[0]:
            raise ValueError(f"sample {index} comes after sample {self._held[0]}")
        if self._held and index > self._held[0]:
            self._write(*self._held)
        self._held = index, picture

    def close(self) -> list[Chunk]:
        if self._held:
            self._write(*self._held)
            self._held = None
        self._end()
        return self._chunks

    def _write(self, index: int, picture: NDArray[np.uint8]) -> None:
        if self._file and self._file.frames == CHUNK_FRAMES:
            self._end()
        if self._file is None:
            self._file = _File(index, picture, self.rate)
        self._file.add(index, picture)

    def _end(self) -> None:
        if self._file:
            file, self._file = self._file, None
            path = self.folder / NAME.format(file.first)
            write_atomically(path, [file.bytes()])
            self._chunks.append(Chunk(path, file.first, file.last))


class _File:
    """In memory until it is whole: a name in the folder then always stands for a chunk that plays to its end."""

    def __init__(self, first: int, picture: NDArray[np.uint8], rate: Fraction) -> None:
        self.first = self.last = first
        self.frames = 0
        self.rate = rate
        self.height, self.width = picture.shape[:2]
        self._buffer = io.BytesIO()
        self._out = av.open(self._buffer, "w", format="webm", options={"fflags": "+bitexact"})
        # The codec wants even sides; a reader cuts off again what was added.
        self._out.metadata[SIZE_TAG] = f"{self.width}x{self.height}"
        stream: Any = self._out.add_stream("libvpx-vp9", rate=rate, options=OPTIONS)
        stream.width, stream.height = self.width + self.width % 2, self.height + self.height % 2
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = 1 / rate
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = CHUNK_FRAMES
        self._stream = stream

    def add(self, index: int, picture: NDArray[np.uint8]) -> None:
        if picture.shape[:2] != (self.height, self.width):
            raise ValueError(f"a picture of {picture.shape[1]}x{picture.shape[0]} among {self.width}x{self.height}")
        frame = _frame(picture)
        frame.pts, frame.time_base = index, 1 / self.rate
        self._out.mux(self._stream.encode(frame))
        self.last, self.frames = index, self.frames + 1

    def bytes(self) -> bytes:
        self._out.mux(self._stream.encode(None))
        self._out.close()
        return self._buffer.getvalue()


def read_chunks(
    paths: Iterable[Path], first: int, after: int, rate: Fraction = Fraction(10)
) -> Iterator[tuple[int, Gray]]:
    """What is on show at each sample from `first` up to, not including, `after`. Decodes no chunk that is not needed.

    A sample before the first picture that there is shows nothing, which is `Missing`.
    """
    chunks = sorted((_first_index(path), path) for path in paths)
    needed = [chunk for place, chunk in enumerate(chunks) if not _is_over(chunks, place, first) and chunk[0] < after]
    pictures = (shown for _, path in needed for shown in _pictures(path, rate))
    following = next(pictures, None)
    current: Gray | None = None
    for index in range(first, after):
        while following and following[0] <= index:
            current, following = following[1], next(pictures, None)
        if current is None:
            raise Missing(f"no chunk shows sample {index}: they begin at {chunks[0][0] if chunks else 'none'}")
        yield index, current


def _is_over(chunks: list[tuple[int, Path]], place: int, first: int) -> bool:
    return place + 1 < len(chunks) and chunks[place + 1][0] <= first


def _pictures(path: Path, rate: Fraction) -> Iterator[tuple[int, Gray]]:
    try:
        with av.open(str(path)) as opened:
            container: Any = opened
            width, height = map(int, container.metadata[SIZE_TAG].split("x"))
            index = -1
            for frame in container.decode(video=0):
                index, luma = round(frame.pts * frame.time_base * rate), frame.planes[0]
                table = np.frombuffer(luma, np.uint8).reshape(luma.height, luma.line_size)
                yield index, table[:height, :width].copy()
            # Half a file decodes without a word, and its last picture would stay on show for the rest.
            if index + 1 < round(container.duration * rate / 1_000_000):
                raise ValueError("it ends early")
    except FileNotFoundError as error:
        raise Missing(f"there is no {path.name}") from error
    except (av.FFmpegError, KeyError, ValueError, IndexError) as error:
        raise Unreadable(f"{path.name} is no chunk of samples, or a damaged one: read the film again") from error


def _first_index(path: Path) -> int:
    try:
        return int(path.stem.removeprefix("chunk_"))
    except ValueError as error:
        raise Unreadable(f"{path.name} is no chunk of samples: those are called {NAME.format(0)}") from error


def _frame(picture: NDArray[np.uint8]) -> Any:
    """Padded to even sides by its own edge, which is the cheapest to encode."""
    sides = [(0, side % 2) for side in picture.shape[:2]] + [(0, 0)] * (picture.ndim - 2)
    even = np.pad(picture, sides, mode="edge") if any(more for _, more in sides) else picture
    if picture.ndim == 3:
        # Whole numbers throughout: FFmpeg's own conversion differs from one processor to the next.
        planes = cv2.cvtColor(np.ascontiguousarray(even), cv2.COLOR_RGB2YUV_I420)
    else:
        planes = np.concatenate([even, np.full((even.shape[0] // 2, even.shape[1]), 128, np.uint8)])
    return av.VideoFrame.from_ndarray(np.asarray(planes, np.uint8), format="yuv420p")
