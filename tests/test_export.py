"""ONNX export: the file computes what PyTorch computes, for any batch size, and a wrong file is never left."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from pocketzoo import Architecture
from pocketzoo.errors import InvalidRun
from pocketzoo.profiler import export
from pocketzoo.profiler.export import ExportMismatch, export_onnx, run_onnx
from pocketzoo.training.evaluate import reestimate_batchnorm
from pocketzoo.zoo import registry


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    nn.init.uniform_(model[1].running_mean, -1, 1)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    return model


def test_any_batch_size_and_the_metadata(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, path = net(), tmp_path / "net.onnx"
    difference = export_onnx(model, (1, 3, 9, 11), path, {"classes": "a,b"})
    assert capfd.readouterr() == ("", "")
    assert difference < 1e-5
    assert model.training  # as it was
    model.eval()
    for n in (1, 5):
        images = torch.randn(n, 3, 9, 11)
        np.testing.assert_allclose(run_onnx(path, images), model(images).detach(), atol=1e-5)
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    assert {entry.key: entry.value for entry in proto.metadata_props} == {"classes": "a,b"}
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["images", "logits"]


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export.run_onnx
    monkeypatch.setattr(export, "run_onnx", lambda content, images: real(content, images) * 1.01)
    with pytest.raises(ExportMismatch, match="differ by"):
        export_onnx(net(), (1, 3, 9, 9), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_followed(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if float(x.mean()) > 0.5 else x.flatten(1) * 2

    with pytest.raises(ExportMismatch, match="Branches cannot be exported"):
        export_onnx(Branches(), (1, 3, 4, 4), tmp_path / "net.onnx")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidRun, match="cannot write"):
        export_onnx(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (1, 3, 2, 2), tmp_path / "no" / "net.onnx")


registry.load_families()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(registry.FAMILIES))
def test_every_family_exports(name: str, tmp_path: Path) -> None:
    architecture = Architecture.of(name, num_classes=10, in_channels=3, resolution=32)
    torch.manual_seed(0)
    model = architecture.build()
    reestimate_batchnorm(model, torch.randn(16, 3, 32, 32))  # outputs of a size that a wrong file would miss
    export_onnx(model, architecture.input_shape, tmp_path / "model.onnx")
