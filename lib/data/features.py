"""Photos to frozen features, once, into a memory-mapped file; and what is read back from it.

Each photo is decoded once. One that cannot be decoded gets a row of NaN, and a line with the reason in
unreadable.csv beside the features; its split is then ``unreadable`` for everybody who reads the manifest
(:func:`lib.data.datasets.read`).

Extraction writes shards of ``backbone.shard_size`` photos, each whole or not at all and with its checksum; a
run that is stopped goes on at the first shard that is missing or damaged. Finished shards are joined into
features.npy [N, D], row i of the manifest's row i.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lib.data import datasets
from lib.data.backbones import Backbone, build, find, weights
from lib.data.photos import UNREADABLE, open_photo
from lib.method.errors import BundleError
from lib.method.geodesy import distance_km
from lib.runs import Run, autocast, checksum, code_digest, generator, progress, ranks, writing
from lib.runs.code import named
from lib.runs.files import READING_ERRORS, one_line, write_json, write_rows
from lib.runs.machine import cores, on_device, one_ahead
from lib.settings import Backbone as BackboneSettings


class Photos(Dataset):
    """Photos below a folder, each decoded once for all of its views.

    An item is bytes [K, 3, H, W], or why there are none.

    The first view is the plain crop; the photos of the mask ``augmented`` have ``views`` others besides,
    drawn by the photo's path and the view's number alone: the same whichever process draws them, and in a run
    that goes on after a stop.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        backbone: Backbone,
        views: int = 0,
        augmented: np.ndarray | None = None,
    ) -> None:
        self.root, self.paths, self.views, self.augmented = root, paths, views, augmented
        self.preprocess = backbone.preprocess
        self.augment = augmentation(backbone) if views else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray | str:
        path = self.paths[index]
        try:
            image = open_photo(self.root, path)
        except UNREADABLE as error:
            return f"{type(error).__name__}: {one_line(error)}"
        count = self.views if self.views and self.augmented[index] else 0
        views = [self._view(image, path, number) for number in range(count)]
        return np.stack([self.preprocess(image).numpy(), *views])

    def _view(self, image: Image.Image, path: str, number: int) -> np.ndarray:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(number, f"view of {path}").initial_seed())
            return np.asarray(self.augment(image)).transpose(2, 0, 1)


def augmentation(backbone: Backbone) -> Callable[[Image.Image], Image.Image]:
    """GeoCLIP's training augmentation, RGB image -> RGB image of the backbone's size.

    Random resized crop, horizontal flip, colour jitter (0.4, 0.4, 0.4, 0.1; p 0.8), greyscale (p 0.2). What
    follows is the backbone's own normalisation; upstream takes ImageNet's for training and CLIP's for
    prediction. Source: GeoCLIP's code.
    """
    from torchvision.transforms import v2

    side = backbone.preprocess(Image.new("RGB", (64, 64))).shape[-2:]
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    return v2.Compose(
        [v2.RandomResizedCrop(tuple(side)), v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(0.2)]
    )


def extract(run: Run) -> Path:
    """Extract the features of the run's manifest, or reuse them; return the path of features.npy.

    Where ``backbone.views`` is V > 1, views.npy is written beside it: V augmented views of each training
    photo. Photos that cannot be decoded are listed in tables/left_out.csv, after what the data set left out.

    Holds one shard in memory. Deterministic on one machine: batches never straddle shards, so a resumed run
    gives the same bits.

    Raises:
        BundleError: no photo can be decoded, or a feature is not finite.
    """
    settings = run.settings.backbone
    used = json.loads(settings.model_dump_json(exclude={"workers", "centred", "precision"}))
    used |= {"arithmetic": run.arithmetic(settings.precision), "weights": weights(settings)}
    outputs = [run.features, datasets.unreadable_list(run), *([run.views] if settings.views > 1 else [])]
    code = [_extract, find(settings).load]

    def make() -> None:
        manifest = datasets.manifest.read(run.manifest, ["id", "path", "split"])
        key = hashlib.sha256(
            json.dumps([used, checksum(run.manifest), [code_digest(named(one)) for one in code]]).encode()
        ).hexdigest()
        _extract(run, manifest, run.features.parent / f"shards-{key[:12]}")

    run.produce(
        "features",
        make=make,
        inputs=[run.manifest],
        outputs=outputs,
        settings=used,
        code=code,
        by="all ranks",
        group="backbone",
    )
    # not before the receipt is written: until then they are all that a killed extraction leaves
    if ranks.rank() == 0:
        _remove_shards(run)
        datasets.write_left_out(run)
    return run.features


