"""Samples as WebM: every index gives its picture back, the same samples the same bytes, and text stays legible."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from dailies.captions.chunks import CHUNK_FRAMES, Chunk, ChunkWriter, read_chunks
from dailies.captions.ocr import Box, Gray, engine
from dailies.errors import Missing, Unreadable
from tests.captions.clips import busy, moving

pytestmark = pytest.mark.unit

WIDTH, HEIGHT = 96, 48
BITS = 12


def numbered(number: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Gray:
    """Says its number in columns, dark or light, on a grey that changes."""
    picture = np.full(size, 100 + number % 50, np.uint8)
    column = size[1] // BITS
    for bit in range(BITS):
        picture[: size[0] // 2, bit * column : (bit + 1) * column] = 230 if number >> bit & 1 else 20
    return picture


def number_of(picture: Gray) -> int:
    column = picture.shape[1] // BITS
    blocks = [picture[2 : picture.shape[0] // 2 - 2, bit * column + 1 : (bit + 1) * column - 1] for bit in range(BITS)]
    return sum((block.mean() > 125) << bit for bit, block in enumerate(blocks))


def write(folder: Path, indexes: list[int], size: tuple[int, int] = (HEIGHT, WIDTH)) -> list[Chunk]:
    writer = ChunkWriter(folder)
    for index in indexes:
        writer.add(index, numbered(index, size))
    return writer.close()


def read(chunks: list[Chunk], first: int, after: int) -> list[tuple[int, int]]:
    return [(index, number_of(picture)) for index, picture in read_chunks([one.path for one in chunks], first, after)]


def test_every_sample_comes_back_also_over_the_edge_of_a_chunk_and_the_last_short_one(tmp_path: Path) -> None:
    chunks = write(tmp_path, list(range(20, 20 + 2 * CHUNK_FRAMES + 3)))
    assert [(one.path.name, one.first_index, one.last_index) for one in chunks] == [
        ("chunk_0000000020.webm", 20, 275),
        ("chunk_0000000276.webm", 276, 531),
        ("chunk_0000000532.webm", 532, 534),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [one.path.name for one in chunks]
    assert read(chunks, 20, 535) == [(index, index) for index in range(20, 535)]
    assert read(chunks[::-1], 274, 279) == [(index, index) for index in range(274, 279)]
    assert read(chunks, 533, 534) == [(533, 533)]
    assert read(chunks, 30, 30) == []


def test_where_samples_are_missing_the_picture_before_stays_on_show(tmp_path: Path) -> None:
    indexes = [*range(0, 10), *range(50, 50 + CHUNK_FRAMES - 10), 400, 404]
    chunks = write(tmp_path, indexes)
    assert [(one.first_index, one.last_index) for one in chunks] == [(0, 295), (400, 404)]
    assert read(chunks, 8, 12) == [(8, 8), (9, 9), (10, 9), (11, 9)]
    assert read(chunks, 48, 51) == [(48, 9), (49, 9), (50, 50)]
    assert read(chunks, 398, 406) == [
        (398, 295),
        (399, 295),
        *[(at, 400) for at in range(400, 404)],
        (404, 404),
        (405, 404),
    ]


def test_the_clock_in_the_file_is_the_films(tmp_path: Path) -> None:
    (chunk,) = write(tmp_path, [120, 121, 130])
    with av.open(str(chunk.path)) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
        assert container.format.name == "matroska,webm"
        assert container.streams.video[0].codec.canonical_name == "vp9"
    assert times == [12.0, 12.1, 13.0]


def test_another_rate_keeps_its_numbers(tmp_path: Path) -> None:
    rate = Fraction(30000, 1001)
    writer = ChunkWriter(tmp_path, rate)
    for index in range(1000, 1100):
        writer.add(index, numbered(index))
    paths = [chunk.path for chunk in writer.close()]
    assert [(index, number_of(picture)) for index, picture in read_chunks(paths, 1000, 1100, rate)] == [
        (index, index) for index in range(1000, 1100)
    ]


@pytest.mark.parametrize("size", [(47, 97), (48, 97), (47, 96), (1, 1), (3, 2)])
def test_odd_sides_are_padded_in_the_file_and_cut_off_again(tmp_path: Path, size: tuple[int, int]) -> None:
    (chunk,) = write(tmp_path, [3, 4], size)
    with av.open(str(chunk.path)) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    pictures = dict(read_chunks([chunk.path], 3, 5))
    assert {picture.shape for picture in pictures.values()} == {size}
    for index, picture in pictures.items():
        assert np.abs(picture.astype(int) - numbered(index, size)).mean() < 6
        assert np.abs(picture[-1].astype(int) - numbered(index, size)[-1]).mean() < 6


def test_a_single_sample_is_a_chunk_and_none_at_all_is_no_file(tmp_path: Path) -> None:
    assert read(write(tmp_path / "one", [7]), 7, 9) == [(7, 7), (8, 7)]
    assert ChunkWriter(tmp_path / "none").close() == []
    assert not (tmp_path / "none").exists()


def test_of_two_pictures_of_one_sample_the_later_counts_and_none_goes_back_in_time(tmp_path: Path) -> None:
    writer = ChunkWriter(tmp_path)
    writer.add(5, numbered(1))
    writer.add(5, numbered(2))
    writer.add(6, numbered(3))
    with pytest.raises(ValueError, match="sample 4 comes after sample 6"):
        writer.add(4, numbered(4))
    assert read(writer.close(), 5, 7) == [(5, 2), (6, 3)]


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    writer = ChunkWriter(tmp_path)
    writer.add(0, numbered(0))
    writer.add(1, numbered(1, (50, 100)))
    with pytest.raises(ValueError, match="100x50 among 96x48"):
        writer.close()


def test_colours_are_kept_for_the_eye_and_read_back_as_grey(tmp_path: Path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, :20], picture[:, 20:40], picture[:, 40:] = (220, 30, 30), (255, 255, 255), (0, 0, 0)
    writer = ChunkWriter(tmp_path)
    writer.add(0, picture)
    (chunk,) = writer.close()
    with av.open(str(chunk.path)) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(shown[5:35, 5:15].astype(int) - (220, 30, 30)).mean() < 8
    ((_, grey),) = read_chunks([chunk.path], 0, 1)
    assert grey.shape == (40, 60)
    assert grey[20, 30] > 225 > 120 > grey[20, 10] > 60 > 25 > grey[20, 50]


SCRIPT = """
import hashlib, sys
from pathlib import Path
from dailies.captions.chunks import ChunkWriter
from tests.captions.clips import moving
writer = ChunkWriter(Path(sys.argv[1]))
for index in range(300):
    writer.add(index, moving(index, 320, 81)[:, :, 0])
