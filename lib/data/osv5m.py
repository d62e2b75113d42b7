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
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import compute

from lib.data.manifest import OUTSIDE, Built, require_columns
from lib.data.photos import ENDINGS, open_archive
from lib.data.tables import LIMITS
from lib.method.errors import BundleError
from lib.runs import checksum, locks, progress, write_json
from lib.runs.files import READING_ERRORS, one_line, refusals_named, signature
from lib.runs.machine import note
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
WAITS = 10
"""How often a rate limit of the hub is waited out, for each thing that is asked of it."""
FEWER = "choose fewer shards (dataset.train_shards, dataset.test_shards)"


def obtain(settings: OSV5M, root: Path) -> None:
    """Download what is chosen and not there. BundleError: something is missing and cannot be had, the disk is
    too small, or a checksum is wrong."""
    there = _lock(root).get("revision")
    if settings.revision and there and not there.startswith(settings.revision):
        said = f"the files here are of commit {there}, and dataset.revision={settings.revision}"
        raise BundleError(f"{root / LOCK}: {said}; set another dataset.root for it")
    missing = _missing(settings, root)
    if missing and not settings.download:
        said = f"{missing[0]} is not there ({len(missing)} of the chosen files are not)"
        remedy = f"set dataset.root to the folder that holds images/, train.csv and test.csv, or {FEWER}"
        raise BundleError(f"{root}: {said} and dataset.download is off; put them there, {remedy}")
    if missing:
        with refusals_named(root):
            root.mkdir(parents=True, exist_ok=True)
            # else two runs would remove each other's unfinished files
            with locks.waiting(root / ".osv5m.lock"):
                if missing := _missing(settings, root):
                    _download(missing, settings, root)


def _missing(settings: OSV5M, root: Path) -> list[str]:
    """Chosen files that are not there; unpacked folders count as their archives."""
    shards = [one for one in _shards(settings) if not (root / one).is_dir()]
    return [name for name in (*TABLES, *(f"{one}.zip" for one in shards)) if not (root / name).is_file()]


