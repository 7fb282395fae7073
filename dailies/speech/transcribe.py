"""All of it on one machine: a film or a sound in; transcript.json, .srt and .vtt out.

    report = transcribe(Path("film.mp4"), Path("out"), engine("dtmf"))

Run again after it was stopped or killed, it listens only to what is missing, and the files are the same to the byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from dailies.canonical import digest, file_digest
from dailies.errors import BadInput, Changed, Transient
from dailies.speech.audio import RATE, Samples, Sound
from dailies.speech.engine import Engine, Word
from dailies.speech.plan import Chunk, Plan
from dailies.speech.stitch import Heard, Whole, stitch
from dailies.speech.transcript import exports, facts, origin, subrip
from dailies.speech.words import words_from_json, words_to_json
from dailies.speech.working import FILES, Working, working

Progress = Callable[[str, float], None]

# Raised when the same sound gives other chunks: what was kept under the number before is then of no use.
PLAN = 1
# Half a minute of sound is 2 MB, and so many are held at once: at work, and waiting so that nobody is idle.
THREADS, WAITING = 4, 2
PARTIAL_S = 2.0


@dataclass(frozen=True)
class Report:
    """`heard` chunks were listened to now and `reused` ones before; `sound` is what the file promised and kept."""

    whole: Whole
    sound: dict[str, Any]
    engine: str
    version: str
    heard: int
    reused: int
    seconds: float


def transcribe(
    path: Path,
    out: Path,
    engine: Engine,
    language: str | None = None,
    track: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """A chunk that could not be heard is a gap with its reason, and is tried again by the next run."""
    began = time.perf_counter()
    sound, plan = Sound(path, track=track, language=language), Plan()
    tell = progress or (lambda stage, share: None)
    stamp = _stamp(path)
    source = file_digest(path)
    name = digest(
        {
            "source": source,
            "stream": sound.index,
            "engine": [engine.name, engine.version],
            "language": language,
            "plan": [PLAN, asdict(plan.rules)],
        }
    )
    with working(out, name) as work, _Hearing(work, engine, language, sound, tell) as hearing:
        tell("sound", 0.0)
        for chunk in plan.chunks(hearing.blocks()):
            hearing.take(chunk)
        hearing.finish()
        if _stamp(path) != stamp:
            raise Changed(f"{sound.name} changed while it was read: run it again")
        whole = stitch(hearing.done, plan.duration_us)
        known = facts(sound)
        work.publish(exports(whole, origin(engine.name, engine.version, language, source, known)))
        if not whole.gaps:
            work.remove()
    taken = time.perf_counter() - began
    return Report(whole, known, engine.name, engine.version, hearing.heard, hearing.reused, taken)


class _Hearing:
    """Chunks at the engine, a few at a time. Threads only listen; all that is written, is written by the caller's."""

    def __init__(self, work: Working, engine: Engine, language: str | None, sound: Sound, tell: Progress) -> None:
        self.work = work
        self.engine = engine
        self.language = language
        self.sound = sound
        self.tell = tell
        self.done: list[Heard] = []
        self.heard = self.reused = 0
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="hearing")
        self._pending: dict[Future[list[Word]], tuple[str, Chunk]] = {}
        self._partial = _Partial(work)
        self._furthest_us = 0
        self._told: dict[str, float] = {}

    def __enter__(self) -> _Hearing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        # Nobody waits for an engine whose words are not wanted any more.
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            # Where the disk is full, that is what ended it, and this would only say so again.
            with suppress(BadInput):
                self._partial.write(self.done, at_once=True)

    def blocks(self) -> Iterator[Samples]:
        for block in self.sound.blocks():
            self._tell("sound", self.sound.end_us)
            self._collect(0)
            yield block
        self.tell("sound", 1.0)

    def take(self, chunk: Chunk) -> None:
        key = chunk.key
        kept = self.work.words(key)
        if kept is not None:
            self.reused += 1
            self._finished(chunk, words=kept)
            return
        while len(self._pending) >= THREADS + WAITING:
            self._collect(None)
        future = self._pool.submit(self.engine.transcribe, chunk.samples, RATE, self.language)
        self._pending[future] = key, chunk

    def finish(self) -> None:
        while self._pending:
            self._collect(None)
        self._partial.changed = False
        self.tell("words", 1.0)

    def _collect(self, timeout: float | None) -> None:
        """None waits for one at least, or until it is time to write down those that came."""
        if self._pending:
            patience = self._partial.due_in(self.done) if timeout is None else timeout
            ready, _ = wait(self._pending, patience, FIRST_COMPLETED)
            # What is good is kept before an error ends all.
            for future in sorted(ready, key=lambda one: one.exception() is not None):
                self._keep(future, *self._pending.pop(future))
        self._partial.write(self.done)

    def _keep(self, future: Future[list[Word]], key: str, chunk: Chunk) -> None:
        self._partial.changed = True
        try:
            words = words_to_json(future.result())
        except (Transient, BadInput) as error:
            self._finished(chunk, failure=str(error) or error.code)
        else:
            self.heard += 1
            # Before it is kept: what was kept can then be read as well, also where a Ctrl-C comes in between.
            self._finished(chunk, words=words_from_json(words))
            self.work.keep(key, words)
        self._partial.write(self.done)

    def _finished(self, chunk: Chunk, words: list[Word] | None = None, failure: str = "") -> None:
        self.done.append(Heard.of(chunk, words or (), failure))
        self._furthest_us = max(self._furthest_us, chunk.end_us)
        self._tell("words", min((one.start_us for _, one in self._pending.values()), default=self._furthest_us))

    def _tell(self, stage: str, us: int) -> None:
        """Never backwards, since chunks overlap; at nothing, but told, where the file says nothing of its length."""
        share = min(1.0, us / self.sound.promised_us) if self.sound.promised_us else 0.0
        self._told[stage] = max(self._told.get(stage, 0.0), share)
        self.tell(stage, self._told[stage])


class _Partial:
    """What can be read while the rest is still to come. Of a run before this one more may be on disk than this one has
    come to: that stays until something new was heard."""

    def __init__(self, work: Working) -> None:
        self.work = work
        self.changed = not work.published(FILES[0])
        self._next = 0.0

    def due_in(self, done: list[Heard]) -> float | None:
        return max(0.0, self._next - time.monotonic()) if self.changed and done else None

    def write(self, done: list[Heard], at_once: bool = False) -> None:
        if self.changed and done and (at_once or time.monotonic() >= self._next):
            self.work.publish({FILES[0]: subrip(stitch(done, max(one.end_us for one in done)))})
            self.changed, self._next = False, time.monotonic() + PARTIAL_S


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """None of a file that is gone, which is a change too."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
