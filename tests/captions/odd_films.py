"""Films that are hard to read, each with two captions burned in and what a player shows when.

    film = ODD["turned"](tmp_path)
    film.path, film.size, film.cues[0].start_us

The same pictures everywhere: what differs is how they are packed.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image, ImageDraw, ImageFont

from tests.media_files import audio

Array = np.ndarray[Any, Any]
Stamps = Sequence[int]

RATE = 25
FRAMES = 75
SIZE = (640, 360)
FIRST, SECOND = "The harbour is closed", "Nobody has seen her"
SHOWN = {FIRST: (12, 32), SECOND: (40, 66)}
GROUND, INK = (40, 60, 80), (255, 255, 255)
PQ = 16


@dataclass(frozen=True)
class Cue:
    text: str
    start_us: int
    end_us: int


@dataclass(frozen=True)
class Film:
    """`size` is what a player shows; `end_us` where it stops; `frame_us` how long a frame is on show; `joints`
    are the places where a demuxer suspects a loss, because the counter of a transport stream starts anew."""

    path: Path
    cues: tuple[Cue, ...]
    size: tuple[int, int] = SIZE
    end_us: int = FRAMES * 40_000
    frame_us: int = 40_000
    black_ink: bool = False
    joints: int = 0

    def shown_at(self, us: int) -> str:
        return next((cue.text for cue in self.cues if cue.start_us <= us < cue.end_us), "")


def picture(
    number: int, size: tuple[int, int] = SIZE, ground: Any = GROUND, ink: Any = INK, *, scale: int = 1
) -> Image.Image:
    """The caption of that frame, or none; `scale` frames count as one."""
    image = Image.new("RGBA" if len(ground) == 4 else "RGB", size, ground)
    for text, (first, last) in SHOWN.items():
        if first <= number // scale < last:
            ImageDraw.Draw(image).text(
                (size[0] / 2, 0.9 * size[1]), text, ink, font=_font(round(0.075 * min(size))), anchor="mm"
            )
    return image


def pictures(size: tuple[int, int] = SIZE) -> Iterator[Image.Image]:
    return (picture(number, size) for number in range(FRAMES))


def encode(
    path: Path,
    images: Iterable[Image.Image | VideoFrame],
    *,
    codec: str = "libx264",
    kind: str = "yuv420p",
    rate: int = RATE,
    stamps: Stamps | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    tune: Callable[[Any], None] | None = None,
    restamp: Callable[[Any], None] | None = None,
) -> Path:
    """`stamps` are the times of the frames in units of 1/rate; `restamp` may spoil each packet's."""
    with av.open(str(path), "w", options={"fflags": "+bitexact", **(muxer or {})}) as output:
        stream: Any = None
        for number, image in enumerate(images):
            frame = VideoFrame.from_image(image) if isinstance(image, Image.Image) else image
            if stream is None:
                stream = _stream(output, codec, kind, rate, (frame.width, frame.height), options, tune)
            frame.pts, frame.time_base = stamps[number] if stamps else number, Fraction(1, rate)
            _mux(output, stream, stream.encode(frame), restamp)
        _mux(output, stream, stream.encode(None), restamp)
    return path


def cues(at: Callable[[int], int] = lambda frame: frame * 40_000) -> tuple[Cue, ...]:
    return tuple(Cue(text, at(first), at(last)) for text, (first, last) in SHOWN.items())


def plain(folder: Path, name: str = "film.mp4", **more: Any) -> Film:
    return Film(encode(folder / name, pictures(), **more), cues())


def odd_sizes(folder: Path) -> Film:
    return Film(encode(folder / "odd.mp4", pictures((641, 361)), kind="yuv444p"), cues(), (641, 361))


def turned(folder: Path, degrees: int) -> Film:
    size = SIZE[::-1] if degrees % 180 else SIZE
    upright = (picture(number, size) for number in range(FRAMES))
    stored = (image.rotate(degrees, expand=True) for image in upright)
    path = encode(folder / "turned.mp4", stored, tune=lambda stream: stream.set_display_rotation(-degrees))
    return Film(path, cues(), size)


