"""A machine reached with the system's `ssh`, which knows the user's keys, hosts and jumps from ~/.ssh/config."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass

from .dispatch import Host, Outcome, start_python

CONFIG = "POCKETZOO_SSH_CONFIG"  # names a file to use instead of ~/.ssh/config
FAILED = 255  # ssh's own exit code; others are the command's
OPTIONS = {
    "BatchMode": "yes",  # never ask
    "ClearAllForwardings": "yes",
    "ConnectTimeout": "15",
    "LogLevel": "INFO",  # the messages below
    "RemoteCommand": "none",
    "ServerAliveCountMax": "4",
    "ServerAliveInterval": "15",  # a connection that died silently is noticed within a minute
}
COMPLAINTS = (  # what ssh says, what it means and what to do; the first match holds
    (r"Could not resolve hostname", "no machine of that name is known; check it, or its entry in ~/.ssh/config"),
    (r"Connection refused", "no SSH server listens there; check the port, and that sshd runs"),
    (r"connect to host .*", "it cannot be reached; check that it is switched on and in this network"),
    (r"IDENTIFICATION HAS CHANGED", "its host key is another than before: if it was set up anew, forget the old "
     "key with ssh-keygen -R; if not, somebody may be posing as it"),
    (r"Host key verification failed", "its host key is not known here; log in once with ssh to accept it"),
    (r"Permission denied \(|Too many authentication", "the key was refused; `ssh` must get in without a password "
     "(ssh-copy-id installs a key, ssh-add unlocks one)"),
    (r"closed by|reset by|Broken pipe|not responding|Connection timed out|Connection closed", "the connection broke; "
     "what was running there is stopped and removed"),
)  # fmt: skip


@dataclass(frozen=True)
class Ssh(Host):
    """Another machine: nothing is needed there but a shell, Python 3.8 or newer and the runtime."""

    name: str  # as the user wrote it
    address: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"  # a program, or a command line that starts it; relative to the home folder

    def command(self) -> list[str]:
        """The call of `ssh`."""
        settings = [word for option, value in OPTIONS.items() for word in ("-o", f"{option}={value}")]
        config = ["-F", os.environ[CONFIG]] if os.environ.get(CONFIG) else []
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        python = shlex.split(self.python.removeprefix("~/"))  # commands start in the home folder
        return [
            "ssh",
            "-T",
            *config,
            *settings,
            *user,
            *port,
            "--",
            self.address,
            f"exec {shlex.join(start_python(python))}",
        ]

    def complaint(self, outcome: Outcome) -> str | None:
        """What ssh itself complains of."""
        return _meaning(outcome) if outcome.code == FAILED else None


def _meaning(outcome: Outcome) -> str:
    said = "\n".join(outcome.said)
    for pattern, meaning in COMPLAINTS:
        if found := re.search(rf".*(?:{pattern}).*", said):
            return f"{meaning} (ssh: {found[0].strip(' @')})"
    if not said:  # the exit code is also that of a command ended by a signal
        return "what ran there was killed, perhaps for want of memory"
    return f"ssh failed: {outcome.last_words}"
