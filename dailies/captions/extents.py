"""Which frames show the same caption: each line is followed from sample to sample by its own pixels.

`Follower.take` is given every step of a film; it asks the engine only where a followed line stopped matching or
something like letters came where no line is. A line is closed when it is gone or says something else, and its ends are
then found on the native frames. What is dropped keeps its reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from dailies.captions.boundaries import first_gone, first_shown, handover
from dailies.captions.glyphs import STILL_NOISE, Template, appeared, changed
from dailies.captions.layout import Region
from dailies.captions.ocr import Box, Engine, Gray, Line
from dailies.captions.sampling import Step
from dailies.captions.tracks import READABLE, SURE, WELL_READ, Track, alike, plain

HOPELESS = 0.3
BACK_STEPS, PATROL_STEPS = 6, 5
TRIES = 3
SHORTEST_US = 80_000
FLICKER_US = 120_000
ROLLING_US = 600_000
RECENT = 24


@dataclass(frozen=True)
class Extent:
    """One line, shown from `start_us` up to `end_us`, which is the first frame without it. `box` is in the picture.

    `template` is how it looked, while that may still be asked for.
    """

    start_us: int
    end_us: int
    text: str
    confidence: float
    box: Box
    region: int
    template: Template | None = field(compare=False, repr=False)


@dataclass(frozen=True)
class Dropped:
    start_us: int
    end_us: int
    text: str
    confidence: float
    reason: str


class Follower:
    """Of one region. `extents` and `dropped` grow as lines end; `finish` closes those still on show."""

    def __init__(self, engine: Engine, region: Region, place: int) -> None:
        self.engine = engine
        self.region = region
        self.place = place
        self.extents: list[Extent] = []
        self.dropped: list[Dropped] = []
        self._tracks: list[Track] = []
        self._history: deque[Step] = deque(maxlen=BACK_STEPS)
        self._looked_at: Gray | None = None
        self._tries = self._rest = self._settled = 0

    def take(self, step: Step) -> None:
        strip, earlier = step.sample.strips[self.place], self._earlier(step)
        doubtful = [track for track in self._tracks if not self._still(track, step)]
        self._rest += 1
        came = self._came(strip, earlier)
        if doubtful or self._tries or came or self._is_due(strip):
            self._look(step, strip, earlier, doubtful, closely=came or self._tries > 0)
            self._rest = 0
        self._history.append(step)

    def finish(self, end_us: int) -> None:
        for track in self._tracks:
            self._close(track, end_us)
        self._tracks = []
        self._settle(0)
        rolling = _rolling(self.extents)
        self.dropped += [_dropped(extent, "moving") for extent in rolling]
        self.extents = sorted((one for one in self.extents if one not in rolling), key=_by_time)

    def _earlier(self, step: Step) -> Gray:
        """What was on show a moment before the sample."""
        frames = step.frames
        if len(frames) == 1 and self._history:
            frames = self._history[-1].frames[-1:]
        return frames[(len(frames) - 1) // 2].strips[self.place]

    def _still(self, track: Track, step: Step) -> bool:
        strip = step.sample.strips[self.place]
        match = track.template.match(strip)
        if match.fainter:
            return True
        if match.stronger:
            track.renew(strip, self.place)
            track.hold(step.sample, self.place)
            return True
        if not match.sure:
            return match.possible and self._confirmed(track, step)
        before = self._history[-1].sample.strips[self.place]
        if track.template.exchanged(strip):
            if not track.doubted:
                # A letter exchanged is still there at the next sample; what moves behind the line is not.
                track.doubted = True
                return True
            if track.template.exchanged(strip, before):
                return self._confirmed(track, step)
        elif track.template.grown(strip, before):
            return self._confirmed(track, step)
        track.hold(step.sample, self.place)
        return True

    def _came(self, strip: Gray, earlier: Gray) -> bool:
        if self._looked_at is None:
            return False
        return appeared(self._looked_at, earlier, strip, self.region.line_height, self._known(strip))

    def _is_due(self, strip: Gray) -> bool:
        """What the engine overlooked once is asked for again, as long as something moves."""
        if self._looked_at is None:
            return True
        return self._rest >= PATROL_STEPS and changed(self._looked_at, strip, self._known(strip))

    def _known(self, strip: Gray) -> list[Box]:
        return [_around(track.box, strip) for track in self._tracks]

    def _confirmed(self, track: Track, step: Step) -> bool:
        """It no longer matches, but still says the same: then what differs is behind it, and no part of it."""
        strip = step.sample.strips[self.place]
        line = self.engine.read_lines(strip, [track.box], stretch=WELL_READ)[0]
        said = track.text()
        if line.confidence < READABLE or not alike(line.text, said):
            return False
        if plain(line.text) != plain(said):
            # Noise of the reading, or one letter exchanged: said twice it is the letter, once it decides nothing.
            return not self._said_twice(track.box, line, step)
        if not track.template.match(strip).sure:
            track.renew(strip, self.place)
        track.readings.append(line)
        track.hold(step.sample, self.place)
        return True

    def _look(self, step: Step, strip: Gray, earlier: Gray, doubtful: list[Track], *, closely: bool) -> None:
        self._looked_at, self._tries = self._looked(strip, earlier), max(0, self._tries - 1)
        rows = self._rows(strip)
        if closely and not doubtful and not self._free(rows):
            rows = self._rows(strip, closely=True)
        for track in doubtful:
            own = [row for row in rows if row.same_row(track.box) and row.gap(track.box) < 0]
            rows = [row for row in rows if row not in own]
            self._judge(track, own, step, earlier)
        for row in self._free(rows):
            self._start(row, step, earlier)
        self._widen(rows, step, strip)

    def _looked(self, strip: Gray, earlier: Gray) -> Gray:
        """What came this very moment counts as not looked at: its first frame is often its worst."""
        if self._looked_at is None:
            return strip
        return np.where(cv2.absdiff(earlier, strip) <= STILL_NOISE, strip, self._looked_at)

    def _rows(self, strip: Gray, *, closely: bool = False) -> list[Box]:
        return [row for row in self.engine.find(strip, closely=closely) if self._fits(row)]

    def _free(self, rows: Sequence[Box]) -> list[Box]:
        return [row for row in rows if not any(_overlap(row, track.box) for track in self._tracks)]

    def _judge(self, track: Track, rows: list[Box], step: Step, earlier: Gray) -> None:
        """A line that is gone, or that another one took the place of."""
        self._tracks.remove(track)
        gone_us = first_gone(track.template, step.frames, self.place)
        for row in rows:
            gone_us = self._hand_over(track, row, step, earlier, gone_us)
        self._close(track, gone_us)

    def _hand_over(self, track: Track, row: Box, step: Step, earlier: Gray, gone_us: int) -> int:
        """Starts the line that took the track's place, and says when: no frame shows both."""
        after = self._start(row, step, earlier)
        if after is None:
            return gone_us
        # The change may lie before the last sample that was taken for the old line: one letter is easily overlooked.
        gone_us = min(gone_us, handover(track.template, after.template, after.lead, self.place))
        after.lead = tuple(native for native in after.lead if native.us >= gone_us)
        return gone_us

    def _said_twice(self, box: Box, line: Line, step: Step) -> bool:
        earlier = step.frames[-2:][0].strips[self.place]
        again = self.engine.read_lines(earlier, [box], stretch=WELL_READ)[0]
        return len(step.frames) > 1 and plain(again.text) == plain(line.text)

    def _start(self, row: Box, step: Step, earlier: Gray) -> Track | None:
        strip = step.sample.strips[self.place]
        template = Template(strip, row)
        if template.tells and not template.match(earlier).there:
            # It came this very moment, or it rolls past: only what stands still is a caption.
            self._tries = max(self._tries, 1)
            return None
        line = self.engine.read_lines(strip, [row], stretch=WELL_READ)[0]
        if line.confidence < READABLE or not any(letter.isalnum() for letter in line.text):
            # One unlucky frame, or a line that is fading in: other frames are asked before it is believed.
            self._tries = max(self._tries, 1) if line.confidence < HOPELESS else TRIES
            return None
        lead = [native for past in self._history for native in past.frames] + list(step.frames)
        track = Track(line, lead, self.place)
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
                    self._tracks[self._tracks.index(track)] = track.widened(line, strip, self.place)

    def _fits(self, row: Box) -> bool:
        """Text much larger or smaller than the captions, or cut by the crop's edge, is scenery.

        In a rectangle that a person drew where nothing was read yet, any height will do.
        """
        if not self.region.line_height:
            return True
        return 0.55 * self.region.line_height <= row.height <= 1.7 * self.region.line_height

    def _close(self, track: Track, end_us: int) -> None:
        start = first_shown(track.template, track.lead, self.place)
        line = track.final(self.engine)
        box = line.box.moved(self.region.crop.left, self.region.crop.top)
        extent = Extent(start, end_us, line.text, round(line.confidence, 4), box, self.place, track.template)
        reason = self._why_not(track, line, end_us - start)
        if reason:
            self.dropped.append(_dropped(extent, reason))
        else:
            self.extents.append(extent)
            if len(self.extents) - self._settled >= 2 * RECENT:
                self._settle(RECENT)

    def _settle(self, recent: int) -> None:
        """Joins what flickered. All but the most recent lose their pictures: a film of hours has thousands of lines."""
        extents = _merged(sorted(self.extents[self._settled :], key=_by_time))
        old, fresh = extents[: len(extents) - recent], extents[len(extents) - recent :]
        self.extents[self._settled :] = [*(replace(one, template=None) for one in old), *fresh]
        self._settled += len(old)

    def _why_not(self, track: Track, line: Line, length_us: int) -> str | None:
        if not any(letter.isalnum() for letter in line.text):
            return "empty"
        if len(line.text) == 1 and line.text.isascii():
            # A ring, a corner, a post: what is left of scenery that was read as one letter.
            return "scrap"
        if length_us < SHORTEST_US:
            return "brief"
        if line.confidence < SURE:
            return "unsure"
        if self.region.anchor == "center" and self._off_centre(track.box):
            return "stray"
        return None

    def _off_centre(self, box: Box) -> bool:
        return abs(box.middle[0] - self.region.anchor_x) > max(0.1 * self.region.crop.width, box.height)


