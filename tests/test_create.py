"""create_model and load_weights: what they build, what they load, and what they say when they cannot."""

from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn

import torchvision_on_cpu  # noqa: F401

import timm  # isort: skip
from pocketzoo import (
    Architecture,
    InvalidSetting,
    UnknownModel,
    WeightsMismatch,
    create_model,
    load_weights,
)

SMALL = {"multiplier": 0.35, "num_classes": 7, "resolution": 32}


def save(model: nn.Module, path: Path) -> str:
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    return str(path)


def same_tensors(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)


def test_a_name_becomes_a_network() -> None:
    model = create_model("mobilenet_v2", in_channels=1, **SMALL).eval()
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)


def test_an_architecture_takes_settings_on_top() -> None:
    arch = Architecture.of("mobilenet_v2", multiplier=0.35)
    model = create_model(arch, num_classes=7, resolution=32)
    assert model.get_submodule("classifier").out_features == 7
    assert model.get_submodule("stem.conv").stride == (1, 1)  # 32 pixels lose early strides


@pytest.mark.parametrize(
    ("name", "settings", "error", "says"),
    [
        ("mobilenetv2", {}, UnknownModel, "did you mean mobilenet_v2"),
        ("mobilenet_v2", {"kernal": 5}, InvalidSetting, "did you mean kernel"),
        ("mobilenet_v2", {"kernel": 4}, InvalidSetting, "odd kernel"),
        ("mobilenet_v2", {"repeats": (1, 2)}, InvalidSetting, "7 numbers"),
        ("mobilenet_v1", {"multiplier": 0}, InvalidSetting, "multiplier > 0"),
        ("mobilenet_v3_large", {"convention": "tf"}, InvalidSetting, "timm"),
        ("mobilenet_v3_small", {"repeats": (1, 2, 3, 2, 4)}, InvalidSetting, "blocks a stage"),
        ("squeezenet1_0", {"bypass": "full"}, InvalidSetting, "complex"),
        ("squeezenet1_0", {"pct_3x3": 1.0}, InvalidSetting, "pct_3x3 < 1"),
    ],
)
def test_wrong_input_is_named(name: str, settings: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        create_model(name, **settings)


def test_our_own_file_comes_back(tmp_path: Path) -> None:
    saved = create_model("mobilenet_v2", **SMALL)
    loaded = create_model("mobilenet_v2", weights=save(saved, tmp_path / "model.safetensors"), **SMALL)
    assert same_tensors(saved, loaded)


def test_other_class_numbers_are_named(tmp_path: Path) -> None:
    path = save(create_model("mobilenet_v2", **SMALL), tmp_path / "model.safetensors")
    with pytest.raises(WeightsMismatch, match=r"7 classes .* the model 10; build it with num_classes=7"):
        create_model("mobilenet_v2", weights=path, **SMALL | {"num_classes": 10})


def test_other_widths_are_named(tmp_path: Path) -> None:
    path = save(create_model("mobilenet_v2", **SMALL), tmp_path / "model.safetensors")
    model = create_model("mobilenet_v2", **SMALL | {"multiplier": 0.5})
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(WeightsMismatch, match=r"stages\.1\.0\.project\.conv\.weight is \[8, 48, 1, 1\], expected"):
        create_model("mobilenet_v2", weights=path, **SMALL | {"multiplier": 0.5})
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_missing_and_left_over_keys_are_named() -> None:
    model = create_model("mobilenet_v2", **SMALL)
    state = dict(model.state_dict())
    state["stray"] = state.pop("stem.conv.weight")
    with pytest.raises(WeightsMismatch, match=r"1 missing keys \(stem.conv.weight\); 1 unexpected keys \(stray\)"):
        load_weights(model, state, source="pocketzoo")


def test_an_unknown_source_lists_the_known() -> None:
    with pytest.raises(WeightsMismatch, match=r"'pocketzoo', 'torchvision', 'timm'.*'keras'"):
        load_weights(create_model("mobilenet_v2", **SMALL), {}, source="keras")


def test_weights_of_another_convention_are_refused() -> None:
    model = create_model("mobilenet_v3_small", multiplier=0.35, resolution=32)
    with pytest.raises(WeightsMismatch, match="convention='timm'"):
        load_weights(model, {}, source="timm")


def test_files_without_batch_counters_load() -> None:
    model = create_model("mobilenet_v2", **SMALL)
    state = {key: tensor for key, tensor in model.state_dict().items() if "num_batches" not in key}
    load_weights(model, state, source="pocketzoo")


def test_convolutions_fit_linear_layers() -> None:
    model = create_model("mobilenet_v2", **SMALL)
    state = {key: tensor + 1 for key, tensor in model.state_dict().items()}
    expected = state["classifier.weight"].clone()
    state["classifier.weight"] = expected[:, :, None, None]
    load_weights(model, state, source="pocketzoo")
    assert torch.equal(model.get_parameter("classifier.weight"), expected)


@pytest.mark.parametrize("content", [None, b"not safetensors"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsMismatch, match="cannot be read as safetensors"):
        create_model("mobilenet_v2", weights=str(path), **SMALL)


def test_the_hub_gives_timm_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = timm.create_model("mobilenetv2_035", num_classes=7).eval()
    path = save(theirs, tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args: asked.append(args) or path)
    ours = create_model("mobilenet_v2_x0_35", weights="hf_hub:timm/mobilenetv2_035.any", num_classes=7).eval()
    assert asked == [("timm/mobilenetv2_035.any", "model.safetensors")]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_the_hub_gives_our_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = create_model("mobilenet_v2", **SMALL)
    path = save(saved, tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args: path)
    assert same_tensors(saved, create_model("mobilenet_v2", weights="hf_hub:someone/digits", **SMALL))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route to host"),
        LocalEntryNotFoundError("no route to host"),
        EntryNotFoundError("no route to host"),
        ValueError("no route to host"),
    ],
)
def test_an_unreachable_hub_is_one_clear_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: str) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(WeightsMismatch, match=r"org/nothing.*no route to host.*check the name org/repo") as caught:
        create_model("mobilenet_v2", weights="hf_hub:org/nothing", **SMALL)
    assert "\n" not in str(caught.value)
