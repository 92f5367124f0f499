"""The training loop: what it learns, how it stops and goes on, what it refuses; evaluation beside it."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pocketzoo.errors import InvalidRun, InvalidSetting
from pocketzoo.training.checkpoint import NAME
from pocketzoo.training.data import DataSet, load_data
from pocketzoo.training.evaluate import evaluate, reestimate_batchnorm
from pocketzoo.training.loop import DivergedTraining, fit
from pocketzoo.training.recipe import Recipe, recipe_for


class Small(nn.Sequential):
    """Convolution, batch norm, dropout and a shared linear layer: all that a checkpoint has to get right."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU()
        self.flat = nn.Flatten()
        self.hidden = nn.Linear(96, 96)
        self.again = self.hidden
        self.drop = nn.Dropout(0.2)
        self.classifier = nn.Linear(96, 10)


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


@pytest.fixture(scope="module")
def digits() -> DataSet:
    torch.set_num_threads(1)
    return load_data("digits")


RECIPE = Recipe(epochs=3, batch_size=64)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([t.flatten().double() for t in model.state_dict().values()])


def test_it_learns(digits: DataSet) -> None:
    model = small()
    history = fit(model, digits, recipe_for(len(digits.train), epochs=12))
    score = evaluate(model, digits.test, digits.info)
    assert history.val_accuracy > 0.9
    assert score.accuracy > 0.9
    assert score.accuracy == score.correct.double().mean().item()
    assert score.top5 is not None
    assert score.top5 >= score.accuracy
    assert history.images == 12 * (len(digits.train) // 32) * 32  # the incomplete batch is left out
    assert not model.training


def test_same_seed_same_weights_and_the_callers_random_state_stays(digits: DataSet) -> None:
    first, second, third = small(), small(), small()
    fit(first, digits, RECIPE)
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    fit(second, digits, RECIPE)
    assert torch.equal(torch.rand(1), expected)
    fit(third, digits, replace(RECIPE, seed=1))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(third))


@pytest.mark.parametrize("channels_last", [False, True])
def test_resuming_gives_the_weights_of_not_having_stopped(digits: DataSet, tmp_path: Path, channels_last: bool) -> None:
    recipe = replace(RECIPE, channels_last=channels_last)
    whole = small()
    expected = fit(whole, digits, recipe)

    class Stop(Exception):
        pass

    def stop(epoch: int, accuracy: float) -> None:
        if epoch == 2:
            raise Stop

    stopped = small()
    with pytest.raises(Stop):
        fit(stopped, digits, recipe, checkpoint_dir=tmp_path, on_epoch=stop)
    resumed = small(seed=7)
    seen: list[int] = []
    history = fit(resumed, digits, recipe, checkpoint_dir=tmp_path, on_epoch=lambda epoch, _: seen.append(epoch))
    assert seen == [3]
    assert torch.equal(weights(resumed), weights(whole))
    assert [e.val_accuracy for e in history.epochs] == [e.val_accuracy for e in expected.epochs]
    assert history.images == expected.images


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, {tests!r})
from test_training import RECIPE, small
from pocketzoo.training.data import load_data
from pocketzoo.training.loop import fit
torch.set_num_threads(1)
def die(epoch, accuracy):
    if epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
