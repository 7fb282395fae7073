"""A figure, and how it is shown and kept."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """``low`` and ``high`` are the extremes of its rounds; a target is reached or it is not, and is never a test."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reached": self.reached}


def median(name: str, rounds: Sequence[float], unit: str, **more: Any) -> Figure:
    return Figure(name, statistics.median(rounds), unit, min(rounds), max(rounds), **more)


def machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load_at_end": round(os.getloadavg()[0], 2),
    }


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def target(figure: Figure) -> str:
    if figure.reached is None:
        return ""
    limit = f"≥ {number(figure.at_least)}" if figure.at_least is not None else f"≤ {number(figure.at_most)}"
    return f"{limit} {'reached' if figure.reached else 'MISSED'}"


def show(title: str, figures: Iterable[Figure]) -> None:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("what", "figure", "", "rounds from … to", "target", "note"):
        table.add_column(heading, justify="right" if heading == "figure" else "left", no_wrap=heading == "what")
    for each in figures:
        spread = "" if each.low is None else f"{number(each.low)} … {number(each.high)}"
        table.add_row(each.name, number(each.value), each.unit, spread, target(each), each.note)
    Console(width=None if os.isatty(1) else 160).print(table)


def save(path: Path, figures: Iterable[Figure]) -> None:
    content = {"machine": machine(), "figures": [each.to_json() for each in figures]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def load(path: Path) -> list[Figure]:
    found = json.loads(path.read_text())["figures"]
    return [Figure(**{name: value for name, value in each.items() if name != "reached"}) for each in found]


def options(title: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return parser


def report(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], list[Figure]]) -> None:
    """Measure, print the table, write the file."""
    chosen = parser.parse_args()
    figures = measure(chosen)
    show(str(parser.description), figures)
    if chosen.json:
        save(chosen.json, figures)
