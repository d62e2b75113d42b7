"""Whatever is put in, the right result or one sentence comes out: a table of bad inputs, a line each.

Each case is a function of a :class:`Desk`. It returns something true where the right result came, or raises
one of the errors of which the command line shows the sentence alone; the table says which.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Runs, world
from PIL import Image

from lib.data import datasets, features, folder, manifest, osv5m, sampling
from lib.data.photos import UNREADABLE, open_photo
from lib.evaluate import evaluation
from lib.method import model, semivariogram
from lib.method.errors import BundleError
from lib.method.geodesy import distance_km
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import Run
from lib.settings import OSV5M, Folder, load
from lib.train import checkpoints, curve, gallery, training

pytestmark = pytest.mark.usefixtures("narrow")


@dataclass
class Desk:
    """A folder of three good photos, and runs over the tests' synthetic world."""

    path: Path
    make_run: Runs

    @property
    def root(self) -> Path:
        return self.path / "photos"

    def photo(self, name: str | bytes, content: bytes | None = None) -> None:
        (self.root / os.fsdecode(name)).write_bytes(jpeg() if content is None else content)

    def built(self, table: str | bytes) -> datasets.manifest.Built:
        (self.path / "table.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
        return folder.build(Folder(root=self.root, csv=self.path / "table.csv"), self.root)

    def run(self, table: str) -> Run:
        """A run over the photos, before notebook 01."""
        (self.path / "table.csv").write_text(table)
        asked = [
            "dataset=folder",
            f"data.root={self.root}",
            f"data.csv={self.path / 'table.csv'}",
            "backbone.image_px=32",
        ]
        return Run(load("smoke", asked), self.path / "run")

    def prepared(self, table: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The manifest, and what did not match, of a run over the photos."""
        run = self.run(table)
        return datasets.prepare(run), pd.read_csv(run.table("not_matched"))

    def left_out(self, name: str | bytes, content: bytes | None = None) -> str:
        """Why one more photo is left out, beside a good one."""
        (self.root / "b.jpg").unlink()
        self.photo(name, content)
        shown = (name.encode() if isinstance(name, str) else name).decode("utf-8", "backslashreplace")
        run = self.run("path,lat,lon\na.jpg,1,2\n" + (f"{name},3,4\n" if isinstance(name, str) else ""))
        datasets.prepare(run)
        features.extract(run)
        kept = datasets.read(run)
        assert kept["path"][kept["split"] != datasets.UNREADABLE].tolist() == ["a.jpg"]
        return pd.read_csv(run.table("left_out")).set_index("path").at[shown, "reason"]

    def gallery(self, text: str | bytes) -> np.ndarray:
        (self.path / "places.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return gallery.read_csv(self.path / "places.csv")

    def features(self, array: np.ndarray | bytes) -> features.Features:
        run = self.make_run()
        if isinstance(array, bytes):
            run.features.write_bytes(array)
        else:
            np.save(run.features, array)
        return features.read(run, datasets.read(run))

    def trained_on(self, places: np.ndarray) -> bool:
        """A training, and its evaluation, of the world with other places."""
        run = self.make_run(
            "training.epochs=1",
            "training.strategies=infonce,decayed",
            "evaluation.bootstrap=100",
            "evaluation.splits=test",
            "study=null",
        )
        frame = pd.read_parquet(run.manifest)
        frame[["latitude", "longitude"]] = np.resize(places, (len(frame), 2))
        frame.to_parquet(run.manifest)
        training.train_all(run, ["infonce", "decayed"])
        return np.isfinite(evaluation.evaluate(run)["accuracy"]["median_km"]).all()

    def estimated(
        self, gamma: Callable[[np.ndarray], np.ndarray], photos: int = 60
    ) -> semivariogram.FittedSemivariogram:
        """A fit to a curve over 60 lags, of 50 pairs each."""
        lag = (np.arange(60) + 0.5) * 0.05
        values, pairs = gamma(lag), np.full(60, 50)
        sums = semivariogram.EmpiricalSemivariogram(
            0.05, pairs, 50 * lag, 50 * values, 50 * (values**2 + 0.01)
        )
        return semivariogram.fit(sums, photos=photos)


def jpeg(size: tuple[int, int] = (24, 16), mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says it is huge."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 100)),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def small(**changes: object) -> pd.DataFrame:
    return world({"train": 3, "validation": 1, "test": 1, "test_blocked": 1})[0].assign(**changes)


def checked(**changes: object) -> bool:
    manifest.check(small(**changes), "given.parquet")
    return True


def with_row(column: str, value: object) -> dict[str, list[object]]:
    return {column: [*small()[column].tolist()[:3], value, *small()[column].tolist()[4:]]}


def saved(desk: Desk, image: Image.Image, name: str, **options: object) -> Image.Image:
    image.save(desk.root / name, **options)
    return open_photo(desk.root, name)


def turned(desk: Desk) -> bool:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(desk, Image.new("RGB", (20, 10)), "turned.jpg", exif=exif).size == (10, 20)


def animated(desk: Desk) -> bool:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    return saved(
        desk, frames[0], "moving.webp", save_all=True, append_images=frames[1:], lossless=True
    ).getpixel((3, 3)) == (255, 0, 0)


def sixteen_bits(desk: Desk) -> bool:
    ramp = np.linspace(0, 65_535, 64, dtype=np.uint16).repeat(8).reshape(64, 8)
    return len(np.unique(np.asarray(saved(desk, Image.fromarray(ramp), "deep.png")))) > 60


def one_photo(desk: Desk) -> object:
    kept, _ = desk.prepared("path,lat,lon,continent\na.jpg,1,2,Africa\n")
    assert kept["split"].tolist() == ["train"]
    return manifest.rows_of(kept, "validation")


def one_photo_curve(desk: Desk) -> object:
    return sampling.estimate(lambda rows: torch.ones(len(rows), 4), np.array([[1.0, 2.0]]))


def at_one_place(desk: Desk) -> object:
    unit = torch.nn.functional.normalize(
        torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=1
    )
    return semivariogram.fit(sampling.estimate(lambda rows: unit[rows], np.full((50, 2), 10.0), 0.05))


def member_outside(desk: Desk) -> object:
    """Out of an archive whose member's name climbs: what it names is read from the archive, never from the
    disk."""
    (desk.path / "secret.jpg").write_bytes(jpeg())
    with zipfile.ZipFile(desk.root / "00.zip", "w") as archive:
        archive.writestr("../../secret.jpg", b"not the one on the disk")
    return open_photo(desk.root, "00.zip/../../secret.jpg")


def climbing_row(desk: Desk) -> object:
    (desk.path / "secret.jpg").write_bytes(jpeg())
    kept, out = desk.prepared("path,lat,lon,continent\na.jpg,1,2,Africa\n../secret.jpg,3,4,Africa\n")
    return (
        kept["path"].tolist() == ["a.jpg"]
        and "no such photo" in out.set_index("id").at["../secret.jpg", "reason"]
    )


def ragged_official(desk: Desk, table: str = "id,latitude,longitude\n1,2,3\n1,2,3,4\n") -> object:
    (desk.path / "train.csv").write_text(table)
    return osv5m.build(OSV5M(root=desk.path, train_shards=1, test_shards=1), desk.path)


def damaged_run_file(
    of: Callable[[Run], Path], read: Callable[[Run], object], content: bytes = b"neither this nor that"
) -> Callable[[Desk], object]:
    def case(desk: Desk) -> object:
        run = desk.make_run()
        of(run).parent.mkdir(exist_ok=True)
        of(run).write_bytes(content)
        return read(run)

    return case


def curve_of(**changes: float) -> Callable[[Desk], object]:
    def case(desk: Desk) -> object:
        run = desk.make_run()
        run.semivariogram.write_text(json.dumps(json.loads(run.semivariogram.read_text()) | changes))
        return FittedSemivariogram.load(run.semivariogram)

    return case


def weights_of_nan(desk: Desk) -> object:
    trained = model.GeoCLIP(8)
    with torch.no_grad():
        trained.logit_scale.fill_(float("nan"))
    checkpoints.save(trained, desk.path / "weights.safetensors")
    return checkpoints.load(desk.path / "weights.safetensors")


def profile(text: str) -> Callable[[Desk], object]:
    def case(desk: Desk) -> object:
        (desk.path / "own.yaml").write_text(text)
        return load(desk.path / "own.yaml")

    return case


def nan_features(desk: Desk) -> object:
    unit = torch.ones(50, 8)
    unit[7] = float("nan")
    return sampling.estimate(lambda rows: unit[rows], world()[0][["latitude", "longitude"]].to_numpy()[:50])


POLES = np.array([[90.0, 0.0], [-90.0, 0.0], [90.0, 120.0], [89.9999999, -180.0]])
JPEG_2000_OF_EXABYTES = bytes.fromhex("0000000C6A5020200D0A870A")
JPEG_2000_OF_EXABYTES += struct.pack(">I4sQ", 1, b"jp2h", 2**62) + b"x" * 40
MERIDIAN = np.array([[10.0, 180.0], [10.0, -180.0], [-10.0, 179.9999999], [20.0, -179.9999999]])

CASES: dict[str, tuple[Callable[[Desk], object], str]] = {
    # the manifest
    "empty manifest": (
        lambda _: manifest.check(small().iloc[:0], "given.parquet"),
        r"given\.parquet: no photos; check",
    ),
    "latitude NaN": (lambda _: checked(**with_row("latitude", np.nan)), "row 4: latitude is not a number"),
    "latitude 91": (lambda _: checked(**with_row("latitude", 91.0)), "row 4: latitude is not within"),
    "columns swapped": (
        lambda _: checked(latitude=[100.0] * 6),
        r"row 1: latitude .*columns swapped\?.*6 such rows",
    ),
    "ids twice": (lambda _: checked(id=["a"] * 6), "row 2: id is missing or used twice"),
    "split unknown": (
        lambda _: checked(**with_row("split", "tset?")),
        "row 4: split is none of train, validation, test",
    ),
    "path absolute": (
        lambda _: checked(**with_row("path", "/etc/passwd")),
        "row 4: path leaves the data set's folder",
    ),
    "path climbs": (
        lambda _: checked(**with_row("path", "a/../../b.jpg")),
        "row 4: path leaves the data set's folder",
    ),
    "column gone": (
        lambda _: manifest.check(small().drop(columns="split"), "given.parquet"),
        "column 'split' is missing; there are",
    ),
    "poles and meridian": (
        lambda _: checked(latitude=[90.0, -90.0, 0, 0, 0, 0], longitude=[0, 0, 180.0, -180.0, 0, 0]),
        "",
    ),
    "manifest no parquet": (
        damaged_run_file(lambda run: run.manifest, datasets.read),
        "cannot be read as a manifest .*; run notebook 01 again",
    ),
    # photos and where they were taken
    "one photo": (one_photo, "split 'validation' has no photos; the manifest has train"),
    "a curve of one photo": (one_photo_curve, "needs at least two photos; there are 1"),
    "a curve at one place": (at_one_place, "1 lags with pairs are too few"),
    "training at the poles": (lambda desk: desk.trained_on(POLES), ""),
    "distance over the 180th meridian": (lambda _: distance_km(MERIDIAN[:1], MERIDIAN[1:2])[0] < 1e-6, ""),
    # images
    "image missing": (lambda desk: open_photo(desk.root, "nowhere.jpg"), "No such file"),
    "image of no bytes": (lambda desk: "cannot identify" in desk.left_out("x.jpg", b""), ""),
    "image truncated": (lambda desk: "truncated" in desk.left_out("x.jpg", jpeg((200, 200))[:2_000]), ""),
    "image is text": (
        lambda desk: "cannot identify" in desk.left_out("x.jpg", b"<html>not found</html>"),
        "",
    ),
    "decompression bomb": (
        lambda desk: "DecompressionBomb" in desk.left_out("x.png", png_that_claims(60_000, 60_000)),
        "",
    ),
    "image that is a strip": (
        lambda desk: "1 x 30,000 pixels are a strip" in desk.left_out("x.jpg", jpeg((1, 30_000))),
        "",
    ),
    "image with a box beyond all memory": (
        lambda desk: "MemoryError" in desk.left_out("x.jpg", JPEG_2000_OF_EXABYTES),
        "",
    ),
    "image animated": (animated, ""),
    "image CMYK": (lambda desk: saved(desk, Image.new("CMYK", (8, 8)), "ink.jpg").mode == "RGB", ""),
    "image of 16 bits": (sixteen_bits, ""),
    "image turned by EXIF": (turned, ""),
    "name not UTF-8": (lambda desk: "not UTF-8: rename it" in desk.left_out(b"caf\xe9.jpg"), ""),
    "row that climbs": (climbing_row, ""),
    "member that climbs": (member_outside, "cannot identify image file"),
    # tables
    "semicolons, decimal commas": (
        lambda desk: desk.built("path;lat;lon\na.jpg;1,5;2,5\n").photos["latitude"].tolist() == [1.5],
        "",
    ),
    "table empty": (lambda desk: desk.built(""), r"table\.csv: cannot be read as a table"),
    "table in Latin-1": (
        lambda desk: desk.built("path,lat,lon\ncafé.jpg,1,2\n".encode("latin-1")),
        "cannot be read as a table .*UTF-8",
    ),
    "table of OSV5M with ragged rows": (
        ragged_official,
        r"train\.csv: cannot be read as CSV .*saw 4\); download it anew",
    ),
    "table with words": (lambda desk: desk.built("path,lat,lon\na.jpg,1,east\n"), "line 2: longitude 'east'"),
    "table names a photo twice": (
        lambda desk: desk.prepared("path,lat,lon\na.jpg,1,2\na.jpg,3,4\n"),
        r"no photo has one place \(a\.jpg: line 2 and line 3 differ in its place\)",
    ),
    # features
    "features of other photos": (
        lambda desk: desk.features(np.ones((7, 16), np.float32)),
        r"shape \(7, 16\) does not fit the manifest's 160 rows",
    ),
    "features that are pickled": (
        lambda desk: desk.features(np.array([{"a": 1}] * 160, dtype=object)),
        "not an array of features",
    ),
    "features of integers": (
        lambda desk: desk.features(np.ones((160, 16), int)),
        "holds int64, not float16 or float32",
    ),
    "features of no bytes": (lambda desk: desk.features(b""), "not an array of features"),
    "features not finite": (nan_features, "a feature is not finite; look for NaN, or extract"),
    # the gallery
    "gallery with NaN": (
        lambda desk: desk.gallery("LAT,LON\n1,2\nnan,3\n"),
        r"places\.csv: line 3 is no coordinate; mend or drop it",
    ),
    "gallery beyond the poles": (
        lambda desk: desk.gallery("LAT,LON\n1,2\n-90.5,2\n"),
        "line 3 is no coordinate",
    ),
    "gallery without rows": (lambda desk: desk.gallery("LAT,LON\n"), "it has no rows"),
    "gallery that is not there": (
        lambda desk: gallery.find(desk.make_run("evaluation.gallery=/nowhere/g.csv").settings.evaluation),
        "is not there",
    ),
    # semivariograms and weights
    "curve flat": (
        lambda desk: desk.estimated(lambda lag: np.full_like(lag, 0.5)),
        "do not rise with distance",
    ),
    "curve of noise": (
        lambda desk: desk.estimated(lambda lag: 0.5 + 0.1 * np.random.default_rng(0).normal(size=len(lag))),
        "do not rise with distance",
    ),
    "lags without pairs": (
        lambda _: semivariogram.fit(semivariogram.EmpiricalSemivariogram.empty(0.05)),
        "0 lags with pairs are too few",
    ),
    "coordinates not finite": (
        lambda _: sampling.estimate(
            lambda rows: torch.ones(len(rows), 2), np.array([[1.0, np.nan], [1.0, 2.0]])
        ),
        "row 0 from 0: 1, nan is no latitude and longitude in degrees",
    ),
    "curve's file torn": (
        damaged_run_file(
            lambda run: run.semivariogram, lambda run: FittedSemivariogram.load(run.semivariogram)
        ),
        "not a saved semivariogram",
    ),
    "curve without rise": (curve_of(partial_sill=0.0), "not a saved semivariogram .no curve has nugget"),
    "sums torn": (
        damaged_run_file(lambda run: run.empirical, lambda run: curve.load_empirical(run.empirical)),
        "not the sums of a semivariogram",
    ),
    "weights torn": (
        damaged_run_file(
            lambda run: run.checkpoint("infonce", 0),
            lambda run: checkpoints.load(run.checkpoint("infonce", 0)),
        ),
        "not a checkpoint of this model",
    ),
    "weights not finite": (weights_of_nan, "not a checkpoint of this model .logit_scale is not finite"),
    # profiles
    "profile is a list": (profile("- a\n- b\n"), "must hold groups"),
    "profile that would run code": (
        profile("training: !!python/object/apply:os.system ['true']\n"),
        "cannot be read as YAML",
    ),
    "setting out of range": (
        profile("training: {epochs: -1}\n"),
        r"training\.epochs: .*greater than or equal to 1",
    ),
}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 5)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def desk(tmp_path: Path, make_run: Runs) -> Desk:
    made = Desk(tmp_path / "desk", make_run)
    made.root.mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        made.photo(name)
    return made


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_gives_its_sentence_or_the_right_result(desk: Desk, name: str) -> None:
    case, sentence = CASES[name]
    if name == "name not UTF-8":
        try:
            desk.photo(b"\xe9.jpg")
            (desk.root / os.fsdecode(b"\xe9.jpg")).unlink()
        except OSError:
            pytest.skip("this file system takes no such name")
    if not sentence:
        assert case(desk)
        return
    known = (BundleError, *UNREADABLE) if "image" in name or "member" in name else BundleError
    with pytest.raises(known) as raised:
        case(desk)
    message = str(raised.value)
    assert re.search(sentence, message), message
    assert "\n" not in message.strip() and "Traceback" not in message