fit(small(), load_data("digits"), RECIPE, checkpoint_dir={out!r}, on_epoch=die)
"""


def test_a_killed_process_goes_on(digits: DataSet, tmp_path: Path) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    seen: list[int] = []
    resumed, whole = small(seed=7), small()
    fit(resumed, digits, RECIPE, checkpoint_dir=tmp_path, on_epoch=lambda epoch, _: seen.append(epoch))
    fit(whole, digits, RECIPE)
    assert seen == [3]
    assert torch.equal(weights(resumed), weights(whole))


def test_a_checkpoint_of_another_training_is_refused(digits: DataSet, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    fit(small(), digits, recipe, checkpoint_dir=tmp_path)
    with pytest.raises(InvalidRun, match="another recipe"):
        fit(small(), digits, replace(recipe, lr=0.01), checkpoint_dir=tmp_path)
    with pytest.raises(InvalidRun, match="another data"):
        fit(small(), load_data("digits", seed=3), recipe, checkpoint_dir=tmp_path)
    with pytest.raises(InvalidRun, match="another model"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits, recipe, checkpoint_dir=tmp_path)
    file = tmp_path / NAME
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InvalidRun, match="not a readable checkpoint"):
        fit(small(), digits, recipe, checkpoint_dir=tmp_path)
    fit(small(), digits, recipe, checkpoint_dir=tmp_path, resume=False)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_layout_asked_for_is_the_one_that_runs(digits: DataSet, channels_last: bool) -> None:
    model, seen = small(), set()

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if module.training:
            seen.add(output.is_contiguous())

    model.conv.register_forward_hook(look)
    fit(model, digits, replace(RECIPE, epochs=1, channels_last=channels_last))
    assert seen == {not channels_last}


def test_nan_loss_is_said(digits: DataSet) -> None:
    with pytest.raises(DivergedTraining, match="loss became nan in epoch 1"):
        fit(small(), digits, RECIPE, extra_loss=lambda model: torch.tensor(math.nan))


def test_a_full_disk_keeps_the_last_checkpoint(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, epochs=2)

    def fill(epoch: int, accuracy: float) -> None:
        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("pocketzoo.training.checkpoint.save_file", full)

    with pytest.raises(InvalidRun, match="No space left on device"):
        fit(small(), digits, recipe, checkpoint_dir=tmp_path, on_epoch=fill)
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
    monkeypatch.undo()
    seen: list[int] = []
    fit(small(), digits, recipe, checkpoint_dir=tmp_path, on_epoch=lambda epoch, _: seen.append(epoch))
    assert seen == [2]


def test_a_teacher_is_followed(digits: DataSet) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return (self.scale * torch.eye(10)[3] * 100).expand(len(x), 10)

    student = small()
    fit(student, digits, replace(RECIPE, distill_weight=1.0), teacher=Constant())
    outputs = student(digits.info.normalise(digits.val.images))
    assert (outputs.argmax(1) == 3).all()


def test_auxiliary_outputs_are_trained(digits: DataSet) -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.head, self.auxiliary = nn.Flatten(), nn.Linear(64, 10), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = self.flat(x)
            return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)

    model = TwoHeads()
    before = model.auxiliary.weight.clone()
    fit(model, digits, replace(RECIPE, epochs=1))
    assert not torch.equal(model.auxiliary.weight, before)


def test_bf16_learns_too(digits: DataSet) -> None:
    model = small()
    assert fit(model, digits, recipe_for(len(digits.train), epochs=6, precision="bf16")).val_accuracy > 0.85
    assert next(model.parameters()).dtype == torch.float32


def test_the_schedule_rises_and_falls_to_nothing() -> None:
    for schedule in ("cosine", "one-cycle"):
        recipe = Recipe(lr=0.4, warmup=0.2, schedule=schedule)
        rates = [recipe.lr_at(step, 100) for step in range(101)]
        assert rates[0] == pytest.approx(0.4 / 20)
        assert max(rates) == pytest.approx(0.4)
        assert rates[60] == pytest.approx(0.2)  # half of the way down both are at half
        assert rates[100] == pytest.approx(0.0)


def test_recipes_travel_as_json_and_refuse_nonsense() -> None:
    recipe = Recipe(epochs=5, precision="bf16")
    assert Recipe.from_json(recipe.to_json()) == recipe
    for settings in ({"epochs": 0}, {"precision": "fp8"}, {"momentum": 1.5}, {"lr": math.nan}, {"epoch": 3}):
        with pytest.raises(InvalidSetting):
            Recipe().with_settings(**settings)
    with pytest.raises(InvalidSetting):
        Recipe.from_json("[")


def test_reestimated_batchnorm_has_the_statistics_of_the_data() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
    images = torch.randn(40, 3, 4, 4) * 2 + 5
    reestimate_batchnorm(model, images, batch_size=10)
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    assert norm.momentum == 0.1
    assert model.training


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs"),
    [(54_000, 128, 12), (4_000, 32, 30), (958, 32, 30), (120, 32, 134), (10, 32, 400)],  # 120: 3 steps, 400 / 3 epochs
)
def test_small_sets_are_trained_for_enough_steps(images: int, batch_size: int, epochs: int) -> None:
    recipe = recipe_for(images)
    assert (recipe.batch_size, recipe.epochs) == (batch_size, epochs)
    assert recipe_for(images, epochs=3).epochs == 3
