"""Every published network we can define, to the unit: parameters and MACs against tests/facts/*.csv."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pocketzoo import Architecture

FACTS = Path(__file__).parent / "facts"
ROWS = [row | {"family": path.stem} for path in sorted(FACTS.glob("*.csv")) for row in csv.DictReader(path.open())]


def counted(row: dict[str, str]) -> tuple[int, int]:
    arch = Architecture.of(row["family"], **json.loads(row["settings"]))
    with torch.device("meta"):
        model = arch.build().eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(arch.input_shape))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['family']}-{row['variant']}")
def test_counts_equal_the_facts(row: dict[str, str]) -> None:
    params, macs = counted(row)
    assert (params, macs) == (int(row["params"]), int(row["macs"]))
    for ours, printed in ((params, row["paper_params_M"]), (macs, row["paper_macs_M"])):
        if not printed:
            continue
        digit = 0.5 * 10 ** -len(printed.partition(".")[2])  # half of the last printed digit
        agrees = abs(ours / 1e6 - float(printed)) <= max(digit, 0.02 * float(printed))
        assert agrees or row["explanation"], f"the paper prints {printed} M, we count {ours / 1e6:.4f} M: explain it"


def test_each_row_has_a_source() -> None:
    assert ROWS
    assert all(row["source"] for row in ROWS)
