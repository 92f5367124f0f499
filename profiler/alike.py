"""Which candidates of a search are the same to an operator: it sees one or two of their widths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.intp]
FEW = 300  # candidates that are priced sooner than they are compared


def alike(sizes: Sequence[npt.NDArray[np.float64]]) -> tuple[Places, Places] | None:
    """A candidate for each combination of these sizes, whole numbers [N], and which of them each candidate is like [N].

    None where that saves nothing: more combinations are possible than there are candidates, or these are few.
    """
    if not sizes or len(sizes[0]) < FEW:
        return None
    combination, possible = np.zeros(len(sizes[0])), 1
    for size in sizes:
        low = size.min()
        different = int(size.max() - low) + 1
        combination = combination * different + (size - low)
        possible *= different
        if possible > len(size):
            return None
    number = np.rint(combination).astype(np.intp)
    last = np.full(possible, -1)
    last[number] = np.arange(len(number))
    seen = np.flatnonzero(last >= 0)
    of_each = last[seen]
    last[seen] = np.arange(len(seen))
    return of_each, last[number]
