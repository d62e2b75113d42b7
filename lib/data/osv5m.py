"""OpenStreetView-5M: street-level photos of the whole world, as they lie on the Hugging Face hub or on one's own disk.

Layout: ``images/{train,test}/NN.zip`` (98 and 5 archives of about 50,000 photos ``NN/<id>.jpg``), ``train.csv``, ``test.csv`` (id,
latitude, longitude, country, region, sub-region, city, land_cover, climate, …). For each shard that is chosen the first that is there
is taken: the folder ``NN`` of an unpacked archive, the archive ``NN.zip``, a download. Photos are read straight out of the
archives unless ``dataset.extract`` is set.

Splits: the official training split, less a seeded random cut for validation; the official test split. Every column of the tables
stays in the manifest. Source: Astruc et al., arXiv 2404.18873; https://huggingface.co/datasets/osv5m/osv5m (CC BY-SA 4.0).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from lib.data.manifest import OUTSIDE, Built, ManifestError, read_csv
from lib.data.photos import ENDINGS, MAX_MEMBER_BYTES, open_archive
from lib.runs import checksum, progress, write_json
from lib.runs.files import READING_ERRORS, one_line
from lib.settings import OSV5M

REPOSITORY = "osv5m/osv5m"
SHARDS = {"train": 98, "test": 5}
"""Archives a split on the hub."""
LOCK = "osv5m.json"
"""Beside the tables: the commit of the hub that the first download took, and each downloaded file's size and checksum."""
SPARE_BYTES = 2**30
"""What a download or unpacking must leave free."""


def obtain(settings: OSV5M, root: Path) -> None:
    """Download what is chosen and not there, and unpack it where the settings say so.

    Raises:
        ManifestError: something is missing and cannot be had, the disk is too small, a checksum is wrong, an archive is
            broken or would unpack outside its folder.
    """
    _check_revision(settings, root)
    missing = [name for name in _tables() if not (root / name).is_file()]
    missing += [
        f"{shard}.zip" for shard in _shards(settings) if not (_zip(root, shard).is_file() or _is_unpacked(root, shard))
    ]
    if missing and not settings.download:
        raise ManifestError(
            f"{root}: {missing[0]} is not there ({len(missing)} of the chosen files are not) and dataset.download is off; put the "
            "files there, set dataset.root to the folder that holds images/, train.csv and test.csv, or choose fewer shards "
            "(dataset.train_shards, dataset.test_shards)"
        )
    if missing:
        _download(missing, settings, root)
    if settings.extract:
        for shard in _shards(settings):
            _extract(root, shard)


def listing(settings: OSV5M, root: Path) -> str:
    """Digest of the files that the manifest is made from: archives by size and time, unpacked photos by name and size, tables."""
    found = [(name, checksum(root / name)) for name in _tables()]
    for shard in _shards(settings):
        if _is_unpacked(root, shard):
            found.append((shard, [(name, (root / name).stat().st_size) for name in _photos_of(root, shard)]))
        else:
            status = _zip(root, shard).stat()
            found.append((shard, [status.st_size, status.st_mtime_ns]))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def build(settings: OSV5M, root: Path) -> Built:
    """The manifest of the chosen shards, and what was left out of it: rows without photo, photos without row, no coordinates.

    With fewer shards than there are, a row of another shard cannot be told from a row without photo: such rows are counted in one
    line of what was left out.

    Raises:
        ManifestError: a table or an archive cannot be read, a column is missing, or validation would take half of the photos.
    """
    parts = [_split(settings, root, split) for split in SHARDS]
    photos = pd.concat([part.photos for part in parts], ignore_index=True)
    train = np.flatnonzero(photos["split"] == "train")
    if settings.validation > len(train) // 2:
        raise ManifestError(
            f"{root}: dataset.validation={settings.validation:,} would take more than half of the {len(train):,} training photos; "
            "lower it or choose more shards"
        )
    chosen = np.random.default_rng(settings.seed).permutation(train)[: settings.validation]
    photos.loc[chosen, "split"] = "validation"
    return Built(photos, pd.concat([part.left_out for part in parts], ignore_index=True))


def _tables() -> list[str]:
    return [f"{split}.csv" for split in SHARDS]


