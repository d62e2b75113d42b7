"""Photos to frozen features, once, into a memory-mapped file; and what is read back from it.

A photo that cannot be decoded gets a row of NaN and a line with the reason in unreadable.csv; :func:`photos`
puts it into the split ``unreadable``. features.npy [N, D] grows by whole blocks of ``backbone.shard_size``
photos. A note is kept of each block that is on the disk: after a stop only the others are made.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lib.data import datasets, manifest
from lib.data.backbones import Backbone, build, find, weights
from lib.data.draws import generator
from lib.data.photos import UNREADABLE, open_photo
from lib.method.errors import BundleError
from lib.method.geodesy import distance_km
from lib.runs import Run, cache, cached, machine, progress, ranks, write_json, writing
from lib.runs.files import force, one_line, refusals_named
from lib.runs.machine import autocast, cores, on_device, one_ahead
from lib.settings import Backbone as BackboneSettings

NOT_DECODED = "unreadable"
"""The split of photos that could not be decoded: no stage asks for it."""
AT_A_TIME = 32
"""Photos that a worker decodes before it sends them."""
AT_ONCE = 65_536
"""Photos whose features are loaded together."""
NOTE = "block-{}.json"
"""Written once a block is on the disk; named by its first row."""
READ_BYTES = 2**17
"""What Linux reads ahead at once: 128 KiB, whole pages."""


class Photos(Dataset):
    """Photos below a folder, each decoded once: bytes [K, 3, H, W], or the reason why it cannot be decoded.

    The first view is the plain crop. Photos of the mask ``augmented`` have ``views`` more, drawn by path and
    number alone: the same in every process and after a stop.
    """

    def __init__(
        self, root: Path, paths: Sequence[str], backbone: Backbone, views: int = 0,
        augmented: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.root, self.paths, self.views = root, paths, views
        self.augmented = augmented if views else np.zeros(len(paths), bool)
        self.preprocess, self.augment = backbone.preprocess, augmentation(backbone) if views else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray | str:
        try:
            image = open_photo(self.root, self.paths[index])
        except UNREADABLE as error:
            return f"{type(error).__name__}: {one_line(error)}"
        views = [self.preprocess(image).numpy()]
        for number in range(self.views if self.augmented[index] else 0):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(generator(number, f"view of {self.paths[index]}").initial_seed())
                views.append(np.asarray(self.augment(image)).transpose(2, 0, 1))
        return np.stack(views)


def augmentation(backbone: Backbone) -> Callable[[Image.Image], Image.Image]:
    """GeoCLIP's training augmentation, RGB image -> RGB image of the backbone's size. Source: GeoCLIP's code.

    The backbone's own normalisation follows, where upstream takes ImageNet's for training."""
    from torchvision.transforms import v2

    side = tuple(backbone.preprocess(Image.new("RGB", (64, 64))).shape[-2:])
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    steps = [v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(0.2)]
    return v2.Compose(steps)


def extract(run: Run) -> Path:
    """Extract the features of the run's manifest, or reuse them; return the path of features.npy.

    With ``backbone.views`` > 1, views.npy has V augmented views of each training photo; an epoch reads one
    slab [n, D] of it. tables/left_out.csv lists what the data set left out and what cannot be decoded. No
    batch has photos of two blocks: a resumed extraction gives the same bits. BundleError: no photo can be
    decoded, a feature is not finite.
    """
    datasets.prepare(run)
    settings, scratch = run.settings.backbone, run.features.with_name("unfinished")
    used = settings.model_dump(mode="json", exclude={"workers", "centred", "precision"})
    used |= {"arithmetic": run.arithmetic(settings.precision), "weights": weights(settings)}
    used["revision"] = settings.revision or find(settings).revision
    code, outputs = [_extract, find(settings).load], [*_outputs(run), unreadable_list(run)]
    options = {"settings": used, "code": code, "scratch": scratch, "together": True}
    cached(run, "features", lambda: _extract(run, scratch), inputs=[run.manifest], outputs=outputs, **options)
    if ranks.rank() == 0 and not cache.is_as_finished():
        _write_left_out(run)
    return run.features


def _outputs(run: Run) -> list[Path]:
    return [run.features, run.views] if run.settings.backbone.views > 1 else [run.features]


def unreadable_list(run: Run) -> Path:
    """List of photos that could not be decoded (CSV: row, id, path, reason), written with the features."""
    return run.features.with_name("unreadable.csv")


def photos(run: Run, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The run's manifest, or ``columns`` of it; the split of a photo without features is ``NOT_DECODED``.
    BundleError: see :func:`lib.data.datasets.splits_of`."""
    extract(run)
    found = manifest.read(run.manifest, columns)
    if "split" in found:
        found.loc[pd.read_csv(unreadable_list(run))["row"], "split"] = NOT_DECODED
        if not cache.is_as_finished():
            datasets.splits_of(run, set(found["split"].unique()))
    return found