def listing(settings: OSV5M, root: Path) -> str:
    """Digest of the tables and archives by size and time, and of the unpacked photos by name and size; the
    latter are listed once in a process, until something is added to their folder or removed from it."""
    found: list[tuple] = [(name, *signature(root / name)[:2]) for name in TABLES]
    found += [(shard, _source(root, shard)[1]) for shard in _shards(settings)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def build(settings: OSV5M, root: Path) -> Built:
    """The manifest of the chosen shards, and what was left out: rows without photo, photos without row, no
    coordinates. BundleError: a table or an archive cannot be used, or validation takes half of the photos."""
    parts = [_split(settings, root, split) for split in SHARDS]
    left_out = pd.concat([part.left_out for part in parts], ignore_index=True)
    photos = pd.concat([parts.pop(0).photos for _ in SHARDS], ignore_index=True)
    train = np.flatnonzero(photos["split"] == "train")
    if len(train) == 0:
        said = "no row of train.csv has a photo in the chosen shards"
        raise BundleError(f"{root}: {said}; photos are called as the column id says; is it another table?")
    if settings.validation > len(train) // 2:
        said = f"would take more than half of the {len(train):,} training photos; lower it"
        raise BundleError(f"{root}: dataset.validation={settings.validation:,} {said} or choose more shards")
    chosen = np.random.default_rng(settings.seed).permutation(train)[: settings.validation]
    photos.loc[chosen, "split"] = "validation"
    return Built(photos, left_out)


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
    table, listed = _read_table(source), []
    for shard in progress(shards, f"listing {split} photos", len(shards)):
        names = _photos_of(root, shard)  # as Python's own texts those of all shards would be a gigabyte
        ids = pd.Series([PurePosixPath(name).stem for name in names], dtype="str")
        listed.append(pd.DataFrame({"id": ids, "path": pd.Series(names, dtype="str")}))
    paths = pd.concat(listed).drop_duplicates("id").reset_index(drop=True)
    known = pa.array(paths["id"])
    found = compute.index_in(pa.array(table["id"]), known).fill_null(-1).to_numpy()  # each row's photo
    without_row = paths.drop(found[found >= 0])
    left_out = [(*one, f"no row in {source.name}") for one in without_row.itertuples(index=False)]
    if lacking := int((found < 0).sum()):
        left_out.append(("", "", f"{source.name}: rows without photo in the chosen shards: {lacking:,}"))
    placed = (table[[*LIMITS]].abs() <= [*LIMITS.values()]).all(axis=1).to_numpy()
    unplaced = paths.iloc[found[(found >= 0) & ~placed]].itertuples(index=False)
    left_out += [(*one, f"{source.name}: no usable coordinates") for one in unplaced]
    # In the order of the archives: to open one takes as long as to decode fifty photos.
    chosen = np.flatnonzero((found >= 0) & placed)
    chosen = chosen[np.argsort(found[chosen])]
    photos = table.iloc[chosen].reset_index(drop=True)
    photos.insert(1, "path", paths["path"].take(found[chosen]).reset_index(drop=True))
    photos["split"] = pd.Series(split, index=photos.index, dtype="str")
    return Built(photos, pd.DataFrame(left_out, columns=["id", "path", "reason"]))


def _read_table(source: Path) -> pd.DataFrame:
    """``COLUMNS`` of the table, ids as text, coordinates float64; of rows with one id the first counts."""
    try:
        known = pd.read_csv(source, nrows=1, index_col=False)
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


def _source(root: Path, shard: str) -> tuple[Path, str]:
    """Its unpacked folder, unless the archive beside it holds more photos, or its archive; a digest of it."""
    both = root / shard, root / f"{shard}.zip"
    return _chosen(*both, *(signature(path)[:2] if path.exists() else None for path in both))


@lru_cache(maxsize=sum(SHARDS.values()))
def _chosen(folder: Path, archive: Path, of_folder: object, of_archive: object) -> tuple[Path, str]:
    """Remembered as long as size and time of both are the same: to list five million photos takes minutes."""
    photos = _unpacked(folder) if folder.is_dir() else None
    if photos is None or (of_archive and len(photos) < len(_members(archive))):
        return archive, str(of_archive)
    sizes = "".join(f"{path.relative_to(folder)} {path.stat().st_size}\n" for path in photos)
    return folder, hashlib.sha256(sizes.encode(errors="surrogateescape")).hexdigest()


def _photos_of(root: Path, shard: str) -> list[str]:
    """Paths below ``root`` of a shard's photos, in order of their names."""
    source, _ = _source(root, shard)
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
    """Download ``names`` into ``root``; whole files that have arrived are kept after a stop.

    All of one commit: the settings', else the one that ``LOCK`` has of the first download. Sizes are checked
    against the free disk beforehand, checksums (SHA-256) afterwards. The hub's client moves a file by
    renaming it, and begins a stopped one anew under another name: what stopped ones left is removed.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for left in (root / ".cache" / "huggingface").rglob("*.incomplete"):
        left.unlink(missing_ok=True)
    lock = _lock(root)
    try:
        api = HfApi()
        wanted = settings.revision or lock.get("revision")
        info = _patiently(lambda: api.dataset_info(REPOSITORY, revision=wanted))
        commit = lock["revision"] = info.sha
        lock.setdefault("last_modified", info.last_modified and info.last_modified.isoformat())
        lock.setdefault("first_download", datetime.now(UTC).isoformat(timespec="seconds"))
        about = {"repo_type": "dataset", "revision": commit}
        described = _patiently(lambda: api.get_paths_info(REPOSITORY, names, **about))
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
            _patiently(partial(hf_hub_download, REPOSITORY, name, local_dir=root, **about))
            lock["files"][name] = _verified(root / name, entries[name])
            write_json(root / LOCK, lock)
    except (HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        said = f"{names[0]} is not there ({len(names)} files are not) and the hub does not give it now"
        remedy = f"what has arrived is kept: try again, put {REPOSITORY}'s files there, or {FEWER}"
        raise BundleError(f"{root}: {said} ({one_line(error)}); {remedy}") from error


def _patiently(ask: Callable[[], Any]) -> Any:
    """What ``ask`` returns. A rate limit (HTTP 429) is waited out, as the hub asks, ``WAITS`` times."""
    left = WAITS
    while True:
        try:
            return ask()
        except OSError as error:
            told = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
            if left == 0 or getattr(told, "status_code", None) != 429:
                raise
            left, said = left - 1, told.headers.get("Retry-After", "")
        seconds = min(int(said), 3_600) if said.isdecimal() else 60
        note(
            f"the hub limits requests (HTTP 429): asking again in {seconds} s, then {left} more times at most"
        )
        time.sleep(seconds)


def _verified(path: Path, entry: object) -> dict[str, str | int]:
    """Size and SHA-256 of a downloaded file; one that is not what the hub says it is, is deleted."""
    found = checksum(path)
    lfs = getattr(entry, "lfs", None)
    if path.stat().st_size != entry.size or (lfs is not None and lfs.sha256 != found):
        path.unlink()
        raise BundleError(f"{path}: arrived damaged (not the hub's checksum) and was deleted; run it again")
    return {"size": entry.size, "sha256": found}