def _shards(settings: OSV5M, split: str | None = None) -> list[str]:
    """Chosen shards, such as ``images/train/07``; of both splits or of one."""
    chosen = {"train": settings.train_shards, "test": settings.test_shards}
    return [
        f"images/{name}/{number:02d}"
        for name, count in SHARDS.items()
        if split in (None, name)
        for number in range(count if chosen[name] == "all" else min(count, chosen[name]))
    ]


def _zip(root: Path, shard: str) -> Path:
    return root / f"{shard}.zip"


def _split(settings: OSV5M, root: Path, split: str) -> Built:
    """Rows of one official split that have a photo in the chosen shards, and what was left out."""
    shards, source = _shards(settings, split), root / f"{split}.csv"
    table = _read_table(source)
    names = [name for shard in progress(shards, f"listing {split} photos", len(shards)) for name in _photos_of(root, shard)]
    paths = pd.Series(names, index=[PurePosixPath(name).stem for name in names], dtype="str")
    paths = paths[~paths.index.duplicated()]
    left_out = [(photo, path, f"no row in {source.name}") for photo, path in paths[~paths.index.isin(table["id"])].items()]
    without = ~table["id"].isin(paths.index)
    if len(shards) == SHARDS[split]:
        left_out += [(photo, "", f"{source.name}: its photo is in no archive") for photo in table["id"][without]]
    elif without.any():
        left_out.append(("", "", f"{source.name}: rows without photo in the chosen shards: {int(without.sum()):,}"))
    table = table[~without]
    unplaced = _unplaced(table)
    left_out += [(photo, paths[photo], f"{source.name}: no usable coordinates") for photo in table["id"][unplaced]]
    table = table[~unplaced]
    photos = table.assign(path=paths[table["id"]].to_numpy(), split=split)
    # In the order of the archives: to open one takes as long as to decode fifty photos.
    photos = photos.sort_values("path", ignore_index=True)
    first = ["id", "path", "latitude", "longitude", "split"]
    return Built(
        photos[[*first, *(name for name in photos if name not in first)]],
        pd.DataFrame(left_out, columns=["id", "path", "reason"]),
    )


def _read_table(source: Path) -> pd.DataFrame:
    """The table, ids as text, no id twice (the first row counts)."""
    try:
        # "NA" is Namibia, not a missing value
        table = read_csv(source, dtype={"id": "str"}, keep_default_na=False, na_values=["", "NaN"], low_memory=False)
    except READING_ERRORS as error:
        raise ManifestError(f"{source}: cannot be read as CSV ({one_line(error)}); download it anew") from error
    if lacking := [name for name in ("id", "latitude", "longitude") if name not in table]:
        raise ManifestError(f"{source}: column {lacking[0]!r} is missing; there are {one_line(', '.join(map(str, table)))}")
    return table.drop_duplicates("id").drop(columns=["path", "split"], errors="ignore")


def _unplaced(table: pd.DataFrame) -> pd.Series:
    for name in ("latitude", "longitude"):
        table[name] = pd.to_numeric(table[name], errors="coerce")
    return ~(table["latitude"].abs().le(90.0) & table["longitude"].abs().le(180.0))


def _photos_of(root: Path, shard: str) -> Iterator[str]:
    """Paths below ``root`` of a shard's photos, in order of their names; of an unpacked folder or inside an archive."""
    if _is_unpacked(root, shard):
        yield from (path.relative_to(root).as_posix() for path in _unpacked(root, shard))
        return
    yield from (f"{shard}.zip/{name}" for name in sorted(_members(_zip(root, shard))))


def _unpacked(root: Path, shard: str) -> list[Path]:
    return sorted(path for path in (root / shard).rglob("*") if path.suffix.lower() in ENDINGS)


def _is_unpacked(root: Path, shard: str) -> bool:
    """Whether the shard's folder is what to read: there, and, where the archive is there too, not with fewer photos than it."""
    if not (root / shard).is_dir():
        return False
    archive = _zip(root, shard)
    return not archive.is_file() or len(_unpacked(root, shard)) >= len(_members(archive))


def _members(archive: Path) -> list[str]:
    """Names of an archive's photos.

    Raises:
        ManifestError: it cannot be read, or holds a name that leaves the folder.
    """
    try:
        names = [name for name in open_archive(archive).namelist() if PurePosixPath(name).suffix.lower() in ENDINGS]
    except (OSError, zipfile.BadZipFile) as error:
        raise ManifestError(f"{archive}: cannot be read as an archive ({one_line(error)}); delete it and download it anew") from error
    outside = pd.Series(names, dtype="str").str.contains(OUTSIDE, regex=True)
    if outside.any():
        raise ManifestError(f"{archive}: its member {names[int(outside.argmax())]!r} would leave the folder; do not use it")
    return names


