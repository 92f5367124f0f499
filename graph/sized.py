"""The operators that run, with their sizes at many candidates' widths at once: what latency models read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod

import numpy as np
import numpy.typing as npt

from .record import Operator, Product, Side, Sides
from .sizes import Linear
from .tracer import Tracer

Size = int | npt.NDArray[np.float64]  # the same for all candidates, or a number for each
Sizes = tuple[Size, ...]


@dataclass(frozen=True)
class SizedOperator:
    """One operator of the evaluation pass; sizes are ints, or [N] arrays where they vary with the candidates."""

    name: str  # the module that runs it
    kind: str  # "conv", "depthwise conv", "grouped conv", "linear", "batch norm", "activation", "add", "view", ...
    aten: str
    inputs: tuple[Sizes, ...]  # shapes of the activations that it reads
    output: Sizes
    weight: Sizes  # shape of its first parameter: [out, in / groups, kernel, kernel] of a convolution; () without
    biased: bool  # it reads more than one parameter
    macs: Size
    sources: tuple[int, ...]  # places in the list of the operators that made its inputs; -1: the image, a constant
    present: npt.NDArray[np.bool_] | None  # candidates in which it runs; None: in all

    @property
    def elements_in(self) -> Size:
        """Elements of all activations that it reads."""
        return sum((_elements(shape) for shape in self.inputs), 0)

    @property
    def elements_out(self) -> Size:
        """Elements that it makes."""
        return _elements(self.output)

    @property
    def elements_weight(self) -> Size:
        """Elements of its first parameter; 0 without one."""
        return _elements(self.weight) if self.weight else 0

    @property
    def varying(self) -> list[npt.NDArray[np.float64]]:
        """The sizes [N] from which all others follow, each once, MACs included."""
        shapes = (self.inputs[0], self.output, self.weight)
        return list({id(size): size for shape in shapes for size in shape if not isinstance(size, int)}.values())

    def among(self, candidates: npt.NDArray[np.intp]) -> SizedOperator:
        """The operator at these candidates."""

        def taken(shape: Sizes) -> Sizes:
            return tuple(_taken(size, candidates) for size in shape)

        return replace(
            self, inputs=tuple(map(taken, self.inputs)), output=taken(self.output), weight=taken(self.weight),
            macs=_taken(self.macs, candidates), present=None if self.present is None else self.present[candidates],
        )  # fmt: skip


def _taken(size: Size, candidates: npt.NDArray[np.intp]) -> Size:
    return size if isinstance(size, int) else size[candidates]


def _elements(shape: Sizes) -> Size:
    """The product of a shape, its numbers first: an array is then gone through once."""
    return prod(
        (size for size in shape if not isinstance(size, int)), start=prod(s for s in shape if isinstance(s, int))
    )


class Evaluator:
    """Sizes of a trace where `value` says what a form is worth; every form is worked out once."""

    def __init__(self, value: Callable[[Linear], Size]) -> None:
        self._value = value
        self._known: dict[Linear, Size] = {}

    def form(self, form: Linear) -> Size:
        """The value of a form."""
        if form not in self._known:
            self._known[form] = self._value(form)
        return self._known[form]

    def shape(self, sides: Sides) -> Sizes:
        """The sizes of a tensor."""
        return tuple(self.form(side.form) if isinstance(side, Side) else side for side in sides)

    def product(self, product: Product) -> Size:
        """A constant times forms."""
        value: Size | float = product[0] if isinstance(product[0], int) else float(product[0])
        for form in product[1]:
            value = value * self.form(form)
        return round(value) if isinstance(value, float) else value


def value_in(form: Linear, columns: Mapping[int, npt.NDArray[np.float64]]) -> Size:
    """A form's value for every candidate, from the columns of its symbols."""
    if not form.terms:
        return int(form.constant)
    terms = [columns[s] if times == 1 else columns[s] * float(times) for s, times in form.terms.items()]
    total = reduce(np.add, terms)
    return total + float(form.constant) if form.constant else total


def sized_operators(
    tracer: Tracer,
    evaluate: Evaluator,
    absent: Mapping[int, npt.NDArray[np.bool_]],
    parameters: Collection[str],
) -> list[SizedOperator]:
    """The operators of the evaluation pass; `absent`: operator number -> candidates whose branch is removed."""
    made_by: dict[int, int] = {}
    place: dict[int, int] = {}
    operators: list[SizedOperator] = []
    for number, op in enumerate(tracer.ops[: tracer.eval_ops]):
        if op.is_view and not op.inputs:
            continue
        operators.append(_sized(op, tracer, evaluate, made_by, absent.get(number), parameters))
        place[number] = len(operators) - 1
        for tensor in op.outputs:
            made_by[tensor] = place[number]
    return operators


def _sized(op: Operator, tracer: Tracer, evaluate: Evaluator, made_by: Mapping[int, int],
           absent: npt.NDArray[np.bool_] | None, parameters: Collection[str]) -> SizedOperator:  # fmt: skip
    weights = [w for w in op.weights if w in parameters]
    first = _first_weight(weights, tracer)
    activations = [s for s, weight in zip(op.in_sides, op.reads_weight, strict=True) if not weight]
    return SizedOperator(
        name=op.path, kind=op.kind, aten=op.name,
        inputs=tuple(evaluate.shape(sides) for sides in activations),
        output=evaluate.shape(op.out_sides[0]),
        weight=evaluate.shape(tracer.parameter_sides[first]) if first else (),
        biased=len(weights) > 1,
        macs=evaluate.product(op.macs),
        sources=tuple(made_by.get(number, -1) for number in op.inputs),
        present=None if absent is None else ~absent,
    )  # fmt: skip


def _first_weight(weights: Sequence[str], tracer: Tracer) -> str | None:
    """The parameter with the most sides: a layer's weight rather than its bias."""
    return max(weights, key=lambda name: len(tracer.parameter_sides[name]), default=None)
