"""The four databases of a film's captions: the same bytes for the same contents, and a reader for each writer.

    write_raw_ocr(path, raw)                        what was read on whole frames
    write_layout(path, layout, raw)                 where captions sit
    write_extents(path, extents, dropped, …)        which samples show the same line
    write_captions(path, captions, dropped)         the captions themselves

`Path` or bytes, packed by gzip or not, are all the same to a reader. What is no such database is `Unreadable`.
"""

from dailies.captions.databases.captions import (
    CaptionRow,
    read_captions,
    read_dropped,
    with_reading,
    write_captions,
)
from dailies.captions.databases.extents import (
    LABELS,
    ExtentRow,
    Extents,
    Pair,
    read_extents,
    sample_index,
    write_extents,
)
from dailies.captions.databases.file import packed, unpacked
from dailies.captions.databases.layout import BoxLabel, read_approval, read_labels, read_layout, write_layout
from dailies.captions.databases.raw_ocr import FrameText, RawOcr, read_raw_ocr, write_raw_ocr

__all__ = [
    "LABELS",
    "BoxLabel",
    "CaptionRow",
    "ExtentRow",
    "Extents",
    "FrameText",
    "Pair",
    "RawOcr",
    "packed",
    "read_approval",
    "read_captions",
    "read_dropped",
    "read_extents",
    "read_labels",
    "read_layout",
    "read_raw_ocr",
    "sample_index",
    "unpacked",
    "with_reading",
    "write_captions",
    "write_extents",
    "write_layout",
    "write_raw_ocr",
]
