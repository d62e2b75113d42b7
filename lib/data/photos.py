"""Photos, opened upright and in RGB from a folder or a zip archive; and the GPS in their EXIF.

A photo is named by a folder and a path below it, into a zip archive too: ``train/00.zip/00/123.jpg``.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

from lib.data.tables import LIMITS

pillow_heif.register_heif_opener()
ENDINGS = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"}
GPS_IFD = 0x8825
LATITUDE, LONGITUDE = 2, 4
"""EXIF's tags; the hemisphere stands in the tag before each."""
HEMISPHERES = {
    "latitude": {"n": 1.0, "north": 1.0, "s": -1.0, "south": -1.0},
    "longitude": {"e": 1.0, "east": 1.0, "w": -1.0, "west": -1.0},
}
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What undoes each of EXIF's orientations but the first."""
MOST_STRETCHED = 100
"""Longest side of a photo, in shortest sides."""
MAX_MEMBER_BYTES = 256 * 2**20
"""A member of an archive that claims to be larger is no photo."""
UNREADABLE = (
    OSError, SyntaxError, ValueError, KeyError, TypeError, OverflowError, RuntimeError, EOFError, MemoryError,
    struct.error, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What opening a photo raises where the photo is missing or broken."""


def open_photo(root: Path, path: str, smallest_px: int | None = None) -> Image.Image:
    """The photo at ``path`` below ``root``, wholly decoded: RGB, turned as its EXIF says. Raises one of
    ``UNREADABLE``. ``smallest_px``: a JPEG may be decoded at a half, a quarter … down to this side."""
    with Image.open(_source(root, path)) as image:
        if max(image.size) > MOST_STRETCHED * min(image.size):  # its shorter side would be scaled up
            raise ValueError(f"{image.width:,} x {image.height:,} pixels are a strip, not a photo")
        if smallest_px:
            image.draft("RGB", (smallest_px, smallest_px))
        image.load()
        if image.mode.startswith(("I", "F")):  # Pillow would clip them
            raise ValueError("its pixels have more than 8 bits a channel; save it with 8")
        return _upright(image).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """``image`` turned as its EXIF says. Pillow's own way fails where a camera wrote wrong EXIF."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION))
    except (SyntaxError, ValueError, TypeError, struct.error):  # the pixels are fine
        turn = None
    return image if turn is None else image.transpose(turn)


def exif_coordinates(root: Path, path: str) -> tuple[float, float]:
    """Latitude and longitude in degrees of a photo's EXIF; NaN where there are none or they make no sense.
    Exactly 0, 0 is no place: programs write it where they remove one."""
    try:
        with Image.open(_source(root, path)) as image:
            gps = image.getexif().get_ifd(GPS_IFD)
        latitude = of_exif(gps[LATITUDE], gps[LATITUDE - 1], "latitude")
        longitude = of_exif(gps[LONGITUDE], gps[LONGITUDE - 1], "longitude")
    except (*UNREADABLE, ZeroDivisionError):
        return np.nan, np.nan
    is_place = not np.isnan([latitude, longitude]).any() and (latitude, longitude) != (0.0, 0.0)
    return (latitude, longitude) if is_place else (np.nan, np.nan)


def of_exif(parts: object, reference: object, name: str) -> float:
    """Degrees of an EXIF tag (degrees, minutes, seconds) and of its hemisphere's tag, text or bytes; NaN
    where they make no sense. The degrees may have a sign, which must not contradict the hemisphere."""
    first, *rest = (float(part) for part in (parts if isinstance(parts, tuple | list) else (parts,)))
    text = reference.decode("latin-1") if isinstance(reference, bytes) else str(reference)
    sign = HEMISPHERES[name].get(text.strip(" \t\r\n\0.").lower(), np.nan)
    size = abs(first) + sum(part / 60.0**power for power, part in enumerate(rest, start=1))
    makes_sense = all(0.0 <= part <= 60.0 for part in rest) and not (first < 0.0 and sign > 0.0)
    return sign * size if makes_sense and size <= LIMITS[name] else np.nan


def _source(root: Path, path: str) -> Path | io.BytesIO:
    """What Pillow can open: the file itself, or the bytes of an archive's member."""
    before, ending, member = path.partition(".zip/")
    archive = root / (before + ".zip")
    if not ending or not archive.is_file():
        return root / path
    opened = open_archive(archive)
    if opened.getinfo(member).file_size > MAX_MEMBER_BYTES:
        raise ValueError(f"claims to unpack to more than {MAX_MEMBER_BYTES:,} bytes")
    return io.BytesIO(opened.read(member))


def open_archive(path: Path) -> zipfile.ZipFile:
    """The archive at ``path``, kept open: its table of contents is read once a process."""
    status = path.stat()
    return _archive(path, os.getpid(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _archive(path: Path, process: int, size: int, changed_ns: int) -> zipfile.ZipFile:
    """``process`` is in the cache's key because a forked process would share the file's position."""
    return zipfile.ZipFile(path)
