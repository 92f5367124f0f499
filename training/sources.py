"""Where images come from: parquet files in the Hub's image schema, folders of images, the Hub by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InvalidData
from .images import IMAGE_SUFFIXES, Encoded

IMAGE_COLUMNS = ("image", "img")
SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}


@dataclass(frozen=True)
class EncodedSplit:
    """Encoded images with their labels."""

    images: list[Encoded]
    labels: list[int]


@dataclass(frozen=True)
class EncodedSet:
    """The splits that a source ships (`train` always) and its class names."""

    classes: tuple[str, ...]
    splits: dict[str, EncodedSplit]


def read_parquet(files: Sequence[Path]) -> EncodedSet:
    """Parquet files with a struct column `image` or `img` (bytes, path) and an integer column `label`.

    A file's split is the first word of its name (`train-00000-of-00001.parquet`), otherwise its folder's name; files
    of unknown split are training data. Raises InvalidData for what cannot be read.
    """
    splits: dict[str, EncodedSplit] = {}
    names: tuple[str, ...] = ()
    for file in files:
        table = _parquet_table(file)
        split = splits.setdefault(_split_of(file), EncodedSplit([], []))
        images, labels = _parquet_rows(file, table)
        split.images.extend(images)
        split.labels.extend(labels)
        names = names or _class_names(table.schema.metadata)
    if "train" not in splits:
        raise InvalidData(f"{files[0].parent} has parquet files of {sorted(splits)} but none of train (train*.parquet)")
    if not names:
        names = tuple(str(label) for label in range(max(splits["train"].labels, default=-1) + 1))
    return EncodedSet(names, splits)


def read_folder(folder: Path) -> EncodedSet:
    """A folder with a folder of images per class, or with such folders per split (train, and test or val)."""
    parts = {SPLIT_WORDS[part.name.lower()]: part for part in _folders(folder) if part.name.lower() in SPLIT_WORDS}
    if "train" not in parts:
        if parts:
            raise InvalidData(f"{folder} has {sorted(parts)} but no train folder; expected train/ and test/ or val/")
        parts = {"train": folder}
    classes = tuple(sorted(entry.name for entry in _folders(parts["train"])))
    if not classes:
        raise InvalidData(f"{parts['train']} has no folder per class; expected {parts['train'].name}/CLASS/IMAGE")
    return EncodedSet(classes, {split: _read_classes(part, classes) for split, part in parts.items()})


def download(name: str) -> Path:
    """The folder of a Hub data set's parquet files (`owner/name`), fetched once into the Hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=["*.parquet"]))
    except Exception as error:  # the Hub's client raises its own, HTTP's and the system's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidData(
            f"hub:{name} cannot be fetched from the Hugging Face Hub ({type(error).__name__}: {reason}); "
            "check the name and the network, or give a folder of parquet files"
        ) from None


def find_parquet(folder: Path) -> list[Path]:
    """All parquet files below a folder, in order."""
    return sorted(folder.rglob("*.parquet"))


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _read_classes(folder: Path, classes: Sequence[str]) -> EncodedSplit:
    split = EncodedSplit([], [])
    for part in _folders(folder):
        if part.name not in classes:
            raise InvalidData(f"{part} is a class that train does not have; it has {list(classes)[:10]}")
        files = sorted(file for file in part.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        split.images.extend(Encoded(file, str(file)) for file in files)
        split.labels.extend([classes.index(part.name)] * len(files))
    return split


def _split_of(file: Path) -> str:
    for name in (re.split(r"[-_.]", file.name)[0], file.parent.name):
        if word := SPLIT_WORDS.get(name.lower()):
            return word
    return "train"


def _parquet_table(file: Path) -> pa.Table:
    try:
        return pq.read_table(file, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InvalidData(f"{file} is not a readable parquet file ({reason}); fetch or write it again") from None


def _parquet_rows(file: Path, table: pa.Table) -> tuple[list[Encoded], list[int]]:
    columns = table.column_names
    column = next((name for name in IMAGE_COLUMNS if name in columns), None)
    if column is None:
        raise InvalidData(f"{file} has no column 'image' or 'img'; it has {columns}")
    if "label" not in columns:
        raise InvalidData(f"{file} has no column 'label'; it has {columns}")
    form = table.schema.field(column).type
    if not pa.types.is_struct(form) or form.get_field_index("bytes") < 0:
        raise InvalidData(f"{file}: column {column!r} is {form}; expected struct<bytes: binary, path: string>")
    if not pa.types.is_integer(table.schema.field("label").type) or table.column("label").null_count:
        raise InvalidData(f"{file}: column 'label' must hold an integer in every row")
    contents = table.column(column).combine_chunks().field("bytes").to_pylist()
    return list(_places(file, contents)), table.column("label").to_pylist()


def _places(file: Path, contents: Iterable[bytes | None]) -> Iterable[Encoded]:
    for row, content in enumerate(contents):
        if content is None:
            raise InvalidData(f"{file}, row {row}: no image bytes; expected an encoded image in every row")
        yield Encoded(content, f"{file}, row {row}")


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...]:
    """The names that the Hub's `huggingface` schema metadata gives to labels, when it does."""
    try:
        features: dict[str, Any] = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
