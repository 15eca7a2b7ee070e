"""What the fuzzers do to files: to bytes, to lines, and to trees of plain values (YAML, JSON)."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

# fmt: off
NUMBERS: tuple[Any, ...] = (
    0, 1, 2, 3, 5, 7, 64, 100, -1, -7, 255, 256, 1000, 65536, 10**6, 10**9, 10**10, 10**18, 2**31,
    2**32, 2**63, 2**64, 10**60,
    -(2**63), -(10**30), 0.0, -0.0, 0.1, 0.5, 0.999, 1.0, 1.5, 3.0, 1e-300, 1e-9, 1e300, -1.5,
    float("inf"), float("nan"),
)
WORDS: tuple[str, ...] = (
    "", " ", "a", "0", "1e3", "null", "true", "None", "nan", "-", ".", "..", "*", "**", "[", "]",
    "{}", "a.b", "a b", "~", "\\",
    "'", '"', "it's", "\x00", "\x1b[31m", "\x1b]52;c;aGk=\x07", "\x9b1m", "\u202eabc", "\u2066",
    "\ud7ff", "é", "e\u0301", "字",
    "\U0001f600", "²", "٣", "Ⅷ", "ﬁ", "İ", "\ufeff", "\u2028", "\r\n", "\t", "%s", "%(x)s", "{0}",
    "$HOME", "`id`", "<script>",
    "no/such/file", "../x", "\udc80", "(", "(?P<label>", "[^", "a{99999}", "(?P<label>.*)",
    "x" * 300, "x" * 5000,
)
PUT_IN = (b"\x00", b"\xff", b"\n", b"\r", b'"', b"'", b"\t", b"{", b"\xed\xa0\x80", b"\xc0\x80",
 b"\xef\xbb\xbf", b"\x1b]")
BEFORE = ("  ", "\t", " ", "- ", "# ", "? ", "&a ", "*a ", "!!python/object/apply:os.system ",
 "--- ")
AFTER = (" &x", ": *x", "\r", "\t", " #", ",", "]", "}", '"', "'", "|", ">", "\x00", "\x85")
# fmt: on
Tree = Any


def value(rng: random.Random) -> Any:
    """A value of any type, most of them extreme."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 7:
        return rng.choice(WORDS)
    if kind == 7:
        return rng.choice([None, True, False])
    if kind == 8:
        return rng.choice(
            [
                [],
                {},
                [[]],
                [None],
                [0, 0],
                [1.5] * 3,
                {"type": None},
                {"": 1},
                {"a": {"b": {}}},
                ["a"] * 50,
            ]
        )
    deep: Any = rng.choice([1, "x"])
    for _ in range(rng.choice([3, 30, 90])):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def places(tree: Tree) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in a tree."""
    items = (
        list(tree.items())
        if isinstance(tree, dict)
        else list(enumerate(tree))
        if isinstance(tree, list)
        else []
    )
    for key, inner in items:
        yield tree, key
        yield from places(inner)


def otherwise(rng: random.Random, old: Any) -> Any:
    """A value in another form: another type, another size, slightly off."""
    if isinstance(old, bool):
        return rng.choice([not old, int(old), str(old)])
    if isinstance(old, int):
        return rng.choice(
            [
                old + 1,
                old - 1,
                -old,
                old * 2,
                old * 1000,
                float(old),
                str(old),
                [old],
                old * 10**12,
                old + 0.5,
            ]
        )
    if isinstance(old, float):
        return rng.choice(
            [
                -old,
                old * 1e6,
                old / 1e6,
                str(old),
                [old],
                round(old) if math.isfinite(old) else 0,
                1 - old,
            ]
        )
    if isinstance(old, str):
        place = rng.randrange(len(old) + 1)
        slip = old[:place] + rng.choice(WORDS) + old[place:]
        return rng.choice(
            [slip, slip, old.upper(), old[:place], old[::-1], [old], {"type": old}, {old: old}]
        )
    if isinstance(old, list):
        return rng.choice(
            [
                old + old,
                old * 20,
                old[:-1],
                old[::-1],
                dict(enumerate(map(str, old))),
                old[0] if old else 0,
                [old],
            ]
        )
    if isinstance(old, dict):
        return rng.choice(
            [list(old.items()), list(old), [old], dict(reversed(list(old.items()))), str(old)]
        )
    return value(rng)


def mutate_tree(rng: random.Random, tree: Tree, donors: list[Tree], names: list[str]) -> Tree:
    """A tree with one to four changes.

    `donors` are other trees, parts of which are moved in; `names` are known keys.
    """
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 4])):
        found = list(places(tree))
        if not found:
            return tree
        container, key = rng.choice(found)
        _change(rng, tree, container, key, found, donors, names)
    return tree


def seen(trees: list[Tree]) -> dict[Any, list[Any]]:
    """What stands under each key of mappings, anywhere in some trees."""
    found: dict[Any, list[Any]] = {}
    for container, key in (place for tree in trees for place in places(tree)):
        if isinstance(container, dict):
            found.setdefault(key, []).append(container[key])
    return found


def _change(
    rng: random.Random,
    tree: Tree,
    container: Any,
    key: Any,
    found: list[Any],
    donors: list[Tree],
    names: list[str],
) -> None:
    """One change, at container[key]."""
    kind = rng.randrange(14)
    if kind >= 9:  # what stands under this key elsewhere: most of these are right
        container[key] = copy.deepcopy(rng.choice(seen(donors).get(key) or [1, 2, 3, 0.5]))
    elif kind <= 1:
        container[key] = value(rng)
    elif kind <= 3:
        container[key] = otherwise(rng, container[key])
    elif kind == 4:
        del container[key]
    elif kind == 5:  # two places change their contents
        other, at = rng.choice(found)
        if at in (other if isinstance(other, dict) else range(len(other))):
            container[key], other[at] = copy.deepcopy(other[at]), copy.deepcopy(container[key])
    elif kind == 6:  # what stands elsewhere, of this tree or of another
        source, at = rng.choice(list(places(rng.choice([tree, *donors]))) or found)
        taken = copy.deepcopy(source[at])
        if isinstance(container, dict) and isinstance(at, str) and rng.random() < 0.5:
            container[at] = taken
        else:
            container[key] = taken
    elif kind == 7 and isinstance(container, dict):  # a key that is another's, or misspelt
        container[rng.choice([*names, key + "s", key[:-1], rng.choice(WORDS)])] = (
            value(rng) if rng.random() < 0.5 else container[key]
        )
    elif isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(container[key]))
    else:
        moved = container.pop(key)
        container[rng.choice([*names, str(key).upper(), f" {key}", rng.choice(WORDS)])] = moved


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes with one to three changes: flipped, cut, put in, repeated, moved, set to extremes."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        content = rng.choice(_BYTES)(rng, bytearray(content))
    return content


def _flip(rng: random.Random, content: bytearray) -> bytes:
    for _ in range(rng.choice([1, 1, 4, 30])):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def _flip_early(rng: random.Random, content: bytearray) -> bytes:
    """In the header, where most decisions are made."""
    for _ in range(rng.choice([1, 2])):
        if content:
            content[rng.randrange(min(len(content), 64))] = rng.choice(
                [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
            )
    return bytes(content)


def _cut(rng: random.Random, content: bytearray) -> bytes:
    return bytes(
        content[
            : rng.choice(
                [
                    0,
                    1,
                    7,
                    8,
                    len(content) // 2,
                    max(0, len(content) - 1),
                    rng.randrange(len(content) + 1),
                ]
            )
        ]
    )


def _take_out(rng: random.Random, content: bytearray) -> bytes:
    start = rng.randrange(len(content) + 1)
    return bytes(content[:start] + content[start + rng.choice([1, 2, 4, 16, 100]) :])


def _put_in(rng: random.Random, content: bytearray) -> bytes:
    start = rng.randrange(len(content) + 1)
    inserted = rng.choice(PUT_IN)
    return bytes(content[:start]) + inserted * rng.choice([1, 1, 2, 100]) + bytes(content[start:])


def _repeat(rng: random.Random, content: bytearray) -> bytes:
    start = rng.randrange(len(content) + 1)
    piece = content[start : start + rng.choice([1, 4, 30, 300])]
    return bytes(content[:start] + piece * rng.choice([2, 2, 20, 300]) + content[start:])


def _overwrite(rng: random.Random, content: bytearray) -> bytes:
    """Four or eight bytes as an extreme number."""
    width = rng.choice([2, 4, 8])
    start = rng.randrange(max(1, len(content) - width))
    number = rng.choice(
        [0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1, 2**16 - 1]
    )
    content[start : start + width] = (number % 2 ** (8 * width)).to_bytes(
        width, rng.choice(["little", "big"])
    )
    return bytes(content)


_BYTES: list[Callable[[random.Random, bytearray], bytes]] = [
    _flip, _flip, _flip_early, _flip_early, _cut, _take_out, _put_in, _repeat, _overwrite,
    _overwrite,
]  # fmt: skip


def mutate_lines(rng: random.Random, text: str) -> str:
    """A text with one to three changes of whole lines or of words in them."""
    lines = text.split("\n")
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(lines))
        kind = rng.randrange(8)
        if kind == 0:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
        elif kind == 1 and len(lines) > 1:
            del lines[at]
        elif kind == 2:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 3:
            lines[at] = rng.choice(BEFORE) + lines[at]
        elif kind == 4:
            lines[at] = lines[at] + rng.choice(AFTER)
        elif kind == 5:
            place = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + rng.choice(WORDS) + lines[at][place:]
        elif kind == 6:
            lines = (
                lines[:at]
                if rng.random() < 0.3
                else lines[:at] + [lines[at]] * rng.choice([2, 10, 200]) + lines[at:]
            )
        else:
            words = lines[at].split(" ")
            words[rng.randrange(len(words))] = str(rng.choice(rng.choice([NUMBERS, WORDS])))
            lines[at] = " ".join(words)
        lines = lines or [""]
    return "\n".join(lines)
