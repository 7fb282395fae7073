"""`dailies transcribe`: the words of one film or sound on this machine, with a bar for each stage."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dailies.errors import DailiesError
from services.progress import stages

if TYPE_CHECKING:
    from dailies.speech.transcribe import Report

STAGES = {"sound": "decoding the sound", "words": "hearing the words"}
AGAIN = "the same command goes on where it was"


def run(
    media: Path,
    out: Path,
    engine: str,
    language: str | None,
    track: int | None,
    say: Callable[[str], None],
    complain: Callable[[str], None],
) -> int:
    """1 where a span could not be transcribed: all the others are written all the same."""
    try:
        return _run(media, out, engine, language, track, say)
    except (DailiesError, OSError) as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain(f"stopped; {AGAIN}")
        return 130


def _run(media: Path, out: Path, name: str, language: str | None, track: int | None, say: Callable[[str], None]) -> int:
    from dailies.speech.engine import engine
    from dailies.speech.transcribe import transcribe
    from dailies.speech.working import FILES, spelt

    with stages(STAGES) as tell, _ctrl_c() as check:

        def told(stage: str, share: float) -> None:
            check()
            tell(stage, share)

        report = transcribe(media, out, engine(name), language, track, told)
    for line in summary(report):
        say(line)
    for file in FILES:
        say(f"  {spelt(out / file)}")
    for line in missing(report):
        say(line)
    return 1 if report.whole.coverage.failed_us else 0


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], None]]:
    """Raises in ``check`` again what was raised before: PyAV swallows a Ctrl-C that comes in the midst of it."""
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def summary(report: Report) -> list[str]:
    covered = report.whole.coverage
    length, speech, failed = (round(us / 1000) for us in (covered.duration_us, covered.speech_us, covered.failed_us))
    before = f", {report.reused} of its chunks were heard before" if report.reused else ""
    lines = [
        f"words      {len(report.whole.words)}",
        f"coverage   {_seconds(length)} = speech {_seconds(speech)} + silence {_seconds(length - speech - failed)}"
        f" + failed {_seconds(failed)}",
        f"engine     {report.engine} {report.version}",
        f"time       {report.seconds:.1f} s, {length / 1000 / report.seconds:.1f} times as fast as the sound{before}",
    ]
    return lines + damage(report)


def damage(report: Report) -> list[str]:
    sound = report.sound
    lines = []
    if sound["short_us"]:
        lines.append(f"sound      the last {_spoken(sound['short_us'])} that the file promises did not decode")
    if sound["broken"] or sound["filled_us"] or sound["cut_us"]:
        lines.append(
            f"damage     {sound['broken']} packets did not decode whole, {_spoken(sound['filled_us'])} are missing"
            f" and left silent, {_spoken(sound['cut_us'])} were there twice"
        )
    return lines


def missing(report: Report) -> list[str]:
    """Each span that nobody could hear; the next run tries these again, and these alone."""
    return [
        f"not transcribed {gap.start_us / 1e6:.3f}–{gap.end_us / 1e6:.3f} s: {gap.reason}" for gap in report.whole.gaps
    ]


def _spoken(us: int) -> str:
    return _seconds(round(us / 1000))


def _seconds(thousandths: int) -> str:
    return f"{thousandths // 1000}.{thousandths % 1000:03} s"
