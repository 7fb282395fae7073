"""Lines that move while something takes long; silent where nobody is looking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def ticking(what: str) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{what} …", highlight=False, soft_wrap=True)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(what)
        yield


@contextmanager
def stages(names: Mapping[str, str]) -> Iterator[Callable[[str, float], None]]:
    """A bar for each stage, as soon as it begins; elsewhere than on a terminal a line for each."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    begun: dict[str, int] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def tell(stage: str, share: float) -> None:
            if stage not in begun:
                begun[stage] = bars.add_task(names[stage], total=1.0)
                if not console.is_terminal:
                    console.print(f"{names[stage]} …", highlight=False, soft_wrap=True)
            bars.update(begun[stage], completed=share)  # type: ignore[arg-type]

        yield tell
