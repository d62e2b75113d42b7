"""OpenStreetView-5M: street-level photos of the whole world, from the Hugging Face hub or one's own disk.

Layout: ``images/{train,test}/NN.zip`` (98 and 5 archives of about 50,000 photos ``NN/<id>.jpg``),
``train.csv``, ``test.csv``. Photos are read straight out of the archives, or out of the folder ``NN`` of an
unpacked one. Splits: the official training split, less a seeded random cut for validation; the official test
split. Source: Astruc et al., arXiv 2404.18873; https://huggingface.co/datasets/osv5m/osv5m (CC BY-SA 4.0).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from lib.data.manifest import OUTSIDE, Built, require_columns
from lib.data.photos import ENDINGS, open_archive
from lib.data.tables import LIMITS, read_csv
from lib.method.errors import BundleError
from lib.runs import checksum, progress, write_json
from lib.runs.files import READING_ERRORS, one_line
from lib.settings import OSV5M

REPOSITORY = "osv5m/osv5m"
SHARDS = {"train": 98, "test": 5}
"""Archives a split on the hub."""
TABLES = ("train.csv", "test.csv")
TEXTS = ("id", "country", "region", "sub-region", "city")
COLUMNS = (
    *TEXTS, "latitude", "longitude", "captured_at", "land_cover", "road_index", "drive_side", "climate",
    "soil", "dist_sea",
)  # fmt: skip
"""What is read of the tables: not their addresses, names of users, sequences, and cells of several grids."""
LOCK = "osv5m.json"
"""Beside the tables: the commit of the first download, and each downloaded file's size and checksum."""
SPARE_BYTES = 2**30
"""What a download must leave free."""
FEWER = "choose fewer shards (dataset.train_shards, dataset.test_shards)"


def obtain(settings: OSV5M, root: Path) -> None:
    """Download what is chosen and not there. BundleError: something is missing and cannot be had, the disk is
    too small, or a checksum is wrong."""
    there = _lock(root).get("revision")
    if settings.revision and there and not there.startswith(settings.revision):
        said = f"the files here are of commit {there}, and dataset.revision={settings.revision}"
        raise BundleError(f"{root / LOCK}: {said}; set another dataset.root for it")
    missing = [name for name in TABLES if not (root / name).is_file()]
    missing += [f"{shard}.zip" for shard in _shards(settings) if _source(root, shard) is None]
    if missing and not settings.download:
        said = f"{missing[0]} is not there ({len(missing)} of the chosen files are not)"
        remedy = f"set dataset.root to the folder that holds images/, train.csv and test.csv, or {FEWER}"
        raise BundleError(f"{root}: {said} and dataset.download is off; put them there, {remedy}")
    if missing:
        _download(missing, settings, root)


def listing(settings: OSV5M, root: Path) -> str:
    """Digest of the tables, the archives by size and time, and the unpacked photos by name and size."""
    found: list[tuple[str, object]] = [(name, checksum(root / name)) for name in TABLES]
    for shard in _shards(settings):
        source = _source(root, shard) or root / f"{shard}.zip"
        status = source.stat()
        sizes = [(path.relative_to(root).as_posix(), path.stat().st_size) for path in _unpacked(source)]
        found.append((shard, sizes if source.is_dir() else [status.st_size, status.st_mtime_ns]))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def build(settings: OSV5M, root: Path) -> Built:
    """The manifest of the chosen shards, and what was left out: rows without photo, photos without row, no
    coordinates. BundleError: a table or an archive cannot be used, or validation takes half of the photos."""
    parts = [_split(settings, root, split) for split in SHARDS]
    photos = pd.concat([part.photos for part in parts], ignore_index=True)
    train = np.flatnonzero(photos["split"] == "train")
    if len(train) == 0:
        said = "no row of train.csv has a photo in the chosen shards"
        raise BundleError(f"{root}: {said}; photos are called as the column id says; is it another table?")
    if settings.validation > len(train) // 2:
        said = f"would take more than half of the {len(train):,} training photos; lower it"
        raise BundleError(f"{root}: dataset.validation={settings.validation:,} {said} or choose more shards")
    chosen = np.random.default_rng(settings.seed).permutation(train)[: settings.validation]
    photos.loc[chosen, "split"] = "validation"
    return Built(photos, pd.concat([part.left_out for part in parts], ignore_index=True))


