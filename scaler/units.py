"""Numbers as people read them, and back: the one formatter of the project."""

import re
from collections.abc import Mapping
from typing import Any

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]iB|B)?")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|[smhd])")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")


def format_bytes(size_bytes: float) -> str:
    """Format bytes with a binary unit: 1536 is '1.5 KiB'."""
    size, unit = float(size_bytes), _BYTE_UNITS[0]
    for unit in _BYTE_UNITS:
        if abs(size) < 1024 or unit == _BYTE_UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def parse_sizes(text: str) -> list[int]:
    """Read sizes such as '8,16,24GiB' as bytes; a unit counts for the bare numbers before it too.

    Raises:
        ValueError: a size is not a positive number, or none after it has a unit.
    """
    found: list[int] = []
    unit = ""
    for word in reversed(text.split(",")):
        match = _SIZE.fullmatch(word.strip())
        if match is None or float(match[1]) <= 0 or not (match[2] or unit):
            raise ValueError(f"{word.strip()!r} is not a size such as 8GiB or 512MiB")
        unit = match[2] or unit
        found.append(int(float(match[1]) * 1024 ** _BYTE_UNITS.index(unit)))
    return found[::-1]


def bill_lines(items: Mapping[Any, int]) -> list[str]:
    """Write an itemised bill of bytes, largest first, one indented line an item; nothing for zeros."""
    ordered = sorted(items.items(), key=lambda item: -item[1])
    return [f"  {format_bytes(size):>10}  {name.replace('_', ' ')}" for name, size in ordered if size]


def format_seconds(duration_s: float) -> str:
    """Format seconds with the unit that suits their size: 0.0042 is '4.2 ms', 90 is '1m30s'."""
    if duration_s < 1e-3:
        return f"{duration_s * 1e6:.0f} us"
    if duration_s < 0.9995:
        return f"{duration_s * 1e3:.3g} ms"
    if duration_s < 60:
        return f"{duration_s:.3g} s"
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def format_count(value: float) -> str:
    """Format a count with thousands separators, to three digits or the unit: 1437.2 is '1,437'."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def round_rate(learning_rate: float) -> float:
    """Round a learning rate to the four digits that runs are asked with."""
    return float(f"{learning_rate:.4g}")


def parse_seconds(text: str | int | float) -> float:
    """Read a duration such as '90', '90s', '20m' or '1h30m' as seconds.

    Raises:
        ValueError: the text is not a positive duration.
    """
    raw = str(text).strip().lower()
    if _DURATION.fullmatch(raw):
        duration_s = sum(float(n) * _SECONDS[u] for n, u in _PART.findall(raw))
    else:
        try:
            duration_s = float(raw)
        except ValueError:
            raise ValueError(f"{text!r} is not a duration such as 90s, 20m or 1h30m") from None
    if not 0 < duration_s < float("inf"):
        raise ValueError(f"a duration must be positive and finite, not {text!r}")
    return duration_s
