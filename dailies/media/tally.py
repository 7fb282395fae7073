"""Running figures of one stream while it is decoded: bounded memory whatever the length."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.stream import Disposition

from dailies.media.facts import Audio, Damage, Stream, Video


class Tally:
    """Running figures of one stream. Times in here are ticks of the stream's time base, by the file's clock."""

    def __init__(self, stream: Any, start: Fraction, promised_us: int | None) -> None:
        self.source = stream
        self.index: int = stream.index
        self.kind: str = "picture" if stream.disposition & Disposition.attached_pic else stream.type
        self.decodes = self.kind in ("video", "audio")
        self.tick = Fraction(stream.time_base or Fraction(1, 1_000_000))
        self.start = start
        self.promised_us = promised_us
        self.packets = self.frames = self.key_frames = self.samples = 0
        self.first: int | None = None
        self.last = self.end = self.reach = 0
        self.shortest: int | None = None
        self.longest = self.longest_hole = 0
        self.broken_packets = self.broken_frames = 0
        self.first_broken: int | None = None
        self.refused = False
        self.sample: Any = None

    def take(self, packet: Any) -> None:
        if not self.decodes:
            self.reach = max(self.reach, (packet.pts or 0) + (packet.duration or 0))
            return
        self.packets += packet.size > 0
        try:
            frames = packet.decode()
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            # FFmpeg's answer to a picture over max_pixels, which it also uses for the size that it then hides.
            self.refused = self.refused or (isinstance(error, av.ArgumentError) and not self.source.width)
            self._broken_packet(packet.pts)
            return
        if packet.is_corrupt:
            self._broken_packet(packet.pts)
        for frame in frames:
            self._frame(frame)

    def flush(self) -> None:
        """After a demuxer gave up: what the decoder still holds counts, and so does the failure."""
        if not self.decodes:
            return
        self._broken_packet(self.end)
        try:
            for frame in self.source.codec_context.decode(None):
                self._frame(frame)
        except av.FFmpegError:
            self._broken_packet(self.end)

    def _frame(self, frame: Any) -> None:
        pts = frame.pts if frame.pts is not None else self.end
        if frame.is_corrupt:
            self.broken_frames += 1
            self._first_broken(pts)
        if self.kind == "video":
            self._video(frame, pts)
        else:
            self._audio(frame, pts)
        if self.first is None:
            self.first, self.sample = pts, _Sample.of(frame, self.source, self.kind)
        self.frames += 1
        self.last = pts

    def _video(self, frame: Any, pts: int) -> None:
        self.key_frames += frame.key_frame
        if self.first is not None:
            step = pts - self.last
            self.shortest = step if self.shortest is None else min(step, self.shortest)
            self.longest = max(step, self.longest)
        # Transport streams invent a duration for each frame: where the steps are even, the step knows better.
        even = self.shortest is not None and self.longest - self.shortest <= self._tolerance(pts)
        self.end = max(
            self.end if self.frames else pts, pts + (self.longest if even else frame.duration or self.longest)
        )

    def _audio(self, frame: Any, pts: int) -> None:
        self.samples += frame.samples
        if self.first is not None:
            self.longest_hole = max(self.longest_hole, pts - self.end)
        end = pts + round(Fraction(frame.samples, frame.sample_rate) / self.tick)
        self.end = max(self.end if self.frames else end, end)

    def _broken_packet(self, pts: int | None) -> None:
        self.broken_packets += 1
        self._first_broken(self.end if pts is None else pts)

    def _first_broken(self, pts: int) -> None:
        self.first_broken = pts if self.first_broken is None else min(pts, self.first_broken)

    def _tolerance(self, last: int) -> Fraction:
        """In ticks; see Video."""
        if not self.frames or self.first is None:
            return Fraction(1)
        return max(Fraction(1), min(Fraction(1, 1000) / self.tick, Fraction(last - self.first, self.frames) / 5))

    def _us(self, ticks: int) -> int:
        return round((ticks * self.tick - self.start) * 1_000_000)

    @property
    def end_us(self) -> int:
        return self._us(self.end) if self.frames else 0

    @property
    def reach_us(self) -> int:
        """How far the stream goes on the timeline, decoded or not: a subtitle may outlast the picture."""
        return self.end_us if self.decodes else max(0, self._us(self.reach))

    @property
    def decoded_us(self) -> int | None:
        if not self.decodes:
            return None
        return self._us(self.end) - self._us(self.first) if self.first is not None else 0

    def facts(self) -> Stream:
        """Only while the container is open: a closed one leaves its streams without memory to read."""
        source = self.source
        context = source.codec_context
        return Stream(
            index=self.index,
            kind=self.kind,
            codec=context.codec.canonical_name if context else "unknown",
            language=source.language if source.language not in ("und", "") else None,
            title=source.metadata.get("title"),
            default=bool(source.disposition & Disposition.default),
            time_base=source.time_base,
            start_us=self._us(self.first) if self.first is not None else None,
            promised_us=self.promised_us,
            decoded_us=self.decoded_us,
            damage=Damage(
                self.broken_packets,
                self.broken_frames,
                self._us(self.first_broken) if self.first_broken is not None else None,
            ),
            video=self._video_facts() if self.kind == "video" and self.sample else None,
            audio=self._audio_facts() if self.kind == "audio" and self.sample else None,
        )

    def _video_facts(self) -> Video:
        kind, rate = self._rate()
        sample = self.sample
        display = (max(1, round(sample.width * sample.aspect)), sample.height)
        display = display[::-1] if sample.rotation % 180 else display
        longest_us = round(self.longest * self.tick * 1_000_000)
        return Video(
            sample.width, sample.height, *display, sample.rotation, kind, rate, self.frames, self.key_frames, longest_us
        )

    def _rate(self) -> tuple[str, Fraction | None]:
        """The header's fraction where the decoded pts bear it out (30000/1001, not 2997/100), else the measured one."""
        declared: Fraction | None = self.source.average_rate
        steps, span = self.frames - 1, self.last - (self.first or 0)
        if self.shortest is None or span <= 0:
            return "constant", declared
        tolerance = self._tolerance(self.last)
        constant = self.longest - self.shortest <= tolerance
        measured = (steps / (span * self.tick)).limit_denominator(1_000_000)
        if constant and declared and abs(steps / declared / self.tick - span) <= tolerance:
            return "constant", declared
        return "constant" if constant else "variable", measured

    def _audio_facts(self) -> Audio:
        hole_us = round(self.longest_hole * self.tick * 1_000_000)
        # Up to a millisecond is the container's rounding, not a hole.
        hole_us = hole_us if hole_us > 1000 else 0
        return Audio(self.sample.rate, self.sample.channels, self.sample.layout, self.samples, hole_us)


@dataclass(frozen=True)
class _Sample:
    """What only a decoded frame tells for sure, from the first one."""

    width: int = 0
    height: int = 0
    aspect: Fraction = Fraction(1)
    rotation: int = 0
    rate: int = 0
    channels: int = 0
    layout: str = ""

    @classmethod
    def of(cls, frame: Any, source: Any, kind: str) -> _Sample:
        if kind == "audio":
            return cls(rate=frame.sample_rate, channels=frame.layout.nb_channels, layout=frame.layout.name)
        rotation = round(-frame.rotation / 90) * 90 % 360
        return cls(frame.width, frame.height, source.sample_aspect_ratio or Fraction(1), rotation)
