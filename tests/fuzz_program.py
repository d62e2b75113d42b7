"""Fuzzing for as long as one likes: ``fuzz_program.py FOLDER SECONDS SEED EXAMPLES``.

Two kinds of rounds by turns, each in a fork, so that not even a crash of a compiled reader ends it. *Drawn*:
a property test of these tests, with examples of its own strategy that no default run has seen. *Damaged*: a
good file of every kind that the library reads, with bytes turned, cut, repeated or strewn in; the reader must
return, or raise one of the errors of which the command line shows the sentence alone. Everything else, twenty
seconds without an answer too, is a finding: a file below ``FOLDER/found``. A round has EXAMPLES of them; the
last one begins within SECONDS. Prints one JSON line a kind, what was tried and what was found; exit status 1
where there is a finding.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import random
import re
import resource
import signal
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from conftest import NarrowLocationEncoder, fitted, world
from hypothesis import HealthCheck, given, seed, settings
from PIL import Image

from lib import verify
from lib.data import datasets, features, osv5m, sampling
from lib.data import folder as folders
from lib.data.photos import UNREADABLE, exif_coordinates, open_photo
from lib.method import model
from lib.method.errors import BundleError
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import Run, receipts
from lib.runs.provenance import read_provenance
from lib.settings import PROFILES, Folder, load
from lib.train import checkpoints, curve, gallery

MODULES = ["test_numerics", "test_geodesy", "test_empirical", "test_semivariogram", "test_variography"]
LONGEST_S = 20
MEMORY_BYTES = 12 * 2**30
TOKENS = [
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"nan",
    b"-1",
    b"1e309",
    b"null",
    b"{",
    b"]",
    b'"',
    b",",
    b";",
    b"\n",
    b"\r\n",
    b"\xef\xbb\xbf",
    b"../",
    b"9" * 30,
]


@dataclass(frozen=True)
class Reader:
    """Something that reads a file: good contents of it, and the errors that it may raise."""

    path: Path
    seeds: list[bytes]
    read: Callable[[], object]
    raises: tuple[type[BaseException], ...] = (BundleError,)
    one_sentence: bool = True


def photos() -> list[bytes]:
    """A small photo in every format that the library takes, one with a place and a turn in its EXIF."""
    draw = np.random.default_rng(0)
    image, found = Image.fromarray(draw.integers(0, 255, (20, 30, 3), dtype=np.uint8)), []
    exif = Image.Exif()
    exif[0x0112], exif[0x8825] = 6, {1: "N", 2: (48.0, 51.0, 30.0), 3: "E", 4: (2.0, 17.0, 40.0)}
    for kind, options in (
        ("JPEG", {"exif": exif}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {"exif": exif}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ):
        image.save(buffer := io.BytesIO(), kind, **options)
        found.append(buffer.getvalue())
    image.convert("CMYK").save(buffer := io.BytesIO(), "JPEG")
    return [*found, buffer.getvalue()]


def archive(photo: bytes) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("00/1.jpg", photo)
    return buffer.getvalue()


def readers(home: Path) -> dict[str, Reader]:
    """Every kind of file that the library reads, each below ``home``."""
    run = Run(load("smoke", ["device=cpu", "backbone.precision=float32"]), home / "run")
    for place in (
        run.features,
        run.manifest,
        run.empirical,
        run.checkpoint("infonce", 0),
        home / "photos" / "a.jpg",
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
    manifest, vectors = world({"train": 24, "validation": 4, "test": 4, "test_blocked": 4})
    manifest.to_parquet(run.manifest, index=False)
    np.save(run.features, vectors)
    fitted().save(run.semivariogram)
    sums = sampling.estimate(
        lambda rows: torch.from_numpy(vectors[rows]), manifest[["latitude", "longitude"]].to_numpy(), 0.1
    )
    np.savez(run.empirical, **asdict(sums))
    trained = model.GeoCLIP(vectors.shape[1])
    checkpoints.save(trained, run.checkpoint("infonce", 0))
    receipts.write(
        run.folder / "receipts" / "a.json",
        {"key": "k", "stage": "manifest", "outputs": {"manifest.parquet": "0"}, "settings": {}},
    )
    run.provenance.write_text(
        json.dumps({"settings": run.settings.model_dump(mode="json"), "outputs": {"manifest.parquet": "0"}})
    )
    good = photos()
    for name in ("a", "b", "c"):
        (home / "photos" / f"{name}.jpg").write_bytes(good[0])
    own = home / "own"
    table = b"path,lat,lon,continent,split\na.jpg,1.5,2,Africa,train\nb.jpg,3,-4,Africa,test\n"
    official = b'id,latitude,longitude,country,region\n1,1.5,2.5,NA,x\n2,-3,4e1,FR,"a, b"\n'

    def image() -> object:
        exif_coordinates(home, "own")  # never raises, whatever the file is
        return open_photo(home, "own")

    def of(path: Path, read: Callable[[], object]) -> Reader:
        return Reader(path, [path.read_bytes()], read)

    return {
        "photo": Reader(own, good, image, UNREADABLE, one_sentence=False),
        "archive of photos": Reader(
            home / "own.zip",
            [archive(good[0])],
            lambda: open_photo(home, "own.zip/00/1.jpg"),
            UNREADABLE,
            one_sentence=False,
        ),
        "table of a folder": Reader(
            own,
            [table, table.replace(b",", b";"), b"\xef\xbb\xbf" + table],
            lambda: folders.build(Folder(root=home / "photos", csv=own), home / "photos"),
        ),
        "table of OSV5M": Reader(own, [official], lambda: osv5m._unplaced(osv5m._read_table(own))),
        "gallery": Reader(own, [b"LAT,LON\n1,2\n-3.5,180\n90,-180\n"], lambda: gallery.read_csv(own)),
        "profile": Reader(
            home / "own.yaml",
            [path.read_bytes() for path in sorted(PROFILES.glob("*.yaml"))],
            lambda: load(home / "own.yaml"),
            one_sentence=False,
        ),
        "manifest": of(run.manifest, lambda: datasets.read(run)),
        "features": of(run.features, lambda: features.read(run, datasets.read(run))),
        "semivariogram": of(run.semivariogram, lambda: FittedSemivariogram.load(run.semivariogram)),
        "sums of a semivariogram": of(run.empirical, lambda: curve.load_empirical(run.empirical)),
        "weights": of(run.checkpoint("infonce", 0), lambda: checkpoints.load(run.checkpoint("infonce", 0))),
        "receipt": of(
            run.folder / "receipts" / "a.json", lambda: receipts.read(run.folder / "receipts" / "a.json")
        ),
        "provenance": of(
            run.provenance,
            lambda: (
                list(verify.checksums(run.folder, read_provenance(run.folder))),
                Run.finished(run.folder),
            ),
        ),
    }


def damaged(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """``content`` with one to eight faults."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        place, length = draw.randrange(len(data) + 1), draw.choice((1, 1, 2, 4, 8, 64))
        match draw.randrange(7):
            case 0 if place < len(data):
                data[place] ^= 1 << draw.randrange(8)
            case 1 if place < len(data):
                data[place] = draw.randrange(256)
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case 4:
                data[place:place] = draw.choice(TOKENS)
            case 5:
                token = draw.choice(TOKENS)
                data[place : place + len(token)] = token
            case 6:
                data[place:] = b"" if draw.random() < 0.5 else other[draw.randrange(len(other) + 1) :]
    return bytes(data)


