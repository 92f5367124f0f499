"""The one training loop: trials, final models, fine-tuning and distillation all run through `fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import PocketzooError
from .augment import augment
from .checkpoint import Checkpoint
from .data import DataSet, Split
from .evaluate import evaluate, evaluating
from .progress import Bar
from .recipe import Recipe

AUXILIARY_WEIGHT = 0.3  # of GoogLeNet's auxiliary classifiers (arXiv:1409.4842, section 5)
CHECK_EVERY = 20  # steps between looks at the loss, each of which waits for the device

OnEpoch = Callable[[int, float], None]
ExtraLoss = Callable[[nn.Module], Tensor]
AfterStep = Callable[[nn.Module, torch.optim.Optimizer, int, int], None]  # model, optimizer, steps done, of all


class DivergedTraining(PocketzooError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Epoch:
    """One epoch as it went: mean training loss, validation accuracy, seconds."""

    loss: float
    val_accuracy: float
    seconds: float


@dataclass
class History:
    """All epochs, those before a resumption included."""

    epochs: list[Epoch] = field(default_factory=list)
    images: int = 0  # trained on, repeats counted

    @property
    def val_accuracy(self) -> float:
        """After the last epoch."""
        return self.epochs[-1].val_accuracy

    @property
    def seconds(self) -> float:
        """Of training and validation, all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)


def fit(
    model: nn.Module,
    data: DataSet,
    recipe: Recipe,
    *,
    on_epoch: OnEpoch | None = None,
    teacher: nn.Module | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = True,
    accelerator: Accelerator | None = None,
    extra_loss: ExtraLoss | None = None,
    after_step: AfterStep | None = None,
    progress: bool = False,
) -> History:
    """Train `model` in place on `data.train`, on the accelerator's device; it ends in eval mode after the last epoch.

    `on_epoch(epoch, val_accuracy)`, epochs from 1, may raise to stop. With `checkpoint_dir` every epoch is kept in one
    file there, and a run that was stopped goes on to the same weights as one that was not; `resume=False` begins anew.
    `extra_loss(model)` is added to each step's loss; `after_step` may change the weights after each step. The last
    incomplete batch of an epoch is left out. Several processes, started by `accelerate launch`, share each batch.
    Everything random is drawn from the recipe's seed and the epoch's number; the caller's random state is left as it
    was. `progress` shows a bar on stderr.
    Raises DivergedTraining, and InvalidRun for a checkpoint of another training.
    """
    accelerator = accelerator or Accelerator()
    device = accelerator.device
    model.to(device, memory_format=_layout(recipe))  # type: ignore[call-overload]  # torch's overloads leave it out
    optimizer = _optimizer(model, recipe)
    checkpoint = Checkpoint.of(checkpoint_dir, recipe.to_json(), data.hash) if checkpoint_dir is not None else None
    history = History()
    if checkpoint is not None and resume:
        epochs, history.images = checkpoint.restore(model, optimizer)
        history.epochs = [Epoch(**epoch) for epoch in epochs]
    prepared, stepper = accelerator.prepare(model, optimizer)
    if teacher is not None:
        teacher.to(device)
    step = _Step(prepared, model, stepper, accelerator, recipe, teacher, extra_loss, after_step)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), Bar(progress and accelerator.is_main_process) as bar:
        for epoch in range(len(history.epochs), recipe.epochs):
            started = time.perf_counter()
            loss, images = _train_epoch(step, data, recipe, epoch, bar)
            _share_buffers(model, accelerator)
            accuracy = evaluate(model, data.val, data.info).accuracy
            history.epochs.append(Epoch(loss, accuracy, time.perf_counter() - started))
            history.images += images
            bar.note(f"val {accuracy:.2%}")
            if checkpoint is not None and accelerator.is_main_process:
                checkpoint.save(model, optimizer, [vars(e) for e in history.epochs], history.images)
            accelerator.wait_for_everyone()  # nobody goes on from an epoch that is not kept yet
            if on_epoch is not None:
                on_epoch(epoch + 1, accuracy)
    model.eval()
    return history


