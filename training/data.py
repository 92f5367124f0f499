"""Data sets in memory: uint8 pixels, a validation split held out of train, and what a saved model needs to know."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidData, suggestion
from .images import RESIZE_RULE, decode_all, natural_form
from .sources import EncodedSet, download, find_parquet, read_folder, read_parquet

EMBEDDED = ("digits",)
VAL_SHARE = 0.1  # of train
ENOUGH_TO_RANK = 500  # validation images that tell networks apart
TEST_SHARE = 0.2  # of everything, where a source ships no test split
TEST_SEED = 0  # fixed, so that no choice of the user moves an image from test to train


@dataclass(frozen=True)
class Split:
    """Pixels, uint8 [N, C, H, W], and labels, int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        """The images at these indices."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class DataInfo:
    """What it takes to use a model trained on the data; JSON both ways through `asdict` and `from_dict`."""

    name: str
    classes: tuple[str, ...]
    in_channels: int
    resolution: int
    mean: tuple[float, ...]  # per channel, of pixels in 0..1
    std: tuple[float, ...]
    resize: str = RESIZE_RULE
    hash: str = ""

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> DataInfo:
        """Read what `asdict` wrote, lists for tuples."""
        fields: dict[str, Any] = {key: tuple(e) if isinstance(e, list) else e for key, e in record.items()}
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def normalise(self, images: Tensor) -> Tensor:
        """Uint8 [N, C, H, W] -> float32, zero mean and unit deviation over the training data."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return (images.float() / 255 - mean) / std


@dataclass(frozen=True)
class DataSet:
    """Three splits and their description; `info.hash` is the SHA-256 of all pixels and labels."""

    info: DataInfo
    train: Split
    val: Split
    test: Split

    @property
    def name(self) -> str:
        """What the data is called."""
        return self.info.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        return self.info.classes

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.info.classes)

    @property
    def in_channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.info.in_channels

    @property
    def resolution(self) -> int:
        """Side of the square images in pixels."""
        return self.info.resolution

    @property
    def hash(self) -> str:
        """SHA-256 of all pixels and labels."""
        return self.info.hash


def load_data(
    source: str | Path,
    *,
    resolution: int | None = None,
    subset: int | None = None,
    val_share: float | None = None,
    seed: int = 0,
) -> DataSet:
    """Read a data set: `digits`, a folder or glob of parquet files or of images, or `hub:owner/name`.

    Images of another size are resized (shorter side to `resolution`, centre crop); by default the data's own size.
    `subset` takes the first images of a permutation of train drawn with `seed`. Validation is `val_share` of what is
    left of train (a tenth by default, more of a small set: `default_val_share`), stratified by class, drawn with
    `seed`, unless the source ships train, val and test; test is the shipped test split (or val split, where only that
    is there), otherwise a stratified fifth held out with a fixed seed. The last two data sets are kept in memory.
    Raises InvalidData.
    """
    if val_share is not None and not 0 < val_share < 1:
        raise InvalidData(f"val_share is {val_share}; expected a share of train between 0 and 1")
    if resolution is not None and resolution < 1:
        raise InvalidData(f"resolution is {resolution}; expected a positive number of pixels")
    return _load(str(source), _stamp(str(source)), resolution, subset, val_share, seed)


@lru_cache(maxsize=2)
def _load(
    source: str, stamp: int, resolution: int | None, subset: int | None, val_share: float | None, seed: int
) -> DataSet:
    if source == "digits":
        classes, splits = _digits(resolution)
    else:
        classes, splits = _decoded(_encoded(source), source, resolution)
    if "test" not in splits:
        if "val" in splits:
            splits["test"] = splits.pop("val")
        else:
            splits["train"], splits["test"] = hold_out(splits["train"], TEST_SHARE, TEST_SEED, classes)
    if subset is not None:
        splits["train"] = _subset(splits["train"], subset, seed)
    _check_labels(splits, classes, source)
    if "val" not in splits:
        share = default_val_share(len(splits["train"])) if val_share is None else val_share
        splits["train"], splits["val"] = hold_out(splits["train"], share, seed, classes)
    name = source if source in EMBEDDED or source.startswith("hub:") else Path(source.rstrip("/")).name
    return _described(name, classes, splits)


def default_val_share(train_images: int) -> float:
    """A tenth of train, or what makes 500 images where a tenth is fewer, but never more than a third.

    143 of the digits, a tenth, are all recognised by most networks: a search could not tell these apart.
    """
    return min(1 / 3, max(VAL_SHARE, ENOUGH_TO_RANK / train_images))