def _write_left_out(run: Run) -> None:
    """Write tables/left_out.csv (id, path, reason), unless it is up to date, and say how many rows it has."""
    lists = (run.table("not_matched"), unreadable_list(run))
    parts = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in lists]
    found, path = pd.concat(parts)[["id", "path", "reason"]], run.table("left_out")
    content = found.to_csv(index=False).encode()
    if path.exists() and path.read_bytes() == content:
        return
    with writing(path) as aside:
        aside.write_bytes(content)
    if len(found):
        machine.note(f"{len(found):,} photos or rows are left out, each with its reason in {path}")


def _extract(run: Run, scratch: Path) -> None:
    """Make the missing blocks in ``scratch``, rename the files, list what could not be decoded.

    Of several processes each makes every k-th missing block. The first does the rest.
    """
    listed = manifest.read(run.manifest, ["id", "path", "split"])
    before = np.arange(len(listed) + 1), np.concatenate([[0], np.cumsum(listed["split"] == "train")])
    # file that grows -> how many of its rows lie before each photo, [N + 1]
    files = {scratch / path.name: rows for path, rows in zip(_outputs(run), before, strict=False)}
    size = run.settings.backbone.shard_size
    blocks = [range(start, min(start + size, len(listed))) for start in range(0, len(listed), size)]
    if ranks.rank() == 0:
        _find_again(run, scratch)
    ranks.wait()
    done = _notes(scratch)
    ranks.wait()  # until every rank has read them, there are no new ones
    if own := [rows for rows in blocks if rows.start not in done][ranks.rank() :: ranks.count()]:
        _make_blocks(run, scratch, listed, files, own)
    ranks.wait()
    if ranks.rank() > 0:
        return
    notes = _notes(scratch).values()
    if lacking := len(blocks) - len(notes):
        said = f"{lacking} of {len(blocks)} blocks, made by other processes, are not in {scratch}"
        raise BundleError(f"{said}; give all machines the same folder on a disk that they share")
    reasons = {int(row): why for note in notes for row, why in note.items()}
    reasons = pd.Series(reasons, dtype=object).sort_index()
    if len(reasons) == len(listed):
        shutil.rmtree(scratch)  # whoever mends the photos starts afresh
        first = f"{datasets.root_of(run) / listed['path'][0]}: {reasons[0]}"
        raise BundleError(f"none of {len(listed):,} photos can be decoded ({first}); check dataset.root")
    for path in _outputs(run):
        os.replace(scratch / path.name, path)
    with writing(unreadable_list(run)) as aside:
        listed.loc[reasons.index, ["id", "path"]].assign(reason=reasons).to_csv(aside, index_label="row")


