"""A decoded frame as an array that shows what a player shows: in grey for reading, in colour for looking.

Pictures lie as they are coded: turning them upright is for the caller, who may need a part only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

PQ = 16
FULL_RANGE = 2
# What an HDR picture means by white paper, in candela a square metre (ITU-R BT.2408).
WHITE = 203.0
KNEE = 0.75
# Times white paper; all above is white on our screen.
BRIGHTEST = 8.0
# Text on a transparent ground may be black or white: only on this do both show.
GROUND = 112
SPACES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
BT709, BT601, BT2020 = 1, 5, 9
HD_HEIGHT, HD_WIDTH = 720, 1280
TO_BT709 = np.array([[1.1187, -0.1006, -0.0182], [-0.0083, 1.1329, -0.1246], [-0.0728, -0.5876, 1.6605]], np.float32)


def luma(frame: Any) -> Bytes:
    """The first plane of what most codecs give is the picture in grey already."""
    kind = frame.format
    if kind.name.startswith("pal") or _has_alpha(kind):
        return np.asarray(cv2.cvtColor(_on_ground(frame), cv2.COLOR_BGR2GRAY), np.uint8)
    bits = kind.components[0].bits
    plane = _first_plane(frame, kind.name, bits)
    if plane is None:
        grey = np.asarray(frame.to_ndarray(format="gray"), np.uint8)
        return np.asarray(_sdr(8, full=True)[grey], np.uint8) if frame.color_trc == PQ else grey
    if frame.color_trc == PQ:
        return np.asarray(_sdr(bits, full=frame.color_range == FULL_RANGE)[plane], np.uint8)
    return np.asarray(plane if bits == 8 else plane >> (bits - 8)).astype(np.uint8, copy=False)


def colour(frame: Any, size: tuple[int, int] | None = None) -> Bytes:
    """Blue, green, red; `size` is (width, height) of the picture as it is coded."""
    if _has_alpha(frame.format) or frame.format.name.startswith("pal"):
        picture = _on_ground(frame)
    else:
        picture = _to_array(frame, "bgr24")
    if frame.color_trc == PQ:
        picture = _from_pq(picture)
    if size and size != (picture.shape[1], picture.shape[0]):
        shrinks = size[0] * size[1] < picture.shape[0] * picture.shape[1]
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))
    return picture


def upright(picture: Bytes, rotation: int) -> Bytes:
    """`rotation` is in degrees clockwise; a view, not a copy."""
    return np.rot90(picture, -rotation // 90)


def _first_plane(frame: Any, name: str, bits: int) -> NDArray[Any] | None:
    """The brightness as it was coded, without a copy; none where it does not lie in a plane of its own."""
    planar = name.startswith(("yuv", "nv", "gray")) and not name.startswith("yuyv")
    if not planar or bits > 16 or (bits > 8 and not name.endswith("le")):
        return None
    plane = frame.planes[0]
    dtype = np.uint8 if bits == 8 else np.uint16
    if bits < 8 or plane.line_size < frame.width * np.dtype(dtype).itemsize:
        return None
    return np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : frame.width]


def _to_array(frame: Any, kind: str) -> Bytes:
    return np.asarray(frame.reformat(format=kind, src_colorspace=_space(frame), threads=1).to_ndarray(), np.uint8)


def _space(frame: Any) -> int:
    """A film that does not say what its colours mean means by them what players take them for, by its size."""
    hd = frame.height >= HD_HEIGHT or frame.width >= HD_WIDTH
    return SPACES.get(int(frame.colorspace), BT709 if hd else BT601)


def _has_alpha(kind: Any) -> bool:
    return any(component.is_alpha for component in kind.components)


def _on_ground(frame: Any) -> Bytes:
    picture = _to_array(frame, "bgra")
    cover = picture[..., 3:].astype(np.uint16)
    return np.asarray((picture[..., :3] * cover + GROUND * (255 - cover) + 127) // 255, np.uint8)


def _light(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of codes from 0 to 1 by SMPTE ST 2084, where 1.0 is white paper."""
    root = np.power(code, 1 / 78.84375)
    light = np.power(np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root), 1 / 0.1593017578125)
    return np.asarray(light * 10_000 / WHITE)


def _shown(light: NDArray[Any]) -> NDArray[Any]:
    """What is brighter than paper is pressed into the last quarter, so that text stands out on it still."""
    light = np.maximum(light, 0)
    pressed = KNEE + (1 - KNEE) * (1 - np.exp(-(np.maximum(light, KNEE) - KNEE) / (1 - KNEE)))
    return np.asarray(np.power(np.where(light > KNEE, pressed, light), 1 / 2.2) * 255)


@lru_cache(maxsize=8)
def _sdr(bits: int, *, full: bool) -> Bytes:
    """A table from a code of so many bits to what a plain screen shows."""
    codes = np.arange(1 << bits, dtype=np.float64)
    unit = 1 << (bits - 8)
    low, high = (0, (1 << bits) - 1) if full else (16 * unit, 235 * unit)
    return np.round(_shown(_light(np.clip((codes - low) / (high - low), 0, 1)))).astype(np.uint8)


@lru_cache(maxsize=1)
def _tables() -> tuple[NDArray[np.float32], Bytes]:
    codes = np.arange(256) / 255
    steps = np.arange(65536) / 65535 * BRIGHTEST
    return _light(codes).astype(np.float32), np.round(_shown(steps)).astype(np.uint8)


def _from_pq(picture: Bytes) -> Bytes:
    """Colours of BT.2020 as those of BT.709, in light, where alone they may be mixed."""
    to_light, to_code = _tables()
    light = cv2.transform(to_light[picture], TO_BT709)
    return np.asarray(to_code[np.clip(light * (65535 / BRIGHTEST), 0, 65535).astype(np.uint16)], np.uint8)
