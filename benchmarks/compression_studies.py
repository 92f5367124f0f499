"""What compression_evidence.py tries: trials are recipes for a network, studies are tables that choose among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pocketzoo.training.data import DataSet
from pocketzoo.training.recipe import Recipe

PARENTS: Mapping[str, Mapping[str, Any]] = {
    "lenet5": {"epochs": 12, "lr": 0.05},
    "lenet_300_100": {"epochs": 40, "lr": 0.05},
}
TRAINING: Mapping[str, Any] = {"batch_size": 128, "label_smoothing": 0.0, "precision": "bf16"}
QUICK: Mapping[str, Any] = {"epochs": 4, "batch_size": 32, "precision": "fp32"}


@dataclass(frozen=True)
class Trial:
    """A recipe for a trained network, for the file of another trial, or for a network that was shrunk first."""

    name: str
    model: str
    recipe: str
    after: str = ""  # another trial of the same network
    shrunk: str = ""  # first: method and budget of the search's shrinking, or a width for each group
    teacher: str = ""  # the network whose parent of the same seed is distilled from
    training: Mapping[str, Any] = field(default_factory=dict)  # beside TRAINING, of the recipe's trainings


@dataclass(frozen=True)
class Study:
    """A row of the first table: of the trials of a network whose names begin so the smallest within the error."""

    name: str
    model: str
    paper: str  # what is to be reached or beaten
    among: str  # how the names of its trials begin
    most_error: float  # percent of the held-out images
    smallest: str = "bytes"  # or nonzeros, or macs


@dataclass(frozen=True)
class Curve:
    """A table of all trials of a network whose names begin so, over all seeds."""

    name: str
    model: str
    among: str


def parent_training(model: str, data: DataSet, seed: int) -> Recipe:
    """How a dense network is trained."""
    quick = QUICK if data.name == "digits" else {}
    return Recipe(**{**TRAINING, **PARENTS[model], **quick, "seed": seed})


def trial_training(trial: Trial, data: DataSet, seed: int) -> Recipe:
    """What a trial's passes train with, apart from the epochs and rates that they set themselves."""
    quick = QUICK if data.name == "digits" else {}
    return Recipe(**{**TRAINING, **quick, **trial.training, "seed": seed})


SHRUNK: Mapping[str, Any] = {"epochs": 20}
MLP, CNN = "lenet_300_100", "lenet5"


def pruned(model: str, rounds: int, epochs: int, *percents: float) -> tuple[Trial, ...]:
    """Magnitude pruning in rounds."""
    return tuple(
        Trial(f"pruned {p:g}", model, f"prune({p / 100:g}, schedule=iterative, rounds={rounds}, epochs={epochs})")
        for p in percents
    )


def operated(model: str, name: str, c_rate: str, epochs: int) -> Trial:
    """Dynamic network surgery, biases included as in the authors' code."""
    return Trial(f"surgery {name}", model, f"surgery({c_rate}, epochs={epochs}, biases=True)")


def shared(model: str, percent: float, bits: int, conv_bits: int | None = None, epochs: int = 2) -> Trial:
    """Deep Compression: pruned, shared, Huffman-coded."""
    both = f"{bits}, conv_bits={conv_bits}" if conv_bits else str(bits)
    name = f"deep compression {percent:g}, {f'{conv_bits} and ' if conv_bits else ''}{bits} bits"
    return Trial(name, model, f"kmeans({both}, epochs={epochs}, lr=0.01) | half | huffman", after=f"pruned {percent:g}")


def against_magnitude(*percents: float) -> tuple[Trial, ...]:
    """Optimal brain damage and magnitude, without and with retraining."""
    return tuple(
        Trial(
            f"second order: {name} {p:g}{' retrained' if epochs else ''}", MLP, f"{name}({p / 100:g}, epochs={epochs})"
        )
        for epochs in (0, 2)
        for p in percents
        for name in ("prune", "obd")
    )


def narrow(percent: int, rounds: int, epochs: int, bits: tuple[int, ...], shared: int = 4) -> Iterator[Trial]:
    """LeNet-5 with half the filters and an eighth of the units, pruned and shared."""
    name = f"smallest 10-25-64, {percent}"
    recipe = f"prune({percent / 100:g}, schedule=iterative, rounds={rounds}, epochs={epochs})"
    yield Trial(name, CNN, recipe, shrunk="10-25-64", training={"epochs": 5})
    for own in bits:
        yield Trial(f"{name}, {own} bits", CNN, f"kmeans({own}, epochs={shared}, lr=0.02) | half", after=name)


