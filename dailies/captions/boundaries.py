"""The first and the last frame of a line, among the native frames between two samples."""

from __future__ import annotations

from collections.abc import Sequence

from dailies.captions.glyphs import Template
from dailies.captions.ocr import Gray
from dailies.captions.sampling import Native


def on_show(template: Template, strip: Gray) -> bool:
    return template.shows(strip) or template.holds(strip)


def first_shown(template: Template, frames: Sequence[Native], region: int) -> int:
    """Its time. The last of `frames` is known to show the line; the ones before are asked from there backwards."""
    start = frames[-1].us
    for native in reversed(frames[:-1]):
        if not on_show(template, native.strips[region]):
            break
        start = native.us
    return start


def first_gone(template: Template, frames: Sequence[Native], region: int, shown: int) -> tuple[int, int]:
    """(time of the last frame that shows it, time of the next frame, where the line has gone).

    The last of `frames` is known not to show the line; `shown` is when it was known to be there, before all of them.
    """
    for native in frames:
        if not on_show(template, native.strips[region]):
            return shown, native.us
        shown = native.us
    return shown, frames[-1].us


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
