"""Where the runner runs: this machine, another over SSH, an Android device; chosen by the device's name."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from dataclasses import dataclass

from ..errors import UnknownDevice, suggestion
from .adb import Adb
from .dispatch import Host, start_python
from .ssh import Ssh

FORMS = "cpu, ssh://[user@]host[:port], adb or adb://SERIAL; the last three take ?python=PATH"
SSH = re.compile(
    r"ssh://(?:(?P<user>[\w.][\w.-]*)@)?(?P<address>[\w.][\w.-]*|\[[\da-fA-F:.%\w]+\])(?::(?P<port>\d{1,5}))?/?"
)
ADB = re.compile(r"adb(?:://(?P<serial>[\w.][\w.:-]*)?/?)?")


@dataclass(frozen=True)
class Local(Host):
    """This machine, in a child process of its own, so that no other engine shares its memory and threads."""

    name: str = "cpu"
    python: str = sys.executable

    def command(self) -> list[str]:
        """Our own Python."""
        return start_python([self.python])


def host(device: str) -> Host:
    """The host that a device's name stands for; raises UnknownDevice."""
    address, _, query = device.partition("?")
    if device == "cpu":
        return Local()
    if (found := SSH.fullmatch(address)) and 0 < int(found["port"] or 22) < 1 << 16:
        port = int(found["port"]) if found["port"] else None
        return Ssh(device, found["address"].strip("[]"), found["user"], port, **_settings(device, query))
    if found := ADB.fullmatch(address):
        return Adb(device, found["serial"], **_settings(device, query))
    raise UnknownDevice(
        f"{device!r} names no machine to measure on{suggestion(device, ['cpu', 'adb'])}: expected {FORMS}"
    )


def _settings(device: str, query: str) -> dict[str, str]:
    if not query:
        return {}
    key, _, value = query.partition("=")  # one setting, so that nothing in a path needs an escape
    with contextlib.suppress(ValueError):  # a quotation mark without its partner
        if key == "python" and shlex.split(value):
            return {"python": value}
    raise UnknownDevice(f"{device!r} has a setting that cannot be read; expected ?python=PATH and nothing else")
