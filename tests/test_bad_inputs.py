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
import subprocess
import sys
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

from lib.data import datasets, features, manifest, osv5m
from lib.data.photos import UNREADABLE, open_photo
from lib.method import model, semivariogram
from lib.method.errors import BundleError
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import Run
from lib.settings import OSV5M, PROJECT, load
from lib.train import checkpoints, curve

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

    def run(self, table: str) -> Run:
        """A run over the photos, before notebook 01."""
        (self.path / "table.csv").write_text(table)
        asked = ["dataset=folder", f"dataset.root={self.root}", f"dataset.csv={self.path / 'table.csv'}"]
        asked.append("backbone.image_px=32")
        return Run(load("smoke", asked), self.path / "run")

    def prepared(self, table: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The manifest, and what did not match, of a run over the photos."""
        run = self.run(table)
        return manifest.read(datasets.prepare(run)), pd.read_csv(run.table("not_matched"))

    def left_out(self, name: str | bytes, content: bytes | None = None) -> str:
        """Why one more photo is left out, beside a good one."""
        (self.root / "b.jpg").unlink()
        self.photo(name, content)
        shown = (name.encode() if isinstance(name, str) else name).decode("utf-8", "backslashreplace")
        run = self.run("path,lat,lon\na.jpg,11,12\n" + (f"{name},3,4\n" if isinstance(name, str) else ""))
        kept = features.photos(run)
        assert kept["path"][kept["split"] != features.NOT_DECODED].tolist() == ["a.jpg"]
        return pd.read_csv(run.table("left_out")).set_index("path").at[shown, "reason"]


def jpeg(size: tuple[int, int] = (24, 16), mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says it is huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def one_photo_curve(desk: Desk) -> object:
    return semivariogram.exact(lambda rows: torch.ones(len(rows), 4), np.array([[1.0, 2.0]]))


def at_one_place(desk: Desk) -> object:
    drawn = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(drawn, dim=1)
    return semivariogram.fit(semivariogram.exact(lambda rows: unit[rows], np.full((50, 2), 10.0), 0.05))


def member_outside(desk: Desk) -> object:
    """Out of an archive whose member's name climbs: what it names is read from the archive, never from the
    disk."""
    (desk.path / "secret.jpg").write_bytes(jpeg())
    with zipfile.ZipFile(desk.root / "00.zip", "w") as archive:
        archive.writestr("../../secret.jpg", b"not the one on the disk")
    return open_photo(desk.root, "00.zip/../../secret.jpg")


def climbing_row(desk: Desk) -> object:
    (desk.path / "secret.jpg").write_bytes(jpeg())
    kept, out = desk.prepared("path,lat,lon,continent\na.jpg,11,12,Africa\n../secret.jpg,3,4,Africa\n")
    reason = out.set_index("id").at["../secret.jpg", "reason"]
    return kept["path"].tolist() == ["a.jpg"] and "no such photo" in reason


def official(
    desk: Desk, table: str, of: Callable[[OSV5M, Path], object] = osv5m.build, record: str | None = None
) -> object:
    """OSV5M with one photo in each of its archives, a ``table``, and a ``record`` of downloads."""
    for split in ("train", "test"):
        (desk.path / "images" / split).mkdir(parents=True)
        with zipfile.ZipFile(desk.path / "images" / split / "00.zip", "w") as archive:
            archive.write(desk.root / "a.jpg", "00/7.jpg")
        (desk.path / f"{split}.csv").write_text(table)
    if record is not None:
        (desk.path / osv5m.LOCK).write_text(record)
    settings = OSV5M(root=desk.path, train_shards=1, test_shards=1, validation=1, download=False)
    return of(settings, desk.path)


def torn_sums(desk: Desk) -> object:
    run = desk.make_run()
    run.empirical.parent.mkdir(exist_ok=True)
    run.empirical.write_bytes(b"neither this nor that")
    return curve.load_empirical(run.empirical)


def curve_without_rise(desk: Desk) -> object:
    run = desk.make_run()
    run.semivariogram.write_text(json.dumps(json.loads(run.semivariogram.read_text()) | {"partial_sill": 0}))
    return FittedSemivariogram.load(run.semivariogram)


def weights_of_nan(desk: Desk) -> object:
    trained = model.GeoCLIP(8)
    with torch.no_grad():
        trained.logit_scale.fill_(float("nan"))
    checkpoints.save(trained, desk.path / "weights.safetensors")
    return checkpoints.load(desk.path / "weights.safetensors")


def nan_features(desk: Desk) -> object:
    unit = torch.ones(50, 8)
    unit[7] = float("nan")
    return semivariogram.exact(lambda rows: unit[rows], world()[0][["latitude", "longitude"]].to_numpy()[:50])


POLES = np.array([[90.0, 0.0], [-90.0, 0.0], [90.0, 120.0], [89.9999999, -180.0]])
JPEG_2000_OF_EXABYTES = bytes.fromhex("0000000C6A5020200D0A870A")
JPEG_2000_OF_EXABYTES += struct.pack(">I4sQ", 1, b"jp2h", 2**62) + b"x" * 40

# fmt: off
CASES: dict[str, tuple[Callable[[Desk], object], str]] = {
    # images
    "decompression bomb": (
        lambda desk: "DecompressionBomb" in desk.left_out("x.png", png_that_claims(60_000, 60_000)), ""),
    "image that is a strip": (
        lambda desk: "1 x 30,000 pixels are a strip" in desk.left_out("x.jpg", jpeg((1, 30_000))), ""),
    "image with a box beyond all memory": (
        lambda desk: "MemoryError" in desk.left_out("x.jpg", JPEG_2000_OF_EXABYTES), ""),
    "name not UTF-8": (lambda desk: "not UTF-8: rename it" in desk.left_out(b"caf\xe9.jpg"), ""),
    "row that climbs": (climbing_row, ""),
    "member that climbs": (member_outside, "cannot identify image file"),
    # tables
    "table of OSV5M with ragged rows": (
        lambda desk: official(desk, "id,latitude,longitude\n1,2,3\n1,2,3,4\n"),
        r"train\.csv: cannot be read as CSV .*saw 4\); download it anew"),
    "table of OSV5M for other photos": (
        lambda desk: official(desk, "id,latitude,longitude\n1,48.8,2.3\n2,33,S\n"),
        r"no row of train\.csv has a photo in the chosen shards",
    ),
    "record of downloads torn": (lambda desk: official(desk, "", osv5m.obtain, "[]"),
        r"osv5m\.json: damaged .*; delete it"),
    # features
    "features not finite": (nan_features, "a feature is not finite; look for NaN, or extract"),
    # semivariograms and weights
    "coordinates not finite": (
        lambda _: semivariogram.exact(lambda rows: torch.ones(len(rows), 2), np.array([[1.0, np.nan]] * 2)),
        "row 0 from 0: 1, nan is no latitude and longitude in degrees"),
    "curve without rise": (curve_without_rise, "not a saved semivariogram .no curve has nugget"),
    "sums torn": (torn_sums, "not the sums of a semivariogram"),
    "weights not finite": (weights_of_nan, "not a checkpoint of this model .logit_scale is not finite"),
}
# fmt: on


@pytest.fixture
def desk(tmp_path: Path, make_run: Runs, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(datasets, "splits_of", lambda run, there: ["test"])  # two photos have no three
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


def test_a_terminal_that_knows_no_utf8_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "\u0431.heic").write_bytes(b"")
    environment = os.environ | {"PYTHONIOENCODING": "iso-8859-1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "lib.predict", str(tmp_path), "--model", str(tmp_path / "\u0431…")]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True)
    assert done.returncode == 1 and b"no such folder" in done.stderr and b"Traceback" not in done.stderr
    program = "from lib.runs.machine import print_anywhere; print_anywhere(); print('\u2026 \u0431')"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, env=environment, capture_output=True)
    assert done.stdout == b"? ?\n"


def test_a_clone_on_windows_keeps_the_line_ends_of_scripts_and_the_bytes_of_pictures(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "core.autocrlf=true"]
    subprocess.run([*git, "init", "-q"], check=True)
    for name in (".gitattributes", "run_all.sh", "requirements.lock"):
        (tmp_path / name).write_bytes((PROJECT / name).read_bytes())
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\n")
    (tmp_path / "b.parquet").write_bytes(b"\r\n\n\r\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    subprocess.run([*git, "add", "-A"], check=True, capture_output=True)
    for name in before:
        (tmp_path / name).unlink()
    subprocess.run([*git, "checkout", "-q", "--", "."], check=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
