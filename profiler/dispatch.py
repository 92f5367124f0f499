"""Sends a job to where it runs, follows its progress, and brings the result back: one way for every host.

A host is a command that starts Python somewhere with our pipes on its ends: a child process, `ssh`, `adb shell`.
receiver.py, the runner and the models go in through standard input, so that there is one connection to lose and one
place that cleans up, and nothing to install.
"""

from __future__ import annotations

import contextlib
import io
import json
import queue
import re
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import DeviceFailed
from . import receiver, runner

Progress = Callable[[int, float], None]  # rounds done, seconds since the first
Events = queue.SimpleQueue[str | OSError | None]  # a line of standard error, what stopped the sending, the end

TIMEOUT_S = 600.0
GRACE_S = 10.0  # for the other side to remove its files when told to stop
LINGER_S = 30.0  # by which the other side's clock is later than ours: it stops alone where we cannot tell it to
PROGRESS = re.compile(r"round (\d+) ([\d.]+)\s*")
PINNED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
NO_PYTHON = (126, 127)  # exit codes of the shell there
BROKEN = (0, receiver.ABANDONED)  # adb ends well when its device is gone


class Host(ABC):
    """A machine that runs jobs of runner.py: a command that starts Python there, and what its failures mean."""

    name: str  # as the user wrote it: "cpu", "ssh://pi@board:22", "adb"
    python: str  # a program there, or a command line that starts it

    @abstractmethod
    def command(self) -> list[str]:
        """The command, which `start_python` ends."""

    def complaint(self, outcome: Outcome) -> str | None:
        """What went wrong on the way there, in words; None where the way is fine, as it is to ourselves."""
        return None

    def run(
        self,
        job: Mapping[str, Any],
        files: Mapping[str, Path],
        progress: Progress | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> dict[str, Any]:
        """Run a job there with these files beside it (name -> path here); the runner's result.

        `progress` is called after every round. Raises DeviceFailed.
        """
        outcome = dispatch(self.name, self.command(), job, files, progress, timeout_s)
        if complaint := self.complaint(outcome):
            raise DeviceFailed(f"{self.name}: {complaint}")
        return answer(self.name, job, self.python, outcome)


@dataclass(frozen=True)
class Outcome:
    """How the command ended."""

    code: int
    output: str
    said: tuple[str, ...]  # standard error without the progress

    @property
    def last_words(self) -> str:
        """The line that most likely says what was wrong."""
        lines = [line for line in (*self.output.splitlines(), *self.said) if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"


def start_python(python: Sequence[str]) -> list[str]:
    """A command that runs the receiver from its standard input."""
    length = len(Path(receiver.__file__).read_bytes())
    return [*python, "-I", "-c", f"import sys; exec(sys.stdin.buffer.read({length}))"]


def dispatch(
    name: str,
    command: Sequence[str],
    job: Mapping[str, Any],
    files: Mapping[str, Path],
    progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Outcome:
    """Run a job by a command that `start_python` ends; `files` lie beside it there under their keys.

    Raises DeviceFailed when the command cannot be started or does not end in time.
    """
    parcel = _parcel(job, files, timeout_s)
    deadline = time.monotonic() + timeout_s
    said: list[str] = []
    with tempfile.TemporaryFile() as output:
        with _started(name, command, parcel, output) as (process, events):
            while (line := _next(events, deadline, name, timeout_s)) is not None:
                if match := PROGRESS.fullmatch(line):
                    if progress is not None:
                        progress(int(match[1]), float(match[2]))
                else:
                    said.append(line.rstrip())
        output.seek(0)
        return Outcome(process.returncode, output.read().decode(errors="replace"), tuple(said))


def answer(name: str, job: Mapping[str, Any], python: str, outcome: Outcome) -> dict[str, Any]:
    """The runner's result, the last line of what was printed; DeviceFailed says why there is none."""
    result: dict[str, Any] = {}
    with contextlib.suppress(ValueError, IndexError):
        last = json.loads(outcome.output.splitlines()[-1])  # a login script may have printed something before
        result = last if isinstance(last, dict) else {}
    if outcome.code == 0 and "models" in result:
        return result
    error = result.get("error", outcome.last_words)
    raise DeviceFailed(f"{name}: {_reason(outcome.code, error, str(job['runtime']), python)}")


def _reason(code: int, error: str, runtime: str, python: str) -> str:
    reasons = {
        **dict.fromkeys(BROKEN, "the connection broke before the result was there; nothing of the run is kept"),
        runner.MISSING_RUNTIME: f"the runtime is missing: {error}; install it there: {python} -m pip install {runtime}",
        runner.UNUSABLE_MODEL: f"{runtime} cannot run the model there: {error}",
        receiver.CANNOT_STORE: f"the files cannot be stored there: {error}; free some space, or set TMPDIR there",
        receiver.TIMED_OUT: "the run took too long and was stopped there",
        receiver.OLD_PYTHON: f"the runner needs Python 3.8 or newer, and {python} is {error}",
        **dict.fromkeys(NO_PYTHON, f"cannot start {python} there ({error}); name its Python with ?python=PATH"),
    }
    if code in reasons:
        return reasons[code]
    if not 0 < code <= receiver.SIGNALLED:
        signal = abs(code) % receiver.SIGNALLED
        return f"the run was ended by signal {signal}" + (", perhaps for want of memory" if signal == 9 else "")
    return f"the run ended with code {code}: {error}"


def _parcel(job: Mapping[str, Any], files: Mapping[str, Path], timeout_s: float) -> list[bytes | Path]:
    threads = str(job["protocol"]["threads"])
    contents = {"runner.py": Path(runner.__file__), **files}
    order = json.dumps(job).encode()
    header = {
        "files": [("job.json", len(order)), *((name, path.stat().st_size) for name, path in contents.items())],
        "environment": dict.fromkeys(PINNED, threads),
        "timeout_s": timeout_s + LINGER_S,
    }
    return [Path(receiver.__file__), json.dumps(header).encode() + b"\n", order, *contents.values()]


@contextlib.contextmanager
def _started(
    name: str, command: Sequence[str], parcel: list[bytes | Path], output: IO[bytes]
) -> Iterator[tuple[subprocess.Popen[bytes], Events]]:
    """The running command and what it says; on leaving, it has ended and the other side had time to clean up."""
    try:
        process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches us alone, and we end the other side in order
        )  # fmt: skip
    except OSError as error:
        raise DeviceFailed(f"{name}: cannot start {command[0]}: {error.strerror}; is it installed?") from None
    events: Events = queue.SimpleQueue()
    sending = threading.Thread(target=_send, args=(process, parcel, events), daemon=True)
    listening = threading.Thread(target=_listen, args=(process, events), daemon=True)
    waiting = threading.Thread(target=_wait, args=(process, listening, events), daemon=True)
    for thread in (sending, listening, waiting):
        thread.start()
    try:
        yield process, events
    finally:
        _end(process, sending)


def _send(process: subprocess.Popen[bytes], parcel: list[bytes | Path], events: Events) -> None:
    assert process.stdin is not None
    try:
        for part in parcel:
            with contextlib.suppress(BrokenPipeError), _opened(part) as source:  # its exit code says why it ended
                while rest := source.read(1 << 20):
                    while rest:
                        rest = rest[process.stdin.write(rest) :]
    except OSError as error:  # a model file that cannot be read
        events.put(error)


def _opened(part: bytes | Path) -> IO[bytes]:
    return io.BytesIO(part) if isinstance(part, bytes) else part.open("rb")


def _listen(process: subprocess.Popen[bytes], events: Events) -> None:
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            events.put(line.decode(errors="replace"))


def _wait(process: subprocess.Popen[bytes], listening: threading.Thread, events: Events) -> None:
    process.wait()
    listening.join(1)  # a shared SSH connection lives on in the background and keeps standard error open
    events.put(None)


def _next(events: Events, deadline: float, name: str, timeout_s: float) -> str | None:
    try:
        event = events.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise DeviceFailed(
            f"{name}: no result within {timeout_s:g} s, so it was stopped; measure fewer models at once"
        ) from None
    if isinstance(event, OSError):
        raise event
    return event


def _end(process: subprocess.Popen[bytes], sending: threading.Thread) -> None:
    """Close its input, which tells the other side to clean up; kill it when that does not help."""
    assert process.stdin is not None
    if not sending.is_alive():
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    process.kill()
    process.wait()
