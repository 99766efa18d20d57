"""Mutations of a file's bytes, of its lines, and of the values in JSON or YAML."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 255, 10**5, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, 2**63, 2**64, 10**30,
    -(10**30), 0.5, -0.5, 1e-30, 1e-300, 1e30, 1e308, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *NUMBERS, None, True, False, "", "x", "0", "1e400", "nan", "a" * 5000, "a\0b", "\x1b[31m", "é☃",
    "../x", "/dev/zero", "/", ".", "CON", "{text}", "%s%n", [], [0], [None], [[]], {}, {"a": {}},
    [1, 2, 3], [1.5, "x"], {"1": "a"}, {"": ""}, [10**30] * 3, [0, 0, 0], [-1, -1, -1],
)  # fmt: skip
WORDS = (
    "", "0", "-1", "1e400", "nan", "inf", "9" * 30, "9" * 5000, "-0", "0x10", "1_0", "٣", "x",
    "a" * 2000, "%n", "%s", "%99999999d", "\0", "\x1b[31m", "\ufeff", "../x", "/dev/zero", ".",
    "[" * 3000, "{" * 3000, "(" * 300, '"', "'", ",", ";", "\t", "=", ":", "# ", "&a", "*a", "!!x",
    "!!python/object/apply:os.getcwd []", "2024-13-45", "? ", "---", "<<: *a", "🩻", "\r", "\u2028",
)  # fmt: skip
NESTED = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A few hundred bytes of YAML that stand for 9^9 words."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A mutated file."""

    content: bytes
    how: str
    first: int
    """Offset of the first byte that differs from the original, or its length."""
    shorter: bool
    """The original without its end."""


def mutate(content: bytes, form: str, draw: random.Random) -> Mutation:
    """A mutation of a file.

    Args:
        content: of the file.
        form: "bytes", "text" (a text header may precede bytes), "json", "jsonl" or "yaml".
        draw: decides.
    """
    choices: list[Callable[[bytes, random.Random], bytes]] = list(BYTES)
    if form != "bytes":
        choices = [*TEXT, *TEXT, *TEXT, draw.choice(BYTES)]
    if form in ("json", "jsonl", "yaml"):
        choices += [FORMS[form]] * 20
    function = draw.choice(choices)
    made = function(content, draw)
    if draw.random() < 0.2:
        made = draw.choice(choices)(made, draw)
    pairs = enumerate(zip(made, content, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(made), len(content)))
    shorter = len(made) < len(content) and first == len(made)
    return Mutation(content=made, how=function.__name__, first=first, shorter=shorter)