def properties() -> dict[str, Callable[[int, int], int]]:
    """The property tests that need no fixture: name -> a function of seed and wanted examples that runs it
    and returns how many it tried."""
    found: dict[str, Callable] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        homes = [(module, name)] + [
            (one, one.__name__)
            for one in vars(module).values()
            if isinstance(one, type) and one.__module__ == name
        ]
        for home, called in homes:
            for attribute, test in vars(home).items():
                if getattr(test, "is_hypothesis_test", False):
                    found[f"{called}.{attribute}"] = _drawing(
                        test.hypothesis, home() if isinstance(home, type) else None
                    )
    return found


def _drawing(handle: object, instance: object) -> Callable[[int, int], int]:
    def draw(number: int, examples: int) -> int:
        tried = []

        def example(**values: object) -> None:
            tried.append(None)
            handle.inner_test(*([instance] if instance is not None else []), **values)

        wanted = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
        )
        seed(number)(wanted(given(**handle._given_kwargs)(example)))()
        return len(tried)

    return draw


def one_damaged(reader: Reader, content: bytes) -> str:
    """What is wrong with how ``content`` was read; empty where nothing is."""
    signal.alarm(LONGEST_S)
    try:
        reader.read()
    except reader.raises as error:
        message = str(error)
        if reader.one_sentence and ("\n" in message.strip() or not message or len(message) > 2_000):
            return f"no one sentence: {message[:3_000]!r}"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return ""


