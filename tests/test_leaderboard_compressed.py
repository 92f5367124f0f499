"""Compressed networks in the tables: a row for each recipe, its own costs and latency, its parent beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from test_leaderboard import in_table, measurement, result

from pocketzoo import Architecture, Budget
from pocketzoo.leaderboards import records
from pocketzoo.leaderboards.build import as_markdown
from pocketzoo.leaderboards.pick import judge
from pocketzoo.leaderboards.places import measured
from pocketzoo.leaderboards.records import Records
from pocketzoo.leaderboards.table import EFFECTIVE, TOP1, Row, measured_networks, rows

NAME = "lenet_300_100, resolution 8"
ARCH = Architecture.of("lenet_300_100", resolution=8)
PRUNED, FACTORISED = "prune | huffman", "svd(energy=0.9) | huffman"
PARENT = result(ARCH, test=0.9)


def compressed(recipe: str, file_bytes: int, test: float = 0.85, parent: Mapping[str, Any] = PARENT) -> dict[str, Any]:
    """As `compress` leaves it, apart from what no table reads."""
    kept = {name: parent[name] for name in ("recipe", "accuracy", "costs", "provenance")}
    made = result(ARCH, test=test)
    made["costs"] = {"params": 1200, "macs": 50000, EFFECTIVE: 5000, "file_bytes": file_bytes}
    made["provenance"] |= {
        "date": f"2031-05-07T00:00:00+00:00, {recipe}",
        "compression": {"recipe": recipe, "folder": f"runs/{file_bytes}"},
        "parent": {"run": "runs/first", **kept},
    }  # fmt: skip
    return made


def mine(*results: Mapping[str, Any]) -> list[Row]:
    return [row for row in rows(Records(results=results)) if row.dataset == "digits"]


def labels(table: Sequence[Row]) -> list[str]:
    return [row.network.label for row in table]


def test_two_recipes_and_their_parent_are_three_rows() -> None:
    table = mine(PARENT, compressed(PRUNED, 700, 0.85), compressed(FACTORISED, 900, 0.8))
    assert labels(table) == [NAME, f"{NAME}, {PRUNED}", f"{NAME}, {FACTORISED}"]
    assert len({row.network.key for row in table}) == 3
    assert [row.value("size_bytes") for row in table] == [4 * 1234, 700, 900]
    assert [row.value(EFFECTIVE) for row in table] == [None, 5000, 5000]
    assert [row.value(TOP1) for row in table] == [90, 85, 80]
    assert str(table[1].cells["size_bytes"]) == "counted from the packed file: its bytes on disk"
    assert str(table[1].cells[TOP1]).startswith("measured on the test images of digits after prune | huffman (90.00% ")
    assert table[1].network.create == "pocketzoo.load('runs/700')"


def test_a_parent_is_there_once_whether_it_was_added_or_not() -> None:
    small, other = compressed(PRUNED, 700), compressed(FACTORISED, 900)
    for table in (mine(small, other), mine(other, PARENT, small)):
        row = in_table(table, NAME, "digits")
        assert (row.value(TOP1), row.value("params"), row.others) == (90, 1234, ())
        assert "after 4 epochs" in str(row.cells[TOP1])


def test_what_was_compressed_twice_says_so() -> None:
    first = compressed(FACTORISED, 900)
    table = mine(compressed(PRUNED, 700, 0.7, parent=first))
    assert labels(table) == [NAME, f"{NAME}, {FACTORISED}", f"{NAME}, {FACTORISED}, then {PRUNED}"]
    assert [row.value("size_bytes") for row in table] == [4 * 1234, 900, 700]


def test_own_widths_have_the_same_name_before_and_after() -> None:
    narrow = json.loads(ARCH.with_widths({"hidden1": 24}).to_json())
    table = mine({**compressed(PRUNED, 700), "architecture": narrow})
    assert labels(table)[1] == f"{labels(table)[0]}, {PRUNED}"
    assert "own widths" in labels(table)[0]


def test_a_latency_belongs_to_what_was_measured() -> None:
    """The parent's is not the compressed network's, and nothing predicts that one's."""
    own = {**json.loads(ARCH.to_json()), "compression": [PRUNED]}
    held = Records(
        (measurement("runs/700", 3.5, arch=ARCH, architecture=own), measurement("first", 9.5, arch=ARCH)),
        (PARENT, compressed(PRUNED, 700), compressed(FACTORISED, 900)),
    )
    table = [row for row in rows(held, measured_networks(held)) if row.dataset == "digits"]
    [latencies] = measured(held).values()
    found = [latencies.get(row.network.key) for row in table]
    assert [figure and figure.value for figure in found] == [9.5, 3.5, None]
    assert labels(rows(Records(held.measurements), measured_networks(held))).count(f"{NAME}, {PRUNED}") == 1


def test_pick_takes_the_packed_size(tmp_path: Path) -> None:
    records.add([PARENT, compressed(PRUNED, 700, 0.85), compressed(FACTORISED, 900, 0.8)], tmp_path)
    picked = judge(Budget(size="1KB"), dataset="digits", records=[tmp_path])
    assert [v.row.value("size_bytes") for v in picked.fitting] == [700, 900]
    [fallen] = picked.fallen
    assert fallen.row.network.label == NAME


def test_no_latency_is_predicted_for_it(tmp_path: Path) -> None:
    records.add([PARENT, compressed(PRUNED, 700)], tmp_path)
    picked = judge(Budget(latency="99ms", device="pixel1"), dataset="digits", records=[tmp_path])
    assert [v.row.network.label for v in picked.fitting] == [NAME]
    assert "only the zoo's own networks are predicted" in picked.fallen[0].reasons[0]


def test_columns_that_only_compressed_networks_fill_are_shown_with_them() -> None:
    assert "effective MACs" not in as_markdown(mine(PARENT), {})
    text = as_markdown(mine(compressed(PRUNED, 11_900)), {})
    [line] = [line for line in text.splitlines() if "prune" in line]
    assert "| 0.05 | 0.005 | 0.0012 | 0.0119 |" in line
