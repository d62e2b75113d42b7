"""What SECURITY.md promises: nothing is unpickled, no shell is built, no archive leaves its folder, no name
becomes markup."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from miniatures import osv5m as miniature

from lib.data import osv5m, photos
from lib.method.errors import BundleError
from lib.runs import Run
from lib.runs.provenance import write_provenance
from lib.settings import OSV5M, PROJECT
from lib.show import maps, pages, report
from lib.show.candidate_maps import CANDIDATES, candidate_map

MARKUP = "<img src=x onerror=alert(1)>.jpg"
CODE = sorted([*(PROJECT / "lib").rglob("*.py"), *(PROJECT / "benchmarks").rglob("*.py")])
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
FORBIDDEN = re.compile(
    r"\b(joblib|cloudpickle|marshal)\b|allow_pickle\s*=\s*True|weights_only\s*=\s*False|unpack_archive|_pickle\("
    r"|trust_remote_code['\"]?\s*[=:]\s*True|\.extract_?all\(|shell\s*=\s*True|tarfile\.open"
)
"""What ruff's rules let pass, or a comment could switch off."""
OPENED = re.compile(
    r"0\.0\.0\.0|\bip['\"]?\s*[=:]\s*['\"]?\*|(token|password)['\"]?\s*[=:]\s*(''|\"\"|\s-)"
    r"|allow_remote_access['\"]?\s*[=:]\s*[Tt]rue"
)


def lines_of(path: Path) -> list[str]:
    """Every line of a module, or of a notebook's code."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8").splitlines()
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [line for cell in cells for line in cell.splitlines()]


def test_no_module_and_no_notebook_unpickles_evaluates_or_asks_a_shell() -> None:
    folders = ["lib", "benchmarks", "notebooks"]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "S", *folders]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3_000:]
    assert re.search(r'select = \[.*"S"', (PROJECT / "pyproject.toml").read_text())
    for path in (*CODE, *NOTEBOOKS):
        assert not [line for line in lines_of(path) if FORBIDDEN.search(line)], path
    for path in NOTEBOOKS:
        shell = r"\s*(!|%%?(bash|sh|system|sx|script))"
        assert not [line for line in lines_of(path) if re.match(shell, line)], path.name


class Elements(html.parser.HTMLParser):
    """Start tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def harmful(self) -> list[tuple[str, dict[str, str | None]]]:
        return [
            (tag, named) for tag, named in self.found
            if named.get("src") == "x" or any(name.startswith("on") for name in named)
        ]  # fmt: skip


def test_no_name_becomes_markup_in_a_map(tmp_path: Path) -> None:
    names = {"id": [MARKUP, "</script><script>alert(1)</script>"], "path": [MARKUP, "</script>.jpg"]}
    numbers = dict.fromkeys(maps.NUMBERS, 1.0) | {"seed": 0}
    predictions = pd.DataFrame(names | {"split": MARKUP, "strategy": MARKUP} | numbers)
    row = dict.fromkeys(CANDIDATES, 1.0) | {"rank": 1, "photo": MARKUP, "town": MARKUP, "country": MARKUP}
    mass = pd.DataFrame({"photo": [MARKUP], "latitude": [1.0], "longitude": [2.0], "probability": [0.5]})
    for drawn in (
        maps.prediction_map(predictions, predictions, tmp_path, title=MARKUP, chosen=MARKUP),
        candidate_map(pd.DataFrame([row]), mass, tmp_path, title=MARKUP, notes=[MARKUP]),
    ):
        page = drawn.get_root().render()
        assert not Elements(page).harmful() and MARKUP not in page
        assert "onerror=alert(1)" in page  # as text it is there


@pytest.mark.parametrize("name", ["test/../../x", "..", "a\nb", "\u202etest", "x" * 201])
def test_no_name_leaves_the_folder_of_a_run(tmp_path: Path, name: str) -> None:
    run = Run.open("smoke", f"{tmp_path}/run")
    ways = [
        run.map,
        run.table,
        run.figure,
        run.receipt,
        *(partial(way, seed=0) for way in (run.checkpoint, run.history)),
    ]
    ways += [] if "/" in name else [partial(Run.open, "smoke")]  # a path is the caller's own choice
    for way in ways:
        assert way("good")
        with pytest.raises(BundleError, match="would be a file's name; take at most 100 letters"):
            way(name)


def test_the_maps_forbid_whatever_they_did_not_bring_along() -> None:
    head = (PROJECT / "lib" / "show" / "templates" / "world.j2").read_text()
    assert "Content-Security-Policy" in head and "default-src 'none'" in head
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\|\s*safe\b"
    for path in (PROJECT / "lib" / "show" / "templates").glob("*.j2"):
        assert not re.findall(markup, path.read_text()), path.name


