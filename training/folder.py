"""Folders and files of a run: written to a temporary file and renamed, never over another run's."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import InvalidRun

FINGERPRINT = "run.json"


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it; a failure leaves what was there.

    Raises InvalidRun when the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        temporary = Path(name)
        os.close(handle)
        write(temporary)
        _settle(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        reason = getattr(error, "strerror", None) or error
        raise InvalidRun(f"cannot write {path}: {reason}; give a folder with room for it") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole or not at all; raises InvalidRun."""
    write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def open_folder(out: str | Path, fingerprint: Mapping[str, Any]) -> Path:
    """The run's folder, new or begun with the same fingerprint (kept in `run.json`).

    Raises InvalidRun when it cannot be made or written, or holds another run or other files.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InvalidRun(f"cannot use {folder} as the output folder: {error.strerror or error}") from None
    ours = json.loads(json.dumps(fingerprint))
    if FINGERPRINT in present:
        theirs = _read_fingerprint(folder / FINGERPRINT)
        if ours != theirs:
            raise InvalidRun(
                f"{folder} holds another run: {_difference(ours, theirs)}; give another folder, or remove this one"
            )
    elif present:
        raise InvalidRun(f"{folder} holds {present[0]!r}, which no run of ours begun; give a new or empty folder")
    else:
        write_text(folder / FINGERPRINT, json.dumps(ours, indent=1, sort_keys=True) + "\n")
    return folder


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], within: str = "") -> str:
    """The first entry that differs, as deep as both have entries: `its recipe.epochs is 4, not 5`."""
    key = min(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    our, their = ours.get(key), theirs.get(key)
    if isinstance(our, dict) and isinstance(their, dict):
        return _difference(our, their, f"{within}{key}.")
    return f"its {within}{key} is {their!r}, not {our!r}"


def _read_fingerprint(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRun(f"{path} is not readable ({error}); give another folder, or remove this one") from None
    if not isinstance(record, dict):
        raise InvalidRun(f"{path} is not a record of a run; give another folder, or remove this one")
    return record


def _settle(path: Path) -> None:
    """Flush to disk, and give the permissions that a plain new file would have."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