def _find_again(run: Run, scratch: Path) -> None:
    """Put back what was renamed before a stop; where a file is gone, the notes count for nothing."""
    notes = list(scratch.glob(NOTE.format("*")))
    for path in _outputs(run) if notes else ():
        unfinished = scratch / path.name
        if path.exists() and not unfinished.exists():
            os.replace(path, unfinished)
        if not unfinished.exists():
            for note in notes:
                note.unlink(missing_ok=True)


def _notes(scratch: Path) -> dict[int, dict[str, str]]:
    """First row of each finished block -> its rows that cannot be decoded, each with the reason."""
    found = scratch.glob(NOTE.format("*"))
    return {int(path.stem.partition("-")[2]): json.loads(path.read_text(encoding="utf-8")) for path in found}


def _make_blocks(
    run: Run, scratch: Path, listed: pd.DataFrame, files: dict[Path, np.ndarray], blocks: list[range]
) -> None:
    """Extract ``blocks`` into ``files``; note each once its bytes are on the disk."""
    settings, backbone = run.settings.backbone, build(run.settings.backbone, run.device)
    views, augmented = settings.views if settings.views > 1 else 0, (listed["split"] == "train").to_numpy()
    photos = Photos(datasets.root_of(run), listed["path"].tolist(), backbone, views, augmented)
    made = encode(photos, backbone, settings, run.device, blocks)
    for block, (plain, own, unreadable) in zip(blocks, made, strict=True):
        seen = block.start + np.flatnonzero(photos.augmented[block.start : block.stop])
        slabs = own[np.arange(len(seen)), _view_in(np.arange(views)[:, None], seen, views)]  # [V, m, D]
        # without views no file has slabs
        for (path, rows), array in zip(files.items(), (plain, slabs), strict=False):
            _write(path, array, int(rows[block.start]), int(rows[-1]))
        reasons = {str(block[number]): why for number, why in unreadable.items()}
        write_json(scratch / NOTE.format(block.start), reasons)


def _write(path: Path, array: np.ndarray, start: int, count: int) -> None:
    """Write ``array``, [n, D] or slabs of that, from row ``start`` of the ``count`` rows of an npy file, on
    the disk. Not through a memory map: a full disk would kill the process."""
    form = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
    header, (*slabs, own, dimension) = io.BytesIO(), array.shape
    np.lib.format.write_array_header_1_0(header, form | {"shape": (*slabs, count, dimension)})
    row_bytes = array.itemsize * dimension
    with refusals_named(path):
        path.touch()
        with path.open("r+b") as file:
            file.write(header.getvalue())
            file.truncate(header.tell() + math.prod(slabs) * count * row_bytes)
            for number, slab in enumerate(array.reshape(math.prod(slabs), own, dimension)):
                file.seek(header.tell() + (number * count + start) * row_bytes)
                file.write(np.ascontiguousarray(slab))
        force(path)


def _view_in(epoch: int | np.ndarray, rows: np.ndarray, views: int) -> np.ndarray:
    """Which of its ``views`` each of ``rows`` of the manifest shows in ``epoch``: all in turn, beginning at
    different ones (Knuth's multiplicative hash)."""
    return (epoch + rows * 2_654_435_761) % views


