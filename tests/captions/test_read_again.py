"""From a film to its crops, and from the crops to each caption again: what caption OCR does, without a flow."""

from __future__ import annotations

from pathlib import Path

import pytest

from dailies.captions.chunks import read_chunks
from dailies.captions.databases import read_captions, with_reading, write_captions
from dailies.captions.infer import infer
from dailies.captions.layout import find_layout, survey
from dailies.captions.ocr import Box, engine
from dailies.captions.reading import read_caption
from dailies.captions.sampling import Film
from dailies.errors import Unreadable
from tests.samples import video

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.mark.parametrize("name", ["short-5s-text-bottom.mp4", "edge-cases/variable-framerate.mp4"])
def test_every_caption_is_read_again_from_its_crops_as_it_was_written(name: str, tmp_path: Path) -> None:
    sample = video(name, tmp_path)
    film = Film(sample.path)
    regions = find_layout(survey(film, engine()), *film.size).regions
    found = infer(film, regions, engine(), crops=tmp_path / "crops")
    write_captions(tmp_path / "captions.db", found.captions, found.dropped)
    database = (tmp_path / "captions.db").read_bytes()
    for row in read_captions(database):
        paths = [chunk.path for chunk in found.chunks[row.region]]
        samples = [picture for _, picture in read_chunks(paths, row.start_frame_index, row.end_frame_index)]
        crop, tall = regions[row.region].crop, regions[row.region].line_height
        reading = read_caption(samples, engine(), tall, row.box.moved(-crop.left, -crop.top))
        assert reading.frame_count == row.end_frame_index - row.start_frame_index
        database = with_reading(database, row.id, reading)
        elsewhere = Box(0, 0, crop.width, max(1, row.box.top - crop.top - round(tall)))
        with pytest.raises(Unreadable):
            read_caption(samples, engine(), tall, elsewhere)
    rows = read_captions(database)
    assert [row.text for row in rows] == [cue.text for cue in sample.cues]
    assert [row.caption_ocr for row in rows] == [cue.text for cue in sample.cues]
    assert {(row.text_status, row.caption_ocr_status) for row in rows} == {("read", "completed")}
