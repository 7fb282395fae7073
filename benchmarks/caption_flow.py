"""What process-video and crop-and-infer cost over the same functions called plainly, with a Prefect server up.

A film of some minutes, so that there are at least a hundred seconds of work. Plainly is: in this process, one function
after the other, the files into a folder. As flows: each heavy step in a process of its own, every file digested,
synced and recorded, the results published.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks._report import Figure, median, options, report
from benchmarks.step_overhead import own_server, settings

TENANT = "benchmark"
TARGET = 1.05


def measure(chosen: argparse.Namespace) -> list[Figure]:
    from dailies.captions.sample import make_film

    with tempfile.TemporaryDirectory() as name, own_server() as url:
        film = make_film(Path(name) / "film.mp4", chosen.seconds)
        plain, flows = [], []
        for number in range(chosen.rounds):
            plain.append(taken(lambda: plainly(film, Path(name) / f"plain-{number}")))  # noqa: B023 - called at once
            with settings(url, heartbeat=True):
                flows.append(taken(lambda: as_flows(film, f"v{number}")))  # noqa: B023
    ratios = [ours / theirs for ours, theirs in zip(flows, plain, strict=True)]
    note = f"{min(flows):.0f} s as flows, {min(plain):.0f} s plainly: a film of {chosen.seconds} s"
    return [median("caption flows against plain functions", ratios, "×", at_most=TARGET, note=note)]


def taken(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def plainly(film: Path, out: Path) -> None:
    """What the units of both flows compute, and nothing around it."""
    from dailies.captions.calls import LEAST_FRAMES, LONG_SIDE
    from dailies.captions.databases import write_captions, write_extents, write_layout, write_raw_ocr
    from dailies.captions.frames import read_frames
    from dailies.captions.infer import infer
    from dailies.captions.layout import find_layout
    from dailies.captions.ocr import engine
    from dailies.captions.picture import layout_picture
    from dailies.captions.sampling import Film
    from dailies.media.contact_sheet import contact_sheet
    from dailies.media.frames import write_frames
    from dailies.media.probe import probe

    contact_sheet(film, probe(film))
    frames = write_frames(film, out / "frames", Fraction(1, 10), least=LEAST_FRAMES, limit_side=LONG_SIDE)
    raw = read_frames(frames, engine())
    layout = find_layout(raw.seen, raw.width, raw.height)
    write_raw_ocr(out / "raw-ocr.db", raw)
    write_layout(out / "layout.db", layout, raw)
    layout_picture(frames.pictures[0].path.read_bytes(), layout, raw)
    found = infer(Film(film), layout.regions, engine(), crops=out / "crops")
    write_captions(out / "captions.db", found.captions, found.dropped)
    write_extents(out / "extents.db", found.extents, found.dropped, found.samples, regions=len(layout.regions))


def as_flows(film: Path, video: str) -> None:
    from blocks.site import open_site
    from flows.crop_and_infer import crop_and_infer
    from flows.process_video import process_video

    key = f"{TENANT}/client/videos/{video}/film.mp4"
    site = open_site()
    site.store.put_file(key, film)
    site.ledger.close()
    for flow in (process_video, crop_and_infer):
        state: Any = flow(tenant=TENANT, media_key=key, return_state=True)
        state.result()


if __name__ == "__main__":
    parser = options("Caption flows against plain functions")
    parser.add_argument("--seconds", type=int, default=780, help="length of the film (default 780)")
    parser.add_argument("--rounds", type=int, default=1, help="how often (default 1)")
    report(parser, measure)
