"""A progress bar with the time left, on stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """What is done, steps out of all, time left, and a note; silent unless shown."""

    def __init__(self, shown: bool, what: str = "training") -> None:
        columns = (
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=Console(stderr=True)) if shown else None
        self._task = self._progress.add_task(what, total=None, note="") if self._progress else None

    def __enter__(self) -> Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self, total: int, completed: int) -> None:
        """So many steps of so many are done."""
        if self._progress and self._task is not None:
            self._progress.update(self._task, total=total, completed=completed)

    def note(self, text: str) -> None:
        """Show a text after the bar."""
        if self._progress and self._task is not None:
            self._progress.update(self._task, note=text)
