"""Reading text in pictures: one interface, and the engine whose models come in the wheel.

Pictures are grey (height, width) and boxes are in their pixels. Detection costs by area, so that it works on a picture
made small; recognition reads each line from the full one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from dailies.errors import NotConfigured

Gray = NDArray[np.uint8]
Value = TypeVar("Value", bound=np.generic)

# A line of captions is then 14 to 30 pixels high, where the detector is surest; 4 to 12 ms a strip on one core.
STRIP_WIDTH, CLOSE_WIDTH = 640, 960
FRAME_SIDE = 640
NARROWEST = 32
CUDA = "CUDAExecutionProvider"
# What the recogniser was taught on.
LINE_HEIGHT, LEAST_WIDTH = 48, 320
SPACE_SHARE = 0.045


@dataclass(frozen=True)
class Box:
    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def middle(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def union(self, other: Box) -> Box:
        return Box(
            min(self.left, other.left),
            min(self.top, other.top),
            max(self.right, other.right),
            max(self.bottom, other.bottom),
        )

    def padded(self, across: int, along: int, width: int, height: int) -> Box:
        """Wider by `along` and higher by `across` on each side, within a picture of that size."""
        return Box(
            max(0, self.left - along),
            max(0, self.top - across),
            min(width, self.right + along),
            min(height, self.bottom + across),
        )

    def moved(self, x: int, y: int) -> Box:
        return Box(self.left + x, self.top + y, self.right + x, self.bottom + y)

    def cut(self, picture: NDArray[Value]) -> NDArray[Value]:
        return picture[self.top : self.bottom, self.left : self.right]

    def same_row(self, other: Box) -> bool:
        shared = min(self.bottom, other.bottom) - max(self.top, other.top)
        return shared > 0.5 * min(self.height, other.height)

    def gap(self, other: Box) -> int:
        """How far apart two boxes are along the line; below zero where they overlap."""
        return max(self.left, other.left) - min(self.right, other.right)


@dataclass(frozen=True)
class Line:
    text: str
    confidence: float
    box: Box


class Engine(Protocol):
    device: str

    def find(self, image: Gray, *, closely: bool = False) -> list[Box]:
        """One box a line, top to bottom; detection only. A line of two letters may want a closer look."""
        ...

    def read_lines(self, image: Gray, boxes: Sequence[Box], *, stretch: float = 1.0) -> list[Line]:
        """What stands in boxes that are known already, in their order; an empty text where nothing does.

        Letters that stand close are told apart better in a picture that is stretched along the line.
        """
        ...

    def read(self, image: Gray) -> list[Line]: ...


class RapidEngine:
    """PP-OCR through `rapidocr`. Built once a process by `engine()`: the models take a second to load."""

    def __init__(self, threads: int | None = None) -> None:
        self._rapid = _rapid(_offers_cuda(), threads or 1)
        self._rapid.recognize_txt([np.zeros((LINE_HEIGHT, LEAST_WIDTH, 3), np.uint8)])
        self._recogniser = self._rapid.text_rec
        # What is at work and not what is offered: where a driver does not fit, the CPU takes over without a word.
        self.device = "cuda" if CUDA in self._recogniser.session.session.get_providers() else "cpu"
        self._letters: list[str] = self._recogniser.postprocess_op.character
        self.finds = self.reads = 0

    def find(self, image: Gray, *, closely: bool = False) -> list[Box]:
        height, width = image.shape
        scale = min(
            1.0,
            (CLOSE_WIDTH if closely else STRIP_WIDTH) / width
            if width > 2 * height
            else FRAME_SIDE / max(width, height),
        )
        size = (max(NARROWEST, round(width * scale)), max(NARROWEST, round(height * scale)))
        small = image if size == (width, height) else resized(image, size)
        self.finds += 1
        found = self._rapid(_colour(small), use_det=True, use_cls=False, use_rec=False)
        boxes = [] if found is None or found.boxes is None else found.boxes
        return rows(
            [_upright(corners, width / size[0], height / size[1], image.shape) for corners in np.asarray(boxes)]
        )

    def read_lines(self, image: Gray, boxes: Sequence[Box], *, stretch: float = 1.0) -> list[Line]:
        self.reads += len(boxes)
        lines = []
        for box in boxes:
            text, confidence = self._said(with_room(box, image).cut(image), stretch)
            lines.append(Line(unicodedata.normalize("NFKC", text).strip(), confidence, box))
        return lines

    def _said(self, cut: Gray, stretch: float) -> tuple[str, float]:
        """One line at a time: in a batch the width of its neighbours would change what is read."""
        width = max(LINE_HEIGHT // 4, round(cut.shape[1] * stretch * LINE_HEIGHT / cut.shape[0]))
        sheet = np.zeros((1, 3, LINE_HEIGHT, max(LEAST_WIDTH, width)), np.float32)
        sheet[0, :, :, :width] = resized(cut, (width, LINE_HEIGHT)).astype(np.float32) / 127.5 - 1
        return spelt(self._recogniser.session(sheet)[0], self._letters)

    def read(self, image: Gray) -> list[Line]:
        return [line for line in self.read_lines(image, self.find(image)) if line.text]


@lru_cache(maxsize=1)
def engine() -> RapidEngine:
    return RapidEngine()


def spelt(shares: NDArray[np.float32], letters: Sequence[str]) -> tuple[str, float]:
    """(text, confidence) of the recogniser's table: for each place along the line a share for each letter.

    The first letter stands for none. A space is narrow, and often loses to none in each of its places; but inside a
    word it never has a share at all, so that a small one is enough.
    """
    best, space = shares.argmax(axis=1), shares[:, -1]
    text, sure, blank = "", [], 0.0
    before = 0
    for place, letter in enumerate(best):
        if letter == 0:
            blank += float(space[place])
        elif letter != before:
            gap = " " if text and blank >= SPACE_SHARE and text[-1] != " " and letters[letter] != " " else ""
            text += gap + letters[letter]
            sure.append(float(shares[place, letter]))
            blank = 0.0
        before = letter
    return text, round(sum(sure) / len(sure), 5) if sure else 0.0


def with_room(box: Box, image: Gray) -> Box:
    """The recogniser wants some air around the letters, and the detector cuts accents off."""
    return box.padded(round(box.height * 0.1), round(box.height * 0.2), image.shape[1], image.shape[0])


def rows(boxes: Sequence[Box]) -> list[Box]:
    """Pieces of one line joined, top to bottom: the detector parts a line at wide spaces."""
    joined: list[Box] = []
    for box in sorted(boxes, key=lambda box: (box.left, box.top)):
        for place, row in enumerate(joined):
            if row.same_row(box) and row.gap(box) < 1.2 * min(row.height, box.height):
                joined[place] = row.union(box)
                break
        else:
            joined.append(box)
    return sorted(joined, key=lambda box: (box.top, box.left))


def resized(image: Gray, size: tuple[int, int]) -> Gray:
    """(width, height); by area where it shrinks, as thin strokes vanish otherwise."""
    method = cv2.INTER_AREA if size[1] < image.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(image), size, interpolation=method), np.uint8)


def _colour(image: Gray) -> NDArray[Any]:
    return np.repeat(image[:, :, None], 3, axis=2)


def _upright(corners: NDArray[Any], across: float, along: float, shape: tuple[int, ...]) -> Box:
    left, top = corners.min(axis=0)
    right, bottom = corners.max(axis=0)
    return Box(
        max(0, int(left * across)),
        max(0, int(top * along)),
        min(shape[1], int(np.ceil(right * across))),
        min(shape[0], int(np.ceil(bottom * along))),
    )


def _offers_cuda() -> bool:
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError as error:
        raise NotConfigured("reading captions needs onnxruntime: install dailies again") from error
    return CUDA in onnxruntime.get_available_providers()


def _rapid(cuda: bool, threads: int) -> Any:
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise NotConfigured("reading captions needs rapidocr: install dailies again") from error
    return RapidOCR(
        params={
            # Its own logger writes to the terminal, into our progress bars.
            "Global.log_level": "critical",
            "Global.text_score": 0.0,
            "Global.use_vertical_padding": False,
            # The picture comes in the size that we want; these keep it so.
            "Global.max_side_len": 100_000,
            "Global.min_side_len": NARROWEST,
            "Det.limit_type": "max",
            "Det.limit_side_len": 100_000,
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "EngineConfig.onnxruntime.use_cuda": cuda,
        }
    )
