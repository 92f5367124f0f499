"""One forward pass on the meta device, recorded: which operators run, and how their sizes hang together.

Nothing is computed and the model is not touched: its parameters are swapped for meta tensors, and normalisation and
element-wise operators are answered with an empty tensor of the right shape. Every side of every tensor carries a
linear form in layer widths (sizes.py). When asked to label, every channel also carries the number of the parameter
entry that made it, and movement operators move these labels as they move the data.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import UntraceableModel
from .record import COPY, FIRST_OUTPUT, RULES, Clash, Info, Operator, Product, Shape, Side, Sides
from .sizes import PARAMETER, SLACK, Number, Sizes

STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + "/"


class Tracer(TorchDispatchMode):
    """The dispatch mode that records; after `run`, its fields hold the trace."""

    def __init__(
        self,
        model: nn.Module,
        shapes: Mapping[str, Shape] | None = None,
        *,
        sizes: Sizes | None = None,
        readings: Mapping[int, int] | None = None,
        labelled: Mapping[str, Sequence[bool]] | None = None,
        reference: Tracer | None = None,
        values: list[int] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.sizes = sizes or Sizes()
        self.readings = dict(readings or {})
        self.ops: list[Operator] = []
        self.reference, self.values = reference, values
        self.unknown: dict[str, str] = {}  # operator -> where it was met
        self.labelled = labelled  # parameter -> which of its sides vary; None: no labels
        self.edges: list[tuple[Tensor, Tensor]] = []  # labels that go together
        self.marks: list[tuple[int, int, Tensor]] = []  # (operator, group of a grouped operator, labels it handles)
        self.grouped: dict[str, tuple[int, Tensor, int]] = {}  # weight -> (groups, labels of its input, operator)
        self.label_start: dict[tuple[str, int], int] = {}
        self._label_of_side: dict[int, int] = {}  # id of a parameter's side -> its first label
        self._next_label = 0
        self._info: dict[int, Info] = {}
        self._number: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self._moved: dict[int, Tensor] = {}
        self._modules = list(model.named_modules(remove_duplicate=False))
        self.names = {id(m): name for name, m in reversed(self._modules)}
        self.stack: list[str] = []
        self.calls: list[tuple[str, int, int, int, int]] = []  # leaf calls: path, first/last operator, in/out tensor
        self.owner_of: dict[str, nn.Module] = {}
        self.parameters: dict[str, Tensor] = {}
        self.parameter_sides: dict[str, Sides] = {}
        self.untouched: set[str] = set()
        self.trainable: set[str] = set()  # what counts as a parameter: not the buffers
        self.output_numbers: tuple[int, ...] = ()
        self.eval_ops = 0
        self.training_fails = False
        self.misread: list[int] = []  # operators whose sizes follow in another way than the reference read
        self._by_every_name: dict[str, Tensor] = {}  # shared parameters under each of their names
        self._add_parameters(shapes or {})

    def _add_parameters(self, shapes: Mapping[str, Shape]) -> None:
        made: dict[int, Tensor] = {}
        for members in ("_parameters", "_buffers"):
            for path, module in self._modules:
                for short, tensor in getattr(module, members).items():
                    if tensor is None:
                        continue
                    name = f"{path}.{short}" if path else short
                    if id(tensor) not in made:
                        if members == "_parameters":
                            self.trainable.add(name)
                        made[id(tensor)] = self._add_parameter(name, tensor, module, shapes)
                    self._by_every_name[name] = made[id(tensor)]

    def _add_parameter(self, name: str, tensor: Tensor, owner: nn.Module, shapes: Mapping[str, Shape]) -> Tensor:
        if torch.nn.parameter.is_lazy(tensor):
            raise UntraceableModel(f"{name} has no shape yet (a lazy module): run the model once before tracing it")
        shape = shapes.get(name, tuple(tensor.shape))
        meta = torch.empty(shape, dtype=tensor.dtype, device="meta")
        sides: Sides = tuple(Side(self.sizes.new(n, PARAMETER, f"{name}[{d}]")) for d, n in enumerate(shape))
        self.parameters[name] = meta
        self.parameter_sides[name] = sides
        self.owner_of[name] = owner
        self.untouched.add(name)
        return self.know(meta, Info(sides, self._parameter_labels(name, shape, sides), frozenset([name])))

    def _parameter_labels(self, name: str, shape: Shape, sides: Sides) -> list[Tensor]:
        if self.labelled is None:
            return []
        labels = []
        for d, varies in enumerate(self.labelled.get(name, ())):
            if varies:
                self.label_start[name, d] = self._label_of_side[id(sides[d])] = self._next_label
                ids = torch.arange(self._next_label, self._next_label + shape[d], device="cpu")
                self._next_label += shape[d]
                labels.append(ids.view([-1 if i == d else 1 for i in range(len(shape))]).expand(shape))
        return labels

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, input_shape: Sequence[Shape], training: bool = False) -> None:
        """Follow one forward pass; raises UntraceableModel when it reads values or fails, Clash against a reference."""
        inputs = []
        for shape in input_shape:
            x = torch.empty(shape, device="meta")
            self.know(x, Info(tuple(shape)))
            inputs.append(x)
        modes = {m: m.training for _, m in self._modules}
        try:
            if any(mode != training for mode in modes.values()):
                self.model.train(training)
            with self._watched(), torch.no_grad(), self:
                output = torch.func.functional_call(self.model, self._by_every_name, tuple(inputs), tie_weights=False)
        except UntraceableModel:
            raise
        except Clash as clash:
            if self.reference is not None:
                raise
            raise UntraceableModel(
                f"the forward pass failed on shapes {[list(s) for s in input_shape]}: {clash}"
            ) from None
        except Exception as error:
            if self.reference is not None:
                raise Clash(len(self.ops), f"{_first_line(error)} at {self.where()}") from None
            raise UntraceableModel(
                f"the forward pass failed on shapes {[list(s) for s in input_shape]}: "
                f"{type(error).__name__}: {_first_line(error)} ({place_of(error)})"
            ) from None
        finally:
            for module, mode in modes.items():
                if module.training != mode:
                    module.training = mode
        leaves = _tensors(output)
        self.output_numbers += tuple(self._number[id(leaf)] for leaf in leaves if id(leaf) in self._number)
        for leaf in leaves:
            self.freeze_sides(self.info(leaf).sides, "output of the model")
            self.mark_output(leaf)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Keep the path of the running module, and note what each leaf module turned into what."""
        starts: list[tuple[int, int]] = []

        def before(module: nn.Module, args: Any) -> None:
            self.stack.append(self.names.get(id(module), type(module).__name__))
            first = next((a for a in args if isinstance(a, Tensor)), None)
            starts.append((len(self.ops), self._number.get(id(first), -1)))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            path, (start, source) = self.stack.pop(), starts.pop()
            if not module._modules and isinstance(output, Tensor):
                self.calls.append((path, start, len(self.ops), source, self._number.get(id(output), -1)))

        hooks = (
            nn.modules.module.register_module_forward_pre_hook(before),
            (nn.modules.module.register_module_forward_hook(after)),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.stack.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._opname if func.namespace == "aten" else str(func)
        args = [self._moved_to_meta(a) for a in args]
        kwargs = {k: self._moved_to_meta(v) for k, v in (kwargs or {}).items()}
        self._align(name)
        handler = RULES.get(name)
        if handler is None:
            handler = RULES["*pointwise"] if torch.Tag.pointwise in func.tags else RULES["*unknown"]
        return handler(self, func, args, kwargs)

    def _align(self, name: str) -> None:
        """Step over copies that only the reference made: whether a reshape copies depends on the widths."""
        while self.reference is not None and name != COPY and len(self.ops) < len(self.reference.ops):
            expected = self.reference.ops[len(self.ops)]
            if expected.name != COPY:
                break
            self.ops.append(expected)

    def _moved_to_meta(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.is_meta:
                return value
            if id(value) not in self._moved:
                self._alive.append(value)
                moved = torch.empty_like(value, device="meta")
                self.know(moved, Info(tuple(moved.shape), fixed=True))
                self._moved[id(value)] = moved
            return self._moved[id(value)]
        if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
            return [self._moved_to_meta(v) for v in value]
        return value

    # -- what rules use --------------------------------------------------------------------------------------------

    def know(self, tensor: Tensor, info: Info) -> Tensor:
        """Attach what is known to a tensor."""
        self._info[id(tensor)] = info
        self._alive.append(tensor)
        if id(tensor) not in self._number:
            self._number[id(tensor)] = len(self._number)
        return tensor

    def info(self, tensor: Tensor) -> Info:
        """What is known of a tensor; of a stranger, only its shape."""
        if id(tensor) not in self._info:
            self.know(tensor, Info(tuple(tensor.shape)))
        return self._info[id(tensor)]

    @property
    def path(self) -> str:
        """The running module."""
        return self.stack[-1] if self.stack else ""

    def where(self) -> str:
        """The running module and the line of the user's code."""
        line = place_of(None)
        return f"{self.path} ({line})" if self.path else line

    def record(
        self,
        name: str,
        kind: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        *,
        macs: Product = (0, ()),
        alternatives: int = 0,
        is_view: bool = False,
        in_place: bool = False,
    ) -> None:
        """Append the operator; against a reference, raise Clash where a size is not what the reference foretells."""
        if name == COPY and self.reference is not None and not self._foretold(COPY):
            return
        infos = [self.info(t) for t in inputs]
        weights = sorted(frozenset().union(*(i.weight for i in infos)))
        self.untouched.difference_update(weights)
        outs = [self.info(t) for t in outputs]
        if all(i.weight for i in infos) and infos and all(o.weight for o in outs):
            is_view = True  # computed from parameters alone: no activation
        op = Operator(
            name, kind, self.path,
            tuple(self._number[id(t)] for t, i in zip(inputs, infos, strict=True) if not i.weight),
            tuple(self._number[id(t)] for t in outputs),
            tuple(i.sides for i in infos), tuple(o.sides for o in outs),
            tuple(tuple(t.shape) for t in outputs), tuple(tuple(t.shape) for t in inputs), tuple(weights),
            tuple(bool(i.weight) for i in infos), macs, alternatives, is_view, in_place,
        )  # fmt: skip
        self.ops.append(op)
        if name != COPY:
            self._mark(len(self.ops) - 1, outs)
        if self.reference is not None:
            self._compare(len(self.ops) - 1, op)

    def _compare(self, number: int, op: Operator) -> None:
        """Raise Clash where a size is not what the reference foretells; keep operators that have another reading."""
        foretold = self.reference
        assert foretold is not None
        if number >= len(foretold.ops) or not self._foretold(op.name, number):
            raise Clash(number, f"other operators run at other widths (at {self.where()})")
        before = foretold.ops[number]
        wrong = self._first_wrong(before.out_sides, op.out_shapes)
        if wrong is None or self._first_wrong(before.in_sides, op.in_shapes) is not None:
            return
        if foretold.readings.get(number, 0) < before.alternatives:
            self.misread.append(number)
        else:
            raise Clash(number, f"a size is {wrong[1]} where {wrong[0]} would follow, in {op.name} at {self.where()}")

    def _foretold(self, name: str, number: int | None = None) -> bool:
        """Whether the reference has an operator of that name there; a view is one whether it copied first or not."""
        assert self.reference is not None
        number = len(self.ops) if number is None else number
        if number >= len(self.reference.ops):
            return False
        expected = self.reference.ops[number].name
        return expected == name or {expected, name} <= {"view", "_unsafe_view"}

    def _first_wrong(self, sides: Sequence[Sides], shapes: Sequence[Shape]) -> tuple[Number, int] | None:
        assert self.reference is not None
        assert self.values is not None
        if len(sides) != len(shapes):
            return len(sides), len(shapes)
        for own, shape in zip(sides, shapes, strict=True):
            for side, actual in zip(own, shape, strict=True):
                expected = self.reference.foretell(side, self.values)
                if expected is not None and expected != actual:
                    return expected, actual
        return None

    def foretell(self, side: int | Side, values: list[int]) -> Number | None:
        """A side's size at these symbol values; None where an amount of padding leaves it open."""
        if not isinstance(side, Side):
            return side
        form = self.sizes.reduce(side.form)
        if any(self.sizes.symbols[s].kind == SLACK for s in form.terms):
            return None
        return form.at(values)

    def unify(self, a: int | Side, b: int | Side, why: str) -> int | Side:
        """The side that two sides of one size are; freezes what cannot vary because the other is constant."""
        if isinstance(a, Side) and isinstance(b, Side):
            if a.form != b.form:
                self.sizes.equate(a.form, b.form, f"{why} at {self.path}")
            return a if a.pieces or a.whole else b
        if isinstance(a, Side):
            self.sizes.freeze(a.form, f"{why} at {self.path}: the other side has a fixed size")
            return b
        if isinstance(b, Side):
            self.sizes.freeze(b.form, f"{why} at {self.path}: the other side has a fixed size")
        return a

    def freeze_sides(self, sides: Sequence[int | Side], why: str) -> None:
        """Fix every side that may vary."""
        for side in sides:
            if isinstance(side, Side):
                self.sizes.freeze(side.form, why)

    def slack(self, value: int) -> Side:
        """A side whose size the code decides in a way that only other sizes can tell."""
        return Side(self.sizes.new(value, SLACK))

    # -- labels ----------------------------------------------------------------------------------------------------

    def tie(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        """Labels at the same position of two aligned label tensors go together."""
        for x in a:
            for y in b:
                x_, y_ = torch.broadcast_tensors(x, y)
                self._tie_aligned(x_, y_)

    def _tie_aligned(self, x: Tensor, y: Tensor) -> None:
        if not _same_axis(x, y):
            return
        for d in range(x.dim()):
            if x.shape[d] > 1 and x.stride(d) == 0 and y.stride(d) == 0:
                x, y = x.narrow(d, 0, 1), y.narrow(d, 0, 1)
        x, y = x.reshape(-1), y.reshape(-1)
        both = (x >= 0) & (y >= 0)
        self.edges.append((x[both], y[both]))

    def along(self, info: Info, dim: int) -> Tensor | None:
        """One label a position along `dim`, tying labels that share a position; None when that side does not vary."""
        candidates = [labels for labels in info.labels if _may_vary(labels, dim)]
        if len(candidates) > 1:  # sides of one channel look alike: go by which parameter's side this is
            first = self._label_of_side.get(id(info.sides[dim]))
            candidates = [labels for labels in candidates if int(labels.reshape(-1)[0]) == first]
        for labels in candidates:
            rows = labels.movedim(dim, 0)
            if all(n == 1 or s == 0 for n, s in zip(rows.shape[1:], rows.stride()[1:], strict=True)):
                while rows.dim() > 1:
                    rows = rows.select(1, 0)
                return rows
            flat = rows.reshape(rows.shape[0], -1)
            for column in range(1, flat.shape[1]):
                if not torch.equal(flat[:, column], flat[:, 0]):
                    self.edges.append((flat[:, 0], flat[:, column]))
            return flat[:, 0]
        return None

    def channels_like(self, line: Tensor | None, shape: Shape, dim: int = 1) -> list[Tensor]:
        """Labels of a tensor of that shape whose positions along `dim` are labelled by `line`."""
        if line is None:
            return []
        return [line.view([-1 if i == dim % len(shape) else 1 for i in range(len(shape))]).expand(shape)]

    def _mark(self, number: int, infos: Sequence[Info]) -> None:
        if self.labelled is None:
            return
        for output, info in enumerate(infos):
            for labels in info.labels:
                self.mark(number, FIRST_OUTPUT + output, labels)

    def mark(self, number: int, group: int, labels: Tensor) -> None:
        """Note that the operator (one group of it) handles these channels."""
        for d in range(labels.dim()):
            if labels.shape[d] > 1 and labels.stride(d) == 0:
                labels = labels.narrow(d, 0, 1)
        self.marks.append((number, group, labels.reshape(-1)))

    def mark_output(self, tensor: Tensor) -> None:
        """Note the channels that leave the model."""
        self._mark(len(self.ops), [self.info(tensor)])


def _may_vary(labels: Tensor, dim: int) -> bool:
    """Whether labels may run along `dim`: they do, or it has one position and they run along no other."""
    if labels.shape[dim] > 1:
        return labels.stride(dim) != 0
    return all(n == 1 or s == 0 for d, (n, s) in enumerate(zip(labels.shape, labels.stride(), strict=True)) if d != dim)


def _same_axis(x: Tensor, y: Tensor) -> bool:
    """Whether two label tensors vary along a common side."""
    return (
        any(x.shape[d] == 1 or (x.stride(d) != 0 and y.stride(d) != 0) for d in range(x.dim()))
        if x.numel() > 1
        else True
    )


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in an output, dataclass-like outputs of other libraries included."""
    if hasattr(value, "to_tuple"):
        value = value.to_tuple()
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def place_of(error: BaseException | None) -> str:
    """file:line of the innermost frame that is neither torch's nor ours."""
    frames = traceback.extract_tb(error.__traceback__) if error else traceback.extract_stack()
    here = __file__.rsplit("/", 1)[0]
    for frame in reversed(frames):
        name = frame.filename
        standard = name.startswith(STANDARD_LIBRARY) and "/site-packages/" not in name
        if "/torch/" not in name and not standard and not name.startswith(here):
            return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
    return "unknown place"
