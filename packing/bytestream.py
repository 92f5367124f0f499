"""Reading bytes that nobody vouches for: every length is checked before anything is taken or allocated."""

from __future__ import annotations

from ..errors import CorruptFile

LARGEST = (1 << 63) - 1


def varint(number: int) -> bytes:
    """A nonnegative whole number, seven bits a byte, the lowest first."""
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


class Reader:
    """Bytes from front to back; raises CorruptFile where they end early."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0

    @property
    def left(self) -> int:
        """Bytes not yet taken."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.left:
            raise CorruptFile(f"the data ends {count - self.left} bytes early")
        part = bytes(self._data[self._at : self._at + count])
        self._at += count
        return part

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)

    def byte(self) -> int:
        """The next byte as a number."""
        return self.take(1)[0]

    def varint(self, most: int = LARGEST) -> int:
        """`varint`'s number, at most `most`."""
        number = shift = 0
        while True:
            byte = self.byte()
            number |= (byte & 0x7F) << shift
            shift += 7
            if number > most or shift > 70:
                raise CorruptFile(f"a number above {most}")
            if byte < 0x80:
                return number
