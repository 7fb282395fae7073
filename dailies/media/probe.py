"""What a media file really holds: every packet of video and audio is decoded, because a header only promises.

    found = probe(path)
    found.videos[0].video.rate, found.audios[1].language, found.decoded_us

One timeline: integers of microseconds, zero where the container starts, which is what a player shows. A stream that
starts later has a `start_us` above zero. Memory is bounded whatever the length: no frame and no list of times is kept.

A still image is a video of one frame. A picture attached to a song (cover art) is not a video.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from dailies.canonical import file_digest
from dailies.errors import EmptyFile, Missing, NoStreams, TooLarge, Truncated, Undecodable, Unreadable, Unsupported
from dailies.media.facts import Audio, Damage, Probe, Stream, Video
from dailies.media.tally import Tally

__all__ = ["Audio", "Damage", "Limits", "Probe", "Stream", "Video", "open_media", "probe"]

Progress = Callable[[float], None]

SLACK_US = 500_000
SLACK_PERCENT = 2

# Playlists and scripts are no uploads: they name other files, and FFmpeg would open those on our machine.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg,mxf,nut,ivf,rm,dv,gxf,y4m,yuv4mpegpipe,"
    "h264,hevc,av1,obu,m4v,mpegvideo,mjpeg,wav,w64,aiff,au,caf,flac,mp3,aac,ac3,eac3,dts,amr,ape,tta,wv,tak,"
    "gif,apng,image2,png_pipe,jpeg_pipe,webp_pipe,webp,bmp_pipe,tiff_pipe"
)
# These have no length in their headers; FFmpeg guesses one from the bit rate, and a guess is no promise.
GUESSED = {"h264", "hevc", "av1", "obu", "m4v", "mpegvideo", "mjpeg", "aac", "ac3", "eac3", "dts", "amr"}


@dataclass(frozen=True)
class Limits:
    seconds: float = 24 * 3600.0
    pixels: int = 8192 * 8192
    size: int = 200 * 2**30


LIMITS = Limits()


def probe(
    path: Path, *, progress: Progress | None = None, accept_damaged: bool = False, limits: Limits = LIMITS
) -> Probe:
    """Decodes the whole file; raises a BadInput that says what is wrong and what to do.

    `progress` hears shares from 0 to 1 that never fall; whatever it raises ends the probe.
    """
    size = size_of(path, limits)
    sha256 = file_digest(path)
    report = _Report(progress, size)
    walk = _walk(path, limits, report, threads=0)
    if walk.damaged:
        # What an error swallows among frame threads depends on the number of cores: one thread says the same anywhere.
        walk = _walk(path, limits, report, threads=1)
    walk.refuse_undecodable(accept_damaged)
    shortfall = walk.shortfall()
    if shortfall and not accept_damaged:
        promised, decoded = shortfall
        raise Truncated(
            f"{shown(path)} promises {_seconds(promised)} but decodes to {_seconds(decoded)}: "
            "upload it again whole, or set accept_damaged to work with what is there"
        )
    report.done()
    return Probe(
        sha256=sha256,
        size=size,
        format=walk.format,
        start_us=walk.start_us,
        promised_us=walk.promised_us,
        decoded_us=max((tally.end_us for tally in walk.tallies if tally.decodes), default=0),
        shortfall_us=shortfall[0] - shortfall[1] if shortfall else 0,
        streams=walk.streams,
    )


def shown(path: Path) -> str:
    """Its name in one line, whatever characters are in it."""
    return " ".join(path.name.split())


def open_media(path: Path, *, pixels: int = Limits.pixels) -> InputContainer:
    """Opens one local file and nothing that it may name; raises Unreadable."""
    options = {
        "max_pixels": _guard(pixels),
        "format_whitelist": CONTAINERS,
        "protocol_whitelist": "file",
        # A file called shot%03d.png is one picture, not a pattern of them.
        "pattern_type": "none",
    }
    try:
        return av.open(str(path.absolute()), "r", options=options, metadata_errors="replace")
    except av.error.MemoryError:
        raise
    except av.FFmpegError as error:
        raise Unreadable(
            f"{shown(path)} is not media, or its header is damaged ({error.strerror}): upload it again or convert it"
        ) from error


class _Walk:
    """One pass over a file."""

    def __init__(self, path: Path, container: InputContainer, limits: Limits) -> None:
        self.path = path
        self.limits = limits
        self.format = container.format.name
        self.start_us = container.start_time or 0
        self.streams: tuple[Stream, ...] = ()
        trusted = not is_guessed(path, self.format)
        self.promised_us = _promised_us(path, container) if trusted else None
        start = Fraction(self.start_us, 1_000_000)
        self.tallies = [
            Tally(stream, start, _stream_promised_us(stream) if trusted else None) for stream in container.streams
        ]

    def check_header(self) -> None:
        if not any(tally.decodes for tally in self.tallies):
            kinds = ", ".join(sorted({tally.kind for tally in self.tallies})) or "no stream at all"
            raise NoStreams(f"{shown(self.path)} has neither video nor audio ({kinds}): upload the film or the sound")
        for tally in self.tallies:
            if tally.decodes and tally.source.codec_context is None:
                raise Unsupported(
                    f"stream {tally.index} ({tally.kind}) of {shown(self.path)} is in a codec that cannot be "
                    "decoded here: convert it, for example to H.264 and AAC"
                )
            if tally.kind == "video" and tally.source.width * tally.source.height > self.limits.pixels:
                raise self._too_many_pixels()
        self._check_duration(self.promised_us or 0)

    def decode(self, container: InputContainer, report: _Report) -> None:
        for tally in self.tallies:
            if tally.decodes:
                tally.source.codec_context.options = {"max_pixels": _guard(self.limits.pixels)}
        packets = self._packets(container)
        for packet in packets:
            if packet.stream_index >= len(self.tallies):
                continue
            tally = self.tallies[packet.stream_index]
            tally.take(packet)
            self._check_duration(tally.end_us if tally.decodes else 0)
            report.at(packet.pos or 0)

    def _packets(self, container: InputContainer) -> Iterator[Any]:
        try:
            yield from container.demux()
        except av.error.MemoryError:
            raise
        except av.FFmpegError:
            for tally in self.tallies:
                tally.flush()

    def _check_duration(self, us: int) -> None:
        if us > self.limits.seconds * 1_000_000:
            raise TooLarge(
                f"{shown(self.path)} lasts {_seconds(us)}, the limit is {self.limits.seconds:g} s: cut it into parts"
            )

    def _too_many_pixels(self) -> TooLarge:
        return TooLarge(
            f"{shown(self.path)} has pictures of more than {self.limits.pixels} pixels, the limit: scale it down"
        )

    @property
    def damaged(self) -> bool:
        return any(tally.broken_packets or tally.broken_frames for tally in self.tallies)

    def refuse_undecodable(self, accept_damaged: bool) -> None:
        decoded = [tally for tally in self.tallies if tally.decodes]
        if any(tally.refused for tally in decoded):
            raise self._too_many_pixels()
        if not any(tally.frames for tally in decoded):
            raise Undecodable(f"not one frame of {shown(self.path)} decodes: export it again from the original")
        for tally in decoded:
            if tally.packets and not tally.frames and not accept_damaged:
                raise Undecodable(
                    f"not one frame of stream {tally.index} ({tally.kind}) of {shown(self.path)} decodes: "
                    "export it again, or set accept_damaged to work with the other streams"
                )

    def shortfall(self) -> tuple[int, int] | None:
        """(promised, decoded) of the container or the stream that misses the most, if it is more than the slack."""
        pairs = [(tally.promised_us, tally.decoded_us) for tally in self.tallies]
        pairs.append((self.promised_us, max((tally.reach_us for tally in self.tallies), default=0)))
        known = [(promised, decoded) for promised, decoded in pairs if promised is not None and decoded is not None]
        short = [pair for pair in known if pair[0] - pair[1] > max(SLACK_US, pair[0] * SLACK_PERCENT // 100)]
        return max(short, key=lambda pair: pair[0] - pair[1], default=None)


class _Report:
    """Tells the progress in whole percents, by the position in the file, and never backwards."""

    def __init__(self, tell: Progress | None, size: int) -> None:
        self.tell = tell
        self.size = size
        self.told = -1

    def at(self, position: int) -> None:
        percent = min(99, position * 100 // self.size)
        if self.tell and percent > self.told:
            self.told = percent
            self.tell(percent / 100)

    def done(self) -> None:
        if self.tell:
            self.tell(1.0)


def _walk(path: Path, limits: Limits, report: _Report, *, threads: int) -> _Walk:
    with closing(open_media(path, pixels=limits.pixels)) as container:
        walk = _Walk(path, container, limits)
        walk.check_header()
        for tally in walk.tallies:
            if tally.decodes:
                tally.source.codec_context.thread_count = threads
                tally.source.codec_context.thread_type = "NONE" if threads == 1 else "AUTO"
        walk.decode(container, report)
        walk.streams = tuple(tally.facts() for tally in walk.tallies)
        return walk


def _guard(pixels: int) -> str:
    """Twice the limit, because FFmpeg counts the padding of its rows; what the header says is checked exactly."""
    return str(2 * pixels)


def size_of(path: Path, limits: Limits | None = None) -> int:
    """Of a file that is there and holds something."""
    if not path.is_file():
        raise Missing(f"there is no file {shown(path)}: upload it first")
    size = path.stat().st_size
    if size == 0:
        raise EmptyFile(f"{shown(path)} is empty (0 bytes): upload it again")
    if limits and size > limits.size:
        raise TooLarge(f"{shown(path)} has {size} bytes, the limit is {limits.size}: cut it into parts")
    return size


def is_guessed(path: Path, format_name: str) -> bool:
    return format_name in GUESSED or (format_name == "mp3" and not _has_length_frame(path))


def _has_length_frame(path: Path) -> bool:
    """An MP3 promises its length only in a Xing, Info or VBRI frame, right after the ID3 tag."""
    with path.open("rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3" and len(head) == 10:
            file.seek(sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(head[6:])), os.SEEK_CUR)
        else:
            file.seek(0)
        block = file.read(2048)
    return any(mark in block for mark in (b"Xing", b"Info", b"VBRI"))


def _promised_us(path: Path, container: InputContainer) -> int | None:
    duration: int | None = container.duration
    if duration is None:
        return None
    if container.format.name.startswith("matroska"):
        # Its duration is counted from zero, also where the first frame comes later.
        return duration - max(0, container.start_time or 0)
    return riff_promise(path, duration) if container.format.name == "wav" else duration


def riff_promise(path: Path, duration: int) -> int:
    """FFmpeg lowers the promise of a WAV to what is there; its RIFF header still says how long the file was."""
    with path.open("rb") as file:
        head = file.read(8)
    promised, actual = int.from_bytes(head[4:8], "little") + 8, path.stat().st_size
    streamed = head[:4] != b"RIFF" or promised >= 0xFFFFFFFF
    return duration if streamed or promised <= actual else duration * promised // actual


def _stream_promised_us(stream: Any) -> int | None:
    if stream.duration is not None and stream.time_base:
        return round(Fraction(stream.duration * stream.time_base) * 1_000_000)
    tag = stream.metadata.get("DURATION")
    try:
        hours, minutes, seconds = tag.split(":")
        end = (int(hours) * 60 + int(minutes)) * 60 + Fraction(seconds)
    except (AttributeError, ValueError):
        return None
    first = Fraction((stream.start_time or 0) * stream.time_base)
    return round((end - max(Fraction(0), first)) * 1_000_000)


def _seconds(us: int) -> str:
    return f"{us / 1_000_000:.2f} s"
