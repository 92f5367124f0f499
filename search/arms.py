"""One network trained to the end and tested once, kept in a folder of its own that the same call takes up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import InvalidRun
from ..training.checkpoint import NAME as CHECKPOINT
from ..training.data import DataSet
from ..training.folder import write_with
from ..training.loop import fit
from ..training.recipe import Recipe
from ..training.result import Result
from ..training.run import tested
from ..training.saved import RESULT_NAME, load, save_model
from ..zoo.architecture import Architecture

CORRECT = "correct.safetensors"  # which test images were right, for comparisons image by image
EXAMPLES = 32  # validation images on which the ONNX file is compared with PyTorch


@dataclass(frozen=True)
class Trained:
    """A trained network, its Result, and which test images it gets right (bool [N])."""

    model: nn.Module
    result: Result
    correct: Tensor


@dataclass(frozen=True)
class Training:
    """How one network is trained: its architecture (None for a bare module), the recipe, and where it is kept.

    `checkpoints` is where it goes on after a kill; `folder` holds what is left in the end.
    """

    architecture: Architecture | None
    data: DataSet
    source: str  # what the data was called
    recipe: Recipe
    folder: Path | None = None
    checkpoints: Path | None = None
    progress: bool = False

    def carry_out(self, begin: Callable[[], nn.Module], record: Mapping[str, Any]) -> Trained:
        """Train what `begin` makes, test it once and keep it, with `record` in its provenance; a finished one is read.

        Raises DivergedTraining, and InvalidRun for a folder that cannot be used.
        """
        if (finished := self.read()) is not None:
            return finished
        network = begin()
        history = fit(network, self.data, self.recipe, checkpoint_dir=self.checkpoints, progress=self.progress)
        result, score = tested(network, self.architecture, self.data, self.recipe, history, self.source)
        trained = Trained(network, replace(result, provenance={**result.provenance, **record}), score.correct)
        if self.folder is not None and self.architecture is not None:
            self._save(self.folder, self.architecture, trained)
        return trained

    @property
    def is_finished(self) -> bool:
        """Whether an earlier call has left the trained network."""
        return self.folder is not None and (self.folder / RESULT_NAME).exists()

    def read(self) -> Trained | None:
        """What an earlier call has finished."""
        if not self.is_finished:
            return None
        assert self.folder is not None
        assert self.architecture is not None  # a bare module has no folder
        result = Result.from_json((self.folder / RESULT_NAME).read_text(encoding="utf-8"))
        if result.architecture != self.architecture or result.recipe != self.recipe:
            raise InvalidRun(f"{self.folder} holds another network or another training; give another folder")
        model = load(self.folder, trust=(self.architecture.family,))
        return Trained(model, result, load_file(self.folder / CORRECT)["correct"].bool())

    def _save(self, folder: Path, architecture: Architecture, trained: Trained) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        correct = {"correct": trained.correct.to(torch.uint8)}
        write_with(folder / CORRECT, lambda path: save_file(correct, path))
        examples = self.data.info.normalise(self.data.val.images[:EXAMPLES])
        save_model(
            folder, trained.model, architecture, self.data.info, trained.result, example=examples, overwrite=True
        )
        if self.checkpoints is not None:
            (self.checkpoints / CHECKPOINT).unlink(missing_ok=True)
            if self.checkpoints != folder:
                self.checkpoints.rmdir()
