"""Which frames show the same caption: each line is followed from sample to sample by its own pixels.

`Follower.take` is given every step of a film; it asks the engine only where a followed line stopped matching or
something changed where no line is. A line is closed when it is gone or says something else, and its ends are then
found on the native frames. What is dropped keeps its reason.
"""

from __future__ import annotations

import difflib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dailies.captions.boundaries import first_gone, first_shown, handover
from dailies.captions.glyphs import Template, changed
from dailies.captions.layout import Region
from dailies.captions.ocr import Box, Engine, Gray, Line
from dailies.captions.sampling import Native, Step
from dailies.captions.spacing import spaced

SURE, READABLE, HOPELESS = 0.8, 0.6, 0.3
KEPT_SAMPLES = 8
BACK_STEPS = 3
TRIES = 3
SHORTEST_US = 80_000
FLICKER_US = 120_000
SAME_TEXT = 0.8


@dataclass(frozen=True)
class Extent:
    """One line, shown from `start_us` up to `end_us`, which is the first frame without it. `box` is in the picture."""

    start_us: int
    end_us: int
    text: str
    confidence: float
    box: Box
    region: int
    template: Template = field(compare=False, repr=False)


@dataclass(frozen=True)
class Dropped:
    start_us: int
    end_us: int
    text: str
    confidence: float
    reason: str


class _Track:
    """A line that is on show. `lead` are the frames up to the first sample that shows it."""

    def __init__(self, line: Line, lead: Sequence[Native], place: int) -> None:
        strip = lead[-1].strips[place]
        self.box = line.box
        self.lead = tuple(lead)
        self.template = Template(strip, line.box)
        self.readings = [line]
        self.seen_us = lead[-1].us
        self.stride = 1
        self.count = 0
        self.bands: list[Gray] = []
        self.keep(lead[-1], place)

    def keep(self, sample: Native, place: int) -> None:
        """At most `KEPT_SAMPLES` pictures of the row, spread over the time so far."""
        self.seen_us = sample.us
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