TRIALS: tuple[Trial, ...] = (
    *pruned(MLP, 4, 3, 95, 97),
    *pruned(CNN, 3, 1, 92),
    shared(MLP, 95, 4),
    shared(MLP, 97, 4),
    shared(CNN, 92, 5, 8, epochs=1),
    operated(MLP, "4-3-2", "{'hidden1': 4.0, 'hidden2': 3.0, 'classifier': 1.5}", 16),
    operated(CNN, "1-2.5-5-2", "{'conv1': 1.0, 'conv2': 2.5, 'hidden': 5.0, 'classifier': 2.0}", 2),
    operated(CNN, "1.5-3.5-7-3", "{'conv1': 1.5, 'conv2': 3.5, 'hidden': 7.0, 'classifier': 3.0}", 3),
    Trial("smallest pruned 98", MLP, "prune(0.98, schedule=iterative, rounds=8, epochs=3)"),
    Trial("smallest 80-40", MLP, "prune(0.94, schedule=iterative, rounds=8, epochs=3)", shrunk="80-40", teacher=MLP),
    Trial("smallest 80-40, 3 bits", MLP, "kmeans(3, epochs=6) | half", after="smallest 80-40", teacher=MLP),
    Trial("smallest pruned 95, 3 bits", MLP, "kmeans(3, epochs=3, lr=0.02) | half", after="pruned 95"),
    Trial("smallest surgery, 4 bits", CNN, "kmeans(4, epochs=1, lr=0.02) | half", after="surgery 1-2.5-5-2"),
    Trial("smallest 5-12-24", CNN, "half", shrunk="5-12-24"),
    *narrow(92, rounds=5, epochs=2, bits=(4, 3), shared=3),
    *narrow(86, rounds=4, epochs=3, bits=(4,)),
    *against_magnitude(60, 80, 90, 95),
    *(
        Trial(f"svd {p}, {e} epochs", MLP, f"svd(size={p / 100:g}, epochs={e})")
        for e in (0, 3)
        for p in (50, 30, 20, 10, 5)
    ),
    *(
        Trial(f"product {bits} bits, {length}", MLP, f"product({bits}, length={length}) | half")
        for bits, length in ((6, 2), (4, 2), (4, 4), (3, 4), (2, 4))
    ),
)
STUDIES: tuple[Study, ...] = (
    Study("Pruning, LeNet-300-100", MLP, "12x at 1.59 %", "pruned", 1.59, "nonzeros"),
    Study("Pruning, LeNet-5", CNN, "12x at 0.77 %", "pruned", 0.77, "nonzeros"),
    Study("Dynamic network surgery, LeNet-300-100", MLP, "56x at 1.99 %", "surgery", 1.99, "nonzeros"),
    Study("Dynamic network surgery, LeNet-5", CNN, "108x (4.0K of 431K) at 0.91 %", "surgery", 0.91, "nonzeros"),
    Study("Deep Compression, LeNet-300-100", MLP, "40x (27 KB) at 1.58 %", "deep compression", 1.58),
    Study("Deep Compression, LeNet-5", CNN, "39x (44 KB) at 0.74 %", "deep compression", 0.74),
    Study("Smallest file, LeNet-300-100", MLP, "40x (27 KB) at 1.64 %", "", 1.64),
    Study("Smallest file, LeNet-5", CNN, "39x (44 KB) at 0.80 %", "", 0.80),
)
CURVES: tuple[Curve, ...] = (
    Curve("OBD against magnitude, LeNet-300-100", MLP, "second order"),
    Curve("Singular values, LeNet-300-100", MLP, "svd"),
    Curve("Product quantisation, LeNet-300-100", MLP, "product"),
)
DIGITS: tuple[tuple[Trial, ...], tuple[Study, ...], tuple[Curve, ...]] = (
    (
        Trial("pruned", MLP, "prune(0.8, epochs=1)"),
        Trial("pruned, 4 bits", MLP, "kmeans(4, epochs=1) | half | huffman", after="pruned"),
        Trial("narrow", MLP, "prune(0.5, epochs=1)", shrunk="40-20", teacher=MLP, training={"epochs": 2}),
        Trial("svd", MLP, "svd(size=0.2)"),
    ),
    (Study("Smallest file, LeNet-300-100", MLP, "nothing", "", 30.0),),
    (Curve("Singular values, LeNet-300-100", MLP, "svd"),),
)