def _by_time(extent: Extent) -> tuple[int, int]:
    return extent.start_us, extent.box.top


def _dropped(extent: Extent, reason: str) -> Dropped:
    return Dropped(extent.start_us, extent.end_us, extent.text, extent.confidence, reason)


def _overlap(row: Box, box: Box) -> bool:
    return row.same_row(box) and row.gap(box) < 0.5 * box.height


def _around(box: Box, strip: Gray) -> Box:
    return box.padded(box.height // 4, box.height // 4, strip.shape[1], strip.shape[0])


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
    if not _close_in_time(before, after) or not before.box.same_row(after.box) or before.box.gap(after.box) > 0:
        return False
    if before.text == after.text:
        return True
    if before.template is None or after.template is None:
        return False
    return alike(before.text, after.text) and before.template.agrees(after.template)


def _rolling(extents: Sequence[Extent]) -> list[Extent]:
    """A line that goes on from where it was a moment ago, a little further each time: credits and news tickers."""
    brief = [extent for extent in extents if extent.end_us - extent.start_us < ROLLING_US]
    return [extent for extent in brief if sum(_rolled(other, extent) for other in brief) >= 2]


def _rolled(one: Extent, other: Extent) -> bool:
    if abs(one.start_us - other.start_us) > 3 * ROLLING_US:
        return False
    across, along = (abs(here - there) for here, there in zip(one.box.middle, other.box.middle, strict=True))
    height = max(one.box.height, other.box.height)
    return max(across, along) > 2 and along < 3 * height and across < 4 * height and alike(one.text, other.text)


def _close_in_time(before: Extent, after: Extent) -> bool:
    return (
        -FLICKER_US <= after.start_us - before.end_us <= FLICKER_US or before.start_us < after.start_us < before.end_us
    )
