"""One training shared by two processes that accelerate's launcher starts: it learns what one process learns."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pocketzoo.training.checkpoint import NAME
from pocketzoo.training.saved import RESULT_NAME, WEIGHTS_NAME

TRAININGS = """
import json, sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from pocketzoo.training.data import load_data
from pocketzoo.training.loop import fit
from pocketzoo.training.recipe import Recipe

torch.set_num_threads(1)
out = Path(sys.argv[1])
accelerator = Accelerator()
data = load_data("digits")


def net(norm):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def keep(name, model, history):
    process = accelerator.process_index
    record = {"processes": accelerator.num_processes, "losses": [e.loss for e in history.epochs],
              "accuracies": [e.val_accuracy for e in history.epochs], "images": history.images}
    (out / f"{name}.{process}.json").write_text(json.dumps(record))
    save_file(model.state_dict(), out / f"{name}.{process}.safetensors")


def stop(epoch, accuracy):
    if epoch == 2:
        raise InterruptedError


for norm in (False, True):
    model, recipe = net(norm), Recipe(epochs=8 if norm else 4, batch_size=64)
    keep("norm" if norm else "plain", model, fit(model, data, recipe, accelerator=accelerator))
model, recipe = net(False), Recipe(epochs=4, batch_size=64)
try:
    fit(model, data, recipe, accelerator=accelerator, checkpoint_dir=out / "checkpoints", on_epoch=stop)
except InterruptedError:
    model = net(False)
keep("resumed", model, fit(model, data, recipe, accelerator=accelerator, checkpoint_dir=out / "checkpoints"))
"""


def launch(folder: Path, *program: str) -> subprocess.Popen[str]:
    """Two processes on the CPU; `--cpu --num_processes 2` without MPI would be one, and say nothing."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--multi_gpu", "--num_processes=2", f"--main_process_port={port}"]
    options += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *options, *program],
        cwd=folder,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What it printed; a launcher that hangs is ended, and ends its processes."""
    try:
        out, err = process.communicate(timeout=600)
    finally:
        process.terminate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of what one process and two processes have trained."""
    folder = tmp_path_factory.mktemp("accelerate")
    (folder / "trainings.py").write_text(TRAININGS)
    for name in ("one", "two"):
        (folder / name).mkdir()
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "trainings.py", "one"], cwd=folder, env=alone, check=True, timeout=600)
    finished(launch(folder, "trainings.py", "two"))
    return folder / "one", folder / "two"


def record(folder: Path, name: str, process: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.{process}.json").read_text())
    return found


def weights(folder: Path, name: str, process: int = 0) -> torch.Tensor:
    tensors = load_file(folder / f"{name}.{process}.safetensors")
    return torch.cat([tensors[key].flatten().double() for key in sorted(tensors)])


def test_without_batch_norm_two_processes_take_the_steps_of_one(trainings: tuple[Path, Path]) -> None:
    """The mean of two half batches' gradients is the whole batch's."""
    one, two = trainings
    assert (record(one, "plain")["processes"], record(two, "plain")["processes"]) == (1, 2)
    assert record(two, "plain")["losses"] == pytest.approx(record(one, "plain")["losses"], rel=1e-4)
    assert record(two, "plain")["images"] == record(one, "plain")["images"]
    torch.testing.assert_close(weights(two, "plain"), weights(one, "plain"), rtol=0, atol=1e-4)


def test_with_batch_norm_they_learn_as_much(trainings: tuple[Path, Path]) -> None:
    """Each process normalises by its own half of a batch, so the two differ as two seeds would."""
    one, two = trainings
    assert record(one, "norm")["accuracies"][-1] > 0.85
    assert record(two, "norm")["accuracies"][-1] == pytest.approx(record(one, "norm")["accuracies"][-1], abs=0.04)
    assert record(two, "norm")["losses"] == pytest.approx(record(one, "norm")["losses"], rel=0.1)


@pytest.mark.parametrize("name", ["plain", "norm", "resumed"])
def test_both_processes_end_with_one_network_and_one_history(trainings: tuple[Path, Path], name: str) -> None:
    _, two = trainings
    assert record(two, name, 0) == record(two, name, 1)
    assert torch.equal(weights(two, name, 0), weights(two, name, 1))


def test_a_training_that_was_stopped_goes_on_in_both(trainings: tuple[Path, Path]) -> None:
    _, two = trainings
    assert record(two, "resumed") == record(two, "plain")
    assert torch.equal(weights(two, "resumed"), weights(two, "plain"))
    assert [path.name for path in (two / "checkpoints").iterdir()] == [NAME]


@pytest.mark.slow
def test_the_command_line_killed_and_gone_on_with(tmp_path: Path) -> None:
    """LeNet has no batch norm: what two processes leave is what one leaves, and one of them writes it."""
    command = ["pocketzoo", "train", "lenet5", "--data", "digits", "--epochs", "12"]
    subprocess.run(
        [sys.executable, "-m", *command, "--out", "one"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=600,
    )  # fmt: skip
    killed = launch(tmp_path, "-m", *command, "--out", "two")
    deadline = time.monotonic() + 120
    while not (tmp_path / "two" / NAME).exists():
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.terminate()  # the launcher ends both where they are
    killed.communicate(timeout=60)
    assert not (tmp_path / "two" / WEIGHTS_NAME).exists()

    printed = finished(launch(tmp_path, "-m", *command, "--out", "two"))
    assert printed.count("of the test images") == 1
    one, two = tmp_path / "one", tmp_path / "two"
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    accuracies = [json.loads((run / RESULT_NAME).read_text())["accuracy"]["test"] for run in (one, two)]
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.01)
    # The order of two sums differs, and 540 steps make more of that.
    ours, theirs = (torch.cat([t.flatten() for t in load_file(run / WEIGHTS_NAME).values()]) for run in (two, one))
    assert (ours - theirs).norm() < 0.02 * theirs.norm()
