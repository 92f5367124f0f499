"""What other counters print for the same model, and why it is not what we count.

Each tool runs on a copy of the model. What it should print is then worked out operator by operator from our own trace
and from the tool's published rules; what that leaves open is shown as unexplained, never spread over the rest.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import torch
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import InvalidSetting, MissingExtra, UntraceableModel
from ..graph.channel_graph import trace
from .counter_rules import CONVENTIONS, RULES, WHY, Row

Tool = Literal["fvcore", "thop", "ptflops"]
UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class Comparison:
    """One tool's figure beside ours, for one image."""

    tool: str
    total: int  # what the tool prints
    macs: int  # what we count
    by_kind: pd.DataFrame  # kind -> ours, tool, difference, why; the tool column adds up to `total`

    @property
    def convention(self) -> str:
        """What the tool calls its figure, and how many of them a multiply-accumulate is."""
        return CONVENTIONS[self.tool]

    @property
    def unexplained(self) -> int:
        """The part of the tool's figure that its rules do not account for."""
        return int(self.by_kind["difference"].get(UNEXPLAINED, 0))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        rows = self.by_kind.reset_index().to_dict("records")
        return {"tool": self.tool, "convention": self.convention, "total": self.total, "macs": self.macs,
                "by_kind": rows}  # fmt: skip

    def table(self) -> RenderableType:
        """The comparison for people; kinds that neither side counts are left out."""
        table = Table(title=f"as {self.tool} counts", show_footer=True, box=SIMPLE, padding=(0, 1, 0, 0))
        totals = (f"{self.macs:,}", f"{self.total:,}", f"{self.total - self.macs:+,}")
        table.add_column("kind", footer="total")
        for heading, footer in zip(("ours", self.tool, "difference"), totals, strict=True):
            table.add_column(heading, footer=footer, justify="right", no_wrap=True)
        table.add_column("why")
        for row in self.by_kind.reset_index().to_dict("records"):
            if row["ours"] or row["tool"] or row["difference"]:
                table.add_row(
                    row["kind"], f"{row['ours']:,}", f"{row['tool']:,}", f"{row['difference']:+,}", row["why"]
                )
        return Group(table, self.convention)


@dataclass(frozen=True)
class CrossCheck:
    """Our MACs beside two independent counters', for one image."""

    macs: int
    flop_counter: int  # FlopCounterMode's FLOPs / 2
    conv_and_linear: int  # our convolutions and linear layers alone
    fvcore: int  # fvcore's convolutions and linear layers alone

    @property
    def agrees(self) -> bool:
        """Whether both equal ours to the unit."""
        return self.macs == self.flop_counter and self.conv_and_linear == self.fvcore

    def __str__(self) -> str:
        verdict = "agrees to the unit" if self.agrees else "DISAGREES"
        return (
            f"{verdict}: {self.macs:,} MACs, FlopCounterMode/2 {self.flop_counter:,}; convolutions and linear layers "
            f"{self.conv_and_linear:,}, fvcore {self.fvcore:,}"
        )


def as_counted_by(model: nn.Module, input_shape: Sequence[int], tool: Tool) -> Comparison:
    """Run the real tool on a copy of the model and explain its figure by kind of operator.

    `input_shape` is [N, C, H, W]; all is counted for one image, as the tools print it. Raises InvalidSetting for an
    unknown tool, MissingExtra when it is not installed, UntraceableModel when it cannot run the model.
    """
    if tool not in get_args(Tool):
        raise InvalidSetting(f"no counter named {tool!r}; there are {', '.join(get_args(Tool))}")
    shape = (1, *input_shape[1:])
    total = _run(tool, RUNNERS[tool], model, shape)
    return _explained(tool, total, model, shape)


def cross_check(model: nn.Module, input_shape: Sequence[int]) -> CrossCheck:
    """Count one image with FlopCounterMode and fvcore too; raises UntraceableModel when one cannot run the model."""
    shape = (1, *input_shape[1:])
    rows = trace(model, shape).layers()
    plain = rows["op"].str.endswith(("conv", "linear"))
    return CrossCheck(
        macs=int(rows["macs"].sum()),
        flop_counter=_run("FlopCounterMode", _flop_counter_macs, model, shape),
        conv_and_linear=int(rows["macs"][plain].sum()),
        fvcore=_run("fvcore", _fvcore_conv_and_linear, model, shape),
    )


# -- explaining ----------------------------------------------------------------------------------------------------


