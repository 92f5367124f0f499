"""What compression_evidence.py tries: trials are recipes for a network, studies are tables that choose among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    shrunk: str = ""  # first: method, settings and budget of the search's shrinking, or a width for each group
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
LAYERS = {MLP: ("hidden1", "hidden2", "classifier"), CNN: ("conv1", "conv2", "hidden", "classifier")}


def pruned(model: str, rounds: int, epochs: int, *percents: float) -> tuple[Trial, ...]:
    """Magnitude pruning in rounds."""
    return tuple(
        Trial(f"pruned {p:g}", model, f"prune({p / 100:g}, schedule=iterative, rounds={rounds}, epochs={epochs})")
        for p in percents
    )


def operated(
    model: str, name: str, rates: Sequence[float], epochs: int, settings: str = ", biases=True", widths: str = ""
) -> Trial:
    """Dynamic network surgery with a c_rate for each layer, biases included as in the authors' code.

    With `widths`: of a narrowed network, with its dense parent as teacher.
    """
    c_rate = ", ".join(f"'{layer}': {rate}" for layer, rate in zip(LAYERS[model], rates, strict=True))
    recipe = f"surgery({{{c_rate}}}, epochs={epochs}{settings})"
    return Trial(f"surgery {name}", model, recipe, shrunk=widths, teacher=model if widths else "")


def structured(percent: int, strength: float = 0.0) -> Trial:
    """Structured sparsity learning down to a part of the MACs, and as long a training of what is left."""
    name, method = (
        (f"ssl {percent}, {strength:g}", f"ssl strength={strength:g}") if strength else (f"ssl {percent}", "ssl")
    )
    return Trial(name, CNN, "half", shrunk=f"{method} macs={percent}%", training={"epochs": 6})


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


def narrow(
    percent: int, rounds: int, epochs: int, bits: tuple[int, ...], shared: int = 4, teacher: str = ""
) -> Iterator[Trial]:
    """LeNet-5 with half the filters and an eighth of the units, pruned and shared; more epochs where it is taught."""
    name = f"smallest 10-25-64{' taught' if teacher else ''}, {percent}"
    recipe = f"prune({percent / 100:g}, schedule=iterative, rounds={rounds}, epochs={epochs})"
    yield Trial(name, CNN, recipe, shrunk="10-25-64", teacher=teacher, training={} if teacher else {"epochs": 5})
    for own in bits:
        yield Trial(
            f"{name}, {own} bits", CNN, f"kmeans({own}, epochs={shared}, lr=0.02) | half", after=name, teacher=teacher
        )


def unshifted(after: str, teacher: str = "") -> Trial:
    """Sharing that is trained on the images as they are."""
    return Trial(
        f"{after}, 4 bits unshifted", CNN, "kmeans(4, epochs=6, lr=0.02) | half",
        after=after, teacher=teacher, training={"augment": False},
    )  # fmt: skip


TRIALS: tuple[Trial, ...] = (
    *pruned(MLP, 4, 3, 95, 97),
    *pruned(CNN, 3, 1, 92),
    shared(MLP, 95, 4),
    shared(MLP, 97, 4),
    shared(CNN, 92, 5, 8, epochs=1),
    operated(MLP, "4-3-1.5", (4.0, 3.0, 1.5), 16),
    operated(MLP, "7-5-2.5", (7.0, 5.0, 2.5), 30),
    operated(MLP, "9-3.5-0.5", (9.0, 3.5, 0.5), 30),
    Trial("surgery 9-3.5-0.5, held", MLP, "distil(15)", after="surgery 9-3.5-0.5", teacher=MLP),
    operated(MLP, "80-40, 4-0.5", (4.0, 0.5, -0.5), 24, "", "80-40"),
    Trial(
        "surgery 80-40, 4-0.5, pruned",
        MLP,
        "prune(0.932, schedule=iterative, rounds=6, epochs=3)",
        after="surgery 80-40, 4-0.5",
        teacher=MLP,
    ),
    operated(MLP, "80-40, 7-1.2", (7.0, 1.2, -0.5), 24, "", "80-40"),
    operated(CNN, "1-2.5-5-2", (1.0, 2.5, 5.0, 2.0), 2),
    operated(CNN, "1.5-3.5-7-3", (1.5, 3.5, 7.0, 3.0), 3),
    operated(CNN, "1.5-4.5-9-4", (1.5, 4.5, 9.0, 4.0), 8, ", turns=False, biases=True"),
    operated(CNN, "10-25-64, 1.5-2.3", (-0.5, 1.5, 2.3, -0.5), 5, "", "10-25-64"),
    operated(CNN, "10-25-64, 3.2-5", (-0.5, 3.2, 5.0, -0.2), 5, "", "10-25-64"),
    operated(CNN, "10-25-64, 3.4-7.2", (-0.5, 3.4, 7.2, -0.2), 5, "", "10-25-64"),
    structured(15),
    structured(9),
    structured(15, 0.002),
    structured(10, 0.002),
    Trial("smallest pruned 98", MLP, "prune(0.98, schedule=iterative, rounds=8, epochs=3)"),
    Trial("smallest 80-40", MLP, "prune(0.94, schedule=iterative, rounds=8, epochs=3)", shrunk="80-40", teacher=MLP),
    Trial("smallest 80-40, 3 bits", MLP, "kmeans(3, epochs=6) | half", after="smallest 80-40", teacher=MLP),
    Trial("smallest pruned 95, 3 bits", MLP, "kmeans(3, epochs=3, lr=0.02) | half", after="pruned 95"),
    Trial("smallest surgery, 4 bits", CNN, "kmeans(4, epochs=1, lr=0.02) | half", after="surgery 1-2.5-5-2"),
    Trial("smallest 5-12-24", CNN, "half", shrunk="5-12-24"),
    *narrow(92, rounds=5, epochs=2, bits=(4, 3), shared=3),
    *narrow(86, rounds=4, epochs=3, bits=(4,)),
    *narrow(90, rounds=4, epochs=4, bits=(4,), teacher=CNN),
    *narrow(87, rounds=4, epochs=4, bits=(), teacher=CNN),
    unshifted("smallest 10-25-64, 86"),
    unshifted("smallest 10-25-64 taught, 90", CNN),
    unshifted("smallest 10-25-64 taught, 87", CNN),
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
    Study("Structured sparsity, LeNet-5", CNN, "5-19 filters at 0.8 %, 3-12 at 1.0 %", "ssl", 0.80, "macs"),
    Study("Deep Compression, LeNet-300-100", MLP, "40x (27 KB) at 1.58 %", "deep compression", 1.58),
    Study("Deep Compression, LeNet-5", CNN, "39x (44 KB) at 0.74 %", "deep compression", 0.74),
    Study("Smallest file, LeNet-300-100", MLP, "40x (27 KB) at 1.64 %", "", 1.64),
    Study("Smallest file, LeNet-5", CNN, "39x (44 KB) at 0.80 %", "", 0.75),  # a margin for the other seeds
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