def hold_out(split: Split, share: float, seed: int, classes: Sequence[str]) -> tuple[Split, Split]:
    """(rest, held out): the share of each class, at least one image, drawn with the seed; in the source's order."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(split), dtype=torch.bool)
    for label in range(len(classes)):
        members = (split.labels == label).nonzero().flatten()
        if len(members) == 0:
            continue  # `_check_labels` names the class, with the source
        if len(members) == 1:
            raise InvalidData(
                f"class {classes[label]!r} has 1 image; at least 2 are needed, one to train on, one held out"
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return split.take(~held), split.take(held)


def _encoded(source: str) -> EncodedSet:
    if source.startswith("hub:"):
        folder = download(source.removeprefix("hub:"))
        if not (files := find_parquet(folder)):
            raise InvalidData(f"{source} holds no parquet files; give a folder of images instead")
        return read_parquet(files)
    path = Path(source)
    if path.is_dir():
        files = find_parquet(path)
        if files:
            return read_parquet(files)
        if not any(path.iterdir()):
            raise InvalidData(f"{path} is empty; expected parquet files, or a folder of images per class")
        return read_folder(path)
    if files := [Path(name) for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()]:
        return read_parquet(files)
    raise InvalidData(
        f"no data set {source!r}{suggestion(source, EMBEDDED)} "
        f"(known: {', '.join(EMBEDDED)}, a folder or glob of parquet files or of images, hub:owner/name)"
    )


def _decoded(encoded: EncodedSet, source: str, resolution: int | None) -> tuple[tuple[str, ...], dict[str, Split]]:
    for name, split in encoded.splits.items():
        if not split.images:
            raise InvalidData(f"{source} has no images in its {name} split; expected some in every class")
    in_channels, natural = natural_form(encoded.splits["train"].images)
    splits = {
        name: Split(decode_all(split.images, in_channels, resolution or natural), torch.tensor(split.labels))
        for name, split in encoded.splits.items()
    }
    return encoded.classes, splits


def _digits(resolution: int | None) -> tuple[tuple[str, ...], dict[str, Split]]:
    """1,797 grey images of 8 x 8 (UCI Optical Recognition of Handwritten Digits), values 0..16."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    if resolution is not None and resolution != 8:
        images = torch.nn.functional.interpolate(images, size=resolution, mode="bilinear", antialias=True)
    pixels = images.round().clamp(0, 255).to(torch.uint8)
    return tuple("0123456789"), {"train": Split(pixels, torch.from_numpy(digits.target).long())}


def _subset(train: Split, count: int, seed: int) -> Split:
    if not 0 < count <= len(train):
        raise InvalidData(f"subset is {count}; train has {len(train)} images, expected 1 to {len(train)}")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return train.take(order[:count])


def _check_labels(splits: dict[str, Split], classes: Sequence[str], source: str) -> None:
    for name, split in splits.items():
        wrong = ((split.labels < 0) | (split.labels >= len(classes))).nonzero().flatten()
        if len(wrong):
            row = int(wrong[0])
            raise InvalidData(
                f"{source}: label {int(split.labels[row])} of image {row} of {name}; "
                f"expected 0 to {len(classes) - 1} ({len(classes)} classes)"
            )
    counts = splits["train"].labels.bincount(minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts.tolist(), strict=True) if count == 0]:
        raise InvalidData(f"{source}: no training image of class {missing[0]!r}; every class needs some in train")
    if len(classes) < 2:
        raise InvalidData(f"{source} has one class, {classes[0]!r}; a classifier needs at least two")


def _described(name: str, classes: tuple[str, ...], splits: dict[str, Split]) -> DataSet:
    images = splits["train"].images
    mean, std = channel_statistics(images)
    digest = hashlib.sha256()
    for key in ("train", "val", "test"):
        digest.update(splits[key].images.numpy().tobytes())
        digest.update(splits[key].labels.numpy().tobytes())
    info = DataInfo(name, classes, images.shape[1], images.shape[2], mean, std, hash=digest.hexdigest())
    return DataSet(info, splits["train"], splits["val"], splits["test"])


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel of uint8 images, pixels in 0..1; a constant channel has deviation 1."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.transpose(0, 1):
        share = channel.flatten().bincount(minlength=256).double() / channel.numel()
        mean = float(share @ values)
        variance = float(share @ (values - mean) ** 2)
        means.append(round(mean, 6))
        deviations.append(round(variance**0.5, 6) or 1.0)
    return tuple(means), tuple(deviations)


def _stamp(source: str) -> int:
    """A number that changes when the files behind the source do, so that the cache never serves old data."""
    path = Path(source)
    files = [path, *path.rglob("*")] if path.is_dir() else [Path(name) for name in glob.glob(source, recursive=True)]
    stats = ((file, file.stat()) for file in sorted(files))
    return hash(tuple((str(file), stat.st_mtime_ns, stat.st_size) for file, stat in stats))
