"""The store of records: Measurements and Results as lines of JSON, committed ones in records/, the user's at home.

Lines of text rather than a database: both folders have one form, what is committed reads well as a difference, and a
store of some thousand records is read in milliseconds. A record is validated when it is added, so that reading needs
no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from ..errors import InvalidRun
from ..profiler import home
from ..profiler.measurement import Measurement

Record = Mapping[str, Any]
T = TypeVar("T")

MEASUREMENTS, RESULTS = "measurements.jsonl", "results.jsonl"
RESULT_NAME, PACKED_NAME = "result.json", "best.pz"  # of a run; the second of a compression
NEEDED = ("architecture", "recipe", "accuracy", "costs", "provenance")  # what the tables read of a Result


@dataclass(frozen=True)
class Records:
    """What folders hold, in their order; results are `Result.to_json`'s values, read without torch."""

    measurements: tuple[Measurement, ...] = ()
    results: tuple[Record, ...] = ()


def user_folder() -> Path:
    """Where the user's own records are."""
    return home.user_folder() / "records"


def committed_folder() -> Path:
    """The records that come with pocketzoo."""
    return Path(str(files(__package__))) / "records"


def stored(folders: Sequence[str | Path] | None = None) -> Records:
    """Everything in these folders, by default the committed and the user's own; raises InvalidRun with file and line.

    A folder that was named must exist.
    """
    for folder in folders or ():
        if not Path(folder).is_dir():
            raise InvalidRun(f"no folder {str(folder)!r}; expected one with {MEASUREMENTS} or {RESULTS} in it")
    places = [Path(folder) for folder in folders] if folders else [committed_folder(), user_folder()]
    return Records(
        tuple(_read(line, where, Measurement.from_dict) for line, where in _lines(places, MEASUREMENTS)),
        tuple(_read(line, where, _result) for line, where in _lines(places, RESULTS)),
    )


def add(records: Iterable[Record], folder: str | Path | None = None) -> int:
    """Store records and return how many were new; what is stored already is left out. Raises InvalidRun.

    Several processes may add at once; a reader sees a file before or after an addition, never half of it.
    """
    place = Path(folder) if folder is not None else user_folder()
    by_file: dict[str, list[str]] = {MEASUREMENTS: [], RESULTS: []}
    for record in records:
        by_file[_validated(record)].append(json.dumps(record, sort_keys=True))
    return sum(_append(place / name, lines) for name, lines in by_file.items() if lines)


def read(source: str | Path) -> list[Record]:
    """The records of a run's folder, or of a file with one record, a list of them, or one a line; raises InvalidRun.

    The packed file in the folder of a compression has to be the one that the record tells of.
    """
    path = Path(source)
    if path.is_dir():
        path = path / RESULT_NAME
    try:
        found = parsed(path.read_text(encoding="utf-8"), str(path))
        if Path(source).is_dir():
            _check_packed(found[0], path.with_name(PACKED_NAME))
        return found
    except FileNotFoundError:
        raise InvalidRun(f"no {path}; expected the folder of a finished run, or a file of records") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRun(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _check_packed(result: Record, file: Path) -> None:
    expected = result.get("costs", {}).get("file_bytes")
    size = file.stat().st_size if file.exists() else None
    if expected not in (None, size):
        there = "is missing" if size is None else f"has {size:,} bytes"
        raise InvalidRun(
            f"{file} {there}, its {RESULT_NAME} says {expected:,}: compress the run again into a new folder"
        )


def parsed(text: str, where: str) -> list[Record]:
    """The records in a text: one of JSON, a list of them, or one a line; raises InvalidRun."""
    try:
        found = json.loads(text)
    except ValueError:
        lines = [(line, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        found = [_read(line, f"{where}, line {number}", dict) for line, number in lines]
    found = found if isinstance(found, list) else [found]
    if not found or not all(isinstance(record, dict) for record in found):
        raise InvalidRun(f"{where} holds no records; expected what `pocketzoo measure --json` prints, or a result.json")
    return found


def _lines(folders: Iterable[Path], name: str) -> Iterator[tuple[str, str]]:
    """(line, where) of every record once, in the order of the folders."""
    seen: set[str] = set()
    for path in (folder / name for folder in folders):
        if not path.exists():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip() and line not in seen:
                seen.add(line)
                yield line, f"{path}, line {number}"


def _read(line: str, where: str, make: Callable[[Record], T]) -> T:
    try:
        return make(json.loads(line))
    except (ValueError, TypeError, InvalidRun) as error:
        raise InvalidRun(f"{where} is no record ({error}); correct that line or remove it") from None


def _result(record: Record) -> Record:
    if lacking := [name for name in NEEDED if name not in record]:
        raise InvalidRun(f"a Result has {', '.join(lacking)}")
    return record


def _validated(record: Record) -> str:
    """The file that a record belongs to; raises InvalidRun when it is neither kind."""
    if "median_ms" in record:
        Measurement.from_dict(record)
        return MEASUREMENTS
    if "recipe" in record:
        from ..training.result import Result

        if Result.from_json(json.dumps(record)).architecture is None:
            raise InvalidRun("this Result is of a bare module: without an Architecture nobody could build it again")
        return RESULTS
    raise InvalidRun(f"neither a Measurement nor a Result: it has {', '.join(sorted(record)) or 'nothing'}")


def _append(path: Path, lines: Sequence[str]) -> int:
    """Put the lines that a file lacks at its end, the whole file or nothing."""
    from ..training.folder import write_text

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRun(f"cannot make the folder {path.parent}: {error.strerror or error}") from None
    with FileLock(path.with_name(f".{path.name}.lock")):
        present = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        new = [line for line in dict.fromkeys(lines) if line not in set(present)]
        if new:
            write_text(path, "\n".join([*present, *new]) + "\n")
    return len(new)