def _remove_shards(run: Run, but: Path | None = None) -> None:
    for stale in run.features.parent.glob("shards-*"):
        if stale != but and stale.is_dir():
            shutil.rmtree(stale)


def _extract(run: Run, manifest: pd.DataFrame, folder: Path) -> None:
    """Write the missing shards under ``folder`` and join them; shards of other settings are removed.

    Of several processes each takes every k-th shard that is missing, and the first joins them.
    """
    settings = run.settings.backbone
    if ranks.rank() == 0:
        _remove_shards(run, but=folder)
    shards = {
        folder / f"{start:09d}.npy": range(start, min(start + settings.shard_size, len(manifest)))
        for start in range(0, len(manifest), settings.shard_size)
    }
    missing = ranks.said_by_first([shard for shard in shards if not _is_whole(shard)])
    missing = {shard: shards[shard] for shard in missing[ranks.rank() :: ranks.count()]}
    if missing:
        backbone, paths = build(settings, run.device), manifest["path"].tolist()
        views = settings.views if settings.views > 1 else 0
        photos = Photos(
            datasets.root_of(run), paths, backbone, views, (manifest["split"] == "train").to_numpy()
        )
        made = encode(photos, backbone, settings, run.device, list(missing.values()))
        for (shard, rows), (plain, views, unreadable) in zip(missing.items(), made, strict=True):
            if settings.views > 1:
                _save(shard.with_suffix(".views.npy"), views)
            _save(shard, plain)
            _note(shard, {rows[place]: reason for place, reason in unreadable.items()})
    ranks.wait()
    if ranks.rank() > 0:
        return
    _list_unreadable(run, manifest, shards)
    _join(list(shards), run.features)
    if settings.views > 1:
        _join([shard.with_suffix(".views.npy") for shard in shards], run.views)


def _list_unreadable(run: Run, manifest: pd.DataFrame, shards: Iterable[Path]) -> None:
    """Write unreadable.csv: row in the manifest, id, path, reason.

    Raises:
        BundleError: not a single photo can be decoded.
    """
    reasons = {int(row): reason for shard in shards for row, reason in _noted(shard)["unreadable"].items()}
    if len(reasons) == len(manifest):
        _remove_shards(run)  # whoever mends the photos starts anew
        first = datasets.root_of(run) / manifest["path"].iloc[0]
        raise BundleError(
            f"none of {len(manifest):,} photos can be decoded ({first}: {reasons[0]}); check dataset.root"
        )
    listed = manifest.iloc[list(reasons)][["id", "path"]].assign(reason=list(reasons.values()))
    with writing(datasets.unreadable_list(run)) as aside:
        listed.to_csv(aside, index_label="row")


