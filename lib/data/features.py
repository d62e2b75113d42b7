"""Photos to frozen features, once, into a memory-mapped file; and what is read back from it.

Each photo is decoded once. One that cannot be decoded gets a row of NaN, and a line with the reason in
unreadable.csv beside the features; its split is then ``unreadable`` for everybody who reads the manifest
(:func:`photos`).

features.npy [N, D] has row i of the manifest's row i. It grows by whole blocks of ``backbone.shard_size``
photos. A journal names each finished block with its checksum. An extraction that was stopped makes only the
blocks that are missing or damaged.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import mmap
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from lib.runs import Run, cached, machine, progress, ranks, writing
from lib.runs.files import READING_ERRORS, one_line, refusals_named
from lib.runs.machine import autocast, cores, on_device, one_ahead
from lib.settings import Backbone as BackboneSettings

NOT_DECODED = "unreadable"
"""The split of photos that could not be decoded: no stage asks for it."""


class Photos(Dataset):
    """Photos below a folder, each decoded once for all of its views.

    An item is bytes [K, 3, H, W], or the reason why the photo cannot be decoded.

    The first view is the plain crop. The photos of the mask ``augmented`` have ``views`` others besides,
    drawn by the photo's path and the view's number alone: the same in every process and after a stop.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        backbone: Backbone,
        views: int = 0,
        augmented: np.ndarray | None = None,
    ) -> None:
        self.root, self.paths, self.views = root, paths, views
        self.augmented = augmented if views else np.zeros(len(paths), bool)
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
        count = self.views if self.augmented[index] else 0
        views = [self._view(image, path, number) for number in range(count)]
        return np.stack([self.preprocess(image).numpy(), *views])

    def _view(self, image: Image.Image, path: str, number: int) -> np.ndarray:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(number, f"view of {path}").initial_seed())
            return np.asarray(self.augment(image)).transpose(2, 0, 1)


def augmentation(backbone: Backbone) -> Callable[[Image.Image], Image.Image]:
    """GeoCLIP's training augmentation, RGB image -> RGB image of the backbone's size.

    Random resized crop, horizontal flip, colour jitter (0.4, 0.4, 0.4, 0.1; p 0.8), greyscale (p 0.2). The
    backbone's own normalisation follows; upstream takes ImageNet's for training and CLIP's for prediction.
    Source: GeoCLIP's code.
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

    Holds one block in memory. Deterministic on one machine: no batch has photos of two blocks, so a resumed
    extraction gives the same bits.

    Raises:
        BundleError: no photo can be decoded, a feature is not finite, or the disk is full.
    """
    datasets.prepare(run)
    settings, scratch = run.settings.backbone, run.features.with_name("unfinished")
    used = json.loads(settings.model_dump_json(exclude={"workers", "centred", "precision"}))
    used |= {"arithmetic": run.arithmetic(settings.precision), "weights": weights(settings)}
    cached(
        run,
        "features",
        lambda: _extract(run, scratch),
        inputs=[run.manifest],
        outputs=[*_outputs(run), unreadable_list(run)],
        settings=used,
        code=[_extract, find(settings).load],
        scratch=scratch,
        together=True,
    )
    if ranks.rank() == 0:
        _write_left_out(run)
    return run.features


def _outputs(run: Run) -> list[Path]:
    return [run.features, run.views] if run.settings.backbone.views > 1 else [run.features]


def unreadable_list(run: Run) -> Path:
    """List of photos that could not be decoded (CSV: row, id, path, reason), written with the features."""
    return run.features.with_name("unreadable.csv")


