"""The caption functions as a compute machine runs them: an upload and its store in, files of the store out.

Each writes into the folder of its own unit (``Task.folder``): a call that was cut short and the one that follows put
the same bytes in the same places, and neither touches what another unit made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dailies.canonical import file_digest
from dailies.captions.approval import plain, region_of
from dailies.captions.chunks import Chunk, read_chunks
from dailies.captions.databases import packed, write_captions, write_extents, write_raw_ocr
from dailies.captions.frames import read_frames
from dailies.captions.infer import infer
from dailies.captions.ocr import Box, Engine, Gray, engine
from dailies.captions.reading import read_caption
from dailies.captions.sampling import Film
from dailies.captions.subtitles import exports
from dailies.errors import BadInput
from dailies.media.frames import write_frames
from dailies.media.upload import changed, unchanged, version_of
from dailies.store.interface import Artifact

if TYPE_CHECKING:
    from dailies.remote import Json, Task

# A film too short for the rate is looked at more often, so that its layout does not hang on two frames.
LEAST_FRAMES = 24
LONG_SIDE = 1920


def extract_frames_and_ocr(task: Task) -> Json:
    """Whole frames as pictures, and the text on each. ``payload``: sha256, frame_rate."""
    rate = Fraction(str(task.payload["frame_rate"]))
    with uploaded(task) as path, tempfile.TemporaryDirectory() as folder:
        frames = write_frames(
            path, Path(folder), rate, least=LEAST_FRAMES, limit_side=LONG_SIDE, progress=task.within(0.0, 0.3)
        )
        raw = read_frames(frames, engine(), task.within(0.3, 1.0))
        database = Path(folder) / "raw-ocr.db"
        write_raw_ocr(database, raw)
        ocr = task.store.put(task.key.server(task.folder, "raw-ocr.db.gz"), packed(database))
        pictures = [kept(task, picture.path, "full_frames") for picture in frames.pictures]
    return task.made(
        ocr,
        *pictures,
        duration_us=frames.decoded_us,
        failed_ocr_count=raw.failed,
        frame_count=len(pictures),
        frame_height=raw.height,
        frame_width=raw.width,
        ocr_box_count=sum(len(frame.lines) for frame in raw.frames),
        ocr_device=engine().device,
    )


def crop_and_infer(task: Task) -> Json:
    """Captions, and the crops that they were read from. ``payload``: sha256, regions, frame_rate."""
    rate = Fraction(str(task.payload["frame_rate"]))
    regions = [region_of(value) for value in task.payload["regions"]]
    with uploaded(task) as path, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = infer(Film(path), regions, engine(), task.within(0.0, 0.95), rate=rate, crops=folder / "crops")
        write_captions(folder / "captions.db", found.captions, found.dropped, rate)
        labels = write_extents(
            folder / "extents.db", found.extents, found.dropped, found.samples, regions=len(regions), rate=rate
        )
        files = [
            task.store.put(task.key.client(task.folder, "captions.db.gz"), packed(folder / "captions.db")),
            task.store.put_file(task.key.server(task.folder, "caption_frame_extents.db"), folder / "extents.db"),
            *[
                task.store.put(task.key.client(task.folder, file), data)
                for file, data in exports(found.captions).items()
            ],
        ]
        crops = [
            [kept(task, chunk.path, "cropped_frames", f"region_{number}") for chunk in chunks]
            for number, chunks in enumerate(found.chunks)
        ]
    return task.made(
        *files,
        *(chunk for chunks in crops for chunk in chunks),
        captions=len(found.captions),
        confidence=found.confidence,
        coverage=vars(found.coverage),
        frame_count=len(found.samples),
        frame_rate=task.payload["frame_rate"],
        label_counts=labels,
        ocr_device=engine().device,
        regions=[
            plain(region) | {"chunks": [described(*pair) for pair in zip(chunks, stored, strict=True)]}
            for region, chunks, stored in zip(regions, found.chunks, crops, strict=True)
        ],
    )


def caption_ocr(task: Task) -> Json:
    """Some captions read again from their crops. ``payload``: regions (as ``crop_and_infer`` made them), frame_rate,
    captions: each with id, region, box, first and after (samples).

    A caption that cannot be read is told with its reason and costs no other.
    """
    reader = engine()
    readings = []
    for number, caption in enumerate(task.payload["captions"], 1):
        readings.append({"id": caption["id"], **read(task, caption, reader)})
        task.tell(number / len(task.payload["captions"]))
    return task.made(ocr_device=reader.device, readings=readings)


def read(task: Task, caption: Mapping[str, Any], reader: Engine) -> dict[str, Any]:
    of_region = task.payload["regions"][caption["region"]]
    region = region_of(of_region)
    try:
        shown = samples(task, of_region["chunks"], caption["first"], caption["after"])
        within = Box(**caption["box"]).moved(-region.crop.left, -region.crop.top)
        return vars(read_caption(shown, reader, region.line_height or None, within))
    except BadInput as error:
        return {"error": error.code, "message": str(error)}


def showing(chunks: Sequence[Mapping[str, Any]], first: int, after: int) -> list[Mapping[str, Any]]:
    """The chunks that show these samples: one that is in none of them shows the last picture before it."""
    begun = [chunk for chunk in chunks if chunk["first"] <= first][-1:]
    return begun + [chunk for chunk in chunks if first < chunk["first"] < after]


def samples(task: Task, chunks: Sequence[Mapping[str, Any]], first: int, after: int) -> Iterator[Gray]:
    """What is on show at those samples, one after the other; only the chunks that show it are fetched."""
    with tempfile.TemporaryDirectory() as folder:
        for chunk in showing(chunks, first, after):
            Path(folder, Path(chunk["key"]).name).write_bytes(task.store.get(chunk["key"]))
        rate = Fraction(str(task.payload["frame_rate"]))
        yield from (picture for _, picture in read_chunks(Path(folder).iterdir(), first, after, rate))


@contextmanager
def uploaded(task: Task) -> Iterator[Path]:
    """The upload, as long as it is the very bytes that the work was asked for."""
    with unchanged(task.store, task.key, version_of(task.store, task.key)), task.store.local(str(task.key)) as path:
        if file_digest(path) != task.payload["sha256"]:
            raise changed(task.key)
        yield path


def kept(task: Task, path: Path, *folders: str) -> Artifact:
    return task.store.put_file(task.key.client(task.folder, *folders, path.name), path)


def described(chunk: Chunk, stored: Artifact) -> dict[str, Any]:
    return {"first": chunk.first_index, "last": chunk.last_index, "key": stored.key}
