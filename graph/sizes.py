"""Sizes as linear forms in layer widths, and the equations between them that a trace collects."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import lcm

Number = int | Fraction

SLACK, PARAMETER, WIDTH = range(3)  # what is solved for first: amounts of padding, parameter sides, made channels


class Linear:
    """An immutable linear form `sum of coefficient * symbol + constant`; no coefficient is 0."""

    __slots__ = ("constant", "terms")

    def __init__(self, terms: dict[int, Number], constant: Number = 0) -> None:
        self.terms, self.constant = terms, constant

    def __add__(self, other: Linear) -> Linear:
        if not other.terms and not other.constant:
            return self
        terms = dict(self.terms)
        for symbol, c in other.terms.items():
            terms[symbol] = _whole(terms.get(symbol, 0) + c)
        return Linear({s: c for s, c in terms.items() if c}, _whole(self.constant + other.constant))

    def __mul__(self, factor: Number) -> Linear:
        if factor == 1:
            return self
        if not factor:
            return Linear({})
        return Linear({symbol: _whole(c * factor) for symbol, c in self.terms.items()}, _whole(self.constant * factor))

    def __sub__(self, other: Linear) -> Linear:
        return self + other * -1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Linear) and self.terms == other.terms and self.constant == other.constant

    def __hash__(self) -> int:
        return hash((frozenset(self.terms.items()), self.constant))

    @property
    def denominator(self) -> int:
        """Least common denominator of all coefficients."""
        return lcm(*(Fraction(c).denominator for c in (*self.terms.values(), self.constant)))

    def at(self, values: Mapping[int, int] | list[int]) -> Number:
        """The form's value."""
        return _whole(sum((c * values[symbol] for symbol, c in self.terms.items()), self.constant))


def _whole(number: Number) -> Number:
    if type(number) is int:  # nearly always; an isinstance check against Fraction costs as much as all the rest
        return number
    return number.numerator if isinstance(number, Fraction) and number.denominator == 1 else number


def ratio(a: int, b: int) -> Number:
    """a / b, exactly."""
    return Fraction(a, b) if a % b else a // b


@cache
def constant(value: int) -> Linear:
    """The form that is always `value`."""
    return Linear({}, value)


@dataclass(slots=True)
class Symbol:
    """One unknown size: its value in the traced model, what kind it is, and the parameter side it stands for."""

    value: int
    kind: int
    name: str
    rank: tuple[int, int]  # the one of lower rank is solved for first
    order: int = 0  # when a layer first made channels of it


class Sizes:
    """Symbols and the linear equations found between them, kept solved by substitution."""

    def __init__(self, lenient: bool = False) -> None:
        self.lenient = lenient  # collect equations between sizes, but freeze nothing
        self.symbols: list[Symbol] = []
        self.solved: dict[int, Linear] = {}
        self.frozen: dict[int, str] = {}  # symbol -> why its size cannot vary
        self.whole: dict[Linear, str] = {}  # forms that must be whole and positive -> which constraint that is
        self._widths = 0

    def new(self, value: int, kind: int, name: str = "") -> Linear:
        """A fresh symbol of that present value."""
        number = len(self.symbols)
        self.symbols.append(Symbol(value, kind, name, (kind, -number)))
        return Linear({number: 1})

    def make_width(self, form: Linear, name: str) -> None:
        """Note that a layer makes as many channels as the form says: a lone symbol becomes a width of that name."""
        form = self.reduce(form)
        if len(form.terms) == 1 and not form.constant:
            symbol = self.symbols[next(iter(form.terms))]
            if symbol.kind != WIDTH:
                self._widths += 1
                symbol.kind, symbol.name, symbol.order = WIDTH, name, self._widths
                symbol.rank = WIDTH, -self._widths

    def reduce(self, form: Linear) -> Linear:
        """The form in unsolved symbols only."""
        if self.solved.keys().isdisjoint(form.terms):
            return form
        while stale := [s for s in form.terms if s in self.solved]:
            for symbol in stale:
                solution = self.reduce(self.solved[symbol])
                self.solved[symbol] = solution
                if form.constant == 0 and len(form.terms) == 1:
                    return solution * form.terms[symbol]
                c = form.terms[symbol]
                rest = {s: k for s, k in form.terms.items() if s != symbol}
                form = Linear(rest, form.constant) + solution * c
        return form

    def reduce_to(self, form: Linear, symbols: Collection[int]) -> Linear:
        """The form in these unsolved symbols only; all others are what they are."""
        reduced = self.reduce(form)
        others = sum(c * self.symbols[s].value for s, c in reduced.terms.items() if s not in symbols)
        return Linear({s: c for s, c in reduced.terms.items() if s in symbols}, _whole(reduced.constant + others))

    def equate(self, a: Linear, b: Linear, why: str) -> None:
        """Add the equation a == b; a width that it ties to a constant is frozen for the reason given."""
        a, b = self.reduce(a), self.reduce(b)
        if self._solve_lone(a, b, why) or self._solve_lone(b, a, why):
            return
        difference = a - b
        if not difference.terms:
            return
        symbol = min(difference.terms, key=lambda s: self.symbols[s].rank)
        c = difference.terms[symbol]
        rest = Linear({s: k for s, k in difference.terms.items() if s != symbol}, difference.constant)
        self.solved[symbol] = rest * (-c if abs(c) == 1 else Fraction(-1) / c)
        if not rest.terms and self.symbols[symbol].kind == WIDTH:
            self.frozen[symbol] = why

    def _solve_lone(self, a: Linear, b: Linear, why: str) -> bool:
        """Solve `symbol == b` as it stands where that symbol is the one to eliminate, which is nearly always so."""
        if len(a.terms) != 1 or a.constant:
            return False
        ((symbol, c),) = a.terms.items()
        if c != 1:
            return False
        entry = self.symbols[symbol]
        for other in b.terms:
            if self.symbols[other].rank <= entry.rank:
                return False
        self.solved[symbol] = b
        if not b.terms and entry.kind == WIDTH:
            self.frozen[symbol] = why
        return True

    def freeze(self, form: Linear, why: str) -> None:
        """Fix every size that the form depends on."""
        if self.lenient:
            return
        for symbol in self.reduce(form).terms:
            entry = self.symbols[symbol]
            self.solved[symbol] = constant(entry.value)
            if entry.kind == WIDTH:
                self.frozen[symbol] = why

    def must_be_whole(self, form: Linear, why: str) -> None:
        """Require that the form stays a positive whole number."""
        self.whole.setdefault(form, why)

    def value(self, form: Linear) -> int:
        """The form's value in the traced model."""
        return int(form.at([s.value for s in self.symbols]))
