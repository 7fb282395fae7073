"""Test media, made by code: every frame says which one it is, to the eye and to a test.

    film = video(tmp_path / "film.mp4", seconds=2, tracks=[Track("deu", hertz=440)])
    frame_number(picture)            # reads the row of black and white blocks at the top of a decoded picture

The same call gives the same bytes: nothing random, no clock, one encoder thread.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

BITS = 16
BLOCKS = BITS + 2
AUDIO_CODECS = {".wav": "pcm_s16le", ".mp3": "libmp3lame", ".flac": "flac", ".ogg": "libopus", ".webm": "libopus"}
VFR_PATTERN = (1, 2, 1, 1, 4, 1, 3)

Draw = Callable[[Image.Image, int, Fraction], None]


@dataclass(frozen=True)
class Track:
    """One audio track: a tone of `hertz`, or `samples` (mono floats in -1…1) where a test needs its own sound."""

    language: str = ""
    hertz: float = 440.0
    rate: int = 48000
    channels: int = 2
    seconds: float | None = None
    samples: np.ndarray | None = None


def frame_times(seconds: float, rate: Fraction | int = 25, *, vfr: bool = False) -> list[Fraction]:
    """When each frame starts. With `vfr` the steps follow `VFR_PATTERN`, in units of 1/rate."""
    step = 1 / Fraction(rate)
    times, now = [], Fraction(0)
    while now < Fraction(seconds).limit_denominator(1000):
        times.append(now)
        now += step * (VFR_PATTERN[len(times) % len(VFR_PATTERN)] if vfr else 1)
    return times


def frame_picture(number: int, time: Fraction, size: tuple[int, int]) -> Image.Image:
    """The number in blocks (white, 16 bits, black) along the top; number and time as text; a colour that changes."""
    width, height = size
    red, green, blue = (int(255 * part) for part in colorsys.hsv_to_rgb(number * 0.07 % 1, 0.55, 0.6))
    picture = Image.new("RGB", size, (red, green, blue))
    draw = ImageDraw.Draw(picture)
    row = _block_height(height)
    for place, bit in enumerate([1, *(number >> shift & 1 for shift in reversed(range(BITS))), 0]):
        left, right = place * width // BLOCKS, (place + 1) * width // BLOCKS
        draw.rectangle((left, 0, right - 1, row - 1), fill=(255,) * 3 if bit else (0,) * 3)
    text = f"{number}\n{float(time):.3f}"
    draw.multiline_text(
        (width // 2, height // 2), text, fill="white", font=_font(height // 5), anchor="mm", align="center"
    )
    return picture


def frame_number(picture: Image.Image | np.ndarray) -> int:
    """Reads the blocks of an upright picture; raises ValueError where it carries none."""
    grey = np.asarray(picture.convert("L") if isinstance(picture, Image.Image) else picture, dtype=float)
    grey = grey.mean(axis=2) if grey.ndim == 3 else grey
    height, width = grey.shape
    centre = _block_height(height) // 2
    levels = [grey[centre - 1 : centre + 2, int((place + 0.5) * width / BLOCKS)].mean() for place in range(BLOCKS)]
    if levels[0] < 160 or levels[-1] > 96 or any(96 <= level <= 160 for level in levels):
        raise ValueError(f"no frame number in this picture: {[round(level) for level in levels]}")
    return int("".join("1" if level > 128 else "0" for level in levels[1:-1]), 2)


def video(
    path: Path,
    *,
    seconds: float = 2.0,
    rate: Fraction | int = 25,
    size: tuple[int, int] = (320, 240),
    codec: str = "libx264",
    vfr: bool = False,
    rotation: int = 0,
    aspect: Fraction | int = 1,
    start: float = 0.0,
    gop: int = 25,
    faststart: bool = False,
    tracks: Sequence[Track] = (),
    draw: Draw | None = None,
) -> Path:
    """`size` is the coded size. With `rotation` (degrees clockwise) the pictures are stored turned, so that a player
    that obeys the display matrix shows them upright. `draw` may paint over each picture (captions, say)."""
    times = frame_times(seconds, rate, vfr=vfr)
    shown = size[::-1] if rotation % 180 else size
    options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", options={"fflags": "+bitexact", **options}) as output:
        stream: Any = output.add_stream(codec, rate=Fraction(rate), options=_codec_options(codec))
        stream.width, stream.height = size
        stream.pix_fmt = _pixel_format(codec, size)
        stream.time_base = stream.codec_context.time_base = 1 / Fraction(rate)
        stream.codec_context.gop_size = gop
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(-rotation)
        sounds = [_add_track(output, track, path.suffix) for track in tracks]
        pending = [_sound(track, sound, seconds, start) for track, sound in zip(tracks, sounds, strict=True)]
        for number, time in enumerate(times):
            picture = frame_picture(number, time, shown)
            if draw:
                draw(picture, number, time)
            frame = av.VideoFrame.from_image(picture.rotate(rotation, expand=True) if rotation else picture)
            frame.time_base = stream.codec_context.time_base
            frame.pts = round((time + Fraction(start)) / frame.time_base)
            output.mux(stream.encode(frame))
            for sound, chunks in zip(sounds, pending, strict=True):
                _encode_until(output, sound, chunks, float(time) + start)
        output.mux(stream.encode(None))
        for sound, chunks in zip(sounds, pending, strict=True):
            _encode_until(output, sound, chunks, float("inf"))
            output.mux(sound.encode(None))
    return path


def audio(path: Path, *, seconds: float = 2.0, tracks: Sequence[Track] = (Track(),), start: float = 0.0) -> Path:
    """The codec follows the file name: wav, mp3, flac, ogg and webm have their own, all others carry AAC."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as output:
        sounds = [_add_track(output, track, path.suffix) for track in tracks]
        for track, sound in zip(tracks, sounds, strict=True):
            _encode_until(output, sound, _sound(track, sound, seconds, start), float("inf"))
        for sound in sounds:
            output.mux(sound.encode(None))
    return path