def photos(run: Run, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The run's manifest, or ``columns`` of it; the split of a photo without features is ``NOT_DECODED``."""
    extract(run)
    found = manifest.read(run.manifest, columns)
    if "split" in found:
        found.loc[found.index.isin(_listed(unreadable_list(run))["row"].astype(int)), "split"] = NOT_DECODED
    return found


def _write_left_out(run: Run) -> None:
    """Write tables/left_out.csv, unless it is up to date, and say how many photos and rows it names.

    It holds what did not match and photos that could not be decoded: columns id, path, reason.
    """
    parts = [_listed(path) for path in (run.table("not_matched"), unreadable_list(run))]
    found = pd.concat([part[["id", "path", "reason"]] for part in parts], ignore_index=True)
    path = run.table("left_out")
    if path.exists() and _listed(path).equals(found):
        return
    with writing(path) as aside:
        found.to_csv(aside, index=False)
    if len(found):
        machine.note(f"{len(found):,} photos or rows are left out, each with its reason in {path}")


def _listed(path: Path) -> pd.DataFrame:
    """A list of what was left out, all of it as text."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _extract(run: Run, scratch: Path) -> None:
    """Make the blocks that are missing in ``scratch``, rename the files, list what could not be decoded.

    Of several processes each makes every k-th missing block. The first does the rest.

    Args:
        scratch: a folder of this extraction alone: of its settings, manifest, code and versions of packages.
    """
    listed = manifest.read(run.manifest, ["id", "path", "split"])
    blocks = _blocks(run, listed)
    if ranks.rank() == 0:
        _keep_whole_blocks(run, scratch, blocks)
    ranks.wait()
    done = {range(note["first"], note["first"] + note["count"]) for note in _noted(scratch)}
    ranks.wait()  # until every rank has read it, the journal does not grow
    own = [rows for rows in blocks if rows not in done][ranks.rank() :: ranks.count()]
    if own:
        _make_blocks(run, scratch, listed, {rows: blocks[rows] for rows in own})
    ranks.wait()
    if ranks.rank() > 0:
        return
    found = {int(row): why for note in _noted(scratch) for row, why in note["unreadable"].items()}
    reasons = pd.Series(found, dtype=object).sort_index()
    if len(reasons) == len(listed):
        shutil.rmtree(scratch)  # whoever mends the photos starts afresh
        first = datasets.root_of(run) / listed["path"].iloc[0]
        raise BundleError(
            f"none of {len(listed):,} photos can be decoded ({first}: {reasons[0]}); check dataset.root"
        )
    for path in _outputs(run):
        os.replace(scratch / path.name, path)
    with writing(unreadable_list(run)) as aside:
        listed.loc[reasons.index, ["id", "path"]].assign(reason=reasons).to_csv(aside, index_label="row")


Blocks = dict[range, list[tuple[str, int, slice]]]
"""Rows of the manifest -> of each file that grows: its name, how many rows it has, which are the block's."""


def _blocks(run: Run, listed: pd.DataFrame) -> Blocks:
    count, size = len(listed), run.settings.backbone.shard_size
    with_views = np.concatenate([[0], np.cumsum(listed["split"] == "train")])  # before each row
    blocks = {}
    for start in range(0, count, size):
        stop = min(start + size, count)
        views = slice(int(with_views[start]), int(with_views[stop]))
        files = [("features.npy", count, slice(start, stop)), ("views.npy", int(with_views[-1]), views)]
        blocks[range(start, stop)] = files[: len(_outputs(run))]
    return blocks


def _keep_whole_blocks(run: Run, scratch: Path, blocks: Blocks) -> None:
    """Leave one journal, of the blocks that are whole; say which one is damaged."""
    notes, whole = _noted(scratch), {}
    for path in _outputs(run) if notes else []:
        if path.exists() and not (scratch / path.name).exists():  # it was stopped after the renaming
            os.replace(path, scratch / path.name)
    for note in notes:
        rows = range(note["first"], note["first"] + note["count"])
        if note["crc32"] == [_crc32(scratch / name, own) for name, _, own in blocks.get(rows, [])]:
            whole[rows] = note
    for first in sorted({note["first"] for note in notes} - {rows.start for rows in whole}):
        print(f"again   {scratch}: the block from row {first} is damaged, its checksum differs", flush=True)
    with writing(scratch / "done-0.jsonl") as aside:
        aside.write_text("".join(json.dumps(note) + "\n" for note in whole.values()))
    for journal in set(scratch.glob("done-*.jsonl")) - {scratch / "done-0.jsonl"}:
        journal.unlink()


def _noted(scratch: Path) -> list[dict[str, Any]]:
    """What the journals say, a line a block; a line that is torn, as by a stop, is passed over."""
    notes, names = [], ("first", "count", "crc32", "unreadable")
    for journal in sorted(scratch.glob("done-*.jsonl")):
        for line in journal.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, LookupError, TypeError):
                note = json.loads(line)
                notes.append({name: note[name] for name in names})
    return notes


def _crc32(path: Path, rows: slice) -> int | None:
    try:
        return zlib.crc32(np.load(path, mmap_mode="r", allow_pickle=False)[rows].tobytes())
    except READING_ERRORS:
        return None


