"""Which entropy coder the packer uses. Without such a pass each stream takes the one that makes it smallest."""

from __future__ import annotations

from dataclasses import dataclass

from ..compression import Compression


@dataclass(frozen=True)
class Huffman:
    """Code every stream that can be with Huffman's code, as Deep Compression does."""

    def apply(self, compression: Compression) -> Compression:
        """Say so to the packer."""
        return compression.changed(coder="huffman")