def encode(
    photos: Photos,
    backbone: Backbone,
    settings: BackboneSettings,
    device: torch.device,
    groups: Sequence[Sequence[int]],
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
    """Of each of ``groups`` of photos: features [n, D], those of the augmented views [m, V, D], why which
    photos have none.

    A photo that cannot be decoded has a row of NaN, no views, and its place in the group -> the reason.

    Photos are decoded ahead by ``settings.workers`` processes, at most one a core. They send arrays of bytes
    through pipes: tensors would need shared memory, of which a container may have 64 MB. A forward pass takes
    about ``settings.batch_size`` images, never of two groups.

    Raises:
        BundleError: a feature is not finite.
    """
    size = max(1, settings.batch_size // (1 + photos.views))
    batches = [list(group[start : start + size]) for group in groups for start in range(0, len(group), size)]
    pieces = [
        batch[start : start + AT_A_TIME] for batch in batches for start in range(0, len(batch), AT_A_TIME)
    ]
    workers = min(settings.workers, cores())
    loader = DataLoader(
        photos,
        batch_sampler=pieces,
        collate_fn=_stack,
        num_workers=workers,
        # Linux's own default until Python 3.14; closures of the preprocessing cannot be sent to a fresh
        # process.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    decoded = one_ahead(_gathered(iter(loader), batches))
    with progress((), "extracting features", len(photos)) as bar:
        bar.update(len(photos) - sum(map(len, groups)))
        for group in groups:
            plain = np.full((len(group), backbone.dimension), np.nan, settings.storage)
            views, unreadable = [], {}
            for start in range(0, len(group), size):
                images, counts, reasons = next(decoded)
                encoded = _forward(images, backbone, settings, device)
                _refuse_infinite(
                    encoded, counts, [photos.paths[row] for row in group[start : start + size]], settings
                )
                first, decoded_here = (np.cumsum(counts) - counts)[counts > 0], start + np.flatnonzero(counts)
                plain[decoded_here] = encoded[first]
                views.append(
                    np.delete(encoded, first, 0).reshape(-1, max(photos.views, 1), backbone.dimension)
                )
                unreadable |= {start + place: reason for place, reason in enumerate(reasons) if reason}
                bar.update(len(counts))
            yield plain, np.concatenate(views), unreadable


AT_A_TIME = 32
"""Photos that a worker decodes before it sends them."""
Decoded = tuple[np.ndarray, np.ndarray, list[str]]
"""The images of a batch of photos, how many are of each photo, and why a photo has none, or nothing."""


def _stack(items: list[np.ndarray | str]) -> Decoded:
    reasons = [item if isinstance(item, str) else "" for item in items]
    images = [item for item in items if not isinstance(item, str)]
    counts = np.array([0 if reason else len(item) for item, reason in zip(items, reasons, strict=True)])
    return np.concatenate(images) if images else np.empty((0, 3, 0, 0), np.uint8), counts, reasons


def _gathered(pieces: Iterator[Decoded], batches: Iterable[Sequence[int]]) -> Iterator[Decoded]:
    """Batches of pieces of up to ``AT_A_TIME`` photos."""
    for batch in batches:
        parts = list(itertools.islice(pieces, -(-len(batch) // AT_A_TIME)))
        images = [images for images, *_ in parts if len(images)]
        counts, reasons = (
            np.concatenate([part[1] for part in parts]),
            [one for part in parts for one in part[2]],
        )
        yield np.concatenate(images) if images else parts[0][0], counts, reasons


def _forward(
    images: np.ndarray, backbone: Backbone, settings: BackboneSettings, device: torch.device
) -> np.ndarray:
    """Features of ``images``, bytes [B, 3, H, W], in the settings' storage type, [B, D]."""
    if len(images) == 0:
        return np.empty((0, backbone.dimension), settings.storage)
    with torch.inference_mode(), autocast(device, settings.precision):
        pixels = on_device(torch.from_numpy(images), device).to(memory_format=torch.channels_last)
        encoded = backbone.encode(pixels).float().cpu().numpy()
    with np.errstate(over="ignore"):  # an overflow is found, and named, by the caller
        return encoded.astype(settings.storage)


def _refuse_infinite(
    encoded: np.ndarray, counts: np.ndarray, paths: list[str], settings: BackboneSettings
) -> None:
    wrong = ~np.isfinite(encoded).all(1)
    if wrong.any():
        photo = paths[int(np.searchsorted(np.cumsum(counts), np.flatnonzero(wrong)[0], side="right"))]
        raise BundleError(
            f"{photo}: its feature is not finite as {settings.storage}; try backbone.storage=float32"
        )


def _save(path: Path, array: np.ndarray) -> None:
    write_rows(path, [array], array.dtype, array.shape)


def _note(shard: Path, unreadable: dict[int, str]) -> None:
    """Write beside a shard, as the last of its files, the checksums of them, and which of its rows have no
    photo and why."""
    of_shard = [path for path in (shard, shard.with_suffix(".views.npy")) if path.exists()]
    sums = {path.name: checksum(path) for path in of_shard}
    write_json(shard.with_suffix(".json"), {"sums": sums, "unreadable": unreadable})


def _noted(shard: Path) -> dict[str, Any]:
    return json.loads(shard.with_suffix(".json").read_text())


def _is_whole(shard: Path) -> bool:
    """Whether the shard, and what belongs to it, is there as it was written; one that is damaged is named."""
    try:
        sums = _noted(shard)["sums"]
        damaged = [name for name, sum_ in sums.items() if checksum(shard.with_name(name)) != sum_]
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return False
    if damaged:
        print(
            f"again   {shard.with_name(damaged[0])} is damaged, its checksum is not the one that was noted",
            flush=True,
        )
    return not damaged


def _join(shards: list[Path], path: Path) -> None:
    first, rows = (
        np.load(shards[0], mmap_mode="r"),
        sum(len(np.load(shard, mmap_mode="r")) for shard in shards),
    )
    # One map at a time: each holds a file open, and there may be more shards than a process may open files.
    write_rows(
        path, (np.load(shard, mmap_mode="r") for shard in shards), first.dtype, (rows, *first.shape[1:])
    )


@dataclass(frozen=True)
class Features:
    """Memory-mapped features, some rows of which are read at a time.

    Attributes:
        stored: [N, D] float16 or float32, row i of the manifest's row i.
        mean: [D], what is subtracted: the training mean where ``backbone.centred``, else zeros.
        views: [n, V, D] of augmented views of the training photos, or None.
        view_rows: the manifest's rows that ``views`` is about, ascending, int64 [n].
        on_card: ``stored`` as a tensor on a GPU, or None.
    """

    stored: np.ndarray
    mean: torch.Tensor
    views: np.ndarray | None = None
    view_rows: np.ndarray | None = None
    on_card: torch.Tensor | None = None

    @property
    def dimension(self) -> int:
        """D."""
        return self.stored.shape[1]

    def rows(self, indices: np.ndarray | torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
        """Features v of the rows ``indices`` [n], float32 [n, D]; they travel to ``device`` as they are
        stored."""
        device = torch.device(device)
        if self.on_card is not None and device.type == self.on_card.device.type:
            return self.on_card[on_device(torch.as_tensor(indices), device)].float()
        return on_device(torch.from_numpy(self.stored[np.asarray(indices)]), device).float()

    def near(self, device: torch.device) -> Features:
        """The same for a training on ``device``: on a GPU, where that takes at most half of what is free."""
        mean = self.mean.to(device)
        if device.type != "cuda" or 2 * self.stored.nbytes > torch.cuda.mem_get_info(device)[0]:
            return replace(self, mean=mean)
        blocks = range(0, len(self.stored), 65_536)
        parts = [torch.from_numpy(self.stored[start : start + 65_536].copy()).to(device) for start in blocks]
        return replace(self, mean=mean, on_card=torch.cat(parts) if len(parts) > 1 else parts[0])

    def directions(self, photos: torch.Tensor) -> torch.Tensor:
        """Unit features u = (v - mean) / ||v - mean|| of features v [n, D]."""
        return F.normalize(photos - self.mean.to(photos.device), dim=1)

    def unit(self, indices: np.ndarray | torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
        """Unit features of the rows ``indices`` [n], float32 [n, D]."""
        return self.directions(self.rows(indices, device))

    def seen_in(self, epoch: int, indices: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        """What the image head sees of the training photos ``indices`` [n] in ``epoch`` (from 1), float32 [n,
        D].

        The plain view where there is no other; else each photo's V views in turn, beginning at one of its
        own, so that with as many views as epochs no view is seen twice.
        """
        if self.views is None:
            return self.rows(indices, device)
        # Knuth's multiplicative hash
        number = (epoch + np.asarray(indices) * 2_654_435_761) % self.views.shape[1]
        seen = torch.from_numpy(self.views[np.searchsorted(self.view_rows, indices), number])
        return on_device(seen, torch.device(device)).float()


def read(run: Run, manifest: pd.DataFrame) -> Features:
    """The run's features, mapped, not loaded.

    Args:
        manifest: the run's, with its column split at least; see :func:`lib.data.datasets.read`.

    Raises:
        ArtefactError: notebook 01 has not made them yet.
        BundleError: the file has other rows than the manifest.
    """
    stored = _mapped(run.require(run.features, "01_data_preparation"))
    if stored.ndim != 2 or len(stored) != len(manifest):
        raise BundleError(
            f"{run.features}: shape {stored.shape} does not fit the manifest's {len(manifest)} rows; run "
            "notebook 01"
        )
    mean, wanted = _training_mean(run, stored, manifest), run.settings.backbone.views
    if wanted == 1:
        return Features(stored, mean)
    views = _mapped(run.require(run.views, "01_data_preparation"))
    if hasattr(mmap, "MADV_RANDOM"):  # else the system reads ahead what nobody will ask for
        views._mmap.madvise(mmap.MADV_RANDOM)
    rows = datasets.manifest.rows_of(manifest, "train")
    if views.shape != (len(rows), wanted, stored.shape[1]):
        raise BundleError(
            f"{run.views}: shape {views.shape} does not fit the settings; run notebook 01 again"
        )
    return Features(stored, mean, views, rows)


def _mapped(path: Path) -> np.ndarray:
    """The array at ``path``, mapped; never unpickled.

    Raises:
        BundleError: it is no array of numbers.
    """
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except READING_ERRORS as error:
        raise BundleError(
            f"{path}: not an array of features ({one_line(error)}); run notebook 01 again"
        ) from error
    if not np.issubdtype(stored.dtype, np.floating):
        raise BundleError(f"{path}: holds {stored.dtype}, not float16 or float32; run notebook 01 again")
    return stored


def _training_mean(run: Run, stored: np.ndarray, manifest: pd.DataFrame) -> torch.Tensor:
    """Mean of the training split's features, float32 [D], in blocks; zeros unless ``backbone.centred``."""
    if not run.settings.backbone.centred:
        return torch.zeros(stored.shape[1])
    rows = datasets.manifest.rows_of(manifest, "train")
    total = sum(
        stored[rows[start : start + 65_536]].sum(0, dtype=np.float64) for start in range(0, len(rows), 65_536)
    )
    return torch.from_numpy((total / len(rows)).astype(np.float32))


def most_alike(frozen: Features, manifest: pd.DataFrame, count: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """For ``count`` random training photos the most alike among them: rows first and second, dissimilarity,
    distance_km."""
    rows = datasets.manifest.rows_of(manifest, "train")
    chosen = np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False)
    unit = frozen.unit(chosen)
    similarity = (unit @ unit.T).fill_diagonal_(-1.0)
    best, twin = similarity.max(1)
    places = datasets.manifest.coordinates(manifest)
    second = chosen[twin.numpy()]
    distance = distance_km(places[chosen], places[second])
    return pd.DataFrame(
        {"first": chosen, "second": second, "dissimilarity": 1.0 - best.numpy(), "distance_km": distance}
    )
