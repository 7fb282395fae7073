"""Frames of one stream, whatever is wrong with the file on the way: what is damaged is told, and the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av

Damaged = Callable[[av.FFmpegError | None], None]


def decoded(container: Any, source: Any, damaged: Damaged) -> Iterator[Any]:
    """``damaged`` hears of each packet that came only in part, and of each that did not decode, with FFmpeg's error."""
    for packet in _packets(container, source, damaged):
        if packet is not None and packet.is_corrupt:
            damaged(None)
        try:
            yield from packet.decode() if packet is not None else source.codec_context.decode(None)
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:
            damaged(error)


def _packets(container: Any, source: Any, damaged: Damaged) -> Iterator[Any]:
    while True:
        try:
            yield from container.demux(source)
        except IndexError:
            # PyAV stumbles over a stream that appears in the middle of a file, and then knows it.
            continue
        except av.error.MemoryError:
            raise
        except av.FFmpegError:
            damaged(None)
            # The file ends here, but not what the decoder still holds.
            yield None
        return
