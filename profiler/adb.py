"""An Android device reached with the `adb` program of Android's platform tools."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from .dispatch import Host, Outcome, start_python

FOLDER = "/data/local/tmp"  # where a shell over adb may write
TERMUX = "/data/data/com.termux/files/usr/bin/python3"
OWN_LINE = re.compile(r"(?:adb|error): (.*)")  # what adb itself says, with exit code 1
COMPLAINTS = (  # what adb says, what it means and what to do
    (r"no devices", "no device is connected; plug it in and allow debugging (adb devices lists it)"),
    (r"not found", "no device of that serial is connected; adb devices lists them"),
    (r"more than one", "several devices are connected; name one: adb://SERIAL (adb devices lists them)"),
    (r"unauthorized|authorizing", "the device does not trust this computer yet; accept its key on the screen"),
    (r"offline", "the device is offline; plug it in again"),
    (r"PTY", "the device's Android is older than 7, whose shell passes no exit codes"),
)


@dataclass(frozen=True)
class Adb(Host):
    """A device in debugging mode with a Python on it."""

    name: str  # as the user wrote it
    serial: str | None = None
    python: str = TERMUX  # a program, or a command line that starts it

    def command(self) -> list[str]:
        """The call of `adb`: a shell without terminal and escape character, so that bytes arrive as they are."""
        serial = ["-s", self.serial] if self.serial else []
        python = shlex.join(start_python(shlex.split(self.python)))
        return ["adb", *serial, "shell", "-e", "none", "-T", f"TMPDIR={FOLDER} exec {python}"]

    def complaint(self, outcome: Outcome) -> str | None:
        """What adb itself complains of."""
        own = [found[1] for line in outcome.said if (found := OWN_LINE.match(line))]
        return _meaning(own[-1]) if outcome.code == 1 and own else None


def _meaning(line: str) -> str:
    for pattern, meaning in COMPLAINTS:
        if re.search(pattern, line):
            return f"{meaning} (adb: {line})"
    return f"adb failed: {line}"
