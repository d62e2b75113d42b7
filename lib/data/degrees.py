"""Degrees of latitude and longitude as people and programs write them: in EXIF and in the cells of tables."""

from __future__ import annotations

import re
from decimal import Decimal
from numbers import Real

import numpy as np
import pandas as pd

LIMITS = {"latitude": 90.0, "longitude": 180.0}
HEMISPHERES = {
    "latitude": {"n": 1.0, "north": 1.0, "s": -1.0, "south": -1.0},
    "longitude": {"e": 1.0, "east": 1.0, "w": -1.0, "west": -1.0},
}
NOTHING = {"", "na", "n/a", "nan", "null", "none", "-", "--", r"\n"}
"""What stands in a cell, in lower case, where there is no number."""
_NUMBER = r"(?:\d+(?:[.,]\d*)?|[.,]\d+)"
_WRITTEN = re.compile(
    rf"""(?P<before>[a-z]*)\s*
    (?P<sign>[-+\u2212]?)\s*(?P<degrees>{_NUMBER}(?:e[-+]?\d+)?)\s*
    (?:(?:°|º|˚|deg(?:rees?)?\.?|d|:|\s)\s*
       (?:(?P<minutes>{_NUMBER})\s*(?:'|′|’|m(?:in)?\.?|:|\s|(?=[a-z])|$)\s*
          (?:(?P<seconds>{_NUMBER})\s*(?:''|"|″|”|s(?:ec)?\.?(?=\s|$)|(?=[a-z])|\s|$)\s*)?)?)?
    (?P<after>[a-z]*)""",
    re.VERBOSE,
)
"""Such as -33.9, 33.9S, S 33,9, 48.85°, 48°51'24"N, 48 deg 51' 24.00" N, 48:51:24."""


def of_column(values: pd.Series, name: str, references: pd.Series | None = None) -> pd.Series:
    """A column as float64: degrees; NaN where a cell holds nothing, infinite where it makes no sense.

    Args:
        values: cells of any kind: numbers, decimals, text with degree signs or letters of the hemisphere.
        name: latitude or longitude.
        references: hemispheres of a column beside it, such as exiftool's GPSLatitudeRef.
    """
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = pd.Series(values.to_numpy(np.float64, na_value=np.nan), values.index)
    else:
        cells = values.astype(object)
        numbers = pd.Series([of_cell(cell, name) for cell in cells], values.index, dtype="float64")
    if references is not None:
        signs = np.array([hemisphere(one, name) for one in references.astype(object)])
        said = references.notna() & ~references.astype(str).str.strip().str.lower().isin(NOTHING)
        is_unsigned = said.any() and not (numbers < 0).any()
        unsaid = np.isnan(signs) & (numbers > 0) & (said | is_unsigned) & ~values.map(_has_letter)
        numbers = numbers.where(~((signs > 0) & (numbers < 0)) & ~unsaid, np.inf)  # or the two contradict
        numbers = numbers.where(~(signs < 0), -numbers.abs())
    return numbers.where(numbers.isna() | (numbers.abs() <= LIMITS[name]), np.inf)


def of_cell(cell: object, name: str) -> float:
    """One cell of :func:`of_column`; its limit is not checked."""
    if isinstance(cell, Real | Decimal) and not isinstance(cell, bool | np.bool_):
        return float(cell)
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return np.nan
    if not isinstance(cell, str):
        return np.inf
    text = cell.strip().lower()
    return np.nan if text in NOTHING else _of_text(text, name)


def _has_letter(cell: object) -> bool:
    """Whether a cell names its hemisphere itself."""
    found = _WRITTEN.fullmatch(cell.strip().lower()) if isinstance(cell, str) else None
    return bool(found and (found["before"] or found["after"]))


def _of_text(text: str, name: str) -> float:
    found = _WRITTEN.fullmatch(text)
    if found is None or (found["before"] and found["after"]):
        return np.inf
    degrees, minutes, seconds = (
        float((found[part] or "0").replace(",", ".")) for part in ("degrees", "minutes", "seconds")
    )
    if ((minutes or seconds) and degrees % 1.0) or (seconds and minutes % 1.0):
        return np.inf  # two numbers in one cell, not degrees and minutes
    letter = found["before"] or found["after"]
    return signed((degrees, minutes, seconds), found["sign"] in {"-", "\u2212"}, letter or None, name)


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