def encode(
    photos: Photos, backbone: Backbone, settings: BackboneSettings, device: torch.device,
    groups: Sequence[Sequence[int]],
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:  # fmt: skip
    """Of each of ``groups`` of photos: features [n, D]; those of its augmented photos' views [m, V, D]; of
    photos that cannot be decoded, whose features are NaN: number in the group -> reason.

    A pass takes about ``settings.batch_size`` images, never of two groups. BundleError: not a finite feature.
    """
    size = max(1, settings.batch_size // (1 + photos.views))
    batches = [list(group[start : start + size]) for group in groups for start in range(0, len(group), size)]
    decoded = one_ahead(_decoded(photos, batches, settings))
    with progress((), "extracting features", len(photos)) as bar:
        bar.update(len(photos) - sum(map(len, groups)))
        for group in groups:
            shape, unreadable = (len(group), 1 + photos.views, backbone.dimension), {}
            found = np.full(shape, np.nan, settings.storage)
            for start in range(0, len(group), size):
                items = next(decoded)
                encoded = _forward(items, backbone, settings, device)
                for number, (item, own) in enumerate(zip(items, encoded, strict=True), start):
                    found[number, : len(own)] = own
                    if isinstance(item, str):
                        unreadable[number] = item
                    elif not np.isfinite(own).all():
                        said = f"is not finite as {settings.storage}; try backbone.storage=float32"
                        raise BundleError(f"{photos.paths[group[number]]}: its feature {said}")
                bar.update(len(items))
            yield found[:, 0], found[photos.augmented[list(group)], 1:], unreadable


def _decoded(
    photos: Photos, batches: Sequence[list[int]], settings: BackboneSettings
) -> Iterator[list[np.ndarray | str]]:
    """The items of ``batches`` of photos. Processes send them as arrays through pipes: tensors would need
    shared memory, of which a container may have 64 MB."""
    cut = [batch[start : start + AT_A_TIME] for batch in batches for start in range(0, len(batch), AT_A_TIME)]
    # closures of the preprocessing cannot be sent to a new process, and only Linux forks in safety
    most = cores() if sys.platform == "linux" else 0
    workers = most if settings.workers is None else min(settings.workers, most)
    context = "fork" if workers else None
    options = {"collate_fn": list, "num_workers": workers, "multiprocessing_context": context}
    pieces = iter(DataLoader(photos, batch_sampler=cut, **options))  # forks here, not in one_ahead's thread
    pieces_of = (itertools.islice(pieces, -(-len(batch) // AT_A_TIME)) for batch in batches)
    return (list(itertools.chain.from_iterable(parts)) for parts in pieces_of)


def _forward(
    items: list[np.ndarray | str], backbone: Backbone, settings: BackboneSettings, device: torch.device
) -> list[np.ndarray]:
    """Features [K, D] of the K images of each item, in the settings' storage type."""
    images = [item for item in items if not isinstance(item, str)]
    if not images:
        return [np.empty((0, backbone.dimension), settings.storage)] * len(items)
    with torch.inference_mode(), autocast(device, settings.precision):
        pixels = on_device(torch.from_numpy(np.concatenate(images)), device)
        encoded = backbone.encode(pixels.to(memory_format=torch.channels_last)).float().cpu().numpy()
    with np.errstate(over="ignore"):  # an overflow is found, and named, by the caller
        stored = encoded.astype(settings.storage)
    return np.split(stored, np.cumsum([0 if isinstance(item, str) else len(item) for item in items])[:-1])


@dataclass(frozen=True)
class Features:
    """Memory-mapped features, some rows of which are read at a time.

    Attributes:
        stored: [N, D] float16 or float32, row i of the manifest's row i.
        mean: [D], what is subtracted: the training mean where ``backbone.centred``, else zeros.
        views: [V, n, D] of augmented views of the training photos, or None; NaN of an unreadable photo. Epoch
            e (from 1) reads ``views[e % V]``.
        view_rows: the manifest's rows that ``views`` is about, ascending, int64 [n].
        on_card: ``stored`` as a tensor on a GPU, or None.
        read_ahead: the epoch whose views the system has been told to read.
    """

    stored: np.ndarray
    mean: torch.Tensor
    views: np.ndarray | None = None
    view_rows: np.ndarray | None = None
    on_card: torch.Tensor | None = None
    read_ahead: list[int] = field(default_factory=list)

    @property
    def dimension(self) -> int:
        """D."""
        return self.stored.shape[1]

    def rows(self, indices: np.ndarray | torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
        """Features v of the rows ``indices`` [n], float32 [n, D], on ``device``; copied there as stored."""
        device = torch.device(device)
        if self.on_card is not None and device.type == self.on_card.device.type:
            return self.on_card[on_device(torch.as_tensor(indices), device)].float()
        return on_device(torch.from_numpy(self.stored[np.asarray(indices)]), device).float()

    def near(self, device: torch.device) -> Features:
        """The same for a training on ``device``; copied to a GPU with twice the room free for each rank."""
        here = replace(self, mean=self.mean.to(device))
        needed = 2 * self.stored.nbytes
        if device.type != "cuda" or needed * ranks.per_card() > torch.cuda.mem_get_info(device)[0]:
            return here
        starts = range(0, len(self.stored), AT_ONCE)
        parts = [torch.from_numpy(self.stored[one : one + AT_ONCE].copy()).to(device) for one in starts]
        return replace(here, on_card=torch.cat(parts) if len(parts) > 1 else parts[0])

    def directions(self, photos: torch.Tensor) -> torch.Tensor:
        """Unit features u = (v - mean) / ||v - mean|| of features v [n, D]."""
        return F.normalize(photos - self.mean.to(photos.device), dim=1)

    def unit(self, indices: np.ndarray | torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
        """Unit features of the rows ``indices`` [n], float32 [n, D]."""
        return self.directions(self.rows(indices, device))

    def seen_in(self, epoch: int, indices: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        """Features of the training photos ``indices`` [n] for the image head in ``epoch`` (from 1), float32
        [n, D]: the plain view, or each photo's V views in turn, beginning at different ones."""
        if self.views is None:
            return self.rows(indices, device)
        if self.read_ahead != [epoch]:
            self.read_ahead[:] = [epoch]
            _read_ahead(self.views, epoch % len(self.views))
        seen = torch.from_numpy(self.views[epoch % len(self.views), np.searchsorted(self.view_rows, indices)])
        return on_device(seen, torch.device(device)).float()


def _read_ahead(views: np.memmap, number: int) -> None:
    """Let the system read slab ``number`` in sequence; each photo that is asked for would be a read of its
    own."""
    if hasattr(mmap, "MADV_WILLNEED"):
        start, stop = (views.offset + one * views[0].nbytes for one in (number, number + 1))
        for piece in range(start - start % READ_BYTES, stop, READ_BYTES):  # of more Linux reads the beginning
            views._mmap.madvise(mmap.MADV_WILLNEED, piece, min(READ_BYTES, stop - piece))


def read(run: Run, of: pd.DataFrame) -> Features:
    """The run's features, mapped, not loaded; ``of``: the run's :func:`photos` with the column split."""
    extract(run)
    stored = np.load(run.features, mmap_mode="r")
    mean = torch.zeros(stored.shape[1])
    if run.settings.backbone.centred:
        rows = manifest.rows_of(of, "train")
        blocks = (stored[rows[start : start + AT_ONCE]] for start in range(0, len(rows), AT_ONCE))
        total = sum(block.sum(0, dtype=np.float64) for block in blocks)
        mean = torch.from_numpy((total / len(rows)).astype(np.float32))
    if run.settings.backbone.views == 1:
        return Features(stored, mean)
    views = np.load(run.views, mmap_mode="r")
    splits = manifest.read(run.manifest, ["split"])  # a photo that cannot be decoded has views too
    return Features(stored, mean, views, manifest.rows_of(splits, "train"))


def most_alike(frozen: Features, of: pd.DataFrame, count: int = 2_000) -> pd.DataFrame:
    """For ``count`` random training photos the most alike among them: rows first and second, dissimilarity,
    distance_km."""
    rows = manifest.rows_of(of, "train")
    chosen = np.random.default_rng(0).choice(rows, min(count, len(rows)), replace=False)
    unit, places = frozen.unit(chosen), manifest.coordinates(of)
    best, twin = (unit @ unit.T).fill_diagonal_(-1.0).max(1)
    second = chosen[twin.numpy()]
    found = pd.DataFrame({"first": chosen, "second": second, "dissimilarity": 1.0 - best.numpy()})
    return found.assign(distance_km=distance_km(places[chosen], places[second]))