def tone(track: Track, seconds: float) -> np.ndarray:
    """Mono floats; the tone's loudness swings once a second, so that a waveform shows where it is."""
    if track.samples is not None:
        return track.samples
    moments = np.arange(round(seconds * track.rate)) / track.rate
    swing = 0.55 + 0.45 * np.cos(2 * np.pi * moments)
    return np.asarray(0.5 * swing * np.sin(2 * np.pi * track.hertz * moments))


def _add_track(output: Any, track: Track, suffix: str) -> Any:
    stream = output.add_stream(AUDIO_CODECS.get(suffix, "aac"), rate=track.rate)
    stream.codec_context.layout = "stereo" if track.channels == 2 else "mono"
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= av.codec.context.Flags.bitexact
    if track.language:
        stream.metadata["language"] = track.language
    return stream


def _sound(track: Track, stream: Any, seconds: float, start: float) -> Iterator[av.AudioFrame]:
    wave = tone(track, track.seconds or seconds)
    planes = np.repeat((wave * 32767).astype(np.int16)[:, None], track.channels, axis=1)
    for begin in range(0, len(planes), 1024):
        chunk = np.ascontiguousarray(planes[begin : begin + 1024].reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(chunk, format="s16", layout=stream.codec_context.layout.name)
        frame.sample_rate = track.rate
        frame.time_base = Fraction(1, track.rate)
        frame.pts = begin + round(start * track.rate)
        yield frame


def _encode_until(output: Any, stream: Any, frames: Iterator[av.AudioFrame], limit: float) -> None:
    """Keeps sound and picture side by side in the file, as a camera does."""
    for frame in frames:
        output.mux(stream.encode(frame))
        if float(frame.time or 0) >= limit:
            return


def _codec_options(codec: str) -> dict[str, str]:
    return {
        "libx264": {"preset": "ultrafast", "crf": "18"},
        "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime", "b": "2M"},
        "mpeg4": {"b": "4M"},
    }.get(codec, {})


def _pixel_format(codec: str, size: tuple[int, int]) -> str:
    if codec == "mjpeg":
        return "yuvj420p"
    return "yuv444p" if codec == "libx264" and (size[0] % 2 or size[1] % 2) else "yuv420p"


def _block_height(height: int) -> int:
    return max(8, height // 10)


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(max(8, size))