def _make_blocks(run: Run, scratch: Path, listed: pd.DataFrame, blocks: Blocks) -> None:
    """Extract ``blocks`` into the files in ``scratch``; note each once its bytes are on the disk."""
    settings, backbone = run.settings.backbone, build(run.settings.backbone, run.device)
    views = settings.views if settings.views > 1 else 0
    paths, augmented = listed["path"].tolist(), (listed["split"] == "train").to_numpy()
    photos = Photos(datasets.root_of(run), paths, backbone, views, augmented)
    journal = scratch / f"done-{ranks.rank()}.jsonl"
    made = encode(photos, backbone, settings, run.device, list(blocks))
    for (rows, files), (*arrays, unreadable) in zip(blocks.items(), made, strict=True):
        parts = zip(files, arrays, strict=False)  # without views their array is empty, and has no file
        crc32 = [_write(scratch / name, array, *where) for (name, *where), array in parts]
        reasons = {rows[number]: why for number, why in unreadable.items()}
        note = {"first": rows.start, "count": len(rows), "crc32": crc32, "unreadable": reasons}
        with refusals_named(journal), journal.open("a") as file:
            file.write(json.dumps(note) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _write(path: Path, array: np.ndarray, count: int, rows: slice) -> int:
    """Write ``array`` as ``rows`` of the ``count`` rows of the file (npy) at ``path``; return its CRC-32 once
    it is on the disk. Not through a memory map: a full disk would kill the process."""
    form = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(header := io.BytesIO(), form | {"shape": (count, *array.shape[1:])})
    row_bytes, content = array.itemsize * math.prod(array.shape[1:]), array.tobytes()
    at, left = header.tell() + rows.start * row_bytes, memoryview(content)
    with refusals_named(path):
        path.touch()
        with path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), header.getvalue(), 0)
            file.truncate(header.tell() + count * row_bytes)
            while left:
                written = os.pwrite(file.fileno(), left, at)
                at, left = at + written, left[written:]
            os.fsync(file.fileno())
    return zlib.crc32(content)


Item = np.ndarray | str


