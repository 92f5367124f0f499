"""What the long benchmarks share: lines that survive a kill, what they were made with, and where."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def read(path: Path) -> list[dict[str, Any]]:
    """The finished lines, whole ones only: a kill may have cut the last one short, or another process is writing it."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def without_stump(path: Path) -> None:
    """Take a line cut short off the file, before others are written after it."""
    if path.exists():
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def versions(*packages: str) -> str:
    """What the numbers were made with."""
    return ", ".join([*(f"{name} {version(name)}" for name in packages), f"Python {platform.python_version()}"])


def machine() -> str:
    """GPU, or processor and cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        name = next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, one thread a process"


def note(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
