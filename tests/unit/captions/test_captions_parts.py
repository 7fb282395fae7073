"""The parts of caption extraction that need no engine: templates, boundaries, composition, files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from dailies.captions.boundaries import first_gone, first_shown, handover
from dailies.captions.compose import compose
from dailies.captions.extents import Extent
from dailies.captions.glyphs import Template, appeared, changed
from dailies.captions.layout import Seen, find_layout
from dailies.captions.ocr import Box, Gray, Line, rows, spelt
from dailies.captions.sampling import Native
from dailies.captions.spacing import cased, spaced
from dailies.captions.subtitles import Caption, json_file
from dailies.subtitles import srt, vtt

pytestmark = pytest.mark.unit

BOX = Box(20, 10, 380, 55)


def strip(text: str, ground: int = 40, noise: int = 0) -> Gray:
    picture = Image.new("L", (400, 70), ground)
    font = ImageFont.load_default(32)
    ImageDraw.Draw(picture).text((200, 32), text, 240, font=font, anchor="mm", stroke_width=2, stroke_fill=0)
    grain = np.random.default_rng(noise).integers(-8, 9, (70, 400)) if noise else 0
    return np.clip(np.asarray(picture).astype(int) + grain, 0, 255).astype(np.uint8)


def native(number: int, text: str, ground: int = 40) -> Native:
    return Native(number * 40_000, (strip(text, ground, number + 1),))


def test_a_template_sees_one_letter_exchanged_and_not_the_noise_of_a_codec() -> None:
    template = Template(strip("There are 3 of them"), BOX)
    noisy = strip("There are 3 of them", noise=5)
    assert template.match(noisy).sure
    assert not template.exchanged(noisy)
    other = strip("There are 8 of them")
    assert template.match(other).there
    assert template.exchanged(other)
    assert template.exchanged(other, strip("There are 8 of them", noise=5))
    assert not template.match(strip("")).possible


def test_what_moves_behind_a_line_is_no_letter_exchanged() -> None:
    template = Template(strip("There are 3 of them"), BOX)
    behind, moved = strip("There are 3 of them"), strip("There are 3 of them")
    behind[20:44, 190:196], moved[20:44, 198:204] = 240, 240
    assert template.exchanged(behind)
    assert not template.exchanged(moved, behind)


def test_a_line_is_there_on_another_background_and_not_without_its_letters() -> None:
    template = Template(strip("Come in"), BOX)
    assert template.match(strip("Come in", ground=110)).there
    assert not template.match(strip("", ground=110)).there
    assert not template.match(strip("", ground=240)).there


def test_a_letter_added_at_the_end_is_seen() -> None:
    template = Template(strip("Come in"), BOX)
    longer = strip("Come in")
    longer[20:46, 270:276] = 240
    assert template.match(longer).sure
    assert not template.exchanged(longer)
    assert template.grown(longer, longer)
    assert not template.grown(longer, strip("Come in"))


def test_a_template_forgets_what_changed_while_its_line_stood_still() -> None:
    template = Template(strip("Come in", ground=110), BOX)
    assert not template.match(strip("Come in", ground=30)).sure
    template.settle(strip("Come in", ground=30))
    assert template.match(strip("Come in", ground=70)).sure
    assert not template.match(strip("", ground=110)).possible


def test_three_letters_are_a_change_that_an_average_would_not_see() -> None:
    assert changed(strip(""), strip("No."), [])
    assert not changed(strip(""), strip("No."), [BOX])
    assert not changed(strip("", noise=1), strip("", noise=2), [])


def test_what_has_come_and_stands_still_looks_like_letters_and_what_rolls_past_does_not() -> None:
    empty, word = strip(""), strip("No.")
    assert appeared(empty, word, word, 32, [])
    assert not appeared(word, word, word, 32, [])
    assert not appeared(empty, np.roll(word, 20, axis=0), word, 32, [])
    assert not appeared(empty, strip("", ground=90), strip("", ground=90), 32, [])
    assert not appeared(empty, word, word, 32, [BOX])


def test_a_line_starts_and_ends_on_its_own_frames() -> None:
    template = Template(strip("Come in"), BOX)
    rising = [native(0, ""), native(1, ""), native(2, "Come in"), native(3, "Come in")]
    falling = [native(4, "Come in"), native(5, ""), native(6, "")]
    assert first_shown(template, rising, 0) == 80_000
    assert first_gone(template, falling, 0) == 200_000


def test_a_line_that_fades_is_on_show_from_its_first_faint_frame_to_its_last() -> None:
    def faded(number: int, share: float) -> Native:
        empty, full = strip("").astype(float), strip("Come in").astype(float)
        return Native(number * 40_000, ((empty + share * (full - empty)).astype(np.uint8),))

    template = Template(strip("Come in"), BOX)
    rising = [faded(number, share) for number, share in enumerate((0, 0, 0.2, 0.4, 0.6, 0.8, 1))]
    falling = [faded(number, share) for number, share in enumerate((1, 0.8, 0.6, 0.4, 0.2, 0, 0))]
    assert first_shown(template, rising, 0) == 80_000
    assert first_gone(template, falling, 0) == 200_000


def test_one_line_takes_the_place_of_another_on_one_frame() -> None:
    before, after = Template(strip("OK 3"), BOX), Template(strip("OK 8"), BOX)
    frames = [native(0, "OK 3"), native(1, "OK 3"), native(2, "OK 8"), native(3, "OK 8")]
    assert handover(before, after, frames, 0) == 80_000
    assert handover(after, before, frames, 0) == 120_000


def test_pieces_of_a_row_are_one_line_and_rows_stay_apart() -> None:
    pieces = [Box(100, 10, 150, 30), Box(10, 11, 90, 31), Box(20, 50, 120, 70), Box(300, 10, 340, 30)]
    assert rows(pieces) == [Box(10, 10, 150, 31), Box(300, 10, 340, 30), Box(20, 50, 120, 70)]


def line(text: str, middle: int, top: int, confidence: float = 0.95) -> Line:
    half = 6 * len(text)
    return Line(text, confidence, Box(middle - half, top, middle + half, top + 24))


def test_captions_make_a_region_and_a_watermark_or_a_scrap_makes_none() -> None:
    mark = line("CHANNEL 5", 80, 10)
    seen = [
        Seen(second * 1_000_000, (mark, line("abcdefgh"[: 3 + second % 5] + str(second), 320, 300)))
        for second in range(20)
    ]
    seen[3] = Seen(3_000_000, (mark, line("Exit", 500, 150)))
    layout = find_layout(seen, 640, 360)
    assert len(layout.regions) == 1
    region = layout.regions[0]
    assert (region.anchor, region.centre, region.line_height) == ("center", 312, 24)
    assert region.crop.top < 300 - 24
    assert region.crop.bottom >= 324 + 24
    assert find_layout([Seen(0, ()), Seen(1, ())], 640, 360).regions == ()


def extent(start: int, end: int, text: str, top: int) -> Extent:
    return Extent(start, end, text, 0.9, Box(10, top, 110, top + 20), 0, Template(strip(""), BOX))


def test_lines_on_show_together_are_one_caption_and_one_that_stays_is_shown_with_each() -> None:
    upper, lower = extent(0, 2_000_000, "upper", 10), extent(40_000, 1_960_000, "lower", 40)
    assert [(c.start_us, c.end_us, c.text) for c in compose([lower, upper])] == [(0, 2_000_000, "upper\nlower")]
    late = replace(lower, start_us=1_000_000, end_us=2_000_000)
    assert [(c.start_us, c.end_us, c.text) for c in compose([late, upper])] == [
        (0, 1_000_000, "upper"),
        (1_000_000, 2_000_000, "upper\nlower"),
    ]


def test_a_swallowed_space_comes_back_only_where_the_gap_is_wide() -> None:
    assert spaced("OK3", strip("OK 3") > 200) == "OK 3"
    assert spaced("OK3", strip("OK3") > 200) == "OK3"
    assert spaced("OK 3", strip("OK 3") > 200) == "OK 3"
    assert spaced("OK33", strip("OK 3") > 200) == "OK33"


def test_a_first_letter_that_stands_out_above_the_others_is_a_capital() -> None:
    assert cased("come in", strip("Come in") > 200) == "Come in"
    assert cased("come in", strip("come in") > 200) == "come in"
    assert cased("Come in", strip("Come in") > 200) == "Come in"
    assert cased("no one", strip("No one") > 200) == "no one"


def test_a_small_share_for_a_space_between_letters_is_a_space() -> None:
    letters = ["", "a", "b", " "]
    table = np.array([[0.0, 1.0, 0.0, 0.0], [0.9, 0.0, 0.0, 0.1], [0.0, 0.0, 1.0, 0.0]], np.float32)
    assert spelt(table, letters) == ("a b", 1.0)
    table[1] = [0.99, 0.0, 0.0, 0.01]
    assert spelt(table, letters) == ("ab", 1.0)
    assert spelt(table[[1, 0, 0, 1]], letters) == ("a", 1.0)
    assert spelt(table[:0], letters) == ("", 0.0)


def test_subtitles_are_spelt_as_players_expect() -> None:
    captions = [
        Caption(3_723_004_400, 3_724_999_600, "a < b\nc & d", 0.9, 0),
        Caption(3_725_000_000, 3_726_000_000, "é", 1, 0),
    ]
    assert srt(captions).decode() == (
        "1\n01:02:03,004 --> 01:02:05,000\na < b\nc & d\n\n2\n01:02:05,000 --> 01:02:06,000\né\n"
    )
    assert vtt(captions).decode() == (
        "WEBVTT\n\n01:02:03.004 --> 01:02:05.000\na &lt; b\nc &amp; d\n\n01:02:05.000 --> 01:02:06.000\né\n"
    )
    assert json_file([]) == b'{"captions":[]}\n'
