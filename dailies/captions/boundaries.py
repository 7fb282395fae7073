"""The first and the last frame of a line, among the native frames between two samples.

A line that fades is on show from the first frame in which its shapes can be told to the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dailies.captions.glyphs import Template
from dailies.captions.ocr import Gray
from dailies.captions.sampling import Native

# Of a line's full strength: what is fainter than that, nobody reads; what changes by less, does not fade.
FAINTEST, FADE_STEP = 0.12, 0.04


def on_show(template: Template, strip: Gray) -> bool:
    return template.match(strip).there


def first_shown(template: Template, frames: Sequence[Native], region: int) -> int:
    """Its time. The last of `frames` is known to show the line; the ones before are asked from there backwards."""
    place = len(frames) - 1
    while place and on_show(template, frames[place - 1].strips[region]):
        place -= 1
    return frames[place - _fading(template, frames[place::-1], region)].us


def first_gone(template: Template, frames: Sequence[Native], region: int) -> int:
    """When the line has gone. The last of `frames` is known not to show it."""
    place = next(
        (place for place, native in enumerate(frames) if not on_show(template, native.strips[region])), len(frames) - 1
    )
    if place:
        place += _fading(template, frames[place - 1 :], region)
    return frames[min(place, len(frames) - 1)].us


def handover(before: Template, after: Template, frames: Sequence[Native], region: int) -> int:
    """When one line took the other's place: the first of the frames that are nearer to the later one up to the last.

    Near-identical lines look alike to `on_show`, which asks each alone; asked against one another they do not.
    """
    start = frames[-1].us
    for native in reversed(frames):
        strip = native.strips[region]
        if not (before.fits_worse(after, strip) and on_show(after, strip)):
            break
        start = native.us
    return start


def _fading(template: Template, frames: Sequence[Native], region: int) -> int:
    """How many frames after the first still show the line, each more faintly than the one before."""
    strengths = [template.match(native.strips[region]).strength for native in frames]
    fades = [after >= FAINTEST and after <= before - FADE_STEP for before, after in pairwise(strengths)]
    return fades.index(False) if False in fades else len(fades)
