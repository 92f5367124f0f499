"""What a trace is made of: sides that may vary, what is known of a tensor, the operators, and the rules' registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tag, Tensor

from .sizes import Linear, Number

if TYPE_CHECKING:
    from .tracer import Tracer

Shape = tuple[int, ...]


@dataclass(eq=False, slots=True)
class Side:
    """A side of a tensor that may vary: its size as a form, what was concatenated to make it, what it is a part of."""

    form: Linear
    pieces: tuple[tuple[Linear, int], ...] = ()  # (form, present size) of each operand of the last concatenation
    mixed: bool = False  # a shuffle has put the pieces' channels among each other
    whole: Side | None = None
    start: int = 0
    stop: int = 0


Sides = tuple[int | Side, ...]


@dataclass(slots=True)
class Info:
    """What the tracer knows of a tensor."""

    sides: Sides
    labels: Sequence[Tensor] = ()  # full shape, one per varying side; -1 where there is none
    weight: frozenset[str] = frozenset()  # parameters it is computed from, and nothing else
    fixed: bool = False  # held by the model outside its parameters: cannot be resized
    number: int = -1  # in the order in which the tracer met tensors
    shape: Shape = ()


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


@dataclass(slots=True)
class Operator:
    """One recorded operator."""

    name: str  # aten name, e.g. "convolution"
    kind: str  # what people call it: "conv", "depthwise conv", "linear", "batch norm", "add", "view", ...
    path: str  # module that ran it
    ins: tuple[Info, ...]  # what it reads, parameters included, as it was then
    outs: tuple[Info, ...]
    weights: tuple[str, ...]  # names of the parameters that it reads
    macs: Product = (0, ())
    alternatives: int = 0  # other readings of how the sizes follow (view, slice)
    is_view: bool = False  # shares its input's memory
    in_place: bool = False

    @property
    def activations(self) -> list[Info]:
        """What it reads that is not made of parameters alone."""
        return [i for i in self.ins if not i.weight]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Tensor numbers of the activations that it reads."""
        return tuple(i.number for i in self.ins if not i.weight)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Tensor numbers of what it makes."""
        return tuple(o.number for o in self.outs)

    @property
    def in_sides(self) -> tuple[Sides, ...]:
        """Sides of all that it reads."""
        return tuple(i.sides for i in self.ins)

    @property
    def out_sides(self) -> tuple[Sides, ...]:
        """Sides of what it makes."""
        return tuple(o.sides for o in self.outs)

    @property
    def in_shapes(self) -> tuple[Shape, ...]:
        """Shapes of all that it reads."""
        return tuple(i.shape for i in self.ins)

    @property
    def out_shapes(self) -> tuple[Shape, ...]:
        """Shapes of what it makes."""
        return tuple(o.shape for o in self.outs)

    @property
    def reads_weight(self) -> tuple[bool, ...]:
        """Which of its inputs are made of parameters alone."""
        return tuple(bool(i.weight) for i in self.ins)


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


@cache
def rule_for(func: Any) -> tuple[str, Rule]:
    """An operator's name, and the rule that answers it."""
    name = func._opname if func.namespace == "aten" else str(func)
    return name, RULES.get(name) or RULES["*pointwise" if Tag.pointwise in func.tags else "*unknown"]
