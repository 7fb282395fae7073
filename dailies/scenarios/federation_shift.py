"""A channel's list that changes while it is read."""

from __future__ import annotations

from collections.abc import Sequence

from dailies.scenarios.federation_content import Video


class Shift:
    """Tomorrow's changes come early, one after each ``every``-th page that goes further down than any before.

    The steps hang on how far the list was read, not on how often: whoever reads a page again, after a crash perhaps,
    finds what it would have found. What goes was listed already, so that who joins page to page carefully has read
    exactly today's videos, and who trusts in ``start`` has lost some.
    """

    def __init__(self, today: Sequence[Video], tomorrow: Sequence[Video], every: int) -> None:
        known = {video.uuid for video in today}
        staying = {video.uuid for video in tomorrow}
        self.now = list(today)
        self._coming = [video for video in reversed(tomorrow) if video.uuid not in known]
        self._going = known - staying
        self._every = every
        self._reached = self._steps = 0

    def page(self, start: int, count: int) -> list[Video]:
        found = self.now[start : start + count]
        if start + len(found) > self._reached:
            self._reached = start + len(found)
            self._steps += 1
            if self._steps % self._every == 0:
                self._change(self._steps // self._every)
        return found

    def _change(self, number: int) -> None:
        leaving = next((place for place, each in enumerate(self.now[: self._reached]) if each.uuid in self._going), -1)
        if leaving >= 0 and (number % 2 == 1 or not self._coming):
            del self.now[leaving]
            self._reached -= 1
        elif self._coming:
            self.now.insert(0, self._coming.pop(0))
            self._reached += 1
