"""What exists, shown on a film and a talk that it makes itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dailies.errors import DailiesError
from dailies.home import home
from dailies.media.keys import MediaKey
from services import captions, scenarios, server, transcribe
from services.progress import ticking

if TYPE_CHECKING:
    from blocks.site import OpenSite

TENANT, VIDEO = "demo", "first-dailies"
KEY = f"{TENANT}/client/videos/{VIDEO}/film.mp4"


def run(seconds: int, say: Callable[[str], None]) -> int:
    film = made(seconds)
    say(f"film           {film}, with captions burned in\n")
    captions.run(film, home() / "demo", say)
    say(f"\n{(home() / 'demo' / 'captions.srt').read_text()}")
    listen(say)
    with ticking("looking for a Prefect server, or starting one"):
        ui = server.connect(quiet=True).removesuffix("/api")
    say("The same as jobs, each step a unit that is recorded when it is done:")
    process(say)
    say("\nAnd now under fire: workers killed, holders frozen and revived, two flows on one video.")
    code = scenarios.run("lock-contention", {"mode": "quick"}, [], None, say)
    tell_recovery(say)
    say(f"\nJobs and scenario are in the Prefect UI: {ui}/runs (the server goes after ten minutes without a visitor)")
    return code


def made(seconds: int) -> Path:
    from dailies.captions.sample import make_film

    with ticking(f"making a film of {seconds} s"):
        path = home() / "media" / KEY
        return path if path.exists() else make_film(path, seconds)


def listen(say: Callable[[str], None]) -> None:
    """Keypad tones, which need no model: every second of the sound is in the text."""
    from dailies.speech.sample import make_talk

    talk = home() / "demo" / "talk.wav"
    talk.parent.mkdir(parents=True, exist_ok=True)
    spoken = make_talk(talk, phrases=5)
    say(f"talk           {talk}, keypad tones: {spoken}\n")
    transcribe.run(talk, home() / "demo" / "transcript", "dtmf", None, None, say, say)
    say(f"\n{(home() / 'demo' / 'transcript' / 'transcript.srt').read_text()}")


def process(say: Callable[[str], None]) -> None:
    from blocks.site import open_site
    from flows.crop_and_infer import crop_and_infer
    from flows.process_video import process_video

    site = open_site()
    for flow, what in ((process_video, "where captions sit"), (crop_and_infer, "what they say")):
        with ticking(f"{flow.name}: {what}"):
            state: Any = flow(tenant=TENANT, media_key=KEY, return_state=True)
        result: Any = state.result(raise_on_failure=False)
        if isinstance(result, DailiesError):
            raise result
        job = site.ledger.jobs.all(limit=1)[0]
        units = ", ".join(f"{unit.step} {unit.state}" for unit in site.ledger.units.of(job.id))
        say(f"  {flow.name:<15} job {job.id}: {job.state}; units: {units}")
    video = site.ledger.videos.get(TENANT, VIDEO)
    say(f"  the video is {video.state}: {video.metadata['captions']} captions")
    say(f"  the layout as a picture: {home() / 'media' / picture_of(site)}")


def picture_of(site: OpenSite) -> str:
    from tasks.published import published

    layout = published(site, MediaKey.parse(TENANT, KEY))["layout"]
    return next(str(each["key"]) for each in layout["artifacts"] if each["key"].endswith(".png"))


def tell_recovery(say: Callable[[str], None]) -> None:
    from dailies.scenarios.journal import read

    metrics = read(home() / "runs" / "last" / "lock-contention.json").metrics
    delay = metrics.get("worker_death_to_running_s")
    if delay is not None:
        say(f"  a killed worker's job was running again after {delay:.1f} s, and its finished unit was not redone")
    writes = metrics.get("stale_writes")
    if writes:
        landed = f"{writes['landed']} of {writes['tried']} late writes landed"
        say(f"  {writes['trials']} holders were frozen past their lease and revived: {landed}")
