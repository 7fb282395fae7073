"""Films with burned-in captions whose every word, first frame and last frame are known.

    clip = make("vfr", tmp_path, seconds=8)
    clip.path, clip.truth[0].start_us, clip.frame_times

The truth is counted in frames: a caption starts at the pts of the first frame that shows it and ends at the pts of the
first frame that shows it no more (or where the film ends). The same call gives the same film: the words, the times and
the pictures are drawn from the clip's name.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dailies.captions.score import Cue
from tests.media_files import frame_times

GOP_SECONDS = 2
Size = tuple[int, int]

LINES = (
    "Where have you been all night?",
    "I told you not to open the door.",
    "The train leaves in ten minutes.",
    "Nobody has seen her since Friday.",
    "We should have turned left.",
    "Put the camera down, please.",
    "He never answers his phone.",
    "It's colder than I remember.",
    "Keep your voice down!",
    "That was my grandmother's house.",
    "You can't be serious.",
    "Two coffees, one without sugar.",
    "They built this bridge by hand.",
    "What did the doctor say?",
    "I'll wait for you outside.",
    "The harbour is closed on Sundays.",
    "Somebody must have heard us.",
    "Leave the light on for me.",
    "Every summer we came back here.",
    "She plays better than all of them.",
    "Don't touch the red button.",
    "My brother taught me how to swim.",
    "Is there anything left to eat?",
    "Quiet on the set, and action!",
    "We lost the map in the river.",
    "Who gave you this address?",
    "The whole village was asleep.",
    "I had a very strange dream.",
    "Just follow the yellow line.",
    "Take a jacket, it may rain.",
    "Thank you for coming so far.",
    "This is the last roll of film.",
)
DIALOGUES = (
    "- Are you coming with us?\n- Not before the rain stops.",
    "When the wind turned north\nwe knew that winter was near.",
    "She kept the letters in a box\nand never read them again.",
    "- How much is the ticket?\n- More than you have.",
    "Only one road leads out of here,\nand they are watching it.",
    "The old man smiled at us,\nthen he locked the gate.",
    "- Did you hear that?\n- Probably just the cat.",
    "Nothing has changed in this town\nsince the mill burned down.",
    "If you hold it to the light\nyou can see the watermark.",
    "First we fix the engine,\nthen we talk about money.",
    "- Stay where you are!\n- I was only looking.",
    "Some days the fog is so thick\nthat the ferry stays in port.",
    "He sold his father's watch\nto pay for the journey.",
    "- What is behind that wall?\n- Another wall.",
)
NEIGHBOURS = (
    "We leave at 5 tonight.",
    "We leave at 6 tonight.",
    "He can do it alone.",
    "He can't do it alone.",
    "Turn to page 114.",
    "Turn to page 115.",
    "I saw her on the hill.",
    "I saw him on the hill.",
    "The boat is ready.",
    "The boats are ready.",
    "Is that your hat?",
    "Is that your cat?",
    "Open the front gate!",
    "Open the front gate?",
    "Nobody knows where.",
    "Nobody knows when.",
)
THREE_LETTERS = (
    "Go!",
    "Why",
    "Yes",
    "Run",
    "No?",
    "Hey",
    "Oh!",
    "Now",
    "Ten",
    "Ah?",
    "Mum",
    "Eat",
    "Cut",
    "Sir",
    "Wow",
)
ACCENTS = (
    "Où est passé mon café ?",
    "¿Qué hora es, señor Núñez?",
    "Straße 27, zweite Tür rechts",
    "Ça coûte 12,50 € à la caisse.",
    "Smörgåsbord på Åland kl. 18:45",
    "O avião só chega amanhã às 7h.",
    "Příští vlak jede v 9:05.",
    "Rødgrød med fløde, 3 kroner",
    "Room 4107, third floor, £250",
    "Dzień dobry, to już 1989 rok.",
    "Noël, c'était déjà l'hiver.",
    "¡Mañana será otro día!",
    "Ärger gibt's genug für 100 Jahre.",
    "Call 555-0192 before 6:30.",
)


@dataclass(frozen=True)
class Style:
    """How the words look; sizes are shares of the film's shorter side."""

    font: str = "DejaVuSans-Bold.ttf"
    height: float = 0.06
    fill: str = "white"
    outline: float = 0.1
    shadow: float = 0.0
    box: str | None = None


