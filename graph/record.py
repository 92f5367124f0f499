"""What a trace is made of: sides that may vary, what is known of a tensor, the operators, and the rules' registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .sizes import Linear, Number

if TYPE_CHECKING:
    from .tracer import Tracer

Shape = tuple[int, ...]


@dataclass(eq=False)
class Side:
    """A side of a tensor that may vary: its size as a form, what was concatenated to make it, what it is a part of."""

    form: Linear
    pieces: tuple[tuple[Linear, int], ...] = ()  # (form, present size) of each operand of the last concatenation
    mixed: bool = False  # a shuffle has put the pieces' channels among each other
    whole: Side | None = None
    start: int = 0
    stop: int = 0


Sides = tuple[int | Side, ...]


@dataclass
class Info:
    """What the tracer knows of a tensor."""

    sides: Sides
    labels: list[Tensor] = field(default_factory=list)  # full shape, one per varying side; -1 where there is none
    weight: frozenset[str] = frozenset()  # parameters it is computed from, and nothing else
    fixed: bool = False  # held by the model outside its parameters: cannot be resized


Product = tuple[Number, tuple[Linear, ...]]  # a constant times the forms' values


def numel(sides: Sequence[int | Side]) -> Product:
    """The number of elements as a product."""
    number, forms = 1, []
    for side in sides:
        if isinstance(side, Side):
            forms.append(side.form)
        else:
            number *= side
    return number, tuple(forms)


@dataclass
class Operator:
    """One recorded operator."""

    name: str  # aten name, e.g. "convolution"
    kind: str  # what people call it: "conv", "depthwise conv", "linear", "batch norm", "add", "view", ...
    path: str  # module that ran it
    inputs: tuple[int, ...]  # tensor numbers of activations
    outputs: tuple[int, ...]
    in_sides: tuple[Sides, ...]
    out_sides: tuple[Sides, ...]
    out_shapes: tuple[Shape, ...]
    in_shapes: tuple[Shape, ...]
    weights: tuple[str, ...]  # names of the parameters that it reads
    reads_weight: tuple[bool, ...]  # which inputs are made of parameters alone
    macs: Product = (0, ())
    alternatives: int = 0  # other readings of how the sizes follow (view, slice)
    is_view: bool = False  # shares its input's memory
    in_place: bool = False


class Clash(Exception):
    """Sizes did not follow as a first trace read them: the number of the operator, and what happened."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.number = number


Rule = Callable[["Tracer", Any, Sequence[Any], Mapping[str, Any]], Any]
RULES: dict[str, Rule] = {}
COPY = "clone"
FIRST_OUTPUT = 1 << 20  # marks of outputs; smaller numbers are groups of a grouped operator


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register how the tracer answers these ATen operators; a name taken twice raises ValueError."""

    def add(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for {name}")
            RULES[name] = function
        return function

    return add