def _extract(root: Path, shard: str) -> None:
    """Unpack a shard's archive beside itself, whole or not at all; nothing where its folder is there already."""
    folder, archive = root / shard, _zip(root, shard)
    if _is_unpacked(root, shard):
        return
    if folder.is_dir():
        raise ManifestError(f"{folder}: holds fewer photos than {archive.name}; delete the folder, and it is unpacked again")
    members = _members(archive)
    opened = open_archive(archive)
    _check_space(root, sum(opened.getinfo(name).file_size for name in members), f"unpack {archive.name}")
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in progress(members, f"unpacking {shard}", len(members)):
        is_photo = opened.getinfo(name).file_size <= MAX_MEMBER_BYTES
        try:
            content = opened.read(name) if is_photo else b""
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):
            content = b""  # kept, so that it is found unreadable, and listed, like any broken photo
        (aside / PurePosixPath(name).name).write_bytes(content)
    os.replace(aside, folder)


def _check_space(root: Path, needed: int, purpose: str) -> None:
    free = shutil.disk_usage(root).free
    if needed + SPARE_BYTES > free:
        raise ManifestError(
            f"{root}: to {purpose} takes {needed / 1e9:,.1f} GB and 1 GB to spare, and {free / 1e9:,.1f} GB are free; choose fewer "
            "shards (dataset.train_shards, dataset.test_shards) or another dataset.root"
        )


def _lock(root: Path) -> dict:
    """What earlier downloads into ``root`` have left about themselves."""
    if not (root / LOCK).is_file():
        return {"repository": REPOSITORY, "files": {}}
    return json.loads((root / LOCK).read_text())


def _check_revision(settings: OSV5M, root: Path) -> None:
    """Refuse to mix two commits of the hub in one folder."""
    there = _lock(root).get("revision")
    if settings.revision and there and not there.startswith(settings.revision):
        raise ManifestError(
            f"{root / LOCK}: the files here are of commit {there}, and dataset.revision={settings.revision}; set another "
            "dataset.root for it"
        )


def _download(names: list[str], settings: OSV5M, root: Path) -> None:
    """Download ``names`` from the hub into ``root``; a download that was stopped goes on where it was.

    All of one commit: the settings', else the one that the first download took, which ``LOCK`` remembers. Sizes are checked
    against the free disk beforehand, checksums (SHA-256) afterwards.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    root.mkdir(parents=True, exist_ok=True)
    lock = _lock(root)
    try:
        api = HfApi()
        wanted = settings.revision or lock.get("revision")
        lock["revision"] = api.dataset_info(REPOSITORY, revision=wanted).sha
        described = api.get_paths_info(REPOSITORY, names, repo_type="dataset", revision=lock["revision"])
        sizes = {entry.path: entry for entry in described}
        if unknown := [name for name in names if name not in sizes]:
            raise ManifestError(f"{REPOSITORY} has no {unknown[0]} at {lock['revision']}; check dataset.revision")
        begun = sum(path.stat().st_size for path in root.rglob("*.incomplete"))
        _check_space(root, max(0, sum(sizes[name].size for name in names) - begun), f"download {len(names)} files")
        for name in progress(names, "downloading", len(names)):
            hf_hub_download(REPOSITORY, name, repo_type="dataset", revision=lock["revision"], local_dir=root)
            lock["files"][name] = _verified(root / name, sizes[name])
            write_json(root / LOCK, lock)
    except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise ManifestError(
            f"{root}: {names[0]} is not there ({len(names)} files are not) and the hub does not give it now "
            f"({' '.join(str(error).split())[:200]}); what has arrived is kept: try again, or put {REPOSITORY}'s files there"
        ) from error


def _verified(path: Path, entry: object) -> dict[str, str | int]:
    """Size and SHA-256 of a downloaded file; one that is not what the hub says it is, is deleted."""
    found = checksum(path)
    lfs = getattr(entry, "lfs", None)
    if path.stat().st_size != entry.size or (lfs is not None and lfs.sha256 != found):
        path.unlink()
        raise ManifestError(f"{path}: arrived damaged (its checksum is not the hub's) and was deleted; run it again")
    return {"size": entry.size, "sha256": found}
