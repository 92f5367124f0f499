"""Per layer what Deep Compression's Tables 2 and 3 have (Han et al. 2016, arXiv:1510.00149)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pocketzoo.compress.run import Packed
from pocketzoo.graph.sparsity import prunable
from pocketzoo.packing import coders, masks

INDEX_BITS = 5  # of a gap, in both tables
MOST_LEVELS = 256  # of a layer whose weights are shared


def deep_compression_columns(packed: Packed) -> list[dict[str, Any]]:
    """A row per layer: weights, nonzeros, bits of a weight and of an index without and with Huffman, bytes in the file.

    `pruned_shared_bits` is the whole layer before Huffman coding: weights and gaps, padding zeros included.
    """
    model = packed.compression.model
    rows = []
    for name, weight in prunable(model).items():
        flat = weight.detach().numpy().ravel()
        where = np.flatnonzero(flat)
        levels, which = np.unique(flat[where], return_inverse=True)
        gaps = masks.gap_symbols(where, INDEX_BITS)
        is_shared = len(levels) <= MOST_LEVELS
        weight_bits = int(len(levels) - 1).bit_length() if is_shared else 32
        stored = max(1, len(where))
        coded = 8 * len(coders.encode(which, "huffman")) / stored if is_shared and len(levels) > 1 else None
        rows.append({
            "layer": name.removesuffix(".weight"), "weights": len(flat), "nonzeros": len(where),
            "weight_bits": weight_bits,
            "coded_weight_bits": coded,
            "index_bits": INDEX_BITS, "coded_index_bits": 8 * len(coders.encode(gaps, "huffman")) / stored,
            "pruned_shared_bits": len(gaps) * (weight_bits + INDEX_BITS), "bytes": packed.packed.tensors[name],
        })  # fmt: skip
    return rows