def test_no_name_becomes_markup_in_the_index(tmp_path: Path) -> None:
    run = Run.open("smoke", str(tmp_path / MARKUP))
    for path in (run.map("x").with_name(f"{MARKUP}.html"), run.table("x").with_name(f"{MARKUP}.csv")):
        path.parent.mkdir(parents=True)
        path.write_text("a\n1\n")
    provenance = write_provenance(run, {MARKUP: 1.0})
    provenance["settings"]["dataset"]["name"] = provenance["settings"]["backbone"]["name"] = MARKUP
    notebook = {"title": MARKUP, "ipynb": f"notebooks/{MARKUP}", "html": f"notebooks/{MARKUP}"}
    page = report.write_index(run, provenance, [notebook]).read_text()
    assert not Elements(page).harmful() and MARKUP not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_no_name_becomes_markup_in_an_executed_notebook(tmp_path: Path) -> None:
    """What was left out is shown in a table, and printed, with the names that the photos have."""
    cell = nbformat.v4.new_code_cell("left_out", id="cell")
    table = {"text/html": pd.DataFrame({"path": [MARKUP]})._repr_html_(), "text/plain": MARKUP}
    cell.outputs = [
        nbformat.v4.new_output("execute_result", data=table, execution_count=1),
        nbformat.v4.new_output("stream", name="stdout", text=MARKUP),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "executed.ipynb")
    page = pages.render(tmp_path / "executed.ipynb").read_text()
    assert MARKUP not in page
    assert not [named for _, named in Elements(page).harmful() if named.get("src") == "x"]


class TestArchives:
    @pytest.mark.parametrize(
        "name",
        ["../outside.jpg", "/outside.jpg", "00/../../outside.jpg", "..\\outside.jpg", "C:\\outside.jpg"],
    )
    def test_a_member_that_would_leave_the_folder_is_refused(self, tmp_path: Path, name: str) -> None:
        root = tmp_path / "osv5m"
        root.mkdir()
        miniature.write(root)
        with zipfile.ZipFile(root / "images" / "test" / "00.zip", "a") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(BundleError, match=r"00\.zip: its member .* would leave the folder"):
            osv5m.build(OSV5M(root=root, train_shards=1, test_shards=1, validation=5), root)

    def test_what_claims_to_be_huge_is_not_unpacked(self, tmp_path: Path, monkeypatch: object) -> None:
        monkeypatch.setattr(photos, "MAX_MEMBER_BYTES", 1_000)
        with zipfile.ZipFile(tmp_path / "00.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("00/bomb.jpg", bytes(1_000_000))
        with pytest.raises(photos.UNREADABLE, match="claims to unpack to more than 1,000 bytes"):
            photos.open_photo(tmp_path, "00.zip/00/bomb.jpg")


def tracked() -> list[Path]:
    try:
        listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=PROJECT, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [PROJECT / name for name in listed.split("\0") if name and (PROJECT / name).is_file()]


SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{30,}|"
    r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9]{32,}|"
    r"(?i:(?:password|passwd|secret|api_?key|token)\s*[=:]\s*['\"][^'\"\s]{12,}['\"])"
)


def test_no_secret_lies_in_what_is_kept() -> None:
    assert SECRETS.search("password" + " = 'correcthorsebattery'") and SECRETS.search("hf_" + "a" * 34)
    for path in tracked():
        if path.suffix not in {".png", ".jpg", ".pdf", ".parquet"}:
            assert not SECRETS.search(path.read_text(encoding="utf-8", errors="replace")), path


def test_registered_models_of_the_hub_are_pinned_to_a_commit() -> None:
    from lib.data.backbones import CHECKPOINT, REGISTRY

    for name, entry in REGISTRY.items():
        if "/" in name and name != CHECKPOINT:
            assert re.fullmatch(r"[0-9a-f]{40}", entry.revision or ""), name


def test_every_package_of_the_lock_file_has_checksums_and_none_names_where_it_is_from() -> None:
    text = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text and "index" not in text and "find-links" not in text
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.partition("\n\n")[2] or text)
    for entry in (one for one in entries if "==" in one.splitlines()[0] and not one.startswith("#")):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]


def test_a_run_writes_down_no_variable_of_its_environment(tmp_path: Path, monkeypatch: object) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-the-environment-and-secret")
    written = write_provenance(Run.open("smoke", str(tmp_path / "run")), {})
    assert "of-the-environment-and-secret" not in json.dumps(written, default=str)


def test_jupyter_is_never_opened_to_a_network_nor_without_a_token() -> None:
    """Its own defaults are loopback and a token; nothing here may change them. The pipeline's kernels have no
    port at all."""
    careless = ["c.ServerApp.ip = '*'", "jupyter lab --ip=0.0.0.0", "--ServerApp.token=''",
                "c.ServerApp.allow_remote_access = True"]  # fmt: skip
    assert all(map(OPENED.search, careless))
    endings = {".py", ".sh", ".md", ".ipynb", ".yaml", ".yml", ".toml", ""}
    for path in tracked():
        if path.suffix in endings and "tests" not in path.parts:
            assert not OPENED.search(path.read_text(encoding="utf-8", errors="replace")), path
    assert '"transport": "ipc"' in (PROJECT / "lib" / "pipeline.py").read_text()
