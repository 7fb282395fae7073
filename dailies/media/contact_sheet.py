"""One picture that shows what is in a file: frames over its whole length, or the waveform where there is only sound.

Every cell shows the frame that a player would show at the middle of its slot, found by decoding forward from a key
frame, never by a frame number. The same file gives the same bytes: no clock, and a font that comes with Pillow.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dailies.errors import NoStreams, Undecodable
from dailies.media.facts import Probe, Stream, Video
from dailies.media.probe import open_media

MARGIN, GAP, HEADER = 16, 8, 44
PAPER, INK, FAINT = (18, 20, 24), (232, 234, 237), (96, 102, 112)
WAVE, CORE = (64, 120, 176), (140, 196, 244)
WAVE_HEIGHT, TALLEST_CELL = 220, 720
MARK_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
# A seek may land late where the index is poor; each try starts this many seconds earlier, the last at the beginning.
BACK_OFF = (0, 10, 60, 10**6)

Cell = tuple[int, Image.Image]


def contact_sheet(path: Path, probe: Probe, *, columns: int = 4, rows: int = 3, width: int = 1280) -> bytes:
    """A PNG. Fewer frames than cells: each is shown once, and the sheet shrinks to them."""
    video = next((stream for stream in probe.videos if stream.video), None)
    if video:
        sheet = _film_sheet(path, probe, video, columns, rows, width)
    elif audio := next((stream for stream in probe.audios if stream.audio), None):
        sheet = _sound_sheet(path, probe, audio, width)
    else:
        raise NoStreams(f"{path.name} has neither video nor audio to show")
    png = io.BytesIO()
    sheet.save(png, "PNG", compress_level=6)
    return png.getvalue()


def _film_sheet(path: Path, probe: Probe, stream: Stream, columns: int, rows: int, width: int) -> Image.Image:
    assert stream.video is not None
    count = min(columns * rows, stream.video.frames)
    columns = min(columns, count)
    size = _cell_size(stream.video, (width - 2 * MARGIN - (columns - 1) * GAP) // columns)
    cells = list(_cells(path, probe, stream, count, size))
    if not cells:
        raise Undecodable(f"{path.name} no longer decodes as it was probed: probe it again")
    lines = -(-len(cells) // columns)
    sheet = _paper(width, HEADER + lines * size[1] + (lines - 1) * GAP + MARGIN, _film_title(probe, stream))
    left = (width - columns * size[0] - (columns - 1) * GAP) // 2
    for place, (us, picture) in enumerate(cells):
        row, column = divmod(place, columns)
        _stamp(picture, _clock(us, thousandths=True))
        sheet.paste(picture, (left + column * (size[0] + GAP), HEADER + row * (size[1] + GAP)))
    return sheet


def _cell_size(video: Video, width: int) -> tuple[int, int]:
    height = max(1, round(width * video.display_height / video.display_width))
    if height <= TALLEST_CELL:
        return width, height
    return max(1, round(TALLEST_CELL * video.display_width / video.display_height)), TALLEST_CELL


def _cells(path: Path, probe: Probe, stream: Stream, count: int, size: tuple[int, int]) -> Iterator[Cell]:
    assert stream.video is not None
    with closing(_Reel(path, probe, stream)) as reel:
        shown = None
        for us, frame in reel.first(count) if count == stream.video.frames else reel.at(_middles(stream, count)):
            if us != shown:
                yield us, _upright(frame, stream.video.rotation, size)
            shown = us


def _middles(stream: Stream, count: int) -> list[int]:
    start, length = stream.start_us or 0, stream.decoded_us or 0
    return [start + length * (2 * slot + 1) // (2 * count) for slot in range(count)]


class _Reel:
    """One video stream as (time on the timeline, frame). Holds one frame more than it gives out."""

    def __init__(self, path: Path, probe: Probe, stream: Stream) -> None:
        assert stream.video is not None
        self.container = open_media(path)
        source: Any = self.container.streams[stream.index]
        source.thread_type = "AUTO"
        self.source = source
        self.tick_us = source.time_base * 1_000_000
        self.start_us = probe.start_us
        # Nearer than a usual key frame distance, decoding on is cheaper than a seek.
        self.near_us = (stream.decoded_us or 0) // max(1, stream.video.key_frames)
        self.frames = self._decode()
        self.next = next(self.frames, None)

    def close(self) -> None:
        self.container.close()

    def first(self, count: int) -> Iterator[tuple[int, Any]]:
        while self.next and count:
            yield self.next
            self.next, count = next(self.frames, None), count - 1

    def at(self, moments: list[int]) -> Iterator[tuple[int, Any]]:
        """The frame on show at each of these rising moments."""
        current = None
        for moment in moments:
            if self.next and self.next[0] <= moment and moment - self.next[0] > self.near_us:
                self._seek(moment)
            while self.next and (current is None or self.next[0] <= moment):
                current, self.next = self.next, next(self.frames, None)
            if current:
                yield current

    def _seek(self, moment: int) -> None:
        """Leaves the reel at a frame not after the moment; where nothing can seek, decoding on gets there as well."""
        for seconds in BACK_OFF:
            target = max(0, moment - seconds * 1_000_000)
            try:
                self.container.seek(round((target + self.start_us) / self.tick_us), stream=self.source)
            except av.FFmpegError:
                continue
            self.frames = self._decode()
            self.next = next(self.frames, None)
            if self.next and self.next[0] <= moment:
                return

    def _decode(self) -> Iterator[tuple[int, Any]]:
        end = 0
        for packet in _packets(self.container, self.source):
            for frame in packet:
                pts = frame.pts if frame.pts is not None else end
                end = pts + frame.duration
                yield round(pts * self.tick_us) - self.start_us, frame


def _packets(container: Any, source: Any) -> Iterator[list[Any]]:
    """What decodes; the probe has counted and reported what does not."""
    packets = container.demux(source)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            yield packet.decode()
        except av.error.MemoryError:
            raise
        except av.FFmpegError:
            continue


def _upright(frame: Any, rotation: int, size: tuple[int, int]) -> Image.Image:
    turned = size[::-1] if rotation % 180 else size
    picture: Image.Image = frame.to_image().resize(turned, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return picture.rotate(-rotation, expand=True) if rotation else picture


def _sound_sheet(path: Path, probe: Probe, stream: Stream, width: int) -> Image.Image:
    plot = width - 2 * MARGIN
    low, high, power = _waveform(path, probe, stream, plot)
    sheet = _paper(width, HEADER + WAVE_HEIGHT + 40, _sound_title(probe, stream))
    draw = ImageDraw.Draw(sheet)
    middle, reach = HEADER + WAVE_HEIGHT // 2, WAVE_HEIGHT // 2
    _time_marks(draw, stream.decoded_us or 0, plot)
    draw.line((MARGIN, middle, width - MARGIN, middle), fill=FAINT)
    for x in range(plot):
        for bottom, top, colour in ((low[x], high[x], WAVE), (-power[x], power[x], CORE)):
            if top > bottom:
                draw.line(
                    (MARGIN + x, middle - round(top * reach), MARGIN + x, middle - round(bottom * reach)), fill=colour
                )
    return sheet


Curve = NDArray[np.float64]


def _waveform(path: Path, probe: Probe, stream: Stream, buckets: int) -> tuple[Curve, Curve, Curve]:
    """Lowest and highest sample and the effective value for each column: three short arrays whatever the length."""
    low, high = np.zeros(buckets), np.zeros(buckets)
    squares, counts = np.zeros(buckets), np.zeros(buckets)
    start, length = stream.start_us or 0, max(1, stream.decoded_us or 0)
    with closing(open_media(path)) as container:
        source: Any = container.streams[stream.index]
        for frame in _floats(container, source):
            us = float(frame.pts * frame.time_base * 1_000_000) - probe.start_us - start
            wave = frame.to_ndarray().astype(np.float64).mean(axis=0)
            columns = ((us + np.arange(len(wave)) * 1e6 / frame.sample_rate) * buckets / length).astype(np.int64)
            columns = np.clip(columns, 0, buckets - 1)
            edges = np.flatnonzero(np.diff(columns, prepend=-1))
            touched = columns[edges]
            low[touched] = np.minimum(low[touched], np.minimum.reduceat(wave, edges))
            high[touched] = np.maximum(high[touched], np.maximum.reduceat(wave, edges))
            squares[touched] += np.add.reduceat(wave * wave, edges)
            counts[touched] += np.diff(edges, append=len(wave))
    power = np.sqrt(squares / np.maximum(counts, 1))
    return np.clip(low, -1, 1), np.clip(high, -1, 1), np.clip(power, 0, 1)


def _floats(container: Any, source: Any) -> Iterator[Any]:
    mixer = av.AudioResampler(format="fltp")
    for frames in _packets(container, source):
        for frame in frames:
            if frame.pts is not None:
                yield from (part for part in mixer.resample(frame) if part.samples and part.pts is not None)


def _time_marks(draw: ImageDraw.ImageDraw, length_us: int, plot: int) -> None:
    seconds = length_us / 1_000_000
    step = next((step for step in MARK_STEPS if seconds / step <= 10), MARK_STEPS[-1])
    bottom = HEADER + WAVE_HEIGHT
    for mark in range(0, int(seconds) + 1, step):
        x = MARGIN + round(mark / max(seconds, 1e-6) * (plot - 1))
        draw.line((x, HEADER, x, bottom + 6), fill=(48, 52, 60))
        label = _clock(mark * 1_000_000)
        room = draw.textlength(label, font=_font(13))
        left = min(max(x - room / 2, MARGIN), MARGIN + plot - room)
        draw.text((left, bottom + 10), label, fill=INK, font=_font(13))


def _paper(width: int, height: int, title: str) -> Image.Image:
    sheet = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(sheet).text((MARGIN, HEADER // 2), title, fill=INK, font=_font(17), anchor="lm")
    return sheet


def _stamp(picture: Image.Image, text: str) -> None:
    """On a dark plate in the lower right corner: legible on any picture."""
    size = max(10, min(22, picture.width // 18))
    box = ImageDraw.Draw(picture).textbbox((0, 0), text, font=_font(size))
    plate = Image.new("RGB", (round(box[2]) + size, round(box[3]) + size // 2 + 2), (0, 0, 0))
    corner = (max(0, picture.width - plate.width - 6), max(0, picture.height - plate.height - 6))
    under = picture.crop((*corner, corner[0] + plate.width, corner[1] + plate.height))
    plate = Image.blend(under, plate, 0.8)
    ImageDraw.Draw(plate).text((plate.width // 2, plate.height // 2), text, fill="white", font=_font(size), anchor="mm")
    picture.paste(plate, corner)


def _film_title(probe: Probe, stream: Stream) -> str:
    video = stream.video
    assert video is not None
    parts = [stream.codec.upper(), f"{video.display_width} x {video.display_height}", _clock(probe.decoded_us, True)]
    if video.frames > 1 and video.rate:
        parts.append(f"{float(video.rate):.3f}".rstrip("0").rstrip(".") + f" fps {video.rate_kind}")
    return _title([*parts, _plural(video.frames, "frame"), _plural(probe.audio_tracks, "audio track")], probe)


def _sound_title(probe: Probe, stream: Stream) -> str:
    audio = stream.audio
    assert audio is not None
    parts = [stream.codec.upper(), f"{audio.sample_rate / 1000:g} kHz", audio.layout, _clock(probe.decoded_us, True)]
    return _title([*parts, _plural(probe.audio_tracks, "audio track")], probe)


def _title(parts: list[str], probe: Probe) -> str:
    return "   ·   ".join([*parts, "damaged"] if probe.damaged else parts)


def _plural(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


def _clock(us: int, thousandths: bool = False) -> str:
    seconds, rest = divmod(max(0, us) // 1000, 1000)
    clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{clock}.{rest:03}" if thousandths else clock


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
