"""Numbers as people read them: the tables of the terminal, log lines and pages write them alike."""

from __future__ import annotations

import math

UNKNOWN = "\u2013"  # stands where a value is not known

_SIZES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_TIMES = (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1))


def decimal(value: float | None, digits: int, unit: str = "") -> str:
    """Write 1234.5 as 1,234.50; UNKNOWN for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:,.{digits}f}{unit}"


def count(value: float | None) -> str:
    """Write 1234567 as 1,234,567; UNKNOWN for None, NaN and infinities."""
    return decimal(value, 0)


def counted(number: int, noun: str) -> str:
    """Write `1 record` and `1,234 records`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short(value: float, digits: int = 3) -> str:
    """Write 2,345,678 as 2.35M, and below 10,000 in full: five characters for three digits."""
    if not math.isfinite(value):
        return UNKNOWN
    if value < 9999.5:
        return f"{value:.1f}" if value != int(value) and value < 99.95 else f"{value:,.0f}"
    value = float(f"{value:.{digits}g}")  # first, so that 999,999 is 1.00M and not 1000k
    size, unit = next(pair for pair in _SIZES if value >= pair[0])
    whole = len(str(int(value / size)))
    return f"{value / size:.{max(digits - whole, 0)}f}{unit}"


def significant(value: float) -> str:
    """Write a value of any size with three digits, and from 100 on all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(share: float, digits: int = 1) -> str:
    """Write 0.1234 as 12.3%."""
    return f"{share:.{digits}%}"


def not_readable(records: int, num_bytes: int) -> str:
    """Say how much of source files was lost; the number of records is an estimate."""
    size = f", {count(num_bytes)} bytes" if num_bytes else ""  # none of an empty file
    return f"about {counted(records, 'record')}{size} not readable"


def audio_hours(value: float) -> str:
    """Write hours of audio: 0.125, 12.000, 1,234."""
    return decimal(value, 0 if value >= 1000 else 3)


def clock_time(seconds: float) -> str:
    """Write a time in at most six characters: 45s, 12m05s, 7h20m, 3d04h."""
    rounded = round(seconds)
    for unit, size, part_unit, part_size in _TIMES:
        if rounded >= size:
            return f"{rounded // size}{unit}{rounded % size // part_size:02}{part_unit}"
    return f"{rounded}s"


def duration(seconds: float | None) -> str:
    """Write a time in the unit that suits it: 0.4 s, 32 s, 4.1 min, 2.5 h, 1,740 h; "" for None."""
    if seconds is None:
        return ""
    if 0 < seconds < 0.05:
        return "< 0.1 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds else "0 s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 59.95 * 60:
        return f"{seconds / 60:.1f} min"
    in_hours = seconds / 3600
    return decimal(in_hours, 1 if in_hours < 99.95 else 0, " h")


def file_size(num_bytes: float) -> str:
    """Write 1,900,000 bytes as 1.9 MB; "" for none."""
    if not num_bytes:
        return ""
    size, unit = next((pair for pair in _SIZES if num_bytes >= pair[0]), _SIZES[-1])
    return decimal(num_bytes / size, 1, f" {unit}B")
