"""Degrees of latitude and longitude: their limits, and how cameras and programs write them into EXIF."""

from __future__ import annotations

import numpy as np

LIMITS = {"latitude": 90.0, "longitude": 180.0}
HEMISPHERES = {
    "latitude": {"n": 1.0, "north": 1.0, "s": -1.0, "south": -1.0},
    "longitude": {"e": 1.0, "east": 1.0, "w": -1.0, "west": -1.0},
}


def of_exif(parts: object, reference: object, name: str) -> float:
    """Degrees of an EXIF tag (degrees, minutes, seconds) and of its hemisphere's tag, text or bytes; NaN
    where they make no sense. The degrees may have a sign, which must not contradict the hemisphere. Raises
    TypeError, ValueError or ZeroDivisionError where the tag holds no numbers."""
    first, *rest = (float(part) for part in (parts if isinstance(parts, tuple | list) else (parts,)))
    sign = hemisphere(reference, name)
    size = abs(first) + sum(part / 60.0**power for power, part in enumerate(rest, start=1))
    makes_sense = all(0.0 <= part <= 60.0 for part in rest) and not (first < 0.0 and sign > 0.0)
    return sign * size if makes_sense and size <= LIMITS[name] else np.nan


def hemisphere(written: object, name: str) -> float:
    """1 for north and east, -1 for south and west, however it is written; NaN where it is neither."""
    text = written.decode("latin-1") if isinstance(written, bytes) else str(written)
    return HEMISPHERES[name].get(text.strip(" \t\r\n\0.").lower(), np.nan)
