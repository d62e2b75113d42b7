"""Degrees of latitude and longitude: decimal in tables, degrees, minutes and seconds in EXIF."""

from __future__ import annotations

import numpy as np
import pandas as pd

LIMITS = {"latitude": 90.0, "longitude": 180.0}
HEMISPHERES = {
    "latitude": {"n": 1.0, "north": 1.0, "s": -1.0, "south": -1.0},
    "longitude": {"e": 1.0, "east": 1.0, "w": -1.0, "west": -1.0},
}
NOTHING = {"", "na", "n/a", "nan", "<na>", "null", "none", "-"}
"""What stands in a cell, in lower case, where there is no number."""


def of_column(values: pd.Series) -> pd.Series:
    """A column of decimal degrees as float64: NaN where a cell is empty, infinite where it is no number.

    Args:
        values: numbers, or text with a decimal point or comma.
    """
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return pd.Series(values.to_numpy(np.float64, na_value=np.nan), values.index)
    text = values.astype(object).where(values.notna(), "").astype(str).str.strip().str.lower()
    numbers = pd.to_numeric(text.str.replace(",", "."), errors="coerce").astype("float64")
    return numbers.where(numbers.notna() | text.isin(NOTHING), np.inf)


def signed(parts: tuple[float, ...], is_negative: bool, written: object, name: str) -> float:
    """Degrees, minutes and seconds in degrees, with one sign; infinite where they make no sense.

    Args:
        written: the hemisphere, as it stands there; None where only the sign tells.
    """
    size = sum(part / 60.0**power for power, part in enumerate(parts))
    sign = (-1.0 if is_negative else 1.0) if written is None else hemisphere(written, name)
    makes_sense = all(0.0 <= part <= 60.0 for part in parts[1:]) and not (is_negative and sign > 0)
    return sign * size if makes_sense and np.isfinite(sign) else np.inf


def hemisphere(written: object, name: str) -> float:
    """1 for north and east, -1 for south and west, however it is written; NaN where it is neither."""
    text = written.decode("latin-1") if isinstance(written, bytes) else str(written)
    return HEMISPHERES[name].get(text.strip(" \t\r\n\0.").lower(), np.nan)


def of_exif(parts: object, reference: object, name: str) -> float:
    """Degrees of an EXIF tag and the tag of its hemisphere; NaN or infinite where they make no sense.

    Raises one of TypeError, ValueError, ZeroDivisionError where the tag holds no numbers.
    """
    numbers = tuple(float(part) for part in (parts if isinstance(parts, tuple | list) else (parts,)))
    is_negative = numbers[0] < 0
    return signed((abs(numbers[0]), *numbers[1:]), is_negative, reference, name)
