"""OpenStreetView-5M in miniature: zips, folders, what is left out, and the hub, played by a small server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

import pandas as pd
import pytest
from miniatures import osv5m as miniature

from lib.data import datasets, features, manifest, osv5m
from lib.data.photos import open_photo
from lib.method.errors import BundleError
from lib.runs import Run, ranks
from lib.settings import OSV5M, PROJECT, load

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "osv5m").mkdir()
    miniature.write(tmp_path / "osv5m")
    return tmp_path / "osv5m"


def settings(**changes: object) -> OSV5M:
    return OSV5M(**({"train_shards": 2, "test_shards": 1, "validation": 30, "download": False} | changes))


def run_on(root: Path, *overrides: str) -> Run:
    chosen = ["dataset=osv5m", f"dataset.root={root}", "dataset.train_shards=2", "dataset.test_shards=1",
              "dataset.validation=30", "dataset.download=false", *overrides]  # fmt: skip
    return Run(load("smoke", chosen), root.parent / "run")


def unpack(root: Path) -> None:
    """As a user would with unzip: a folder in the place of each archive."""
    for archive in sorted((root / "images").rglob("*.zip")):
        with zipfile.ZipFile(archive) as file:
            file.extractall(archive.parent)
        archive.unlink()


class TestManifest:
    def test_splits_are_the_official_ones_less_a_cut_for_validation(self, root: Path) -> None:
        photos, _ = osv5m.build(settings(), root)
        assert photos["split"].value_counts().to_dict() == {"train": 209, "test": 60, "validation": 30}
        official = pd.read_csv(root / "test.csv", dtype={"id": str})
        assert set(photos["id"][photos["split"] == "test"]) == set(official["id"])

    def test_every_photo_is_found_under_its_path_with_the_coordinates_of_its_row(self, root: Path) -> None:
        photos, _ = osv5m.build(settings(), root)
        tables = [pd.read_csv(root / f"{split}.csv", dtype={"id": str}) for split in ("train", "test")]
        rows = pd.concat(tables).set_index("id")
        for photo in photos.sample(20, random_state=0).itertuples():
            assert Path(photo.path).stem == photo.id
            assert (photo.latitude, photo.longitude) == tuple(rows.loc[photo.id, ["latitude", "longitude"]])
            assert open_photo(root, photo.path).size == (64, 48)

    def test_useful_columns_stay_namibia_is_a_country_and_what_is_left_out_is_listed_with_its_reason(
        self, root: Path
    ) -> None:
        photos, left_out = osv5m.build(settings(), root)
        assert set(photos) == {*osv5m.COLUMNS, "path", "split"}
        assert "NA" in set(photos["country"]) and photos["country"].notna().all()
        assert left_out.set_index("id")["reason"].to_dict() == {
            miniature.NO_ROW: "no row in train.csv",
            "": "train.csv: rows without photo in the chosen shards: 1",
        }

    def test_a_row_without_coordinates_is_left_out_not_fatal(self, root: Path) -> None:
        table = pd.read_csv(root / "train.csv", dtype=str)
        table.loc[[0, 1], "latitude"] = ["", "95"]
        table.to_csv(root / "train.csv", index=False)
        photos, left_out = osv5m.build(settings(), root)
        assert not set(table["id"][:2]) & set(photos["id"])
        assert (left_out["reason"] == "train.csv: no usable coordinates").sum() == 2

    def test_a_broken_photo_is_left_out_and_listed_and_the_rest_goes_on(self, root: Path) -> None:
        run = run_on(root, "backbone.image_px=32")
        photos, listed = features.photos(run), pd.read_csv(run.table("left_out"))
        assert len(photos) == 299 and (photos["split"] == features.NOT_DECODED).sum() == 1
        assert listed["reason"].str.contains("(?i)truncated").sum() == 1
        assert {"continent", "town", "country", "climate"} <= set(photos)

    def test_folders_of_unpacked_archives_give_the_same_photos_if_they_are_whole(self, root: Path) -> None:
        packed, _ = osv5m.build(settings(), root)
        with zipfile.ZipFile(root / "images" / "test" / "00.zip") as file:
            file.extract(file.namelist()[0], root / "images" / "test")
        pd.testing.assert_frame_equal(osv5m.build(settings(), root).photos, packed)
        unpack(root)
        unpacked, _ = osv5m.build(settings(), root)
        assert unpacked["path"][0] == packed["path"][0].replace(".zip/00/", "/")
        assert open_photo(root, unpacked["path"][7]).size == (64, 48)
        pd.testing.assert_frame_equal(unpacked.drop(columns="path"), packed.drop(columns="path"))

    def test_it_is_made_once_and_again_when_an_archive_changed(
        self, root: Path, capsys: pytest.CaptureFixture
    ) -> None:
        run = run_on(root)
        assert len(manifest.read(datasets.prepare(run))) == 299
        datasets.prepare(run)
        with zipfile.ZipFile(root / "images" / "test" / "00.zip", "a") as file:
            file.writestr("00/1.jpg", b"")
        assert capsys.readouterr().out.count("made    manifest") == 1
        datasets.prepare(run)
        assert "again   manifest: other settings (photos" in capsys.readouterr().out

    def test_ranks_but_the_first_wait_for_the_manifest_and_never_look_at_the_photos(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, looked = run_on(root), []

        def watch(name: str, original: Callable) -> None:
            monkeypatch.setattr(osv5m, name, lambda *of: looked.append((ranks.rank(), name)) or original(*of))

        def first_rank_works() -> None:
            with monkeypatch.context() as patch:
                patch.setattr(ranks, "count", lambda: 1)
                patch.setattr(ranks, "rank", lambda: 0)
                datasets.prepare(run)

        for name in ("obtain", "listing", "build"):
            watch(name, getattr(osv5m, name))
        monkeypatch.setattr(ranks, "count", lambda: 2)
        monkeypatch.setattr(ranks, "rank", lambda: 1)
        monkeypatch.setattr(ranks, "wait", first_rank_works)
        for _ in range(2):
            assert len(manifest.read(datasets.prepare(run))) == 299
        assert looked == [(0, "obtain"), (0, "listing"), (0, "build")]

    def test_unpacked_photos_are_listed_once_in_a_process_and_again_when_one_is_added(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unpack(root)
        listed, unpacked = [], osv5m._unpacked
        monkeypatch.setattr(osv5m, "_unpacked", lambda folder: listed.append(folder) or unpacked(folder))
        monkeypatch.setattr(osv5m, "checksum", lambda path: pytest.fail(f"{path} is read"))
        osv5m.obtain(settings(), root)
        digests = [osv5m.listing(settings(), root) for _ in range(3)]
        assert len(listed) == 3 and len(set(digests)) == 1  # three folders
        (root / "images" / "train" / "00" / "1.jpg").write_bytes(b"")
        assert osv5m.listing(settings(), root) != digests[0] and len(listed) == 4


class TestMistakes:
    def test_what_is_missing_cut_off_or_too_much_is_named_with_what_to_do(self, root: Path) -> None:
        there = r"images/train/02\.zip is not there"
        with pytest.raises(BundleError, match=rf"{there} \(96 of the chosen files"):
            osv5m.obtain(settings(train_shards="all"), root)
        with pytest.raises(BundleError, match=rf"{there} .* the hub does not give it now .*try again"):
            osv5m.obtain(settings(train_shards=3, download=True), root)  # without a network
        with pytest.raises(BundleError, match="more than half of the 239 training photos; lower it"):
            osv5m.build(settings(validation=200), root)
        archive = root / "images" / "train" / "01.zip"
        archive.write_bytes(archive.read_bytes()[:5_000])
        with pytest.raises(BundleError, match=r"01\.zip: cannot be read as an archive .*download it anew"):
            osv5m.build(settings(), root)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download needs; ``cut_after`` bytes of a file the connection is
    lost once."""

    folder: Path
    cut_after: int | None = None
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Silence."""

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        plain = {"Content-Length": str(len(content)), "Content-Type": "application/json"}
        for name, value in (plain | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        wanted = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
        found = []
        for name in wanted:
            if (path := self.folder / name).is_file():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                if name in self.server.lied_about:
                    digest = "0" * 64
                size = path.stat().st_size
                lfs = {"oid": digest, "size": size, "pointerSize": 130}
                found.append({"type": "file", "path": name, "size": size, "oid": "a" * 40, "lfs": lfs})
        self.answer(json.dumps(found).encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path)
        if parts.startswith("/api/datasets/"):
            self.server.limited -= 1
            if self.server.limited >= 0:
                self.answer(b"{}", 429, Retry_After="0")
                return
            about = {"id": "osv5m/osv5m", "sha": COMMIT, "lastModified": "2024-05-01T10:00:00.000Z"}
            self.answer(json.dumps(about | {"siblings": [], "tags": []}).encode())
            return
        path = self.folder / parts.partition(f"/resolve/{COMMIT}/")[2]
        if not path.is_file():
            self.answer(b"{}", 404, X_Error_Code="EntryNotFound")
            return
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if self.command == "GET":
            self.server.asked.append(path.name)
        if self.command == "GET" and self.server.cut_after and path.suffix == ".zip":
            self.send_response(200)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: self.server.cut_after])
            self.wfile.flush()
            self.server.cut_after = None
            self.connection.close()
            return
        self.answer(content, **headers)


@pytest.fixture
def hub(root: Path) -> Iterator[ThreadingHTTPServer]:
    """A server that has the miniature, on the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (Hub,), {"folder": root}))
    server.asked, server.cut_after, server.lied_about, server.limited = [], None, set(), 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


