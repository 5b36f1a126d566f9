"""Valid bytes in, bytes that are wrong in the ways in which bytes go wrong, out."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

__all__ = ["mutated"]

_EDGES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
_LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(seeds: Sequence[bytes], chance: Random) -> bytes:
    """Return one of ``seeds`` after one to four accidents; one in fifty is noise alone."""
    if chance.random() < 0.02:
        return chance.randbytes(chance.randint(0, 64))
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4))):
        _ACCIDENTS[int(chance.random() * len(_ACCIDENTS))](data, seeds, chance)
    return bytes(data)


def _place(data: bytearray, chance: Random) -> int:
    return int(chance.random() * len(data)) if data else 0


def _flip(data: bytearray, _seeds: Sequence[bytes], chance: Random) -> None:
    if data:
        data[_place(data, chance)] ^= 1 << int(chance.random() * 8)


def _edge(data: bytearray, _seeds: Sequence[bytes], chance: Random) -> None:
    if data:
        data[_place(data, chance)] = chance.choice(_EDGES)


def _cut(data: bytearray, _seeds: Sequence[bytes], chance: Random) -> None:
    del data[_place(data, chance) :]


def _remove(data: bytearray, _seeds: Sequence[bytes], chance: Random) -> None:
    start = _place(data, chance)
    del data[start : start + chance.randint(1, 8)]


def _insert(data: bytearray, _seeds: Sequence[bytes], chance: Random) -> None:
    start = _place(data, chance)
    data[start:start] = chance.randbytes(chance.randint(1, 8))


def _repeat(data: bytearray, _seeds: Sequence[bytes], chance: Random) -> None:
    start = _place(data, chance)
    data[start:start] = data[start : start + chance.randint(1, 32)] * chance.randint(1, 20)


def _length(data: bytearray, _seeds: Sequence[bytes], chance: Random) -> None:
    start, size = _place(data, chance), chance.choice((1, 2, 4))
    data[start : start + size] = (chance.choice(_LENGTHS) & ((1 << 8 * size) - 1)).to_bytes(size, "big")


def _splice(data: bytearray, seeds: Sequence[bytes], chance: Random) -> None:
    other = chance.choice(seeds)
    data[_place(data, chance) :] = other[int(chance.random() * (len(other) + 1)) :]


_ACCIDENTS = (_flip, _flip, _edge, _cut, _remove, _insert, _repeat, _length, _splice)