def _shards(settings: OSV5M, split: str | None = None) -> list[str]:
    """Chosen shards, such as ``images/train/07``; of both splits or of one."""
    chosen = {"train": settings.train_shards, "test": settings.test_shards}
    return [
        f"images/{name}/{number:02d}"
        for name, count in SHARDS.items()
        if split in (None, name)
        for number in range(count if chosen[name] == "all" else min(count, chosen[name]))
    ]


def _split(settings: OSV5M, root: Path, split: str) -> Built:
    """Rows of one official split that have a photo in the chosen shards, and what was left out."""
    shards, source = _shards(settings, split), root / f"{split}.csv"
    table, names = _read_table(source), []
    for shard in progress(shards, f"listing {split} photos", len(shards)):
        names += _photos_of(root, shard)
    paths = pd.Series(names, index=[PurePosixPath(name).stem for name in names], dtype="str")
    paths = paths[~paths.index.duplicated()]
    without_row, has_photo = paths[~paths.index.isin(table["id"])], table["id"].isin(paths.index)
    left_out = [(photo, path, f"no row in {source.name}") for photo, path in without_row.items()]
    lacking = table["id"][~has_photo]
    if len(shards) == SHARDS[split]:
        left_out += [(photo, "", f"{source.name}: its photo is in no archive") for photo in lacking]
    elif len(lacking):
        left_out.append(("", "", f"{source.name}: rows without photo in the chosen shards: {len(lacking):,}"))
    photos = table[has_photo].assign(split=split)
    photos.insert(1, "path", paths[photos["id"]].to_numpy())
    placed = (photos[[*LIMITS]].abs() <= [*LIMITS.values()]).all(axis=1)
    unplaced = photos.loc[~placed, ["id", "path"]].itertuples(index=False)
    left_out += [(*one, f"{source.name}: no usable coordinates") for one in unplaced]
    # In the order of the archives: to open one takes as long as to decode fifty photos.
    photos = photos[placed].sort_values("path", ignore_index=True)
    return Built(photos, pd.DataFrame(left_out, columns=["id", "path", "reason"]))


def _read_table(source: Path) -> pd.DataFrame:
    """``COLUMNS`` of the table, ids as text, coordinates float64; of rows with one id the first counts."""
    try:
        known = read_csv(source, nrows=1)
        require_columns(known, ("id", *LIMITS), source)
        used = [name for name in known if name in COLUMNS]
        # Not by usecols, which passes over rows that are too long. "NA" is Namibia, not a missing value.
        options = {"keep_default_na": False, "na_values": ["", "NaN"], "low_memory": False}
        options |= {"dtype": dict.fromkeys(TEXTS, "str"), "index_col": False, "chunksize": 100_000}
        blocks = pd.read_csv(source, **options)
        table = pd.concat([block[used] for block in blocks], ignore_index=True)
    except READING_ERRORS as error:
        raise BundleError(f"{source}: cannot be read as CSV ({one_line(error)}); download it anew") from error
    for name in LIMITS:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    return table.drop_duplicates("id")


def _source(root: Path, shard: str) -> Path | None:
    """Its unpacked folder, unless the archive beside it holds more photos; its archive; or None."""
    folder, archive = root / shard, root / f"{shard}.zip"
    if folder.is_dir() and not (archive.is_file() and len(_unpacked(folder)) < len(_members(archive))):
        return folder
    return archive if archive.is_file() else None


def _photos_of(root: Path, shard: str) -> list[str]:
    """Paths below ``root`` of a shard's photos, in order of their names."""
    source = _source(root, shard) or root / f"{shard}.zip"
    if source.is_dir():
        return [path.relative_to(root).as_posix() for path in _unpacked(source)]
    return [f"{shard}.zip/{name}" for name in sorted(_members(source))]


