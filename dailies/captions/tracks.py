"""One line that is on show: what was read of it so far, and what it is taken to say in the end."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dailies.captions.glyphs import Template
from dailies.captions.ocr import Box, Engine, Gray, Line
from dailies.captions.sampling import Native
from dailies.captions.spacing import cased, spaced

SURE, READABLE = 0.8, 0.6
KEPT_SAMPLES = 8
SAME_TEXT = 0.8
# Half as many letters are wrong as in a picture that is not stretched.
WELL_READ, WIDE = 1.25, 1.5
SPACE_VOTE = 0.3


class Track:
    """`lead` are the frames up to the first sample that shows the line."""

    def __init__(self, line: Line, lead: Sequence[Native], place: int) -> None:
        self.box = line.box
        self.lead = tuple(lead)
        self.renew(lead[-1].strips[place], place)
        self.readings = [line]
        self.doubted = False
        self.stride = 1
        self.count = 0
        self.bands: list[Gray] = []
        self.keep(lead[-1], place)

    def renew(self, strip: Gray, place: int) -> None:
        """The strip shows the line better than the one that it was known by: it was fading in."""
        self.template = Template(strip, self.box)
        for native in reversed(self.lead):
            if not self.template.match(native.strips[place]).there:
                self.template.came_after(native.strips[place])
                break

    def hold(self, sample: Native, place: int) -> None:
        """The sample shows the line."""
        self.doubted = False
        self.template.settle(sample.strips[place])
        self.keep(sample, place)

    def keep(self, sample: Native, place: int) -> None:
        """At most `KEPT_SAMPLES` pictures of the row, spread over the time so far."""
        if self.count % self.stride == 0:
            self.bands.append(self.band.cut(sample.strips[place]).copy())
        self.count += 1
        if len(self.bands) > KEPT_SAMPLES:
            self.bands, self.stride = self.bands[::2], self.stride * 2

    @property
    def band(self) -> Box:
        """The row's whole width: the first box may have been cut short by what is behind it."""
        room = round(self.box.height * 0.35)
        return Box(0, max(0, self.box.top - room), 1 << 20, self.box.bottom + room)

    def text(self) -> str:
        return max(self.readings, key=lambda line: line.confidence).text

    def widened(self, line: Line, strip: Gray, place: int) -> Track:
        wider = Track(line, self.lead, place)
        wider.template = Template(strip, line.box)
        wider.readings = [line]
        if wider.band == self.band:  # pictures of another row would be laid over those of this one
            wider.bands, wider.stride, wider.count = self.bands, self.stride, self.count
        return wider

    def final(self, engine: Engine) -> Line:
        """The median over time has no background left to misread; it votes with the readings of single frames."""
        shapes = Counter(band.shape for band in self.bands)
        bands = [band for band in self.bands if band.shape == shapes.most_common(1)[0][0]]
        picture = np.median(np.stack(bands), axis=0).astype(np.uint8)
        own = self.box.moved(0, -self.band.top)
        found = [row for row in engine.find(picture) if row.same_row(own) and row.gap(own) < own.height]
        boxes = [own, *(row for row in found if row != own)]
        readings = [
            *engine.read_lines(picture, boxes),
            *(line for stretch in (WELL_READ, WIDE) for line in engine.read_lines(picture, boxes, stretch=stretch)),
            *engine.read_lines(bands[len(bands) // 2], [own], stretch=WELL_READ),
            *engine.read_lines(self._cleaned(picture, own), [own], stretch=WELL_READ),
        ]
        best = _vote([*readings, *self.readings])
        return replace(best, text=cased(spaced(best.text, self.template.ink), self.template.ink), box=self.box)

    def _cleaned(self, picture: Gray, own: Box) -> Gray:
        clean = picture.copy()
        own.cut(clean)[:] = self.template.cleaned(own.cut(picture))
        return clean


def plain(text: str) -> str:
    return "".join(text.split()).casefold()


def alike(one: str, other: str) -> bool:
    one, other = plain(one), plain(other)
    return bool(one) and difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() >= SAME_TEXT


def _vote(lines: Sequence[Line]) -> Line:
    """The letters with the most confidence behind them; twice read beats a surer one that was read once.

    A space is lost far more easily than one is made up: some of those who read these letters are enough for it.
    """
    weights: dict[str, float] = {}
    for line in lines:
        weights[_letters(line.text)] = weights.get(_letters(line.text), 0.0) + _weight(line)
    letters = max(weights, key=lambda letters: (weights[letters], len(letters), letters))
    readers = [line for line in lines if _letters(line.text) == letters]
    best = max(readers, key=lambda line: line.confidence)
    least = SPACE_VOTE * weights[letters]
    spaces = [sum(_weight(line) for line in readers if place in _spaces(line.text)) for place in range(len(letters))]
    return replace(
        best, text="".join(" " * (0 < least <= votes) + letter for votes, letter in zip(spaces, letters, strict=True))
    )


def _weight(line: Line) -> float:
    return max(0.0, line.confidence - READABLE / 2) ** 2


def _letters(text: str) -> str:
    return "".join(text.split())


def _spaces(text: str) -> set[int]:
    """Before which of the letters there is a space."""
    words = text.split()
    return {sum(len(word) for word in words[:number]) for number in range(1, len(words))}