def _explained(tool: str, total: int, model: nn.Module, shape: tuple[int, ...]) -> Comparison:
    modules = dict(model.named_modules())
    ours: dict[str, int] = {}
    theirs: dict[str, int] = {}
    rows = trace(model, shape).layers()
    for record in rows[rows["op"] != "constant"].to_dict("records"):
        row = Row(record["op"], record["aten"], modules.get(record["name"]), record["macs"],
                  record["in_shapes"], record["out_shapes"])  # fmt: skip
        ours[row.kind] = ours.get(row.kind, 0) + row.macs
        theirs[row.kind] = theirs.get(row.kind, 0) + RULES[tool](row)
    if rest := total - sum(theirs.values()):
        theirs[UNEXPLAINED] = rest
    table = (
        pd.DataFrame({"ours": ours, "tool": theirs}).reindex([*theirs]).fillna(0).astype("int64").rename_axis("kind")
    )
    table["difference"] = table["tool"] - table["ours"]
    table["why"] = [_why(tool, str(kind), int(d)) for kind, d in table["difference"].items()]
    return Comparison(tool, total, sum(ours.values()), table)


def _why(tool: str, kind: str, difference: int) -> str:
    if not difference:
        return ""
    if kind == UNEXPLAINED:
        return f"{tool}'s rules as written down here do not account for it"
    return WHY[tool].get(kind, f"{tool} does not see it")


# -- running the tools -----------------------------------------------------------------------------------------------


def _run(
    name: str, count: Callable[[nn.Module, tuple[int, ...]], float | None], model: nn.Module, shape: tuple[int, ...]
) -> int:
    """The tool's figure, with the model untouched and nothing printed."""
    theirs = _copy_on_cpu(model)
    said = io.StringIO()
    try:
        with _quiet(said), torch.no_grad():
            total = count(theirs, shape)
    except MissingExtra:
        raise
    except Exception as error:
        raise UntraceableModel(f"{name} cannot run this model on {list(shape)}: {error}") from None
    if total is None:
        lines = said.getvalue().strip().splitlines() or ["it does not say why"]
        raise UntraceableModel(f"{name} cannot run this model on {list(shape)}: {lines[-1]}")
    return round(total)


def _copy_on_cpu(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that can run: values do not matter, so meta tensors become zeros."""
    theirs = copy.deepcopy(model)
    tensors = [*theirs.parameters(), *theirs.buffers()]
    if any(t.is_meta for t in tensors):
        theirs.to_empty(device="cpu")
        for tensor in (*theirs.parameters(), *theirs.buffers()):
            tensor.detach().zero_()
    return theirs.cpu().eval()


@contextlib.contextmanager
def _quiet(said: io.StringIO) -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")
        yield


def _fvcore_analysis(model: nn.Module, shape: tuple[int, ...]) -> Any:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, torch.zeros(shape))
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")


def _fvcore(model: nn.Module, shape: tuple[int, ...]) -> float:
    return float(_fvcore_analysis(model, shape).total())


def _fvcore_conv_and_linear(model: nn.Module, shape: tuple[int, ...]) -> float:
    by_operator: Mapping[str, float] = _fvcore_analysis(model, shape).by_operator()
    return float(sum(by_operator.get(name, 0) for name in ("conv", "linear", "addmm")))


def _flop_counter_macs(model: nn.Module, shape: tuple[int, ...]) -> float:
    # FlopCounterMode knows no fused attention of the CPU; as matrix products it is counted
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(shape))
    return float(counter.get_total_flops()) / 2


def _thop(model: nn.Module, shape: tuple[int, ...]) -> float:
    from thop import profile

    macs, _ = profile(model, inputs=(torch.zeros(shape),), verbose=False)
    return float(macs)


def _ptflops(model: nn.Module, shape: tuple[int, ...]) -> float | None:
    complexity = ptflops_counter()
    macs, _ = complexity(model, shape[1:], as_strings=False, print_per_layer_stat=False)
    return None if macs is None else float(macs)


def ptflops_counter() -> Callable[..., tuple[Any, Any]]:
    """ptflops' own function; MissingExtra when it is not installed.

    It looks at torchvision and timm for one layer each and fails with them where their operators do not load. A model
    that has such layers has imported them already, so they are hidden unless they are there.
    """
    hidden = [name for name in ("torchvision", "timm") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: importing it raises ImportError
    try:
        return importlib.import_module("ptflops").get_model_complexity_info  # type: ignore[no-any-return]
    except ImportError as error:
        raise MissingExtra(f"ptflops is not there ({error}): pip install 'pocketzoo[counters]'") from None
    finally:
        for name in hidden:
            del sys.modules[name]


RUNNERS: dict[str, Callable[[nn.Module, tuple[int, ...]], float | None]] = {
    "fvcore": _fvcore,
    "thop": _thop,
    "ptflops": _ptflops,
}