def encode(
    photos: Photos,
    backbone: Backbone,
    settings: BackboneSettings,
    device: torch.device,
    groups: Sequence[Sequence[int]],
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
    """Of each of ``groups`` of photos: features [n, D]; those of its augmented photos' views [m, V, D]; and
    its photos that cannot be decoded, whose features are NaN: number in the group -> reason.

    Photos are decoded ahead by ``settings.workers`` processes, at most one a core. A forward pass takes about
    ``settings.batch_size`` images, never of two groups.

    Raises:
        BundleError: a feature is not finite.
    """
    size = max(1, settings.batch_size // (1 + photos.views))
    batches = [list(group[start : start + size]) for group in groups for start in range(0, len(group), size)]
    decoded = one_ahead(_decoded(photos, batches, settings))
    with progress((), "extracting features", len(photos)) as bar:
        bar.update(len(photos) - sum(map(len, groups)))
        for group in groups:
            all_views = np.full((len(group), 1 + photos.views, backbone.dimension), np.nan, settings.storage)
            unreadable = {}
            for start in range(0, len(group), size):
                items = next(decoded)
                encoded = _forward(items, backbone, settings, device)
                for number, item, own in zip(itertools.count(start), items, encoded, strict=False):
                    if isinstance(item, str):
                        unreadable[number] = item
                    elif not np.isfinite(own).all():
                        raise BundleError(
                            f"{photos.paths[group[number]]}: its feature is not finite as "
                            f"{settings.storage}; try backbone.storage=float32"
                        )
                    all_views[number, : len(own)] = own
                bar.update(len(items))
            yield all_views[:, 0], all_views[photos.augmented[list(group)], 1:], unreadable


AT_A_TIME = 32
"""Photos that a worker decodes before it sends them."""


def _decoded(
    photos: Photos, batches: Sequence[list[int]], settings: BackboneSettings
) -> Iterator[list[Item]]:
    """The items of ``batches`` of photos. Processes send them as arrays through pipes: tensors would need
    shared memory, of which a container may have 64 MB."""
    cut = [batch[start : start + AT_A_TIME] for batch in batches for start in range(0, len(batch), AT_A_TIME)]
    workers = min(settings.workers, cores())
    # Linux's own default until Python 3.14; closures of the preprocessing cannot be sent to a new process
    context = "fork" if workers and sys.platform == "linux" else None
    loader = DataLoader(
        photos, batch_sampler=cut, collate_fn=list, num_workers=workers, multiprocessing_context=context
    )
    pieces = iter(loader)  # it forks: here, and not in the thread that asks for the items
    pieces_of = (itertools.islice(pieces, -(-len(batch) // AT_A_TIME)) for batch in batches)
    return (list(itertools.chain.from_iterable(parts)) for parts in pieces_of)


def _forward(
    items: list[Item], backbone: Backbone, settings: BackboneSettings, device: torch.device
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


AT_ONCE = 65_536
"""Photos whose features are loaded together."""


@dataclass(frozen=True)
class Features:
    """Memory-mapped features, some rows of which are read at a time.

    Attributes:
        stored: [N, D] float16 or float32, row i of the manifest's row i.
        mean: [D], what is subtracted: the training mean where ``backbone.centred``, else zeros.
        views: [n, V, D] of augmented views of the training photos, or None; NaN of an unreadable photo.
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
        """Features v of the rows ``indices`` [n], float32 [n, D], on ``device``; copied there as stored."""
        device = torch.device(device)
        if self.on_card is not None and device.type == self.on_card.device.type:
            return self.on_card[on_device(torch.as_tensor(indices), device)].float()
        return on_device(torch.from_numpy(self.stored[np.asarray(indices)]), device).float()

    def near(self, device: torch.device) -> Features:
        """The same for a training on ``device``: copied to a GPU, where that takes at most half of what is
        free there."""
        here = replace(self, mean=self.mean.to(device))
        if device.type != "cuda" or 2 * self.stored.nbytes > torch.cuda.mem_get_info(device)[0]:
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
        [n, D]: the plain view, or each photo's V views in turn. Photos start at different views. With as many
        views as epochs none is seen twice."""
        if self.views is None:
            return self.rows(indices, device)
        # Knuth's multiplicative hash
        number = (epoch + np.asarray(indices) * 2_654_435_761) % self.views.shape[1]
        seen = torch.from_numpy(self.views[np.searchsorted(self.view_rows, indices), number])
        return on_device(seen, torch.device(device)).float()


def read(run: Run, of: pd.DataFrame) -> Features:
    """The run's features, mapped, not loaded.

    Args:
        of: the run's :func:`photos`, with the column split at least.

    Raises:
        BundleError: the file holds no features, or those of other photos.
    """
    extract(run)
    stored = _mapped(run.features, len(of))
    mean = torch.zeros(stored.shape[1])
    if run.settings.backbone.centred:
        rows = manifest.rows_of(of, "train")
        blocks = (stored[rows[start : start + AT_ONCE]] for start in range(0, len(rows), AT_ONCE))
        total = sum(block.sum(0, dtype=np.float64) for block in blocks)
        mean = torch.from_numpy((total / len(rows)).astype(np.float32))
    if run.settings.backbone.views == 1:
        return Features(stored, mean)
    splits = manifest.read(run.manifest, ["split"])  # a photo that cannot be decoded has views too
    rows = manifest.rows_of(splits, "train")
    shape = (len(rows), run.settings.backbone.views, stored.shape[1])
    views = _mapped(run.views, *shape)
    if hasattr(mmap, "MADV_RANDOM"):  # else the system reads ahead what nobody will ask for
        views._mmap.madvise(mmap.MADV_RANDOM)
    return Features(stored, mean, views, rows)


def _mapped(path: Path, *shape: int) -> np.ndarray:
    """The array at ``path``, mapped, never unpickled; its shape begins with ``shape``."""
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except READING_ERRORS as error:
        why = one_line(error)
        raise BundleError(f"{path}: not an array of features ({why}); delete it, and it is made again") from error
    is_wanted = stored.ndim >= 2 and stored.shape[: len(shape)] == shape
    if not (is_wanted and np.issubdtype(stored.dtype, np.floating)):
        raise BundleError(
            f"{path}: holds {stored.dtype} of shape {stored.shape}, not {' x '.join(map(str, shape))} rows "
            "of float16 or float32; delete it, and it is made again"
        )
    return stored


def most_alike(frozen: Features, of: pd.DataFrame, count: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """For ``count`` random training photos the most alike among them: rows first and second, dissimilarity,
    distance_km."""
    rows = manifest.rows_of(of, "train")
    chosen = np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False)
    unit, places = frozen.unit(chosen), manifest.coordinates(of)
    best, twin = (unit @ unit.T).fill_diagonal_(-1.0).max(1)
    second = chosen[twin.numpy()]
    distance = distance_km(places[chosen], places[second])
    return pd.DataFrame(
        {"first": chosen, "second": second, "dissimilarity": 1.0 - best.numpy(), "distance_km": distance}
    )
