"""How far a row of trainings is, and the time that is left, on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class Remaining:
    """Counts trainings of about the same length; those that an earlier call finished take no time."""

    def __init__(self, total: int, shown: bool) -> None:
        self._total, self._console = total, Console(stderr=True) if shown else None
        self._begun, self._timed, self._seconds = 0, 0, 0.0

    @contextmanager
    def training(self, title: str, is_finished: bool) -> Iterator[None]:
        """Announce one training and time it."""
        self._begun += 1
        if self._console and not is_finished:
            self._console.print(f"\\[{self._begun}/{self._total}] {title}{self._left()}", highlight=False)
        started = time.monotonic()
        yield
        if not is_finished:
            self._timed += 1
            self._seconds += time.monotonic() - started

    def _left(self) -> str:
        if not self._timed:
            return ""
        minutes = self._seconds / self._timed * (self._total - self._begun + 1) / 60
        return f"; about {minutes:.0f} min left" if minutes >= 1 else "; less than a minute left"