class Follower:
    """Of one region. `extents` and `dropped` grow as lines end; `finish` closes those still on show."""

    def __init__(self, engine: Engine, region: Region, place: int) -> None:
        self.engine = engine
        self.region = region
        self.place = place
        self.extents: list[Extent] = []
        self.dropped: list[Dropped] = []
        self._tracks: list[_Track] = []
        self._history: deque[Step] = deque(maxlen=BACK_STEPS)
        self._looked_at: Gray | None = None
        self._tries = self._rest = 0

    def take(self, step: Step) -> None:
        strip = step.sample.strips[self.place]
        doubtful = [track for track in self._tracks if not self._still(track, step)]
        for track in self._tracks:
            if track not in doubtful:
                track.keep(step.sample, self.place)
        doubtful = [track for track in doubtful if not self._confirmed(track, step, strip)]
        # On a moving background something always changes: the patrol comes as often as `_history` can look back.
        self._rest += 1
        patrols = not self._tracks or self._rest >= BACK_STEPS
        if doubtful or self._tries or (patrols and self._is_new(strip)):
            self._look(step, strip, doubtful)
            self._rest = 0
        self._history.append(step)

    def finish(self, end_us: int) -> None:
        for track in self._tracks:
            self._close(track, end_us)
        self._tracks = []
        self.extents = _merged(sorted(self.extents, key=lambda extent: (extent.start_us, extent.box.top)))

    def _still(self, track: _Track, step: Step) -> bool:
        strip = step.sample.strips[self.place]
        if track.template.shows(strip):
            return True
        if not track.template.holds(strip):
            return False
        for native in step.frames:
            if track.template.holds(native.strips[self.place]):
                track.template.settle(native.strips[self.place])
        return True

    def _is_new(self, strip: Gray) -> bool:
        if self._looked_at is None:
            return True
        return changed(self._looked_at, strip, [_around(track.box, strip) for track in self._tracks])

    def _look(self, step: Step, strip: Gray, doubtful: list[_Track]) -> None:
        self._looked_at, self._tries = strip, max(0, self._tries - 1)
        rows = [row for row in self.engine.find(strip) if self._fits(row)]
        for track in doubtful:
            own = [row for row in rows if row.same_row(track.box) and row.gap(track.box) < 0]
            rows = [row for row in rows if row not in own]
            self._judge(track, own, step, strip)
        free = [row for row in rows if not any(_overlap(row, track.box) for track in self._tracks)]
        for line in self.engine.read_lines(strip, free):
            self._start(line, step)
        self._widen(rows, step, strip)

    def _confirmed(self, track: _Track, step: Step, strip: Gray) -> bool:
        """It no longer matches, but still says the same: then what differs is behind it, and no part of it."""
        line = self.engine.read_lines(strip, [track.box])[0]
        said = track.text()
        if line.confidence < READABLE or not _alike(line.text, said):
            return False
        if _plain(line.text) != _plain(said):
            # Noise of the reading, or one letter exchanged: said twice it is the letter, once it decides nothing.
            track.seen_us = step.sample.us
            return not self._said_twice(track.box, line, step)
        for native in step.frames:
            track.template.settle(native.strips[self.place])
        track.readings.append(line)
        track.keep(step.sample, self.place)
        if not track.template.tells:
            track.template = Template(strip, track.box)
        return True

    def _judge(self, track: _Track, rows: list[Box], step: Step, strip: Gray) -> None:
        """A line that is gone, or that another one took the place of."""
        lines = self.engine.read_lines(strip, rows)
        self._tracks.remove(track)
        _, gone_us = first_gone(track.template, step.frames, self.place, track.seen_us)
        for line in lines:
            gone_us = self._hand_over(track, line, step, gone_us)
        self._close(track, gone_us)

    def _hand_over(self, track: _Track, line: Line, step: Step, gone_us: int) -> int:
        """Starts the line that took the track's place, and says when: no frame shows both."""
        after = self._start(line, step)
        if after is None:
            return gone_us
        # The change may lie before the last sample that was taken for the old line: one letter is easily overlooked.
        gone_us = min(gone_us, handover(track.template, after.template, after.lead, self.place))
        after.lead = tuple(native for native in after.lead if native.us >= gone_us)
        return gone_us

    def _said_twice(self, box: Box, line: Line, step: Step) -> bool:
        earlier = step.frames[-2:][0].strips[self.place]
        again = self.engine.read_lines(earlier, [box])[0]
        return len(step.frames) > 1 and _plain(again.text) == _plain(line.text)

    def _start(self, line: Line, step: Step) -> _Track | None:
        if line.confidence < READABLE or not any(letter.isalnum() for letter in line.text):
            # One unlucky frame, or a line that is fading in: other frames are asked before it is believed.
            self._tries = max(self._tries, 1) if line.confidence < HOPELESS else TRIES
            return None
        lead = [native for past in self._history for native in past.frames] + list(step.frames)
        track = _Track(line, lead, self.place)
        self._tracks.append(track)
        return track

    def _widen(self, rows: Sequence[Box], step: Step, strip: Gray) -> None:
        """A row that goes on past its track's box was found only in part before."""
        for track in list(self._tracks):
            longer = [
                row.union(track.box)
                for row in rows
                if row.same_row(track.box)
                and row.gap(track.box) < track.box.height
                and row.union(track.box).width > track.box.width + 0.6 * track.box.height
            ]
            for line in self.engine.read_lines(strip, longer[:1]):
                if line.confidence >= SURE and len(line.text) > len(track.text()):
                    wider = _Track(line, track.lead, self.place)
                    wider.template = Template(strip, line.box)
                    wider.readings, wider.bands, wider.seen_us = [line], track.bands, track.seen_us
                    wider.stride, wider.count = track.stride, track.count
                    self._tracks[self._tracks.index(track)] = wider

    def _fits(self, row: Box) -> bool:
        """Text much larger or smaller than the captions, or cut by the crop's edge, is scenery.

        In a rectangle that a person drew where nothing was read yet, any height will do.
        """
        if not self.region.line_height:
            return True
        return 0.55 * self.region.line_height <= row.height <= 1.7 * self.region.line_height

    def _close(self, track: _Track, end_us: int) -> None:
        start = first_shown(track.template, track.lead, self.place)
        line = self._final(track)
        reason = self._why_not(track, line, end_us - start)
        if reason:
            self.dropped.append(Dropped(start, end_us, line.text, round(line.confidence, 4), reason))
            return
        box = line.box.moved(self.region.crop.left, self.region.crop.top)
        self.extents.append(
            Extent(start, end_us, line.text, round(line.confidence, 4), box, self.place, track.template)
        )

    def _final(self, track: _Track) -> Line:
        """The median over time has no background left to misread; it votes with the readings of single frames."""
        shapes = Counter(band.shape for band in track.bands)
        bands = [band for band in track.bands if band.shape == shapes.most_common(1)[0][0]]
        picture = np.median(np.stack(bands), axis=0).astype(np.uint8)
        own = track.box.moved(0, -track.band.top)
        found = [row for row in self.engine.find(picture) if row.same_row(own) and row.gap(own) < own.height]
        boxes = [own, *(row for row in found if row != own)]
        readings = [*self.engine.read_lines(picture, boxes), *self.engine.read_lines(bands[len(bands) // 2], [own])]
        best = _vote([*readings, *track.readings])
        return replace(best, text=spaced(best.text, track.template.ink), box=track.box)

    def _why_not(self, track: _Track, line: Line, length_us: int) -> str | None:
        if not any(letter.isalnum() for letter in line.text):
            return "empty"
        if length_us < SHORTEST_US:
            return "brief"
        if line.confidence < SURE:
            return "unsure"
        if self.region.anchor == "center" and self._off_centre(track.box):
            return "stray"
        return None

    def _off_centre(self, box: Box) -> bool:
        return abs(box.middle[0] - self.region.anchor_x) > max(0.1 * self.region.crop.width, box.height)


def _overlap(row: Box, box: Box) -> bool:
    return row.same_row(box) and row.gap(box) < 0.5 * box.height


def _around(box: Box, strip: Gray) -> Box:
    return box.padded(box.height // 4, box.height // 4, strip.shape[1], strip.shape[0])


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


def _alike(one: str, other: str) -> bool:
    one, other = _plain(one), _plain(other)
    return bool(one) and difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() >= SAME_TEXT


def _vote(lines: Sequence[Line]) -> Line:
    """The text with the most confidence behind it; a text that was read twice beats a surer one that was read once."""
    weights: dict[str, float] = {}
    for line in lines:
        weights[line.text] = weights.get(line.text, 0.0) + max(0.0, line.confidence - READABLE / 2) ** 2
    text = max(weights, key=lambda text: (weights[text], len(text), text))
    return max((line for line in lines if line.text == text), key=lambda line: line.confidence)


def _merged(extents: Sequence[Extent]) -> list[Extent]:
    """One line that was closed by a flicker and found again; neighbours that differ in a letter stay apart."""
    merged: list[Extent] = []
    for extent in extents:
        place = next((place for place, before in enumerate(merged) if _continues(before, extent)), None)
        if place is None:
            merged.append(extent)
            continue
        before = merged[place]
        best = max(before, extent, key=lambda one: (one.confidence, one.end_us - one.start_us))
        merged[place] = replace(
            best, start_us=before.start_us, end_us=max(before.end_us, extent.end_us), template=extent.template
        )
    return merged


def _continues(before: Extent, after: Extent) -> bool:
    near = -FLICKER_US <= after.start_us - before.end_us <= FLICKER_US or after.start_us < before.end_us
    if not near or not before.box.same_row(after.box) or before.box.gap(after.box) > 0:
        return False
    if before.text == after.text:
        return True
    return _alike(before.text, after.text) and before.template.agrees(after.template)
