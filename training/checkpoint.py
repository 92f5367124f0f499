"""One file that holds a training after its last finished epoch: weights and momenta, with the history beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InvalidRun, WeightsMismatch
from .folder import write_with
from .state import load_state, state_of

NAME = "checkpoint.safetensors"
MOMENTUM = "momentum_buffer"


@dataclass(frozen=True)
class Checkpoint:
    """Where the checkpoint lies, and which training it belongs to."""

    path: Path
    recipe: str
    data_hash: str

    @classmethod
    def of(cls, folder: str | Path, recipe: str, data_hash: str) -> Checkpoint:
        """The checkpoint of one training in a folder, which is made when it is not there."""
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidRun(f"cannot use {folder} for checkpoints: {error.strerror or error}") from None
        return cls(Path(folder) / NAME, recipe, data_hash)

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: list[dict[str, Any]], images: int
    ) -> None:
        """Replace the file whole or not at all; raises InvalidRun when there is no room for it."""
        tensors = {f"model.{name}": tensor for name, tensor in state_of(model).items()}
        for name, parameter in model.named_parameters():
            momentum = optimizer.state.get(parameter, {}).get(MOMENTUM)
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum.detach().cpu().contiguous()
        record = {"recipe": self.recipe, "data_hash": self.data_hash, "epochs": epochs, "images": images}
        metadata = {"pocketzoo_checkpoint": json.dumps(record)}
        write_with(self.path, lambda temporary: save_file(tensors, temporary, metadata))

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[dict[str, Any]], int]:
        """(epochs, images trained on) so far, after filling model and optimiser; nothing when there is no file.

        Raises InvalidRun when the file is damaged or belongs to another training.
        """
        if not self.path.exists():
            return [], 0
        record, tensors = self._read()
        if (record["recipe"], record["data_hash"]) != (self.recipe, self.data_hash):
            what = "recipe" if record["recipe"] != self.recipe else "data"
            raise InvalidRun(
                f"{self.path} belongs to a training with another {what}; give another folder, or remove it"
            )
        try:
            load_state(model, _part(tensors, "model."), str(self.path))
        except WeightsMismatch as error:
            raise InvalidRun(f"{self.path} belongs to another model: {error}") from None
        parameters = dict(model.named_parameters())
        for name, momentum in _part(tensors, "momentum.").items():
            parameter = parameters[name]
            optimizer.state[parameter][MOMENTUM] = torch.empty_like(parameter).copy_(momentum)
        return record["epochs"], record["images"]

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            with safe_open(self.path, "pt") as file:
                record = json.loads(file.metadata()["pocketzoo_checkpoint"])
                return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InvalidRun(f"{self.path} is not a readable checkpoint ({error}); remove it to begin anew") from None


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
