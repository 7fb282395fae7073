"""The text on whole frames, one after the other: what a layout is found from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from dailies.captions.databases import FrameText, RawOcr
from dailies.captions.ocr import Engine, Gray
from dailies.errors import Undecodable
from dailies.media.frames import Frame, Frames


def read_frames(frames: Frames, reader: Engine, tell: Callable[[float], None] = lambda part: None) -> RawOcr:
    """A frame that cannot be read is told with its reason and costs no other."""
    said = []
    for number, picture in enumerate(frames.pictures, 1):
        said.append(_read(picture, reader))
        tell(number / len(frames.pictures))
    return RawOcr(frames.width, frames.height, tuple(said))


def _read(picture: Frame, reader: Engine) -> FrameText:
    try:
        return FrameText(picture.index, picture.us, tuple(reader.read(gray(picture.path))))
    except Exception as error:  # noqa: BLE001 - whatever the engine stumbles over is this frame's own
        return FrameText(picture.index, picture.us, error=f"{type(error).__name__}: {error}"[:200])


def gray(path: Path) -> Gray:
    """Through bytes: OpenCV opens no file with an odd name on every system, and says nothing when it fails."""
    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise Undecodable(f"{path.name} is no picture")
    return np.asarray(picture, np.uint8)
