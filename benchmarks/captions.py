"""Burned-in captions against films whose every word and frame is known (tests/caption_clips.py).

Each film is read in a process of its own, so that its memory is its own; the seconds of a film include loading the
models for it. A film that could not be read counts as found empty, and the benchmark then exits with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks._report import Figure, number, options, save, show
from dailies.captions.score import Comparison, Cue, Score, Verdict, compare, total
from tests.caption_clips import CLIPS, Clip, NoFont, make

MIB = 1 << 20
FULL_SECONDS, QUICK_SECONDS = 30.0, 8.0
JUDGED_PIXELS = 1920 * 1080
HEADINGS = (
    *("clip", "size", "exact", "CER", "missed", "phantom", "twice", "≤1 frame", "=frame", "median", "p95 ms"),
    *("× real", "by stage, s", "reads", "finds/s", "MiB"),
)


@dataclass(frozen=True)
class Reading:
    """What the extraction of one film gave and cost. `reads` are lines recognised, `finds` are detections."""

    found: tuple[Cue, ...] = ()
    wall: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    finds: int = 0
    reads: int = 0
    peak: int = 0
    device: str = ""
    trouble: str = ""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Reading:
        return cls(**{**content, "found": tuple(Cue(**cue) for cue in content["found"])})


@dataclass(frozen=True)
class Result:
    clip: Clip
    reading: Reading
    comparison: Comparison

    @property
    def score(self) -> Score:
        return self.comparison.score

    @property
    def speed(self) -> float:
        """× realtime; a film that could not be read has none."""
        return self.clip.seconds / self.reading.wall if self.reading.wall else 0.0

    @property
    def faults(self) -> tuple[int, int]:
        """What is wrong with the captions, then with their times: the clip with most is the worst."""
        score = self.score
        far = round(len(score.boundaries) * (1 - (score.within(1) or 0)))
        return score.captions - score.exact + score.phantoms + score.duplicates, far


def captions_of(path: Path, out: Path) -> Reading:
    """The only place that knows the shape of the extraction."""
    from dailies.captions.extract import extract
    from dailies.captions.ocr import engine

    begin = time.perf_counter()
    report = extract(path, out)
    wall = time.perf_counter() - begin
    reader = engine()
    return Reading(
        found=tuple(Cue(each.start_us, each.end_us, each.text) for each in report.captions),
        wall=wall,
        seconds=dict(report.seconds),
        finds=reader.finds,
        reads=reader.reads,
        peak=own_peak(),
        device=report.device,
    )


def own_peak() -> int:
    """The kernel's high-water mark of this process; `ru_maxrss` would carry over what the parent had used."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return psutil.Process().memory_info().rss


def read(clip: Clip, folder: Path) -> Reading:
    """In a process of its own; the memory of the processes that it starts counts as well."""
    file = folder / f"{clip.name}.json"
    command = [sys.executable, "-m", "benchmarks.captions", "--extract", str(clip.path), "--json", str(file)]
    patience = 120 + 20 * clip.seconds
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        watch = Watch(process.pid)
        watch.start()
        try:
            _, said = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            return Reading(peak=watch.peak, trouble=f"not done after {patience:.0f} s")
        finally:
            watch.stop()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        lines = said.strip().splitlines() or [f"exit status {process.returncode}"]
        return Reading(peak=watch.peak, trouble=lines[-1])
    content = json.loads(file.read_text())
    return Reading.from_json({**content, "peak": max(content["peak"], watch.peak)})


