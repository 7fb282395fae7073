"""`dailies captions`: one film on this machine, with a bar for each stage."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dailies.captions.extract import Report, extract
from dailies.errors import BadInput
from services.progress import stages

FILES = ("captions.srt", "captions.vtt", "captions.json", "captions.db", "captions-report.json")
STAGES = {"layout": "looking for where captions sit", "captions": "reading them"}


def run(video: Path, out: Path, say: Callable[[str], None]) -> int:
    """1 where the film ended early: what was decoded of it is written all the same."""
    check_folder(out)
    try:
        with stages(STAGES) as tell:
            report = extract(video, out, tell)
    except OSError as error:
        raise BadInput(f"cannot write to {out}: {error.strerror or error}; name another with --out") from error
    for line in summary(report):
        say(line)
    for name in FILES:
        say(f"  {out / name}")
    return 1 if report.coverage.shortfall else 0


def check_folder(out: Path) -> None:
    """Before the work and not after it; nothing is made there yet."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"cannot write to {out}: {there} is no folder, or not yours; name another with --out")


def summary(report: Report) -> list[str]:
    found, coverage = report.captions, report.coverage
    length = coverage.decoded_us / 1e6
    taken = sum(report.seconds.values())
    lines = [
        f"captions   {len(found)} in {places(len(report.layout.regions))}, mean confidence {report.confidence:.3f}"
        if found
        else "captions   none found: captions.srt is empty",
        f"coverage   {length:.2f} s decoded, {coverage.frames} frames, looked at {coverage.samples} times",
        f"time       {taken:.1f} s, {length / taken:.1f} times as fast as the film, on {report.device}: "
        + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.seconds.items()),
    ]
    if coverage.dropped:
        lines.append("dropped    " + ", ".join(f"{n} {why}" for why, n in sorted(coverage.dropped.items())))
    if coverage.broken_packets:
        lines.append(f"damage     {coverage.broken_packets} packets could not be decoded")
    if coverage.shortfall:
        lines.append(f"film       {coverage.shortfall}: get it whole and read it again")
    return lines


def places(count: int) -> str:
    return f"{count} place{'' if count == 1 else 's'}"
