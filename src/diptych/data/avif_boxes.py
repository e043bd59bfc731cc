"""The size of the frames in an AVIF, which can be larger than its boxes claim.

A box may claim 64 x 64 pixels, and readers report and return a picture of that size; but the coded frame inside has a
size of its own, and that is what the codec decodes. (ISO/IEC 14496-12; AV1 bitstream specification, 5.5.) libheif
compares the two itself.
"""

from __future__ import annotations

from collections.abc import Iterator

_MOST_BOXES = 10_000
_MOST_PIECES = 1_000
"""Pictures in one file, extents of a picture, units of a bitstream."""
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"iprp", b"ipco")
_SEQUENCE_HEADER = 1

Box = tuple[bytes, int, int]
"""Name, start of its content, end of its content."""


def coded_size(data: bytes) -> tuple[int, int]:
    """Width and height of the largest coded frame anywhere in the file; 0, 0 if there is none.

    Broken parts are skipped: the decoder refuses them.
    """
    sizes = [(0, 0)]
    boxes = list(_boxes(data, 0, len(data)))
    for meta in [box for box in boxes if box[0] == b"meta"]:
        sizes += [size for item in _items(data, meta) for size in _sizes_of_av1(item)]
    for name, start, end in boxes:
        if name in (b"stco", b"co64"):  # positions of an animation's samples
            width = 4 if name == b"stco" else 8
            first = int.from_bytes(data[start + 8 : min(start + 8 + width, end)], "big")
            sizes += _sizes_of_av1(data[first:] if first else b"")
    return max(sizes, key=lambda size: size[0] * size[1])


def _boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """All boxes between start and end, and those inside `_CONTAINERS` and `meta`."""
    pending = [(start, end)]
    for _ in range(_MOST_BOXES):
        if not pending:
            return
        start, end = pending.pop()
        if start + 8 > end:
            continue
        length, name, content = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], start + 8
        if length == 1:
            length, content = int.from_bytes(data[start + 8 : start + 16], "big"), start + 16
        stop = min(start + length, end) if length else end
        if stop <= start:
            continue
        yield name, content, stop
        pending.append((stop, end))
        if name in _CONTAINERS:
            pending.append((content, stop))
        elif name == b"meta":
            pending.append((content + 4, stop))


def _items(data: bytes, meta: Box) -> Iterator[bytes]:
    """The bytes of each item of a file (ISO/IEC 14496-12, 8.11.3)."""
    within = {name: (start, end) for name, start, end in reversed(list(_boxes(data, meta[1] + 4, meta[2])))}
    start, end = within.get(b"iloc", (0, 0))
    numbers = _Numbers(data[start:end])
    version = numbers.take(8)
    numbers.take(24)
    offset_bits, length_bits, base_bits, index_bits = (8 * numbers.take(4) for _ in range(4))
    wide = 32 if version == 2 else 16
    for _ in range(min(numbers.take(wide), _MOST_PIECES)):
        numbers.take(wide)
        method = numbers.take(16) & 15 if version in (1, 2) else 0
        numbers.take(16)
        base = numbers.take(base_bits)
        pieces, left = [], len(data)
        for _ in range(min(numbers.take(16), _MOST_PIECES)):
            numbers.take(index_bits if version in (1, 2) else 0)
            first, length = base + numbers.take(offset_bits), numbers.take(length_bits)
            first += within.get(b"idat", (0, 0))[0] if method == 1 else 0
            pieces.append(data[first : first + min(length or left, left)])
            left -= len(pieces[-1])
        yield b"".join(pieces)


def _sizes_of_av1(units: bytes) -> Iterator[tuple[int, int]]:
    """The sizes in all sequence headers of a series of open bitstream units."""
    position = 0
    for _ in range(_MOST_PIECES):
        if position >= len(units):
            return
        header = units[position]
        position += 2 if header & 4 else 1
        length = len(units) - position
        if header & 2:
            length, position = _leb128(units, position)
        if header >> 3 & 15 == _SEQUENCE_HEADER:
            yield _size_of_sequence(_Numbers(units[position : position + min(length, 200)]))
        position += length


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    """The number at this position, and the position after it."""
    value = 0
    for place in range(8):
        byte = data[position + place] if position + place < len(data) else 0
        value |= (byte & 127) << 7 * place
        if byte < 128:
            break
    return value, position + place + 1


def _size_of_sequence(bits: _Numbers) -> tuple[int, int]:
    """The largest frame that an AV1 sequence header allows (5.5.1)."""
    bits.take(4)
    if bits.take(1):  # reduced, of a single picture
        bits.take(5)
    else:
        delay_bits = 0
        if bits.take(1):  # timing
            bits.take(64)
            if bits.take(1):
                bits.unsigned()
            if has_model := bits.take(1):
                delay_bits = bits.take(5) + 1
                bits.take(42)
        else:
            has_model = 0
        has_delay = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if has_model and bits.take(1):
                bits.take(2 * delay_bits + 1)
            if has_delay and bits.take(1):
                bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


class _Numbers:
    """Reads numbers of a given number of bits one after another; zeros after the end."""

    def __init__(self, data: bytes):
        self._data = data
        self._position = 0

    def take(self, bits: int) -> int:
        first, end = self._position, self._position + bits
        self._position = end
        part = self._data[first // 8 : -(-end // 8)].ljust(-(-end // 8) - first // 8, b"\0")
        return int.from_bytes(part, "big") >> (-end % 8) & ((1 << bits) - 1)

    def unsigned(self) -> int:
        """The next number in AV1's `uvlc` code."""
        zeros = 0
        while zeros < 32 and self._position < 8 * len(self._data) and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)
