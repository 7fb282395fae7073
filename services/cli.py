"""The command line. Nothing heavy is imported before a command needs it: `dailies --help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dailies.errors import BadInput, DailiesError
from services.environment import NOT_TRACKED, SETTINGS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prefect flows for video and audio, and the scenarios that break them on purpose.",
)


def say(line: str) -> None:
    typer.echo(line)


def complain(line: str) -> None:
    typer.echo(f"dailies: {line}", err=True)


@app.command()
def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where our Prefect server listens.")] = 4200,
    slots: Annotated[int, typer.Option(min=1, help="How many jobs may run at once.")] = 2,
) -> None:
    """Start server, deployments, worker and supervisor; Ctrl-C stops all of them."""
    from services.up import up as start

    start(say, port, slots)


@app.command()
def captions(
    video: Annotated[Path, typer.Argument(help="A film with captions burned in.")],
    out: Annotated[Path, typer.Option(help="The folder for captions.srt, .vtt, .json, .db and the report.")],
) -> None:
    """Read the captions that are burned into a film, on this machine.

    Exit status: 0 read (also where there are none), 1 bad input, or a film that ended earlier than it promises.
    """
    from services.captions import run

    sys.exit(run(video, out, say))


@app.command()
def transcribe(
    media: Annotated[Path, typer.Argument(help="A film or a sound.")],
    engine: Annotated[str, typer.Option(help="What hears the words: dtmf, whisper or openai.")],
    out: Annotated[Path, typer.Option(help="The folder for transcript.json, .srt and .vtt.")],
    language: Annotated[str | None, typer.Option(help="What is spoken, as the engine calls it.")] = None,
    track: Annotated[int | None, typer.Option(min=0, help="Which audio track, counted from 0.")] = None,
) -> None:
    """Write down what is said in a film or a sound, on this machine; run again, it goes on where it was stopped.

    Exit status: 0 all of it was heard, 1 bad input, or spans that could not be transcribed, 130 stopped by Ctrl-C.
    """
    from services.transcribe import run

    _leave(run(media, out, engine, language, track, say, complain))


catalog = typer.Typer(no_args_is_help=True, help="A catalogue of the videos of a federation: update it, and ask it.")
app.add_typer(catalog, name="catalog")
Prod = Annotated[
    Path | None, typer.Option(help="The catalogue's folder.", show_default="$DAILIES_HOME/catalog/local/main")
]
SiteName = Annotated[str, typer.Option(help="Whose ledger knows which generation is current.")]


@catalog.command("update")
def update_catalog(
    whitelist: Annotated[
        str, typer.Option(help='The hosts: a URL or a file with {"data": [{"host": …}]}, or a bare list.')
    ],
    prod: Prod = None,
    gpu: Annotated[bool, typer.Option("--gpu/--cpu", help="Where vectors and index are made.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on with what an update left that did not come to its end.")
    ] = True,
    max_instances: Annotated[int, typer.Option(min=0, help="Ask so many hosts at most; 0 for all.")] = 0,
    max_channels: Annotated[int, typer.Option(min=0, help="So many channels of a host at most; 0 for all.")] = 0,
    max_videos_pages: Annotated[int, typer.Option(min=0, help="So many pages of a channel at most; 0 for all.")] = 0,
    stop_after_pages: Annotated[
        int,
        typer.Option(
            min=0, help="Stop in a channel after so many pages without news; 0 reads all, and finds all that went."
        ),
    ] = 2,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Hosts at once. One host never gets more than two requests at once.")
    ] = 4,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a host.")] = 5.0,
    allow_private: Annotated[
        bool, typer.Option(help="Crawl hosts with private addresses, too: for trials on one machine.")
    ] = False,
    rules: Annotated[
        str,
        typer.Option(help="What a merge does with a row that is there already: ours refreshes it, original keeps it."),
    ] = "ours",
    max_removed: Annotated[
        float, typer.Option(min=0, max=1, help="Refuse to remove more than this share of the videos.")
    ] = 0.1,
    model: Annotated[str, typer.Option(help="What makes vectors of texts: ngrams-1 or minilm.")] = "ngrams-1",
    nlist: Annotated[int, typer.Option(min=0, help="Cells of a large index; 0 chooses by the number of videos.")] = 0,
    neighbours: Annotated[int, typer.Option(min=1, help="So many for each video.")] = 20,
    service: Annotated[
        str, typer.Option(help="What to stop and start around the publication: none, systemd:UNIT or process:COMMAND.")
    ] = "none",
    site: SiteName = "local",
) -> None:
    """Crawl the hosts of a list and publish database, index and neighbours together.

    Exit status: 0 published, 1 refused or failed and nothing changed, 130 stopped by Ctrl-C.
    """
    import time

    from dailies.catalog.crawl_options import Crawl
    from dailies.catalog.update import Update
    from services import catalog as services_catalog

    asked = Update(
        prod=prod or services_catalog.default_prod("main"),
        whitelist=whitelist,
        as_of=round(time.time() * 1000),
        resume=resume,
        max_instances=max_instances,
        crawl=Crawl(
            concurrency=concurrency,
            timeout_s=timeout,
            stop_after_pages=stop_after_pages,
            max_channels=max_channels,
            max_videos_pages=max_videos_pages,
            allow_private=allow_private,
        ),
        rules=rules,
        max_removed=max_removed,
        model=model,
        device="gpu" if gpu else "cpu",
        nlist=nlist,
        neighbours=neighbours,
    )
    sys.exit(services_catalog.update(asked, service, site, say, complain))


@catalog.command("similar")
def similar_videos(
    video: Annotated[str, typer.Argument(help="Its id, or VIDEO@HOST.")],
    prod: Prod = None,
    count: Annotated[int, typer.Option(min=1, help="So many.")] = 10,
    site: SiteName = "local",
) -> None:
    """The videos that are most like one."""
    from services import catalog as services_catalog

    sys.exit(services_catalog.similar(prod or services_catalog.default_prod("main"), video, count, site, say))


@catalog.command("search")
def search_videos(
    text: Annotated[str, typer.Argument(help="What to look for.")],
    prod: Prod = None,
    count: Annotated[int, typer.Option(min=1, help="So many.")] = 10,
    site: SiteName = "local",
) -> None:
    """The videos whose titles and descriptions are most like a text."""
    from services import catalog as services_catalog

    sys.exit(services_catalog.search(prod or services_catalog.default_prod("main"), text, count, site, say))


@app.command()
def scenario(
    name: Annotated[str, typer.Argument(help="Which one, for example lock-contention.")],
    mode: Annotated[str, typer.Option(help="quick or full")] = "quick",
    seed: Annotated[int | None, typer.Option(help="Drives every random choice.")] = None,
    parameter: Annotated[list[str] | None, typer.Option("-p", metavar="KEY=VALUE", help="Any parameter.")] = None,
    report: Annotated[Path | None, typer.Option(help="Copy the journal to this file.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Run its twin on the work pool gpu.")] = False,
) -> None:
    """Break something on purpose and judge what came of it.

    Exit status: 0 passed, 1 violated, 2 error, 3 inconclusive, 4 skipped.
    """
    from services import gpu_twin
    from services.scenarios import run

    if gpu and (parameter or seed is not None):
        raise BadInput("--gpu runs the twin as it is deployed: leave out -p and --seed")
    if gpu:
        sys.exit(gpu_twin.run(name, mode, report, say))
    options = {"mode": mode} | ({} if seed is None else {"seed": str(seed)})
    sys.exit(run(name, options, parameter or [], report, say))


@app.command()
def doctor(
    site: Annotated[str, typer.Option(help="Which site's connections to try.")] = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at everything that has to be right, and say what is not and how to mend it."""
    from services.doctor import run

    _leave(run(site, as_json))


@app.command()
def demo(
    seconds: Annotated[int, typer.Option(min=1, max=600, help="Length of the film that it makes.")] = 12,
) -> None:
    """Make a film and a talk and read them; then the scenario lock-contention, which kills, freezes and contends."""
    from services.demo import run

    sys.exit(run(seconds, say))


def _leave(status: int) -> None:
    """Without waiting for a thread that may still hang in a C library, or that would make the interpreter abort."""
    sys.stdout.flush()
    os._exit(status)


def main() -> None:
    """Bad input ends in one line that says what is wrong, never in a traceback."""
    for name in NOT_TRACKED:  # before anything imports Prefect
        os.environ.setdefault(name, SETTINGS[name])
    try:
        app()
    except DailiesError as error:
        complain(str(error))
        sys.exit(1)
    except SystemExit as ended:
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):  # typer says nothing of it
            complain("stopped")
        raise


if __name__ == "__main__":
    main()