@dataclass(frozen=True)
class Recipe:
    """`gaps` before the captions and how long they last are seconds; a gap of none stays none, the rest is jittered."""

    lines: tuple[str, ...] = LINES
    size: Size = (1280, 720)
    rate: Fraction = Fraction(25)
    vfr: bool = False
    background: str = "plain"
    style: Style = field(default_factory=Style)
    place: str = "bottom"
    gaps: tuple[float, ...] = (1.2,)
    lasting: tuple[float, float] = (1.2, 2.4)
    to_the_edges: bool = False
    in_order: bool = False
    longest: float = 40.0
    needs_accents: bool = False


FILM = Fraction(24000, 1001)
NTSC = Fraction(30000, 1001)
SIXTIETHS = Fraction(60)
BOXED = Style("DejaVuSans.ttf", outline=0, box="#000000b0")

CLIPS = {
    "plain": Recipe(size=(1920, 1080), rate=Fraction(30)),
    "busy": Recipe(size=(1920, 1080), rate=Fraction(30), background="busy", style=Style(outline=0.12)),
    "moving": Recipe(size=(1920, 1080), rate=NTSC, background="moving", style=Style("DejaVuSansCondensed-Bold.ttf")),
    "moving-boxed": Recipe(background="moving", style=BOXED),
    "cuts": Recipe(background="cuts", style=Style("DejaVuSerif-Italic.ttf", fill="#ffe94a", shadow=0.08)),
    "two-lines": Recipe(lines=DIALOGUES, background="busy", gaps=(0.9, 0.3), lasting=(1.8, 3.0)),
    "neighbours": Recipe(lines=NEIGHBOURS, rate=FILM, gaps=(1.6, 0.0), in_order=True),
    "three-letters": Recipe(lines=THREE_LETTERS, background="busy", gaps=(2.0,), lasting=(0.5, 1.0)),
    "edges": Recipe(style=Style("", outline=0, shadow=0.08), to_the_edges=True),
    "top": Recipe(place="top", background="moving", style=Style("DejaVuSerif-Bold.ttf", fill="#fff27a")),
    "left": Recipe(place="left", style=Style("DejaVuSansMono.ttf", outline=0, shadow=0.1), gaps=(0.1, 1.8)),
    "vertical": Recipe(size=(720, 1280), rate=Fraction(30), background="moving", style=Style("", outline=0.12)),
    "vfr": Recipe(rate=SIXTIETHS, vfr=True, background="busy", gaps=(1.3, 0.0)),
    "4k": Recipe(size=(3840, 2160), rate=FILM, background="busy", style=Style(height=0.045), longest=8.0),
    "480p": Recipe(size=(854, 480), rate=NTSC, background="busy", style=Style("DejaVuSans.ttf", outline=0.12)),
    "accents": Recipe(lines=ACCENTS, style=Style("DejaVuSans.ttf", outline=0.08), needs_accents=True),
    "none": Recipe(lines=(), background="moving"),
}


class NoFont(Exception):
    """This machine has no font that can draw the words of a clip."""


@dataclass(frozen=True)
class Clip:
    """`frame_times` are the starts of all frames and the end of the last one, in microseconds."""

    name: str
    path: Path
    size: Size
    truth: tuple[Cue, ...]
    frame_times: tuple[int, ...]

    @property
    def seconds(self) -> float:
        return self.frame_times[-1] / 1_000_000


@dataclass(frozen=True)
class Span:
    """A caption in frames: on show in `first` and in every frame before `after`."""

    first: int
    after: int
    text: str