def _unpacked(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)


def _members(archive: Path) -> list[str]:
    """Names of an archive's photos. BundleError: it cannot be read, or holds a name that leaves the
    folder."""
    try:
        members = dict.fromkeys(open_archive(archive).namelist())  # an archive may hold a name twice
    except (OSError, zipfile.BadZipFile) as error:
        why = f"cannot be read as an archive ({one_line(error)}); delete it and download it anew"
        raise BundleError(f"{archive}: {why}") from error
    names = [name for name in members if PurePosixPath(name).suffix.lower() in ENDINGS]
    outside = pd.Series(names, dtype="str").str.contains(OUTSIDE, regex=True)
    if outside.any():
        name = names[int(outside.argmax())]
        raise BundleError(f"{archive}: its member {name!r} would leave the folder; do not use it")
    return names


def _lock(root: Path) -> dict:
    """What earlier downloads into ``root`` noted."""
    if not (root / LOCK).is_file():
        return {"repository": REPOSITORY, "files": {}}
    try:
        lock = json.loads((root / LOCK).read_text(encoding="utf-8"))
        return {"revision": lock.get("revision"), **lock, "files": dict(lock["files"])}
    except READING_ERRORS as error:
        why = f"damaged ({one_line(error)}); delete it: what has been downloaded stays"
        raise BundleError(f"{root / LOCK}: {why}, and the next download writes it anew") from error


def _download(names: list[str], settings: OSV5M, root: Path) -> None:
    """Download ``names`` into ``root``; files that have arrived are kept after a stop.

    All of one commit: the settings', else the one that ``LOCK`` has of the first download. Sizes are checked
    against the free disk beforehand, checksums (SHA-256) afterwards.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    root.mkdir(parents=True, exist_ok=True)
    lock = _lock(root)
    try:
        api = HfApi()
        wanted = settings.revision or lock.get("revision")
        lock["revision"] = api.dataset_info(REPOSITORY, revision=wanted).sha
        described = api.get_paths_info(REPOSITORY, names, repo_type="dataset", revision=lock["revision"])
        entries = {entry.path: entry for entry in described}
        if unknown := [name for name in names if name not in entries]:
            said = f"has no {unknown[0]} at {lock['revision']}; check dataset.revision"
            raise BundleError(f"{REPOSITORY} {said}")
        needed, free = sum(entries[name].size for name in names) + SPARE_BYTES, shutil.disk_usage(root).free
        if needed > free:
            said = f"takes {needed / 1e9:,.1f} GB, with 1 GB to spare, and {free / 1e9:,.1f} GB are free"
            remedy = f"{FEWER} or another dataset.root"
            raise BundleError(f"{root}: to download {len(names)} files {said}; {remedy}")
        for name in progress(names, "downloading", len(names)):
            hf_hub_download(REPOSITORY, name, repo_type="dataset", revision=lock["revision"], local_dir=root)
            lock["files"][name] = _verified(root / name, entries[name])
            write_json(root / LOCK, lock)
    except (HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        said = f"{names[0]} is not there ({len(names)} files are not) and the hub does not give it now"
        remedy = f"what has arrived is kept: try again, put {REPOSITORY}'s files there, or {FEWER}"
        raise BundleError(f"{root}: {said} ({one_line(error)}); {remedy}") from error


def _verified(path: Path, entry: object) -> dict[str, str | int]:
    """Size and SHA-256 of a downloaded file; one that is not what the hub says it is, is deleted."""
    found = checksum(path)
    lfs = getattr(entry, "lfs", None)
    if path.stat().st_size != entry.size or (lfs is not None and lfs.sha256 != found):
        path.unlink()
        raise BundleError(f"{path}: arrived damaged (not the hub's checksum) and was deleted; run it again")
    return {"size": entry.size, "sha256": found}