class Watch(threading.Thread):
    """The most memory that a process and all below it were seen to use at once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.1):
            with suppress(psutil.Error):
                top = psutil.Process(self.pid)
                self.peak = max(self.peak, sum(each.memory_info().rss for each in [top, *top.children(recursive=True)]))

    def stop(self) -> None:
        self.ended.set()
        self.join()


def judged(name: str, folder: Path, seconds: float) -> Result:
    clip = make(name, folder, seconds)
    reading = read(clip, folder)
    return Result(clip, reading, compare(clip.truth, reading.found, clip.frame_times))


def figures(results: Sequence[Result]) -> list[Figure]:
    score = total(result.score for result in results)
    found = [
        _figure("exact lines", _percent(score.exact_share), "%", at_least=98),
        _figure("characters wrong (CER)", score.cer, "", at_most=0.003),
        Figure("missed", score.missed, f"of {score.captions}", at_most=0),
        _figure("phantoms", score.phantoms_per_10_minutes, "per 10 min", at_most=1, note=f"{score.phantoms} in all"),
        Figure("duplicates", score.duplicates, ""),
        _figure("boundaries within one source frame", _percent(score.within(1)), "%", at_least=97),
        _figure("boundaries on the very frame", _percent(score.within(0)), "%"),
        _figure("boundary offset, median", _milliseconds(score.offset_median_us), "ms"),
        _figure("boundary offset, p95", _milliseconds(score.offset_p95_us), "ms"),
    ]
    return [each for each in found if each] + speeds(results) + costs(results)


def speeds(results: Sequence[Result]) -> list[Figure]:
    """The slowest of each kind: a mean would let a fast still film pay for a moving one."""
    still = [each for each in results if not _moving(each) and _judged_for_speed(each)]
    moving = [each for each in results if _moving(each) and _judged_for_speed(each)]
    found = [
        Figure(name, slowest.speed, "× realtime", at_least=least, note=slowest.clip.name)
        for name, group, least in (("slowest still or busy", still, 3.0), ("slowest moving", moving, 1.5))
        if group
        for slowest in [min(group, key=lambda each: each.speed)]
    ]
    film = sum(each.clip.seconds for each in results)
    wall = sum(each.reading.wall for each in results)
    if wall:
        found.append(Figure("all clips", film / wall, "× realtime", note=f"{film:.0f} s of film"))
    stages = {stage for each in results for stage in each.reading.seconds}
    for stage in sorted(stages):
        took = sum(each.reading.seconds.get(stage, 0.0) for each in results)
        found.append(Figure(f"stage {stage}", film / max(took, 1e-9), "× realtime", note=f"{took:.1f} s in all"))
    return found


def costs(results: Sequence[Result]) -> list[Figure]:
    captions = sum(each.score.captions for each in results)
    film = sum(each.clip.seconds for each in results)
    largest = max(results, key=lambda each: each.reading.peak)
    found = [
        Figure("detections", sum(each.reading.finds for each in results) / film, "a second of film"),
        Figure("peak memory", largest.reading.peak / MIB, "MiB", at_most=1024, note=largest.clip.name),
    ]
    if captions:
        reads = sum(each.reading.reads for each in results)
        found.insert(0, Figure("lines read by OCR", reads / captions, "a caption"))
    return found


def table(results: Sequence[Result]) -> Table:
    drawn = Table(title="By clip", title_justify="left", box=None, padding=(0, 2, 0, 0))
    headings = (
        "clip|size|exact|CER|missed|phantom|twice|≤1 frame|=frame|median|p95 ms|× real|by stage, s|reads|finds/s|MiB"
    )
    for heading in headings.split("|"):
        drawn.add_column(heading, justify="left" if heading in ("clip", "by stage, s") else "right", no_wrap=True)
    for each in results:
        drawn.add_row(*_row(each))
    return drawn


def side_by_side(result: Result) -> str:
    """Truth and found, line against line, with how many source frames each boundary is off."""
    drawn = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "from … to, s", "start", "end", "truth", "found"):
        drawn.add_column(heading, justify="right" if heading in ("start", "end") else "left")
    offsets = zip(result.score.starts, result.score.ends, strict=True)
    for pair in result.comparison.pairs:
        both = next(offsets) if pair.truth and pair.found else ()
        drawn.add_row(
            "" if pair.verdict is Verdict.EXACT else pair.verdict.upper(),
            f"{pair.cue.start_us / 1e6:.3f} … {pair.cue.end_us / 1e6:.3f}",
            *([f"{each.frames:+.4g}" for each in both] or ("", "")),
            _on_one_line(pair.truth),
            _on_one_line(pair.found),
        )
    return f"{result.clip.name}: {_summary(result)}\n{_drawn(drawn)}"


def content(result: Result) -> dict[str, Any]:
    """One clip in the JSON file."""
    score = {name: value for name, value in asdict(result.score).items() if name not in ("starts", "ends")}
    reading = {name: value for name, value in asdict(result.reading).items() if name != "found"}
    pairs = [{**asdict(pair), "verdict": pair.verdict.value} for pair in result.comparison.pairs]
    return {
        "score": score,
        "within_one_frame": result.score.within(1),
        "on_the_frame": result.score.within(0),
        "speed": result.speed,
        "reading": reading,
        "pairs": pairs,
    }


def measure(chosen: argparse.Namespace, folder: Path) -> list[Result]:
    seconds = QUICK_SECONDS if chosen.quick else chosen.seconds
    results: list[Result] = []
    for name in chosen.clips or CLIPS:
        print(f"{name} …", end=" ", file=sys.stderr, flush=True)
        try:
            results.append(judged(name, folder, seconds))
        except NoFont as missing:
            print(f"left out: {missing}", file=sys.stderr)
            continue
        print(_summary(results[-1]), file=sys.stderr)
    return results


def publish(results: Sequence[Result], chosen: argparse.Namespace) -> None:
    worst = max(results, key=lambda each: each.faults)
    told = side_by_side(worst)
    print(_drawn(table(results)))
    show("All clips", figures(results))
    print(f"\nThe worst clip\n{told}")
    if chosen.keep:
        for each in results:
            (chosen.keep / f"{each.clip.name}.txt").write_text(side_by_side(each))
    if chosen.json:
        save(chosen.json, figures(results))
        saved = json.loads(chosen.json.read_text()) | {"clips": {each.clip.name: content(each) for each in results}}
        chosen.json.write_text(json.dumps(saved, indent=2, ensure_ascii=False) + "\n")
        chosen.json.with_name(f"{chosen.json.stem}-worst.txt").write_text(told)


def main() -> int:
    chosen = arguments()
    if chosen.extract:
        with tempfile.TemporaryDirectory() as out:
            chosen.json.write_text(json.dumps(asdict(captions_of(chosen.extract, Path(out)))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = measure(chosen, folder)
        if not results:
            return 1
        publish(results, chosen)
    troubled = [each for each in results if each.reading.trouble]
    for each in troubled:
        print(f"{each.clip.name} could not be read: {each.reading.trouble}", file=sys.stderr)
    return 1 if troubled else 0


def arguments() -> argparse.Namespace:
    parser = options("Burned-in captions against known films")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS:g} s of each film")
    parser.add_argument("--seconds", type=float, default=FULL_SECONDS, help="the length of each film")
    parser.add_argument("--clips", nargs="+", metavar="NAME", choices=list(CLIPS), help=f"of {', '.join(CLIPS)}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the films, and truth and found of each, there")
    parser.add_argument("--extract", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _moving(result: Result) -> bool:
    return CLIPS[result.clip.name].background in ("moving", "cuts")


def _judged_for_speed(result: Result) -> bool:
    """The targets are set for 1080p; a 4K film is reported and not judged."""
    return result.clip.size[0] * result.clip.size[1] <= JUDGED_PIXELS


def _row(result: Result) -> list[str]:
    score, reading = result.score, result.reading
    return [
        result.clip.name,
        "×".join(map(str, result.clip.size)),
        f"{score.exact}/{score.captions}",
        number(score.cer),
        str(score.missed),
        str(score.phantoms),
        str(score.duplicates),
        number(_percent(score.within(1))),
        number(_percent(score.within(0))),
        number(_milliseconds(score.offset_median_us)),
        number(_milliseconds(score.offset_p95_us)),
        f"{result.speed:.2f}",
        " ".join(f"{stage} {took:.1f}" for stage, took in reading.seconds.items()) or reading.trouble,
        str(reading.reads),
        f"{reading.finds / result.clip.seconds:.1f}",
        f"{reading.peak / MIB:.0f}",
    ]


def _summary(result: Result) -> str:
    score = result.score
    near = _percent(score.within(1))
    return result.reading.trouble or (
        f"{score.exact} of {score.captions} exact, {score.missed} missed, {score.phantoms} phantoms, "
        f"{score.duplicates} told twice, {'–' if near is None else f'{near:.0f} %'} within one frame, "
        f"{result.speed:.1f}× realtime"
    )


def _drawn(drawn: Table) -> str:
    page = StringIO()
    Console(file=page, width=220).print(drawn)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def _on_one_line(cue: Cue | None) -> str:
    return escape(cue.text.replace("\n", " / ")) if cue else "–"


def _figure(name: str, value: float | None, unit: str, **more: Any) -> Figure | None:
    return None if value is None else Figure(name, value, unit, **more)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _milliseconds(us: float | None) -> float | None:
    return None if us is None else us / 1000


if __name__ == "__main__":
    sys.exit(main())