def wide_pixels(folder: Path) -> Film:
    narrow = (image.resize((320, 360), Image.Resampling.LANCZOS) for image in pictures())

    def widen(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    return Film(encode(folder / "wide.mp4", narrow, tune=widen), cues())


def interlaced(folder: Path) -> Film:
    """Two moments in each frame, with a background that moves between them; the caption stands still."""
    stripes = Image.fromarray(np.repeat(((np.arange(4 * SIZE[0]) // 20 % 2) * 90 + 30).astype(np.uint8)[None], 360, 0))

    def moment(field: int) -> Array:
        image = Image.new("RGB", SIZE)
        image.paste(stripes.crop((field * 7, 0, field * 7 + SIZE[0], SIZE[1])).convert("RGB"))
        mask = picture(field // 2, ground=(0, 0, 0)).convert("L")
        image.paste(INK, (0, 0), mask)
        return np.array(image)

    def woven() -> Iterator[Image.Image]:
        for number in range(FRAMES):
            both = moment(2 * number)
            both[1::2] = moment(2 * number + 1)[1::2]
            yield Image.fromarray(both)

    options = {"flags": "+ilme+ildct", "x264-params": "tff=1", "crf": "12"}
    return Film(encode(folder / "fields.mp4", woven(), options=options), cues())


def grows(folder: Path) -> Film:
    """A transport stream whose pictures double in size where the first caption has gone."""
    cut = 36
    small = encode(folder / "small.ts", (picture(number) for number in range(cut)), options={"bf": "0"})
    large = encode(
        folder / "large.ts",
        (picture(number, (1280, 720)) for number in range(cut, FRAMES)),
        stamps=range(cut, FRAMES),
        options={"bf": "0"},
    )
    return Film(joined(folder / "grows.ts", small, large), cues(), joints=1)


def hdr(folder: Path) -> Film:
    """Grey text as bright as paper in a room, on a ground as dark as a night scene, by SMPTE ST 2084."""

    def frames() -> Iterator[VideoFrame]:
        low, high = 64 + 876 * pq_code(4), 64 + 876 * pq_code(110)
        for number in range(FRAMES):
            ink = np.asarray(picture(number, ground=(0, 0, 0)).convert("L")) / 255
            yield ten_bits(np.round(low + (high - low) * ink).astype(np.uint16))

    def tune(stream: Any) -> None:
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = PQ, 9, 9, 1

    path = encode(
        folder / "hdr.mp4",
        frames(),
        codec="libx265",
        kind="yuv420p10le",
        options={"preset": "ultrafast", "x265-params": "log-level=none"},
        tune=tune,
    )
    return Film(path, cues())


def transparent(folder: Path, ink: int) -> Film:
    """Under what nobody sees lies the ink's own colour: only the cover tells the letters from the ground."""
    images = (picture(number, ground=(ink, ink, ink, 0), ink=(ink, ink, ink, 255)) for number in range(FRAMES))
    argb = (VideoFrame.from_ndarray(np.asarray(image), format="rgba").reformat(format="argb") for image in images)
    return Film(encode(folder / "glass.mov", argb, codec="qtrle", kind="argb"), cues(), black_ink=not ink)


def a_thousand_a_second(folder: Path) -> Film:
    images = (picture(number, (480, 270), scale=20) for number in range(20 * FRAMES))
    path = encode(folder / "fast.mp4", images, rate=1000)
    return Film(path, cues(lambda frame: frame * 20_000), (480, 270), 1_500_000, 1000)


def hole(folder: Path) -> Film:
    """Four seconds without a frame while the first caption is on show: a player goes on showing it."""
    at = [number + (100 if number >= 20 else 0) for number in range(FRAMES + 1)]
    path = encode(folder / "hole.mp4", pictures(), stamps=at)
    return Film(path, cues(lambda frame: at[frame] * 40_000), end_us=at[-1] * 40_000)


def late(folder: Path, name: str, seconds: float) -> Film:
    stamps = [number + round(seconds * RATE) for number in range(FRAMES)]
    muxer = {"avoid_negative_ts": "disabled"} if seconds < 0 else {}
    return Film(encode(folder / name, pictures(), stamps=stamps, muxer=muxer, options={"bf": "0"}), cues())


def wraps(folder: Path) -> Film:
    """The counter of a transport stream has 33 bits: it starts again one second into this one."""
    ticks = 90_000
    start = (1 << 33) - ticks
    stamps = [start + number * ticks // RATE for number in range(FRAMES)]
    muxer = {"mpegts_copyts": "1", "muxdelay": "0"}
    return Film(
        encode(folder / "wraps.ts", pictures(), rate=ticks, stamps=stamps, muxer=muxer, options={"bf": "0"}), cues()
    )


def decoding_order_only(folder: Path) -> Film:
    """An AVI says when a frame is decoded, and nothing of when it is shown: one later, where frames are reordered."""
    film = plain(folder, "old.avi", codec="mpeg4", options={"b": "4M", "bf": "2"})
    return replace(film, end_us=film.end_us + film.frame_us)


def out_of_order(folder: Path) -> Film:
    """Frames 20 and 21, 50 and 51 carry each other's time."""

    def swap(packet: Any) -> None:
        place = round(packet.pts * packet.time_base * RATE)
        other = {20: 21, 21: 20, 50: 51, 51: 50}.get(place, place)
        packet.pts = round(other / (RATE * packet.time_base))
        # A packet may not be shown before it is decoded: all are said to be decoded two frames early.
        packet.dts -= round(2 / (RATE * packet.time_base))

    return plain(folder, "mixed.mkv", codec="mjpeg", kind="yuvj420p", options={"qmin": "2", "qmax": "2"}, restamp=swap)


def one_stray(folder: Path) -> Film:
    """Frame 34 says that it is shown in an hour."""

    def stray(packet: Any) -> None:
        if round(packet.pts * packet.time_base * RATE) == 34:
            packet.pts += round(3600 / packet.time_base)

    return plain(folder, "stray.mkv", codec="mjpeg", kind="yuvj420p", options={"qmin": "2", "qmax": "2"}, restamp=stray)


def joined_recordings(folder: Path) -> Film:
    """Two recordings one after the other, each counted from its own beginning."""
    cut = 36
    parts = [
        encode(folder / f"{name}.ts", (picture(number) for number in numbers), options={"bf": "0"})
        for name, numbers in (("one", range(cut)), ("two", range(cut, FRAMES)))
    ]
    return Film(joined(folder / "both.ts", *parts), cues(), joints=1)


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


ODD: dict[str, Callable[[Path], Film]] = {
    "odd-size": odd_sizes,
    "turned-90": lambda folder: turned(folder, 90),
    "turned-180": lambda folder: turned(folder, 180),
    "turned-270": lambda folder: turned(folder, 270),
    "wide-pixels": wide_pixels,
    "interlaced": interlaced,
    "size-change": grows,
    "hdr": hdr,
    "alpha-white": lambda folder: transparent(folder, 255),
    "alpha-black": lambda folder: transparent(folder, 0),
    "1000-fps": a_thousand_a_second,
    "hole": hole,
    "edit-list": lambda folder: late(folder, "late.mp4", 1.2),
    "ts-start": lambda folder: late(folder, "late.ts", 1.4),
    "no-stamp-at-first": lambda folder: late(folder, "unstamped.mkv", -0.52),
    "no-stamps": lambda folder: plain(folder, "bare.h264"),
    "decoding-order-only": decoding_order_only,
    "wrap": wraps,
    "out-of-order": out_of_order,
    "stray": one_stray,
    "joined": joined_recordings,
}


def song_with_cover(path: Path) -> Path:
    """`path` ends in .mp3 or .m4a; the cover bears a caption of its own, which is none of a film's."""
    return _mp3_with_cover(path) if path.suffix == ".mp3" else _m4a_with_cover(path)


def _mp3_with_cover(path: Path) -> Path:
    song = audio(path.with_name("song-alone.mp3"), seconds=1)
    with av.open(str(path), "w") as output, av.open(str(song)) as source:
        sound = output.add_stream_from_template(source.streams.audio[0])
        cover: Any = output.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = *SIZE, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = VideoFrame.from_image(picture(20))
        frame.pts = 0
        output.mux([*cover.encode(frame), *cover.encode(None)])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = sound
                output.mux(packet)
    return path


def _m4a_with_cover(path: Path) -> Path:
    """As shops write it: moov/udta/meta/ilst/covr. The index is the last box of the file, so that it may grow."""
    content = audio(path, seconds=1).read_bytes()
    jpeg = io.BytesIO()
    picture(20).save(jpeg, "JPEG")
    cover = _box(b"covr", _box(b"data", struct.pack(">II", 13, 0) + jpeg.getvalue()))
    handler = _box(b"hdlr", struct.pack(">II4s4sIIB", 0, 0, b"mdir", b"appl", 0, 0, 0))
    more = _box(b"udta", _box(b"meta", bytes(4) + handler + _box(b"ilst", cover)))
    place = content.rindex(b"moov") - 4
    path.write_bytes(content[:place] + _box(b"moov", content[place + 8 :] + more))
    return path


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def no_frames(path: Path) -> Path:
    """A header that announces a video, and then nothing."""
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        output.start_encoding()
    return path


def packed_picture(path: Path, png: bytes, size: tuple[int, int]) -> Path:
    """A film of one picture as it comes; its header says `size`, whatever the picture says."""
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("png", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "rgb24"
        for number in range(3):
            packet = av.Packet(png)
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base, packet.duration, packet.is_keyframe = Fraction(1, RATE), 1, True
            output.mux(packet)
    return path


def spoiled(path: Path, name: str, change: Callable[[bytearray], None]) -> Path:
    content = bytearray(path.read_bytes())
    change(content)
    other = path.with_name(name)
    other.write_bytes(content)
    return other


def cut_off(path: Path, share: float) -> Path:
    return spoiled(
        path, f"cut-{path.name}", lambda content: content.__delitem__(slice(int(len(content) * share), None))
    )


def pq_code(light: float) -> float:
    """SMPTE ST 2084: candela a square metre to a code from 0 to 1."""
    root = (light / 10_000) ** 0.1593017578125
    return float(((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375)


def ten_bits(luma: Array) -> VideoFrame:
    """A grey picture of ten bits a pixel."""
    frame = VideoFrame(luma.shape[1], luma.shape[0], "yuv420p10le")
    _fill(frame.planes[0], luma)
    for plane in frame.planes[1:]:
        _fill(plane, np.full((plane.height, plane.width), 512, np.uint16))
    return frame


def _fill(plane: Any, values: Array) -> None:
    rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
    rows[:, : values.shape[1]] = values
    plane.update(rows.tobytes())


def _stream(
    output: Any,
    codec: str,
    kind: str,
    rate: int,
    size: tuple[int, int],
    options: dict[str, str] | None,
    tune: Callable[[Any], None] | None,
) -> Any:
    fast = {"preset": "ultrafast", "crf": "18"} if codec == "libx264" else {}
    stream = output.add_stream(codec, rate=rate, options={**fast, **(options or {})})
    stream.width, stream.height = size
    stream.pix_fmt = kind
    stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
    stream.codec_context.gop_size = 25
    stream.codec_context.thread_count = 1
    if tune:
        tune(stream)
    return stream


def _mux(output: Any, stream: Any, packets: Iterable[Any], restamp: Callable[[Any], None] | None) -> None:
    for packet in packets:
        if restamp:
            restamp(packet)
        output.mux(packet)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
