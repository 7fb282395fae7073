"""One caption read again by the real engine: what is believed at once, what only after other frames were asked."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from dailies.captions.ocr import Box, Gray, Line, engine
from dailies.captions.reading import MOST_FRAMES, Reading, read_caption
from dailies.errors import Missing, Unreadable
from tests.captions.clips import Background, moving, plain

pytestmark = [pytest.mark.unit, pytest.mark.slow]

WIDTH, HEIGHT = 640, 90
LINE = 26


def strip(
    text: str, number: int = 0, background: Background = moving, *, size: int = LINE, at: tuple[int, int] | None = None
) -> Gray:
    picture = Image.fromarray(background(number, WIDTH, HEIGHT)[:, :, 0] // 2)
    ImageDraw.Draw(picture).multiline_text(
        at or (WIDTH / 2, HEIGHT / 2),
        text,
        255,
        font=ImageFont.load_default(size),
        anchor="mm",
        align="center",
        stroke_width=3,
        stroke_fill=0,
    )
    return np.asarray(picture)


def shown(text: str, on: set[int], count: int = 12, background: Background = plain) -> list[Gray]:
    """The text is on those frames only."""
    return [strip(text if number in on else "", number, background) for number in range(count)]


def test_a_long_sure_line_is_read_once_from_the_median_of_a_moving_background() -> None:
    samples = [strip("Where have you been?", number) for number in range(12)]
    reading = read_caption(samples, engine())
    assert (reading.text, reading.frame_count, reading.tries) == ("Where have you been?", 12, 1)
    assert reading.confidence > 0.95
    median = np.median(samples, axis=0).astype(np.uint8).astype(int)
    differences = [np.abs(sample.astype(int) - median).mean() for sample in samples]
    assert reading.median_index == int(np.argmin(differences))


def test_a_short_line_is_read_on_single_frames_too_before_it_is_believed() -> None:
    reading = read_caption([strip("No.", number) for number in range(12)], engine())
    assert (reading.text, reading.tries) == ("No.", 4)


def test_a_caption_of_one_frame_has_nobody_else_to_ask() -> None:
    reading = read_caption([strip("No.")], engine())
    assert reading == Reading("No.", reading.confidence, 1, 0, 1)


def test_an_empty_median_is_not_believed_where_a_single_frame_says_a_whole_sentence() -> None:
    reading = read_caption(shown("Nobody has seen her", {2, 3, 4}), engine())
    assert (reading.text, reading.tries) == ("Nobody has seen her", 4)


def test_three_letters_on_one_frame_are_no_caption_and_on_two_they_are() -> None:
    with pytest.raises(Unreadable, match="12 frames"):
        read_caption(shown("Hey", {3}), engine())
    assert read_caption(shown("Hey", {3, 9}), engine()).text == "Hey"


def test_frames_without_text_are_unreadable_in_one_line_and_no_frames_are_missing() -> None:
    with pytest.raises(Unreadable, match=r"the 1 frame of") as caught:
        read_caption([strip("", background=plain)], engine())
    assert "\n" not in str(caught.value)
    with pytest.raises(Missing):
        read_caption([], engine())


def test_only_text_inside_its_place_counts() -> None:
    samples = []
    for number in range(8):
        sample = strip("Turn to page 114", number, at=(420, 60)).copy()
        sign = strip("EXIT ONLY", number, at=(110, 24))
        sample[:, :220] = sign[:, :220]
        samples.append(sample)
    place = Box(300, 40, 540, 80)
    assert read_caption(samples, engine(), LINE, place).text == "Turn to page 114"
    assert read_caption(samples, engine()).text.startswith("EXIT")
    with pytest.raises(Unreadable):
        read_caption(samples, engine(), LINE, Box(560, 40, 640, 80))


def test_letters_much_higher_than_a_line_are_scenery() -> None:
    samples = [strip("GARAGE", number, size=70) for number in range(6)]
    assert read_caption(samples, engine()).text == "GARAGE"
    with pytest.raises(Unreadable):
        read_caption(samples, engine(), LINE)


def test_two_lines_are_parted_by_a_line_feed_and_pieces_of_one_row_by_a_space() -> None:
    lines = [strip("She kept the letters\nand never read them", number) for number in range(6)]
    assert read_caption(lines, engine(), LINE).text == "She kept the letters\nand never read them"
    row = []
    for number in range(6):
        sample = strip("Yes, I know.", number, at=(140, 45)).copy()
        sample[:, 330:] = strip("Then tell me!", number, at=(500, 45))[:, 330:]
        row.append(sample)
    assert read_caption(row, engine(), LINE).text == "Yes, I know. Then tell me!"


class Script:
    """An engine that reads what stands in a script, one picture after the other."""

    device = "script"

    def __init__(self, *readings: tuple[str, float], blind: bool = False) -> None:
        self.readings = iter(readings)
        self.found = [] if blind else [Box(10, 10, 200, 36)]
        self.asked: list[Box] = []

    def find(self, image: Gray) -> list[Box]:
        return self.found

    def read_lines(self, image: Gray, boxes: Sequence[Box]) -> list[Line]:
        if not boxes:
            return []
        self.asked.extend(boxes)
        text, confidence = next(self.readings)
        return [Line(text, confidence, box) for box in boxes]

    def read(self, image: Gray) -> list[Line]:
        return self.read_lines(image, self.find(image))


NOTHING = ("", 0.0)


@pytest.mark.parametrize(
    ("readings", "believed"),
    [
        ([("Stay here", 0.9)], ("Stay here", 0.9, 1)),
        ([("Stay here", 0.7), ("Slay here", 0.75), ("Stay here", 0.72), NOTHING], ("Stay here", 0.72, 4)),
        ([("Stay here", 0.7), ("Slay here", 0.75), NOTHING, NOTHING], ("Slay here", 0.75, 4)),
        ([NOTHING, NOTHING, ("Stay here", 0.81), NOTHING], ("Stay here", 0.81, 4)),
        ([NOTHING, NOTHING, ("Stay here", 0.79), NOTHING], None),
        ([("Stay here", 0.59)] * 4, None),
        ([("No", 0.9), ("Mo", 0.99), ("No", 0.8), NOTHING], ("No", 0.9, 4)),
        ([("No", 0.99), ("Mo", 0.99), ("So", 0.99), NOTHING], None),
        ([("?!…", 1.0)] * 4, None),
    ],
)
def test_what_the_frames_say_is_put_to_the_vote(
    readings: list[tuple[str, float]], believed: tuple[str, float, int] | None
) -> None:
    samples = [np.full((50, 220), grey, np.uint8) for grey in (10, 10, 20, 24, 24, 30, 40, 40)]
    if believed is None:
        with pytest.raises(Unreadable):
            read_caption(samples, Script(*readings))
    else:
        reading = read_caption(samples, Script(*readings))
        assert (reading.text, reading.confidence, reading.tries) == believed


def test_where_nothing_is_found_the_place_of_a_single_line_is_read_all_the_same() -> None:
    samples = [np.zeros((50, 220), np.uint8)] * 3
    script = Script(("Stay here", 0.9), blind=True)
    assert read_caption(samples, script, LINE, Box(-5, 10, 300, 40)).text == "Stay here"
    assert script.asked == [Box(0, 10, 220, 40)]
    with pytest.raises(Unreadable):
        read_caption(samples, Script(("Stay here", 0.9), blind=True), LINE, Box(0, 0, 220, 50))
    with pytest.raises(Unreadable):
        read_caption(samples, Script(("Stay here", 0.9), blind=True), LINE)


def test_an_hour_of_one_caption_takes_no_more_memory_than_a_few_frames() -> None:
    frame = strip("This stays on show", background=plain)

    def an_hour() -> Iterator[Gray]:
        for _ in range(36_000):
            yield frame.copy()

    engine().read(frame)
    tracemalloc.start()
    reading = read_caption(an_hour(), engine())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (reading.text, reading.frame_count) == ("This stays on show", 36_000)
    assert peak < 20 * MOST_FRAMES * frame.nbytes


def test_the_same_samples_give_the_same_reading() -> None:
    samples = [strip("Is that your hat?", number) for number in range(50)]
    assert read_caption(samples, engine()) == read_caption(iter(samples), engine())
