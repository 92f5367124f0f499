"""The difference of two networks on the same test images, with an interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

Z = 1.959964  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Difference:
    """Accuracy of the first minus that of the second, as shares of the test images, and its 95 % interval.

    The interval covers the choice of test images only: both networks were trained once, from one seed.
    """

    difference: float
    low: float
    high: float
    images: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, float | bool]:
        """Plain values for JSON."""
        return {**asdict(self), "is_clear": self.is_clear}

    @classmethod
    def from_dict(cls, record: dict[str, float]) -> Difference:
        """Read what `to_dict` wrote."""
        return cls(record["difference"], record["low"], record["high"], int(record["images"]))

    def __str__(self) -> str:
        text = f"{100 * self.difference:+.2f} points (95 % interval {100 * self.low:+.2f} to {100 * self.high:+.2f})"
        return text if self.is_clear else f"{text}: no clear difference, the interval holds 0"


def paired_difference(first: Tensor, second: Tensor) -> Difference:
    """Compare which images each gets right, both bool [N], in the same order.

    The interval is the adjusted Wald interval for paired proportions (Bonett and Price 2012, Journal of Educational
    and Behavioral Statistics 37): one image is added to each kind of disagreement, so that few of them do not make it
    too narrow.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"two rows of the same images are needed, not {tuple(first.shape)} and {tuple(second.shape)}")
    n = len(first)
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    p, q = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half = Z * ((p + q - (p - q) ** 2) / (n + 2)) ** 0.5
    return Difference((only_first - only_second) / n, max(-1.0, p - q - half), min(1.0, p - q + half), n)