@dataclass
class _Step:
    """One optimiser step, with all that it needs."""

    prepared: nn.Module  # as several processes share it
    model: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    recipe: Recipe
    teacher: nn.Module | None
    extra_loss: ExtraLoss | None
    after: AfterStep | None

    def __call__(self, images: Tensor, labels: Tensor, number: int, steps: int) -> Tensor:
        """Step `number`, from 0, of `steps`; the loss."""
        lr = self.recipe.lr_at(number, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # a copy: augmented images come as channels last, and with one channel `contiguous` sees nothing to do
        images = images.clone(memory_format=_layout(self.recipe))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            outputs = self.prepared(images)
        loss = self._loss(outputs, images, labels)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        if self.after is not None:
            with torch.no_grad():
                self.after(self.model, self.optimizer, number + 1, steps)
        return loss.detach()

    def _loss(self, outputs: Tensor | tuple[Tensor, ...], images: Tensor, labels: Tensor) -> Tensor:
        logits, *auxiliary = [outputs] if isinstance(outputs, Tensor) else outputs
        loss = self._cross_entropy(logits, labels)
        for extra in auxiliary:
            loss = loss + AUXILIARY_WEIGHT * self._cross_entropy(extra, labels)
        if self.teacher is not None:
            share = self.recipe.distill_weight
            loss = (1 - share) * loss + share * self._distance(logits, self.teacher, images)
        if self.extra_loss is not None:
            loss = loss + self.extra_loss(self.model)
        return loss

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)

    def _distance(self, logits: Tensor, teacher: nn.Module, images: Tensor) -> Tensor:
        """T^2 KL(teacher || student) of the softened outputs (arXiv:1503.02531, section 2)."""
        t = self.recipe.temperature
        with evaluating(teacher), torch.no_grad():
            target = F.log_softmax(teacher(images).float() / t, 1)
        student = F.log_softmax(logits.float() / t, 1)
        return t * t * F.kl_div(student, target, reduction="batchmean", log_target=True)


def _train_epoch(step: _Step, data: DataSet, recipe: Recipe, epoch: int, bar: Bar) -> tuple[float, int]:
    """(mean loss, images trained on) of one pass over train."""
    torch.manual_seed(recipe.seed * 100_003 + epoch)  # dropout and the like: a resumed epoch draws what it would have
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    accelerator, device = step.accelerator, step.accelerator.device
    batches = _batches(data.train, recipe.batch_size, accelerator.num_processes, generator)
    step.prepared.train()
    total = torch.zeros((), device=device)
    for i, batch in enumerate(batches):
        images = data.train.images[batch]
        if recipe.augment:
            images = augment(images, generator)
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        images, labels = images[mine].to(device), data.train.labels[batch][mine].to(device)
        done, steps = epoch * len(batches) + i, recipe.epochs * len(batches)
        total += step(data.info.normalise(images), labels, done, steps)
        bar.advance(steps, done + 1)
        if (i + 1) % CHECK_EVERY == 0 or i + 1 == len(batches):
            mean = accelerator.reduce(total, reduction="mean")  # every process stops at the same loss
            _check(mean, epoch, recipe)
    return mean.item() / len(batches), sum(len(batch) for batch in batches)


def _batches(train: Split, size: int, processes: int, generator: torch.Generator) -> list[Tensor]:
    """Equal batches of shuffled indices, a multiple of the number of processes long."""
    order = torch.randperm(len(train), generator=generator)
    size = min(size, len(train)) // processes * processes
    return list(torch.split(order[: len(order) // size * size], size))


def _share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the main one's batch-norm statistics, so that all judge, and keep, the same network."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


def _layout(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.channels_last else torch.contiguous_format


def _check(total: Tensor, epoch: int, recipe: Recipe) -> None:
    if not math.isfinite(total.item()):
        raise DivergedTraining(
            f"the loss became {total.item()} in epoch {epoch + 1}; a smaller learning rate than {recipe.lr:g} may help"
        )


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD; vectors (biases, normalisation) are not decayed."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=True,
    )
