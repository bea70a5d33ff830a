"""Damage to bytes, and edits of JSON data."""

import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

ODD: list[Any] = [
    *(None, True, 0, -1, 1, 2, 10**6, 10**9, 10**20, -(10**20), 0.0, -0.5, 1e300, 1e-300),
    *("", "x", "\x1b[2J", "../..", "/dev/zero", "a" * 5000),
    *([], [0], [[]], {}, {"$tensor": "x"}, {"$module": [0, ""]}, {"$module": [1, "base"]}, {"$tuple": []}, {"$slice": [0, 10**18, 1]}),
    *({"$distribution": ["Normal", {}, {}]}, {"$support": ["positive", []]}),
]


def damage(data: bytes, chance: random.Random) -> bytes:
    """Returns damaged bytes: flips, cuts, insertions, swaps of blocks, zeros."""
    if not data:
        return b"\0"
    place, size = chance.randrange(len(data)), chance.choice([1, 4, 16, 512])
    match chance.randrange(8):
        case 0 | 1:
            return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]
        case 2:
            return data[:place]
        case 3:
            return data[:place] + chance.randbytes(size) + data[place:]
        case 4:
            return data[:place] + data[place + size :]
        case 5:
            return data[:place] + bytes(size) + data[place + size :]
        case 6:
            other = chance.randrange(len(data))
            first, second = sorted((place, other))
            blocks = data[second : second + size], data[first + size : second], data[first : first + size]
            return b"".join([data[:first], *blocks, data[second + size :]])
        case _:
            return data + data[:size]


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of each value inside JSON data."""
    if path:
        yield path
    if isinstance(data, (dict, list)):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield from places(data[key], (*path, key))


def edit(data: Any, chance: random.Random) -> None:
    """Replaces, removes, doubles or moves one value inside JSON data."""
    *path, last = chance.choice(list(places(data)))
    holder = data
    for key in path:
        holder = holder[key]
    match chance.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[last]
        case 1 if isinstance(holder, dict):
            holder[chance.choice(["x", "$tensor", "terms"])] = deepcopy(chance.choice(ODD))
        case 2 if isinstance(holder, list):
            holder.insert(last, holder[last])
        case 3 if isinstance(holder, list):
            del holder[last]
        case 4 if isinstance(holder[last], int) and not isinstance(holder[last], bool):
            holder[last] += chance.choice([-1, 1, 100, 10**9])
        case _:
            holder[last] = deepcopy(chance.choice(ODD))  # a later edit may change it