def make(name: str, folder: Path, seconds: float = 30.0, *, shrink: int = 1) -> Clip:
    """`shrink` divides both sides: the same words at the same times in a film that is made in a moment."""
    recipe = CLIPS[name]
    width, height = (side // shrink // 2 * 2 for side in recipe.size)
    recipe = replace(recipe, size=(width, height))
    chance = random.Random(name)
    times = frame_times(min(seconds, recipe.longest), recipe.rate, vfr=recipe.vfr)
    edges = [*times, times[-1] + 1 / recipe.rate]
    spans = schedule(recipe, edges, chance)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.mp4"
    _encode(path, recipe, times, _pictures(recipe, times, spans, chance))
    micros = tuple(round(time * 1_000_000) for time in edges)
    truth = tuple(Cue(micros[span.first], micros[span.after], span.text) for span in spans)
    return Clip(name, path, recipe.size, truth, micros)


def schedule(recipe: Recipe, edges: Sequence[Fraction], chance: random.Random) -> list[Span]:
    """Captions start and end on any frame, so that no grid of samples happens to fit."""
    spans: list[Span] = []
    begin = Fraction(0 if recipe.to_the_edges else recipe.gaps[0] * chance.uniform(0.3, 0.7))
    for text in _texts(recipe, chance):
        end = begin + Fraction(chance.uniform(*recipe.lasting))
        first, after = bisect_left(edges, begin), bisect_left(edges, end)
        if after > len(edges) - 3:
            break
        spans.append(Span(first, after, fitted(recipe, text)))
        gap = recipe.gaps[len(spans) % len(recipe.gaps)]
        begin = edges[after] + Fraction(gap * chance.uniform(0.7, 1.3))
    if recipe.to_the_edges:
        spans[-1] = Span(spans[-1].first, len(edges) - 1, spans[-1].text)
    return spans


def fitted(recipe: Recipe, text: str) -> str:
    """Broken into two lines at the space nearest the middle where the film is too narrow for one."""
    if _words(recipe, text).width <= recipe.size[0] * 0.94:
        return text
    spaces = [place for place, letter in enumerate(text) if letter == " "]
    middle = min(spaces, key=lambda place: abs(2 * place - len(text)))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


def _texts(recipe: Recipe, chance: random.Random) -> list[str]:
    """The same order in every round: a caption is never followed by itself, which nobody could tell apart."""
    texts = recipe.lines if recipe.in_order else chance.sample(recipe.lines, len(recipe.lines))
    return [*texts] * 4


def _pictures(
    recipe: Recipe, times: Sequence[Fraction], spans: Sequence[Span], chance: random.Random
) -> Iterator[Image.Image]:
    words = {number: _words(recipe, span.text) for number, span in enumerate(spans)}
    shown = {frame: words[number] for number, span in enumerate(spans) for frame in range(span.first, span.after)}
    for number, picture in enumerate(_background(recipe, times, chance)):
        if number in shown:
            picture.paste(shown[number], _corner(recipe, shown[number].size), shown[number])
        yield picture


def _words(recipe: Recipe, text: str) -> Image.Image:
    """The words on a transparent sheet, no larger than they need."""
    style, height = recipe.style, max(16, round(min(recipe.size) * recipe.style.height))
    font = _font(style.font, height, needs_accents=recipe.needs_accents)
    stroke, drop = round(height * style.outline), round(height * style.shadow)
    margin = stroke + drop + (height // 3 if style.box else 2)
    look: dict[str, Any] = {"font": font, "stroke_width": stroke, "spacing": height // 4, "align": _align(recipe)}
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, **look)
    size = round(right - left) + 2 * margin, round(bottom - top) + 2 * margin
    sheet = Image.new("RGBA", size, style.box or (0, 0, 0, 0))
    draw, place = ImageDraw.Draw(sheet), (margin - left, margin - top)
    if drop:
        draw.multiline_text((place[0] + drop, place[1] + drop), text, fill="#000000e0", **look)
    draw.multiline_text(place, text, fill=style.fill, stroke_fill="black", **look)
    return sheet


def _align(recipe: Recipe) -> str:
    return "left" if recipe.place == "left" else "center"


def _corner(recipe: Recipe, sheet: Size) -> tuple[int, int]:
    width, height = recipe.size
    left = width // 16 if recipe.place == "left" else (width - sheet[0]) // 2
    return left, height // 14 if recipe.place == "top" else height - height // 14 - sheet[1]


def _font(name: str, height: int, *, needs_accents: bool) -> Any:
    """Pillow's own font stands in for one that this machine lacks; it has no accents."""
    try:
        return ImageFont.truetype(name, height) if name else ImageFont.load_default(height)
    except OSError:
        if needs_accents:
            raise NoFont(f"there is no {name} on this machine, and Pillow's own font has no accents") from None
        return ImageFont.load_default(height)


def _background(recipe: Recipe, times: Sequence[Fraction], chance: random.Random) -> Iterator[Image.Image]:
    width, height = recipe.size
    if recipe.background == "moving":
        texture = _clutter((width * 3 // 2, height * 3 // 2), chance)
        for time in times:
            left, top = _swing(time, 5, width // 2), _swing(time, 7, height // 2)
            yield texture.crop((left, top, left + width, top + height))
        return
    scenes = _scenes(recipe, chance)
    for time in times:
        yield scenes[int(time / Fraction(7, 5)) % len(scenes)].copy()


def _scenes(recipe: Recipe, chance: random.Random) -> list[Image.Image]:
    if recipe.background == "plain":
        return [_sky(recipe.size, chance)]
    return [_clutter(recipe.size, chance) for _ in range(5 if recipe.background == "cuts" else 1)]


def _swing(time: Fraction, period: int, room: int) -> int:
    """To and fro at an even speed: a pan, which moves every pixel of every frame."""
    phase = time % period / period
    return int(room * 2 * min(phase, 1 - phase))


def _sky(size: Size, chance: random.Random) -> Image.Image:
    shade = Image.linear_gradient("L").resize(size)
    dark, light = (tuple(chance.randrange(low, low + 60) for _ in range(3)) for low in (20, 90))
    return Image.composite(Image.new("RGB", size, light), Image.new("RGB", size, dark), shade)


def _clutter(size: Size, chance: random.Random) -> Image.Image:
    """Edges of every direction, colour and size, like shelves and leaves: much that looks a little like letters."""
    picture = _sky(size, chance)
    draw = ImageDraw.Draw(picture)
    unit = min(size) / 100
    for _ in range(700):
        x, y = chance.uniform(0, size[0]), chance.uniform(0, size[1])
        wide, high = chance.uniform(1, 16) * unit, chance.uniform(1, 16) * unit
        colour = tuple(chance.randrange(256) for _ in range(3))
        shape = chance.choice(("rectangle", "ellipse", "line", "line"))
        if shape == "line":
            draw.line((x, y, x + wide - 8 * unit, y + high), fill=colour, width=max(1, round(unit * 0.4)))
        else:
            paint = draw.rectangle if shape == "rectangle" else draw.ellipse
            paint((x, y, x + wide, y + high), fill=colour if chance.random() < 0.6 else None, outline=colour)
    return picture.filter(ImageFilter.GaussianBlur(unit / 10))


def _encode(path: Path, recipe: Recipe, times: Sequence[Fraction], pictures: Iterator[Image.Image]) -> None:
    """Two encoder threads whatever the machine: x264 gives the same bytes for the same number of threads."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as output:
        stream: Any = output.add_stream("libx264", rate=recipe.rate, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height = recipe.size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = 1 / recipe.rate
        stream.codec_context.gop_size = round(GOP_SECONDS * recipe.rate)
        stream.codec_context.thread_count = 2
        for time, picture in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_image(picture)
            frame.time_base = stream.codec_context.time_base
            frame.pts = round(time / frame.time_base)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
