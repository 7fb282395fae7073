"""What a probe found, as values: frozen, comparable, and the same JSON on every machine.

Times are integers of microseconds on one timeline, whose zero is the container's start.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Damage:
    """`packets` failed to decode or arrived broken; `frames` came out with errors painted over by the decoder."""

    packets: int = 0
    frames: int = 0
    first_us: int | None = None

    def __bool__(self) -> bool:
        return bool(self.packets or self.frames)


@dataclass(frozen=True)
class Video:
    """`rotation` is how far a player turns the decoded picture clockwise; `display` is the size after that.

    `rate_kind` is "constant" when no two steps between frames differ by more than one tick of the time base, or by
    more than a millisecond where that is under a fifth of a frame: Matroska and FLV round to milliseconds, and the
    rounding survives a remux. `longest_step_us` shows holes: frames that are missing without any error.
    """

    width: int
    height: int
    display_width: int
    display_height: int
    rotation: int
    rate_kind: str
    rate: Fraction | None
    frames: int
    key_frames: int
    longest_step_us: int


@dataclass(frozen=True)
class Audio:
    """`longest_hole_us` is the longest stretch between the end of one decoded frame and the start of the next."""

    sample_rate: int
    channels: int
    layout: str
    samples: int
    longest_hole_us: int


@dataclass(frozen=True)
class Stream:
    """`kind` is video, audio, subtitle, data, attachment or picture; only the first two are decoded."""

    index: int
    kind: str
    codec: str
    language: str | None
    title: str | None
    default: bool
    time_base: Fraction | None
    start_us: int | None
    promised_us: int | None
    decoded_us: int | None
    damage: Damage
    video: Video | None = None
    audio: Audio | None = None


@dataclass(frozen=True)
class Probe:
    """`start_us` is the container's start by the file's own clock: a pts minus it is a time on the timeline.

    `promised_us` is None where the file promises no length. `shortfall_us` is above zero only for a file that was
    accepted although it decodes to less than it promises.
    """

    sha256: str
    size: int
    format: str
    start_us: int
    promised_us: int | None
    decoded_us: int
    shortfall_us: int
    streams: tuple[Stream, ...]

    @property
    def videos(self) -> tuple[Stream, ...]:
        return tuple(stream for stream in self.streams if stream.kind == "video")

    @property
    def audios(self) -> tuple[Stream, ...]:
        return tuple(stream for stream in self.streams if stream.kind == "audio")

    @property
    def audio_tracks(self) -> int:
        return len(self.audios)

    @property
    def damaged(self) -> bool:
        return self.shortfall_us > 0 or any(stream.damage for stream in self.streams)

    def to_json(self) -> dict[str, Any]:
        """Integers, strings, lists: nothing that two machines could spell differently."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain | {"audio_tracks": self.audio_tracks}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Probe:
        fields = {name: value for name, value in plain.items() if name != "audio_tracks"}
        return cls(**fields | {"streams": tuple(_stream_from_json(stream) for stream in plain["streams"])})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Fraction) else value


def _stream_from_json(plain: dict[str, Any]) -> Stream:
    video, audio = plain["video"], plain["audio"]
    return Stream(
        **plain
        | {
            "time_base": _fraction(plain["time_base"]),
            "damage": Damage(**plain["damage"]),
            "video": Video(**video | {"rate": _fraction(video["rate"])}) if video else None,
            "audio": Audio(**audio) if audio else None,
        }
    )


def _fraction(text: str | None) -> Fraction | None:
    return None if text is None else Fraction(text)
