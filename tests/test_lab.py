"""JupyterLab as --lab starts it: on this machine only, with a token, with this Python; and a notebook whose sliders redraw."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from browsing import CHROMIUM, SWITCHES

from lib import lab, pipeline
from lib.settings import PROJECT

CARELESS = "c.ServerApp.ip = '0.0.0.0'\nc.ServerApp.token = ''\nc.IdentityProvider.token = ''\nc.ServerApp.open_browser = False\n"
"""A user's own configuration that would let everybody in."""
EVERY_CELL = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
"""Cells outside the window are in the page too."""


def test_the_command_binds_to_loopback_names_no_token_and_opens_the_notebook():
    words = lab.command(8_901, "03_semivariogram.ipynb")
    assert words[:3] == [sys.executable, "-m", "jupyterlab"]
    assert {"--ServerApp.ip=127.0.0.1", "--LabApp.default_url=/lab/tree/03_semivariogram.ipynb"} < set(words)
    assert f"--ServerApp.root_dir={PROJECT / 'notebooks'}" in words
    assert not any("token" in word for word in words)


def test_lab_executes_nothing_and_opens_the_notebook_that_only_names(monkeypatch):
    opened = []
    monkeypatch.setattr(lab, "start", lambda first: opened.append(first) or 0)
    assert pipeline.main(["--lab", "--only", "05"]) == 0
    assert opened == ["05_error_at_granularity.ipynb"]


def test_a_port_that_is_taken_is_passed_over_and_none_is_one_sentence(monkeypatch, capsys):
    with contextlib.closing(socket.socket()) as taken:
        taken.bind((lab.LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(lab, "PORTS", range(port, port + 1))
        assert pipeline.main(["--lab"]) == 1
        assert "is free; stop a JupyterLab" in capsys.readouterr().err


class Server:
    """JupyterLab over copies of the notebooks, under a careless user's configuration."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.notebooks, self.token, self.port = folder / "notebooks", "secret-of-this-test", lab.free_port()
        (folder / "user").mkdir()
        (folder / "user" / "jupyter_server_config.py").write_text(CARELESS)
        (folder / "user" / "labconfig").mkdir()
        (folder / "user" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(EVERY_CELL))
        (folder / "private").mkdir()
        self.notebooks.mkdir(exist_ok=True)
        monkeypatch.setattr(lab, "NOTEBOOKS", self.notebooks)
        inherited = os.environ | {"JUPYTER_CONFIG_DIR": str(folder / "user"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "PYTHONPATH": str(PROJECT)}
        inherited.pop("SEMIVARIOGRAM_PICTURES_ONLY", None)
        variables = lab.environment(folder / "private", self.token, inherited)
        self.log = (folder / "log").open("w+")
        words = [*lab.command(self.port, opens_browser=False), "--allow-root"]
        self.process = subprocess.Popen(words, cwd=self.notebooks, env=variables, stdout=self.log, stderr=self.log)

    def status(self, path: str, token: str = "") -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers={"Authorization": f"token {token}"} if token else {})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                self.status("/api")
                return
            time.sleep(0.3)
        self.log.seek(0)
        pytest.fail(f"JupyterLab did not start:\n{self.log.read()[-3_000:]}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    running = Server(tmp_path, monkeypatch)
    running.wait()
    yield running
    running.stop()


def listening_addresses(port: int) -> set[str]:
    """Addresses (hexadecimal, of /proc) at which something listens on ``port``."""
    rows = [line.split() for table in ("tcp", "tcp6") if (path := Path(f"/proc/net/{table}")).exists() for line in path.read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port}


def test_nobody_comes_in_without_the_token_whatever_the_user_has_configured(server):
    assert [server.status("/api/contents"), server.status("/api/contents", "guess")] == [403, 403]
    assert server.status("/api/contents", server.token) == 200
    if Path("/proc/net/tcp").exists():
        assert listening_addresses(server.port) == {"0100007F"}  # 127.0.0.1
    assert (server.notebooks.parent / "private").stat().st_mode & 0o077 == 0


@pytest.fixture
def tab(server):
    """A tab of a real Chromium; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as engine:
        running = engine.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        page = running.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(300_000)
        yield page
        running.close()


@pytest.mark.thorough
def test_notebook_03_runs_in_jupyterlab_and_its_sliders_redraw(server, tab, tmp_path):
    made = [sys.executable, "-m", "lib.pipeline", "--profile", "smoke", "--run", str(tmp_path / "run"), "--only", "01", "--device", "cpu"]
    made += ["--set", f"dataset.root={tmp_path / 'photos'}"]
    done = subprocess.run(made, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]
    content = nbformat.read(PROJECT / "notebooks" / "03_semivariogram.ipynb", as_version=4)
    for cell in content.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = f"profile = 'smoke'\nrun_name = {str(tmp_path / 'run')!r}\noverrides = ['device=cpu', 'dataset.root={tmp_path / 'photos'}']"
    nbformat.write(content, server.notebooks / "03_semivariogram.ipynb")
    tab.goto(f"http://127.0.0.1:{server.port}/lab/tree/03_semivariogram.ipynb?token={server.token}")
    tab.locator("#jp-main-statusbar", has_text="Python 3 (ipykernel) | Idle").wait_for()
    tab.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    tab.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    pictures = tab.locator(".jp-NotebookPanel img.widget-image")
    pictures.nth(1).wait_for(state="attached", timeout=300_000)  # the curve's and the look-alikes'
    assert tab.locator(".jp-OutputArea-output", has_text="Traceback").count() == 0
    picture = pictures.last
    picture.scroll_into_view_if_needed()
    before = picture.get_attribute("src")
    handle = tab.locator(".widget-slider .noUi-handle").last
    handle.focus()
    for _ in range(5):
        tab.keyboard.press("ArrowRight")
    for _ in range(120):
        if picture.get_attribute("src") != before:
            break
        tab.wait_for_timeout(250)
    assert picture.get_attribute("src") != before
    assert picture.evaluate("one => one.naturalWidth") > 500
    tab.screenshot(path=PROJECT / "results" / "screenshots" / "jupyterlab.png")


def test_kernels_take_lib_from_this_checkout_whatever_the_environment_is_linked_to(tmp_path):
    (tmp_path / "private").mkdir()
    paths = lab.environment(tmp_path / "private", "token", {"PYTHONPATH": f"/elsewhere{os.pathsep}{PROJECT}"})["PYTHONPATH"]
    assert paths.split(os.pathsep) == [str(PROJECT), "/elsewhere"]
