"""Data: what is read, how it is split and resized, and that each kind of bad input says so."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pocketzoo.errors import InvalidData
from pocketzoo.training import sources
from pocketzoo.training.augment import augment
from pocketzoo.training.data import channel_statistics, default_val_share, load_data
from pocketzoo.training.images import Encoded, decode

SHARED = Path(__file__).parents[2] / "shared" / "data"


def png(value: int | tuple[int, ...], size: tuple[int, int] = (9, 9), mode: str = "L") -> bytes:
    buffer = BytesIO()
    Image.new(mode, size, value).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(
    path: Path,
    labels: list[int],
    names: list[str] | None = None,
    column: str = "image",
    contents: list[bytes] | None = None,
) -> None:
    contents = contents or [png(10 * label) for label in labels]
    images = pa.array(
        [{"bytes": c, "path": None} for c in contents], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    table = pa.table({column: images, "label": pa.array(labels, pa.int64())})
    if names:
        features = {
            "info": {"features": {column: {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}
        }
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def make_image(path: Path, mode: str, size: tuple[int, int], value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)  # type: ignore[arg-type]


def test_digits_are_split_by_class_and_seed() -> None:
    data = load_data("digits")
    assert (data.in_channels, data.resolution, data.num_classes) == (1, 8, 10)
    assert len(data.train) + len(data.val) + len(data.test) == 1797  # all that scikit-learn ships
    assert data.test.labels.bincount().min() >= 34  # a fifth of 174, the rarest class, is 34.8
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.max() == 255  # 16 of 16
    other = load_data("digits", seed=1)
    assert torch.equal(other.test.images, data.test.images)  # no seed of the user's moves a test image
    assert not torch.equal(other.val.images, data.val.images)
    assert other.hash != data.hash
    assert len(load_data("digits", subset=200).train) + len(load_data("digits", subset=200).val) == 200


def test_statistics_are_those_of_the_pixels() -> None:
    images = torch.randint(0, 256, (7, 3, 5, 4), dtype=torch.uint8)
    images[:, 2] = 51
    mean, std = channel_statistics(images)
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    assert mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-6)
    assert std == pytest.approx([*pixels[:2].std(1, correction=0).tolist(), 1.0], abs=1e-6)
    assert mean[2] == pytest.approx(0.2)  # 51 / 255


@pytest.mark.parametrize("column", ["image", "img"])
def test_parquet_in_the_hubs_layout(tmp_path: Path, column: str) -> None:
    names = ["cat", "dog"]
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", [0, 1] * 10, names, column)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [0, 1] * 10, names, column)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [1, 0, 1], names, column)
    data = load_data(tmp_path)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val), len(data.test)) == (26, 14, 3)  # a third of each 20: 6.67, so 7
    assert data.test.labels.tolist() == [1, 0, 1]
    assert data.test.images[:, 0, 0, 0].tolist() == [10, 0, 10]
    assert load_data(str(tmp_path / "data" / "*.parquet")).hash == data.hash


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 5)
    before = load_data(tmp_path)
    write_parquet(tmp_path / "train.parquet", [0, 1] * 15)
    assert len(load_data(tmp_path).train) > len(before.train)


def test_image_folder_of_odd_sizes_and_modes(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 1)):
        for i in range(count):
            make_image(tmp_path / split / "red" / f"{i}.png", "RGBA", (20 + i, 12), (255, 0, 0, 255))
            make_image(tmp_path / split / "clear" / f"{i}.png", "RGBA", (13, 30), (0, 0, 0, 0))
            make_image(tmp_path / split / "grey" / f"{i}.jpg", "L", (12, 12), 128)
            make_image(tmp_path / split / "palette" / f"{i}.gif", "P", (15, 12), 0)
            make_image(tmp_path / split / "deep" / f"{i}.png", "I;16", (12, 14), 65535)
    data = load_data(tmp_path)
    assert data.classes == ("clear", "deep", "grey", "palette", "red")
    assert (data.in_channels, data.resolution) == (3, 12)  # the median shorter side
    assert (len(data.train), len(data.val), len(data.test)) == (15, 5, 5)  # val/ is read as the test split
    centre = {
        data.classes[y]: x[:, 6, 6].tolist() for x, y in zip(data.test.images, data.test.labels.tolist(), strict=True)
    }
    assert centre["red"] == [255, 0, 0]
    assert centre["clear"] == [255, 255, 255]  # transparency lies on white
    assert centre["deep"] == [255, 255, 255]
    assert all(abs(value - 128) <= 2 for value in centre["grey"])


def test_plain_folder_holds_out_a_test_split(tmp_path: Path) -> None:
    for name, value in (("a", 10), ("b", 200)):
        for i in range(10):
            make_image(tmp_path / name / f"{i}.png", "L", (8, 8), value)
    data = load_data(tmp_path)
    assert (data.in_channels, len(data.train), len(data.val), len(data.test)) == (
        1,
        10,
        6,
        4,
    )  # a fifth of 10, a third of 8


def test_crop_is_central_and_the_shorter_side_fits() -> None:
    array = np.zeros((10, 30), dtype=np.uint8)
    array[:, 10:20] = 200  # the middle third is what a 10 x 10 crop keeps
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    assert (decode(Encoded(buffer.getvalue(), "x"), 1, 10) == 200).all()


def test_augmentation_moves_and_mirrors_and_is_seeded() -> None:
    images = torch.arange(1, 1 + 32 * 32).remainder(255).to(torch.uint8).view(1, 1, 32, 32).repeat(64, 3, 1, 1)
    first = augment(images, torch.Generator().manual_seed(0))
    assert torch.equal(first, augment(images, torch.Generator().manual_seed(0)))
    padded = torch.nn.functional.pad(images[0], (4, 4, 4, 4))
    crops = {
        (view[:, r : r + 32, c : c + 32]).contiguous().numpy().tobytes()
        for view in (padded, padded.flip(2))
        for r in range(9)
        for c in range(9)
    }
    assert all(image.contiguous().numpy().tobytes() in crops for image in first)
    assert len({image.contiguous().numpy().tobytes() for image in first}) > 30


def test_small_grey_images_are_never_mirrored() -> None:
    images = torch.zeros(50, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 3:5, 3] = 100
    images[:, :, 3:5, 4] = 200  # the brighter column stays right of the darker one
    moved = augment(images, torch.Generator().manual_seed(0)).long()
    assert (moved.argmax(3).amax((1, 2)) >= 3).all()
    rows = moved[:, 0].amax(1)
    assert ((rows == 200).float().argmax(1) - (rows == 100).float().argmax(1) == 1).all()


class TestBadInput:
    def refused(self, source: object, *words: str, **settings: object) -> None:
        with pytest.raises(InvalidData) as caught:
            load_data(str(source), **settings)  # type: ignore[arg-type]
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message

    def test_unknown_name_gets_a_suggestion(self) -> None:
        self.refused("digit", "did you mean digits?")

    def test_empty_folder(self, tmp_path: Path) -> None:
        self.refused(tmp_path, "is empty")

    def test_folder_without_images(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        self.refused(tmp_path, "no images")

    def test_truncated_parquet(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "train.parquet", [0, 1] * 10)
        whole = (tmp_path / "train.parquet").read_bytes()
        (tmp_path / "train.parquet").write_bytes(whole[: len(whole) // 2])
        self.refused(tmp_path, "train.parquet", "not a readable parquet file")

    def test_undecodable_image_is_named_by_row(self, tmp_path: Path) -> None:
        contents = [png(0), png(0), b"not an image", png(0)]
        write_parquet(tmp_path / "train.parquet", [0, 1, 0, 1], contents=contents)
        self.refused(tmp_path, "train.parquet, row 2", "not a readable image")

    def test_truncated_image_file_is_named(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        for name in "ab":
            for i in range(3):
                (tmp_path / name).mkdir(exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
        broken = tmp_path / "b" / "1.png"
        broken.write_bytes(broken.read_bytes()[:300])
        self.refused(tmp_path, str(broken))

    def test_missing_label_column(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"image": [{"bytes": png(0), "path": None}]}), tmp_path / "train.parquet")
        self.refused(tmp_path, "no column 'label'", "['image']")

    def test_label_beyond_the_class_names(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "train.parquet", [0, 1, 0, 1, 2], ["cat", "dog"])
        write_parquet(tmp_path / "test.parquet", [0, 1], ["cat", "dog"])
        self.refused(tmp_path, "label 2 of image 4 of train", "expected 0 to 1")

    def test_class_missing_in_train(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "train.parquet", [0, 2] * 5)
        write_parquet(tmp_path / "test.parquet", [0, 1])
        self.refused(tmp_path, "no training image of class '1'")

    def test_only_a_test_split(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "test.parquet", [0, 1])
        self.refused(tmp_path, "none of train")

    def test_subset_larger_than_train(self) -> None:
        self.refused("digits", "subset is 5000", subset=5000)

    def test_the_hub_out_of_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreachable(*args: object, **settings: object) -> str:
            raise ConnectionError("no route to host")

        monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
        self.refused("hub:owner/name", "hub:owner/name", "no route to host", "network")


def test_the_hub_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [0, 1] * 10, ["cat", "dog"])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **settings: str(tmp_path))
    assert sources.download("owner/name") == tmp_path
    assert load_data("hub:owner/name").name == "hub:owner/name"


@pytest.mark.skipif(not SHARED.exists(), reason="the MNIST and CIFAR-10 files are not beside this checkout")
def test_cifar10_statistics_and_classes() -> None:
    files = sources.read_parquet([SHARED / "cifar10" / "test.parquet", SHARED / "cifar10" / "train.parquet"])
    assert files.classes[:3] == ("airplane", "automobile", "bird")
    assert [len(files.splits[split].labels) for split in ("train", "test")] == [50_000, 10_000]
    assert decode(files.splits["test"].images[0], 3, 32).shape == (3, 32, 32)


@pytest.mark.parametrize(("images", "held_out"), [(60_000, 6_000), (5_000, 500), (2_000, 500), (1_438, 479), (30, 10)])
def test_small_sets_hold_out_enough_to_rank_networks(images: int, held_out: int) -> None:
    assert round(default_val_share(images) * images) == held_out
