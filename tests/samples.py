"""The sample library: videos and databases as seed 004 lists them, made by code when a test wants one.

    path = make("short-5s-text-bottom.mp4", tmp_path)
    film = video("medium-30s-multiple-captions.mp4", tmp_path)
    film.cues                                  # exactly what should be read: text, first frame, first frame without

The same name gives the same bytes: own font, no clock, one encoder thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from dailies.captions.compose import compose
from dailies.captions.databases import (
    FrameText,
    RawOcr,
    packed,
    read_captions,
    with_reading,
    write_captions,
    write_extents,
    write_layout,
)
from dailies.captions.extents import Dropped, Extent
from dailies.captions.glyphs import Template
from dailies.captions.layout import find_layout
from dailies.captions.ocr import Box, Line
from dailies.captions.reading import Reading
from dailies.errors import Unreadable
from tests.caption_clips import DIALOGUES, LINES
from tests.captions.clips import Background, Clip, Cue, busy, clip, cuts, moving, plain

RATE = 25
SECOND_US = 1_000_000
SIZE = (640, 360)
MARK = Line("CHANNEL 5", 0.97, Box(20, 12, 120, 34))
SIGN = Line("Exit", 0.91, Box(500, 150, 560, 174))


@dataclass(frozen=True)
class Recipe:
    """`lasting` and `gaps` are frames, taken in turn; without texts the film has no captions."""

    seconds: int
    texts: Sequence[str] = ()
    lasting: tuple[int, ...] = (40, 55, 33)
    gaps: tuple[int, ...] = (12, 30, 21)
    size: tuple[int, int] = SIZE
    background: Background = plain
    vfr: bool = False

    @property
    def frames(self) -> int:
        return self.seconds * RATE

    @property
    def cues(self) -> list[Cue]:
        """As many of the texts as end before the film does."""
        cues: list[Cue] = []
        after = 0
        for text, gap, frames in zip(self.texts, cycle(self.gaps), cycle(self.lasting), strict=False):
            first, after = after + gap, after + gap + frames
            if after > self.frames:
                break
            cues.append(Cue(first, after, text))
        return cues


def _mixed() -> Iterator[str]:
    """Now one line, now two."""
    for number, line in enumerate(LINES):
        yield line
        if number % 3 == 0:
            yield DIALOGUES[number // 3 % len(DIALOGUES)]


VIDEOS = {
    "short-5s-text-bottom.mp4": Recipe(5, LINES, (40, 43), (12, 20)),
    "short-5s-no-text.mp4": Recipe(5, background=moving),
    "medium-30s-multiple-captions.mp4": Recipe(30, LINES, background=cuts),
    # Nearly always something on show, and every fifth caption takes the place of the one before without a gap.
    "long-2m-dense-text.mp4": Recipe(120, [*_mixed()], (66, 75, 58, 81), (4, 7, 3, 9, 0), background=busy),
    "high-res-4k.mp4": Recipe(3, LINES[3:], (27, 33), (9, 5), size=(3840, 2160)),
    "low-res-480p.mp4": Recipe(8, LINES[9:], size=(854, 480), background=busy),
    "edge-cases/vertical-video.mp4": Recipe(
        8, ("Keep your voice\ndown!", "Not today.", "Who gave you\nthis address?"), size=(540, 960), background=moving
    ),
    "edge-cases/variable-framerate.mp4": Recipe(8, LINES[18:], vfr=True, background=busy),
}


def make(name: str, folder: Path) -> Path:
    """The sample of that name, under `folder`. One that is there already is left as it is."""
    path = folder / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in VIDEOS:
            video(name, folder)
        else:
            DATABASES[name](path)
    return path


def video(name: str, folder: Path) -> Clip:
    recipe = VIDEOS[name]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return clip(
        path,
        recipe.cues,
        frames=recipe.frames,
        size=recipe.size,
        rate=RATE,
        vfr=recipe.vfr,
        background=recipe.background,
        outline=max(2, min(recipe.size) // 180),
    )


def raw_ocr(texts: Sequence[str], frames: int = 30) -> RawOcr:
    """A second apart; each text on three frames, none on every fourth; one frame could not be read."""
    said = []
    for number in range(frames):
        text = texts[number // 4 % len(texts)] if texts and number % 4 else ""
        lines = [MARK, *([SIGN] if number == 7 else []), *([Line(text, 0.98, place(text))] if text else [])]
        failed = number == 11
        said.append(
            FrameText(number, number * SECOND_US, () if failed else tuple(lines), "no answer" if failed else "")
        )
    return RawOcr(*SIZE, tuple(said))


def place(text: str) -> Box:
    half = 5 * len(text)
    return Box(SIZE[0] // 2 - half, 310, SIZE[0] // 2 + half, 334)


def extents(cues: Sequence[Cue]) -> list[Extent]:
    """One for each line, as the follower would find them: frame numbers are forty milliseconds."""
    blank = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    found = []
    for cue in cues:
        for row, text in enumerate(cue.text.splitlines()):
            box = place(text).moved(0, 26 * (row - cue.text.count("\n")))
            times = (cue.first * SECOND_US // RATE, cue.last * SECOND_US // RATE)
            found.append(Extent(*times, text, round(0.9 + len(text) / 1000, 4), box, 0, Template(blank, box)))
    return found


DROPPED = (
    Dropped(3 * SECOND_US, 3_040_000, "ll", 0.41, "brief"),
    Dropped(9 * SECOND_US, 9_600_000, "o", 0.55, "unsure"),
)


def _empty_layout(path: Path) -> None:
    raw = raw_ocr(())
    write_layout(path, find_layout(raw.seen, raw.width, raw.height), raw)


def _annotated_layout(path: Path) -> None:
    raw = raw_ocr(LINES)
    write_layout(path, find_layout(raw.seen, raw.width, raw.height), raw, approved=True)


def _extents(path: Path) -> None:
    recipe = VIDEOS["medium-30s-multiple-captions.mp4"]
    samples = [number * SECOND_US // 10 for number in range(recipe.seconds * 10)]
    write_extents(path, extents(recipe.cues), DROPPED, samples, regions=1)


def _captions_with_ocr(path: Path) -> None:
    """The first was read and agrees, the second is surer, the third is in doubt, the fourth cannot be read."""
    plain_file = path.with_suffix("")
    write_captions(plain_file, compose(extents(VIDEOS["long-2m-dense-text.mp4"].cues)), DROPPED)
    database = plain_file.read_bytes()
    texts = [row.text for row in read_captions(database)]
    for number, reading in enumerate(
        (
            Reading(texts[0], 0.99, 26, 13, 1),
            Reading(texts[1].upper(), 0.999, 30, 15, 1),
            Reading(texts[2][:-1], 0.7, 23, 3, 4),
            Unreadable("no text can be read on the 33 frames of the caption: look at it yourself"),
        ),
        1,
    ):
        database = with_reading(database, number, reading)
    path.write_bytes(packed(database))
    plain_file.unlink()


DATABASES: dict[str, Callable[[Path], None]] = {
    "empty-layout.db": _empty_layout,
    "layout-with-annotations.db": _annotated_layout,
    "caption-frame-extents-sample.db": _extents,
    "captions-with-ocr.db.gz": _captions_with_ocr,
}
NAMES = (*VIDEOS, *DATABASES)
