"""The first program on the machine that measures: takes files in, runs the runner on them, leaves nothing behind.

It travels on standard input ahead of what it receives (dispatch.py sends it), and needs nothing but the library of
Python 3.8. Standard input holds one line of JSON,

    {"files": [[name, bytes], ...], "environment": {...}, "timeout_s": seconds}

then the contents of the files, and then nothing, for as long as somebody waits for the result. Its end means that
nobody does: the sender has stopped, or the connection is gone. The runner is then killed and the folder removed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO

# Exit codes of its own, beside the runner's; what is wrong is on standard output as {"error": ...}.
CANNOT_STORE, TIMED_OUT, OLD_PYTHON, ABANDONED = 5, 6, 7, 8
SIGNALLED = 128  # plus the signal that ended the runner, as shells say it
OLDEST = (3, 8)


def main() -> int:
    """Receive, run, remove; the runner's exit code, or one of our own."""
    if sys.version_info[:2] < OLDEST:
        return _refuse(OLD_PYTHON, "Python " + sys.version.split()[0])
    for name in ("SIGHUP", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(SIGNALLED + number))
    try:
        with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder:
            order = json.loads(sys.stdin.buffer.readline() or "null")
            if order is None or not _unpack(sys.stdin.buffer, order["files"], folder):
                return ABANDONED
            return _run(folder, order)
    except OSError as error:
        return _refuse(CANNOT_STORE, error.strerror or str(error))


def _refuse(code: int, reason: str) -> int:
    print(json.dumps({"error": reason}))
    return code


def _unpack(source: BinaryIO, files: list[tuple[str, int]], folder: str) -> bool:
    """Write the files; whether they came whole."""
    for name, size in files:
        with open(os.path.join(folder, name), "wb") as file:
            while size:
                chunk = source.read(min(size, 1 << 20))
                if not chunk:
                    return False
                file.write(chunk)
                size -= len(chunk)
    return True


def _run(folder: str, order: Mapping[str, Any]) -> int:
    program = [sys.executable, "runner.py", "job.json"]
    environment = {**os.environ, **order["environment"], "TMPDIR": folder}
    runner = subprocess.Popen(program, cwd=folder, stdin=subprocess.DEVNULL, env=environment)
    threading.Thread(target=_end_with_input, args=(runner,), daemon=True).start()
    try:
        code = runner.wait(order["timeout_s"])
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        runner.kill()
        runner.wait()
    return code if code >= 0 else SIGNALLED - code


def _end_with_input(runner: subprocess.Popen[bytes]) -> None:
    """Kill the runner when nobody waits any more."""
    while os.read(0, 4096):  # not sys.stdin: its lock would be held when the interpreter ends
        pass
    runner.kill()


if __name__ == "__main__":
    sys.exit(main())