print(*(hashlib.sha256(chunk.path.read_bytes()).hexdigest() for chunk in writer.close()))
"""


def test_the_same_samples_give_the_same_bytes_in_another_process_too(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / name)], stdout=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    said = [run.communicate(timeout=120)[0].split() for run in runs]
    assert said[0] == said[1]
    assert len(said[0]) == 2
    writer = ChunkWriter(tmp_path / "three")
    for index in range(300):
        writer.add(index, moving(index, 320, 81)[:, :, 0])
    assert [hashlib.sha256(one.path.read_bytes()).hexdigest() for one in writer.close()] == said[0]


def test_what_is_no_chunk_or_half_of_one_is_refused(tmp_path: Path) -> None:
    (chunk,) = write(tmp_path / "good", list(range(100)))
    data = chunk.path.read_bytes()
    bad = {"empty": b"", "garbage": bytes(range(256)) * 20, "cut": data[: len(data) // 2], "only a header": data[:300]}
    for what, contents in bad.items():
        path = tmp_path / what / chunk.path.name
        path.parent.mkdir()
        path.write_bytes(contents)
        with pytest.raises(Unreadable, match="chunk_0000000000"):
            list(read_chunks([path], 0, 100))
    with pytest.raises(Missing, match="chunk_0000000009"):
        list(read_chunks([tmp_path / "chunk_0000000009.webm"], 9, 10))
    with pytest.raises(Unreadable, match=r"film\.webm is no chunk"):
        list(read_chunks([tmp_path / "film.webm"], 0, 10))


def test_a_film_that_was_not_written_by_us_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chunk_0000000000.webm"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx-vp9", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    with pytest.raises(Unreadable):
        list(read_chunks([path], 0, 1))


def test_samples_before_the_first_picture_are_missing_and_chunks_not_needed_are_not_opened(tmp_path: Path) -> None:
    chunks = write(tmp_path, list(range(10, 10 + 3 * CHUNK_FRAMES)))
    with pytest.raises(Missing, match="sample 9"):
        read(chunks, 9, 12)
    with pytest.raises(Missing, match="sample 0"):
        read([], 0, 1)
    chunks[0].path.unlink()
    chunks[2].path.unlink()
    assert read(chunks, 10 + CHUNK_FRAMES, 12 + CHUNK_FRAMES) == [(266, 266), (267, 267)]


TEXTS = ("Where were you at 10:45?", "It's 3% more, Anna.", "RUN!")


@pytest.mark.slow
@pytest.mark.parametrize("background", [moving, busy])
@pytest.mark.parametrize(("letters", "height"), [(26, 80), (52, 161)])
def test_the_engine_reads_the_same_on_a_chunk_as_on_the_strips(
    tmp_path: Path, background: object, letters: int, height: int
) -> None:
    """Letters as a 480p and a 1080p film has them."""
    strips = [captioned(background, number, letters, height) for number in range(36)]
    writer = ChunkWriter(tmp_path)
    for index, strip in enumerate(strips):
        writer.add(index, strip)
    back = dict(read_chunks([one.path for one in writer.close()], 0, len(strips)))
    places = range(3, 36, 6)
    before = [said(strips[place]) for place in places]
    assert before == [TEXTS[place // 12] for place in places]
    assert [said(back[place]) for place in places] == before
    assert max(np.abs(back[place].astype(int) - strips[place]).mean() for place in places) < 1.5


def captioned(background: object, number: int, letters: int, height: int) -> Gray:
    scene = background(number, letters * 24, height) // 2  # type: ignore[operator]
    picture = Image.fromarray(scene)
    ImageDraw.Draw(picture).text(
        (letters * 12, height / 2),
        TEXTS[number // 12],
        "white",
        font=ImageFont.load_default(letters),
        anchor="mm",
        stroke_width=max(2, letters // 12),
        stroke_fill="black",
    )
    return np.asarray(picture.convert("L"))


def said(strip: Gray) -> str:
    height, width = strip.shape
    middle = Box(0, height // 3, width, 2 * height // 3)
    lines = [line.text for line in engine().read(strip) if middle.top < line.box.middle[1] < middle.bottom]
    return " ".join(lines)