OBTAIN = """
import sys
from pathlib import Path
from lib.data.datasets import osv5m
from lib.method.errors import BundleError
from lib.settings import OSV5M
try:
    osv5m.obtain(OSV5M(train_shards=int(sys.argv[2]), test_shards=1), Path(sys.argv[1]))
except BundleError as error:
    sys.exit(str(error))
"""


def obtain(
    hub: ThreadingHTTPServer, target: Path, train_shards: int = 2, program: str = OBTAIN
) -> subprocess.CompletedProcess[str]:
    """Download from ``hub`` in a process of its own: the hub's client reads its address once, when it is
    imported."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(target.parent / "home"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, "-c", program, str(target), str(train_shards)]
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120)


class TestDownload:
    def test_chosen_shards_and_tables_arrive_whole_and_are_remembered(
        self, hub: ThreadingHTTPServer, root: Path, tmp_path: Path
    ) -> None:
        done = obtain(hub, tmp_path / "here", train_shards=1)
        assert done.returncode == 0, done.stderr
        found = (tmp_path / "here").rglob("*.[zc][is][pv]")
        arrived = {path.relative_to(tmp_path / "here").as_posix() for path in found}
        assert arrived == {"train.csv", "test.csv", "images/train/00.zip", "images/test/00.zip"}
        for name in arrived:
            assert (tmp_path / "here" / name).read_bytes() == (root / name).read_bytes()
        lock = json.loads((tmp_path / "here" / "osv5m.json").read_text())
        assert lock["revision"] == COMMIT and set(lock["files"]) == arrived
        assert lock["last_modified"].startswith("2024-05-01T10:00") and lock["first_download"] > "2026"
        asked = len(hub.asked)
        assert obtain(hub, tmp_path / "here", train_shards=1).returncode == 0
        assert len(hub.asked) == asked  # what is there is not asked for

    def test_after_a_stop_files_that_have_arrived_are_not_asked_for_again(
        self, hub: ThreadingHTTPServer, root: Path, tmp_path: Path
    ) -> None:
        for name in ("train.csv", "test.csv", "images/train/00.zip"):
            (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "here" / name).write_bytes((root / name).read_bytes())
        hub.cut_after = 2_000
        done = obtain(hub, tmp_path / "here")
        if done.returncode:  # the client gave up
            done = obtain(hub, tmp_path / "here")
        assert done.returncode == 0, done.stderr
        assert sorted(set(hub.asked)) == ["00.zip", "01.zip"] and len(hub.asked) == 3  # one of them twice
        for name in ("images/train/00.zip", "images/train/01.zip", "images/test/00.zip"):
            assert (tmp_path / "here" / name).read_bytes() == (root / name).read_bytes()

    @pytest.mark.parametrize("limited", [2, 99])
    def test_a_rate_limit_is_waited_out_some_times(
        self, hub: ThreadingHTTPServer, tmp_path: Path, limited: int
    ) -> None:
        hub.limited = limited
        done = obtain(hub, tmp_path / "here", train_shards=1)
        said = "the hub limits requests (HTTP 429): asking again in 0 s, then 9 more times at most"
        assert said in done.stdout and done.stdout.count("(HTTP 429)") == min(limited, osv5m.WAITS)
        assert done.returncode == (limited > osv5m.WAITS)
        assert limited == 2 or "the hub does not give it now (" in done.stderr

    def test_a_file_whose_checksum_is_wrong_is_deleted_and_named(
        self, hub: ThreadingHTTPServer, tmp_path: Path
    ) -> None:
        hub.lied_about.add("images/train/01.zip")
        done = obtain(hub, tmp_path / "here")
        assert done.returncode == 1 and "01.zip: arrived damaged" in done.stderr
        assert not (tmp_path / "here" / "images" / "train" / "01.zip").exists()

    def test_of_two_runs_that_download_the_second_waits_and_finds_the_files(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        @contextmanager
        def waiting(lock: Path) -> Iterator[None]:
            shutil.copytree(root, lock.parent, dirs_exist_ok=True)  # what the first one does meanwhile
            yield

        monkeypatch.setattr(osv5m.locks, "waiting", waiting)
        monkeypatch.setattr(osv5m, "_download", lambda names, *_: pytest.fail(f"{names} are asked for"))
        osv5m.obtain(settings(download=True), tmp_path / "here")

    def test_a_full_disk_is_found_before_the_download(
        self, hub: ThreadingHTTPServer, root: Path, tmp_path: Path
    ) -> None:
        patch = "shutil.disk_usage = lambda _: shutil._ntuple_diskusage(1, 1, 2**30 + 2_000)"
        program = f"import shutil\n{patch}\n{OBTAIN}"
        left = tmp_path / "here" / ".cache" / "huggingface" / "download" / "x.1234abcd.incomplete"
        left.parent.mkdir(parents=True)
        left.write_bytes(b"what a stopped download left behind")
        done = obtain(hub, tmp_path / "here", program=program)
        assert done.returncode == 1 and "to download 5 files takes" in done.stderr
        assert "choose fewer shards" in done.stderr and not hub.asked and not left.exists()
