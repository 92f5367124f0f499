"""A network of the user's own, in a file beside them: profiled, searched, loaded and used like any of the zoo."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import pocketzoo as pz
from pocketzoo.cli import main

MODULE = "mynetwork"
NET = f"{MODULE}:tiny"
SOURCE = '''
"""What a user would write: a residual block and a depthwise one, nothing of pocketzoo."""
from torch import nn


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return (x + self.norm(self.conv(x))).relu()


def tiny(num_classes, in_channels=3, stem=8):
    return nn.Sequential(
        nn.Conv2d(in_channels, stem, 3, 2, 1), nn.ReLU(), Residual(stem),
        nn.Conv2d(stem, stem, 3, padding=1, groups=stem), nn.Conv2d(stem, 24, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes))


def five():
    return 5
'''
# stem 8*3*3*1, residual 8*8*3*3, depthwise 8*3*3, 1x1 8*24: each on 4x4 pixels; classifier 24*10
MACS = 16 * (8 * 9 + 8 * 8 * 9 + 8 * 9 + 8 * 24) + 240
PARAMS = (8 * 9 + 8) + (8 * 8 * 9 + 16) + (8 * 9 + 8) + (8 * 24 + 24) + (24 * 10 + 10)
LIMIT = 9_000


@pytest.fixture(scope="module", autouse=True)
def where_the_user_stands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("project")
    (folder / f"{MODULE}.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        yield folder
    sys.modules.pop(MODULE, None)


def pocketzoo(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), prog_name="pocketzoo")
    assert (result.exit_code, result.stderr) == (0, ""), result.output + repr(result.exception)
    return result.stdout


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), prog_name="pocketzoo")
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


@pytest.fixture(scope="module")
def searched(where_the_user_stands: Path) -> dict[str, object]:
    """Two trials on the digits, as a user would type it; what the command says to machines."""
    text = pocketzoo(
        "search", NET, "--data", "digits", "--macs", str(LIMIT), "--trials", "2", "--epochs", "16", "--out", "runs/own",
        "--json",
    )  # fmt: skip
    told: dict[str, object] = json.loads(text)
    return told


def test_profile() -> None:
    form = ["--num-classes", "10", "--in-channels", "1", "--resolution", "8"]
    costs = json.loads(pocketzoo("profile", NET, *form, "--json"))["costs"]
    assert (costs["macs"], costs["params"]) == (MACS, PARAMS)
    assert "agrees to the unit" in pocketzoo("profile", NET, *form, "--check")


def test_search_leaves_a_network_within_the_budget(searched: dict[str, object]) -> None:
    assert searched["out"] == str(Path("runs/own"))
    best = pz.Result.from_json(Path("runs/own/result.json").read_text())
    assert json.loads(best.to_json()) == searched["best"]
    assert 0.97 * LIMIT <= best.costs["macs"] <= LIMIT < MACS
    assert best.architecture is not None
    assert best.architecture.family == NET
    assert best.accuracy["test"] > 0.2  # a guess would be right one time in ten
    assert Path("runs/own/uniform/best.safetensors").exists()


def test_its_code_runs_only_where_it_is_trusted(searched: dict[str, object]) -> None:
    with pytest.raises(pz.InvalidRun, match="if you trust it"):
        pz.load("runs/own")
    assert f"trust=['{NET}']" in refusal("evaluate", "runs/own", "--data", "digits")
    said = json.loads(pocketzoo("evaluate", "runs/own", "--data", "digits", "--trust", NET, "--json"))
    best = pz.Result.from_json(Path("runs/own/result.json").read_text())
    assert said["accuracy"] == best.accuracy["test"]


def test_load_and_predict(searched: dict[str, object]) -> None:
    model = pz.load("runs/own", trust=[NET])
    assert not model.training
    digits = pz.load_data("digits")
    with torch.inference_mode():
        logits = model(digits.info.normalise(digits.test.images[:6]))
    for i, pixels in enumerate(digits.test.images[:6]):
        Image.fromarray(pixels[0].numpy()).save(f"{i}.png")
    images = [f"{i}.png" for i in range(6)]
    by_torch = json.loads(pocketzoo("predict", "runs/own", *images, "--trust", NET, "--json"))
    by_onnx = json.loads(pocketzoo("predict", "runs/own", *images, "--runtime", "onnx", "--json"))  # no code, no trust
    expected = logits.softmax(1).max(1)
    assert [p["label"] for p in by_torch] == [p["label"] for p in by_onnx] == [str(int(i)) for i in expected.indices]
    for runtime in (by_torch, by_onnx):
        assert [p["probability"] for p in runtime] == pytest.approx(expected.values.tolist(), abs=1e-5)


def test_the_same_command_reads_what_is_there(searched: dict[str, object]) -> None:
    before = Path("runs/own/best.safetensors").stat().st_mtime_ns
    again = ["search", NET, "--data", "digits", "--macs", str(LIMIT), "--trials", "2", "--epochs", "16"]
    assert json.loads(pocketzoo(*again, "--out", "runs/own", "--json")) == searched
    assert Path("runs/own/best.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "says"),
    [(f"{MODULE}:nothing", "cannot be imported"), ("nomodule:tiny", "cannot be imported"), (f"{MODULE}:five", "int")],
)
def test_what_is_no_network(name: str, says: str) -> None:
    assert says in refusal("search", name, "--data", "digits", "--macs", "9k", "--out", "runs/none")
    assert says in refusal("profile", name)
    assert not Path("runs/none").exists()
