"""Java's regular expressions, replacements and numbers, as Python reads and writes them."""

from __future__ import annotations

import math
import re
import struct
import warnings
from collections.abc import Callable

__all__ = ["double_text", "float_text", "java_regex", "java_replacement"]


def java_regex(pattern: str) -> re.Pattern[str]:
    """Compile a Java regular expression. Raises re.error, also for what Python reads in another way: sets in sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        try:
            return re.compile(re.sub(r"\(\?<(?![=!])", "(?P<", pattern))
        except FutureWarning as warning:
            raise re.error(f"{warning}, which is not honoured") from warning


def java_replacement(text: str, regex: re.Pattern[str]) -> Callable[[re.Match[str]], str]:
    """Return what Java's replaceFirst puts in place of a match: ``$1``, ``${name}``, ``\\`` before any character.

    Raises ValueError for a group that does not exist.
    """
    parts: list[str | int] = []
    for literal, named, number, escaped in re.findall(r"([^$\\]+)|\$\{(\w+)\}|\$(\d)|\\(.)", text, re.DOTALL):
        if named:
            if named not in regex.groupindex:
                raise ValueError(f"there is no group {named!r}")
            parts.append(regex.groupindex[named])
        elif number:
            if int(number) > regex.groups:
                raise ValueError(f"there is no group {number}")
            parts.append(int(number))
        else:
            parts.append(literal or escaped)
    return lambda found: "".join(part if isinstance(part, str) else found[part] or "" for part in parts)


def double_text(value: float) -> str:
    """Write a number as Double.toString does: 1.0, 1.0E10, 1.0E-5, NaN, Infinity."""
    return _written(value, repr(abs(value)))


def float_text(value: float) -> str:
    """Write a number of single precision as Float.toString does: the fewest digits that tell it from others."""
    if not math.isfinite(value) or not value:
        return _written(value, "0.0")
    texts = (f"{abs(value):.{digits}g}" for digits in range(1, 10))
    return _written(value, next(text for text in texts if _single(float(text)) == _single(abs(value))))


def _single(value: float) -> bytes:
    """Round to single precision."""
    try:
        return struct.pack(">f", value)
    except OverflowError:
        return b""


def _written(value: float, digits: str) -> str:
    if math.isnan(value):
        return "NaN"
    sign = "-" if math.copysign(1, value) < 0 else ""
    if math.isinf(value):
        return f"{sign}Infinity"
    mantissa, _, exponent = digits.partition("e")
    whole, _, fraction = mantissa.partition(".")
    shift = len(whole) + int(exponent or 0)
    figures = (whole + fraction).lstrip("0")
    shift -= len(whole + fraction) - len(figures)
    figures = figures.rstrip("0")
    if not figures:
        return f"{sign}0.0"
    if -3 < shift <= 7:  # from 0.001 to below ten millions
        padded = figures.rjust(len(figures) - min(shift - 1, 0), "0").ljust(shift, "0")
        point = max(shift, 1)
        return f"{sign}{padded[:point]}.{padded[point:] or '0'}"
    return f"{sign}{figures[0]}.{figures[1:] or '0'}E{shift - 1}"