def bits(content: bytes, draw: random.Random) -> bytes:
    """Some flipped bits, also among the first 400 bytes, where headers are."""
    changed = bytearray(content or b"x")
    for _ in range(draw.choice((1, 1, 1, 2, 5, 30))):
        last = draw.choice((len(changed), min(400, len(changed))))
        changed[draw.randrange(last)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def integers(content: bytes, draw: random.Random) -> bytes:
    """An integer or float of the header replaced by a telling one."""
    changed = bytearray(content or b"x")
    width = draw.choice((1, 2, 4, 8))
    largest = 2 ** (8 * width)
    value = draw.choice(
        (0, 1, largest - 1, largest // 2, largest // 2 - 1, 0x7FC0, draw.getrandbits(64))
    )
    at = draw.randrange(min(400, len(changed)))
    changed[at : at + width] = (value % largest).to_bytes(width, draw.choice(("little", "big")))
    return bytes(changed[: len(content)])


def truncated(content: bytes, draw: random.Random) -> bytes:
    """Without the end."""
    return content[: draw.choice((0, len(content) - 1, draw.randrange(len(content) + 1)))]


def zeroed(content: bytes, draw: random.Random) -> bytes:
    """Zeros from somewhere on, as after a power cut, or in between."""
    start, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    end = draw.choice((end, len(content)))
    return content[:start] + bytes(end - start) + content[end:]


def moved(content: bytes, draw: random.Random) -> bytes:
    """A part left out, doubled, or put in again elsewhere."""
    start, end, place = sorted(draw.randrange(len(content) + 1) for _ in range(3))
    part = content[start:end]
    return draw.choice(
        (content[:start] + content[end:], content[:end] + part + content[end:],
         content[:place] + part + content[place:])
    )  # fmt: skip


def longer(content: bytes, draw: random.Random) -> bytes:
    """Bytes behind the end: a few, itself again, or compressed zeros that are gigabytes."""
    return content + draw.choice((b"\0", b"x" * 1000, content, zeros(), draw.randbytes(40)))


def replaced(content: bytes, draw: random.Random) -> bytes:
    """Something else altogether."""
    return draw.choice(
        (b"", b"\0" * 400, draw.randbytes(400), zeros(), b"\x1f\x8b", b"PK\3\4" + bytes(100),
         NESTED.encode(), b"\xff\xfe" + "a: 1".encode("utf-16-le"), b"[" * 100_000)
    )  # fmt: skip


@cache
def zeros() -> bytes:
    """A gzip file of 2 GB of zeros, in many members, of 2 MB."""
    return gzip.compress(bytes(1 << 26), 9) * 32


BYTES = (bits, bits, bits, integers, integers, truncated, zeroed, moved, longer, replaced)


def word(content: bytes, draw: random.Random) -> bytes:
    """A word replaced by a telling one; a header's, where bytes follow it."""
    end = _header_end(content)
    words = content[:end].split(b" ")
    at = draw.randrange(len(words))
    words[at] = draw.choice(WORDS).encode() + draw.choice((b"", b"\n"))
    return b" ".join(words) + content[end:]


def cell(content: bytes, draw: random.Random) -> bytes:
    """What is between two separators replaced by a telling word."""
    end = _header_end(content)
    separator = draw.choice((b",", b":", b"=", b"\n", b"\t", b'"'))
    parts = content[:end].split(separator)
    parts[draw.randrange(len(parts))] = draw.choice(WORDS).encode()
    return separator.join(parts) + content[end:]


def lines(content: bytes, draw: random.Random) -> bytes:
    """A line left out, doubled, moved or made very long."""
    end = _header_end(content)
    parts = content[:end].split(b"\n")
    line = parts.pop(draw.randrange(len(parts)))
    inserted = draw.choice(([], [line, line], [line], [line * draw.choice((40, 4000))]))
    at = draw.randrange(len(parts) + 1)
    return b"\n".join([*parts[:at], *inserted, *parts[at:]]) + content[end:]


def encoded(content: bytes, draw: random.Random) -> bytes:
    """Another encoding, byte order mark or line end."""
    text = content[: _header_end(content)].decode("latin-1")
    rest = content[len(text) :]
    other = draw.choice((text.replace("\n", "\r\n"), text.replace("\n", "\r"), text.upper()))
    changed = (text.encode("utf-16"), other.encode("latin-1", "ignore"))
    return draw.choice((b"\xef\xbb\xbf" + content, *(one + rest for one in changed)))


TEXT = (word, word, cell, cell, lines, encoded)


def json_value(content: bytes, draw: random.Random) -> bytes:
    """A value of a JSON file replaced, left out, or put under another key."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return word(content, draw)
    return json.dumps(_changed(value, draw)).encode()


def jsonl_value(content: bytes, draw: random.Random) -> bytes:
    """The same in a line of a JSONL file."""
    parts = content.split(b"\n")
    at = draw.randrange(max(1, len(parts) - 1))
    parts[at] = json_value(parts[at], draw)
    return b"\n".join(parts)


def yaml_value(content: bytes, draw: random.Random) -> bytes:
    """The same in a YAML file."""
    try:
        value = yaml.safe_load(content)
    except Exception:
        return word(content, draw)
    return yaml.safe_dump(_changed(value, draw), sort_keys=False).encode()


FORMS = {"json": json_value, "jsonl": jsonl_value, "yaml": yaml_value}


def _changed(value: Any, draw: random.Random) -> Any:
    """A copy of nested lists and dictionaries with one value changed."""
    places = list(_places(value))
    if not places:
        return draw.choice(VALUES)
    holder, key = draw.choice(places)
    chance = draw.random()
    if chance < 0.1:
        del holder[key]
    elif chance < 0.15 and isinstance(holder, dict):
        holder[draw.choice(WORDS)] = holder.pop(key)
    elif chance < 0.2 and isinstance(holder, list):
        holder *= 20
    else:
        numeric = isinstance(holder[key], int | float) and draw.random() < 0.7
        holder[key] = draw.choice(NUMBERS if numeric else VALUES)
    return value


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(inner) if isinstance(inner, dict | list) else ()


def _header_end(content: bytes) -> int:
    """Length of the text before bytes, if any."""
    for mark in (b"\n\n", b"ElementDataFile = LOCAL\n"):
        at = content.find(mark)
        if at >= 0 and b"\0" in content[at:]:
            return at
    return len(content)