def _late(*_: object) -> None:
    raise TimeoutError(f"no answer within {LONGEST_S} seconds")


def a_round(home: Path, kind: str, number: int, work: Callable[[int], int]) -> tuple[int, bool]:
    """Examples that a fork tried, and whether it ended well; ``work`` makes of a seed the number of
    examples."""
    counter = home / "tried"
    child = os.fork()
    if not child:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            signal.signal(signal.SIGALRM, _late)
            for stream in (1, 2):  # bars, and what compiled readers say
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            tried = work(number)
            counter.write_text(str(tried))
            status = 0
        except BaseException:
            _found(home, kind, traceback.format_exc())
        finally:
            os._exit(status)
    counter.unlink(missing_ok=True)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        _found(home, kind, f"killed by signal {-status}")
    return int(counter.read_text()) if counter.exists() else 0, status == 0


def _found(home: Path, kind: str, what: str, content: bytes | None = None) -> None:
    """Keep a finding: what happened, and the file that was read."""
    name = f"{re.sub(r'[^A-Za-z0-9]+', '_', kind)}-{time.time_ns()}"
    (home / "found").mkdir(exist_ok=True)
    (home / "found" / f"{name}.txt").write_text(what)
    current = home / "current"
    if content is not None or current.exists():
        (home / "found" / f"{name}.bin").write_bytes(content if content is not None else current.read_bytes())


def _damaging(home: Path, kind: str, reader: Reader, examples: int) -> Callable[[int], int]:
    def work(number: int) -> int:
        draw, wrong = random.Random(number), 0  # noqa: S311
        for _ in range(examples):
            content = damaged(draw.choice(reader.seeds), draw.choice(reader.seeds), draw)
            (home / "current").write_bytes(content)
            reader.path.write_bytes(content)
            if what := one_damaged(reader, content):
                wrong += 1
                _found(home, kind, what, content)
        if wrong:
            raise AssertionError(f"{wrong} findings, seed {number}")
        return examples

    return work


def main(home: Path, seconds: float, first: int, examples: int) -> int:
    """Rounds of every kind by turns until the time is over."""
    home.mkdir(parents=True, exist_ok=True)
    works = {
        f"drawn: {name}": lambda number, draw=draw: draw(number, examples)
        for name, draw in properties().items()
    }
    works |= {
        f"damaged: {name}": _damaging(home, name, reader, examples) for name, reader in readers(home).items()
    }
    tried, bad = dict.fromkeys(works, 0), dict.fromkeys(works, 0)
    started, number = time.monotonic(), first
    while time.monotonic() - started < seconds:
        for kind, work in works.items():
            (home / "current").unlink(missing_ok=True)
            count, well = a_round(home, kind, number, work)
            tried[kind] += count
            bad[kind] += not well
        number += 1
    for kind in works:
        print(json.dumps({"kind": kind, "examples": tried[kind], "bad_rounds": bad[kind]}), flush=True)
    hours = (time.monotonic() - started) / 3_600
    print(
        json.dumps(
            {
                "hours": round(hours, 3),
                "examples": sum(tried.values()),
                "bad_rounds": sum(bad.values()),
                "seeds": [first, number - 1],
            }
        ),
        flush=True,
    )
    return int(any(bad.values()))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model.geoclip_locations().LocationEncoder = NarrowLocationEncoder
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:5])))
