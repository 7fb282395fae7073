"""`python -m benchmarks [NAME …]`: every script of this folder, each in a process of its own, and one summary.

Options of a script's own go behind its name, where it is the only one: `python -m benchmarks recovery --kills 40`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks._report import Figure, load, options, save, show

# Whose lines are shown while they work: they take many minutes.
TELLS = {"catalog"}
SCRIPTS = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


class Ended(KeyboardInterrupt):
    """Told to end by SIGTERM."""


def measure(name: str, folder: Path, own: Sequence[str] = ()) -> list[Figure]:
    file = folder / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *own, "--json", str(file)]
    shown = None if name in TELLS else subprocess.PIPE
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=shown, text=True) as process:
        try:
            said = process.communicate()[1]
        except Ended:
            process.send_signal(signal.SIGINT)  # which was for this process alone, as a rule
            process.wait()
            raise
        except KeyboardInterrupt:
            process.wait()  # it was interrupted as well, and clears away what it wrote
            raise
    if process.returncode != 0:
        raise RuntimeError(f"benchmarks.{name} failed:\n{said.strip() if said else 'see above'}")
    return [replace(figure, name=f"{name}: {figure.name}") for figure in load(file)]


def end(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Ended


def main() -> int:
    signal.signal(signal.SIGTERM, end)
    parser = options("All benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCRIPTS)}; none: all")
    chosen, own = parser.parse_known_args()
    if own and len(chosen.names) != 1:
        parser.error(f"whose options are {' '.join(own)}? name one benchmark")
    if unknown := set(chosen.names) - set(SCRIPTS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    figures: list[Figure] = []
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.names or SCRIPTS:
            print(f"{name} …", file=sys.stderr, flush=True)
            try:
                figures += measure(name, Path(folder), own)
            except RuntimeError as error:
                broken.append(str(error))
    show("All benchmarks", figures)
    if chosen.json:
        save(chosen.json, figures)
    print("\n".join(broken), file=sys.stderr, end="\n" if broken else "")
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
