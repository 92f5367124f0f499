"""What structured sparsity learning's Table 1 has of LeNet (Wen et al. 2016, arXiv:1608.03665)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

HEAD = (
    "| network | filters | channels read | units | MACs of the convolutions | all MACs | validation error % |"
    " test error % |"
)


class Structure(NamedTuple):
    """Filters of conv1 and conv2, channels that conv2 reads, units."""

    first: int
    second: int
    read: int
    units: int

    @property
    def macs(self) -> tuple[int, int, int]:
        """Of conv1, of conv2, and of all, for images of 28x28."""
        first, second = self.first * 24**2 * 5**2, self.read * self.second * 8**2 * 5**2
        return first, second, first + second + 4**2 * self.second * self.units + 10 * self.units


DENSE = Structure(20, 50, 20, 500)
PAPER = {  # test error %; the paper leaves the units alone
    "the paper's LeNet 1, dense": (DENSE, 0.9),
    "its LeNet 2": (Structure(5, 19, 4, 500), 0.8),
    "its LeNet 3": (Structure(3, 12, 3, 500), 1.0),
}


def structure_rows(lines: Sequence[dict[str, Any]], tests: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each network of the paper, and for each of ours; tests are of those that were chosen."""
    paper = [structure_row(name, own, "", f"{error:.1f}") for name, (own, error) in PAPER.items()]
    test_errors = {(line["trial"], line["seed"]): f"{line['test_error']:.2f}" for line in tests}
    found = []
    for line in lines:
        first, second, units = line["widths"].values()
        own = Structure(first, second, first, units)
        assert own.macs[-1] == line["macs"], line  # or the formula is not this network's
        errors = f"{line['val_error']:.2f}", test_errors.get((line["trial"], line["seed"]), "")
        found.append(structure_row(f"`{line['shrunk']}`, seed {line['seed']}", own, *errors))
    return paper + found


def structure_row(name: str, own: Structure, val_error: str, test_error: str) -> str:
    """One network; its MACs are parts of the dense network's."""
    first, second, total = (f"{macs / dense:.1%}" for macs, dense in zip(own.macs, DENSE.macs, strict=True))
    return (
        f"| {name} | {own.first} - {own.second} | 1 - {own.read} | {own.units} | {first} - {second} | {total} |"
        f" {val_error} | {test_error} |"
    )
