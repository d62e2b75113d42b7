"""JupyterLab as --lab starts it: on this machine only, with a token, with this Python; and a notebook whose
controls redraw."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

from lib import lab, pipeline
from lib.settings import PROJECT

CARELESS = """
c.ServerApp.ip = '0.0.0.0'
c.ServerApp.token = ''
c.IdentityProvider.token = ''
c.ServerApp.open_browser = False
c.ServerApp.allow_root = True
"""
"""A user's own configuration that would let everybody in."""
EVERY_CELL = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
"""Cells outside the window are in the page too."""


def test_lab_executes_nothing_and_opens_the_notebook_that_only_names(monkeypatch):
    opened = []
    monkeypatch.setattr(lab, "start", lambda first: opened.append(first.name) or 0)
    assert pipeline.main(["--lab", "--only", "05"]) == 0
    assert opened == ["05_error_at_granularity.ipynb"]


class Server:
    """JupyterLab on notebook 03, under a careless user's configuration."""

    def __init__(self, folder: Path) -> None:
        (folder / "user" / "labconfig").mkdir(parents=True)
        (folder / "user" / "jupyter_server_config.py").write_text(CARELESS)
        (folder / "user" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(EVERY_CELL))
        own = {"JUPYTER_CONFIG_DIR": str(folder / "user"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
        environment = os.environ | own | {"PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"}
        environment.pop("SEMIVARIOGRAM_PICTURES_ONLY", None)
        notebook = PROJECT / "notebooks" / "03_semivariogram.ipynb"
        program = f"import pathlib; from lib import lab; lab.start(pathlib.Path({str(notebook)!r}))"
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=PROJECT, env=environment, stdout=self.log, stderr=self.log
        )
        self.port, self.token = self._address(folder / "log")

    def _address(self, log: Path) -> tuple[int, str]:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)\S*\?token=(\S+)", log.read_text()):
                with contextlib.suppress(OSError):
                    self.port = int(found[1])
                    self.status("/api")
                    return self.port, found[2]
            time.sleep(0.3)
        pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3_000:]}")

    def status(self, path: str, token: str = "") -> int:
        headers = {"Authorization": f"token {token}"} if token else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()


@pytest.fixture
def server(tmp_path):
    running = Server(tmp_path)
    yield running
    running.stop()


def listening_addresses(port: int) -> set[str]:
    """Addresses (hexadecimal, of /proc) at which something listens on ``port``."""
    tables = [path for name in ("tcp", "tcp6") if (path := Path(f"/proc/net/{name}")).exists()]
    rows = [line.split() for path in tables for line in path.read_text().splitlines()[1:]]
    pairs = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {address for address, number in pairs if int(number, 16) == port}


def test_nobody_comes_in_without_the_token_whatever_the_user_has_configured(server):
    assert [server.status("/api/contents"), server.status("/api/contents", "guess")] == [403, 403]
    assert server.status("/api/contents", server.token) == 200
    assert len(server.token) >= 32
    if Path("/proc/net/tcp").exists():
        assert listening_addresses(server.port) == {"0100007F"}  # 127.0.0.1
    command = Path(f"/proc/{server.process.pid}/cmdline")
    assert not command.exists() or server.token not in command.read_text()


@pytest.mark.thorough
def test_notebook_03_runs_in_jupyterlab_and_its_controls_redraw(server, browser, tmp_path):
    tab = browser.new_page(viewport={"width": 1400, "height": 1000})
    tab.set_default_timeout(300_000)
    run, copy = tmp_path / "run", PROJECT / "results" / f"lab-test-{os.getpid()}.ipynb"
    made = [sys.executable, "-m", "lib.pipeline", "--profile", "smoke", "--run", str(run), "--only", "01"]
    made += ["--device", "cpu", "--set", f"dataset.root={tmp_path / 'photos'}"]
    done = subprocess.run(made, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]
    content = nbformat.read(PROJECT / "notebooks" / "03_semivariogram.ipynb", as_version=4)
    for cell in content.cells:
        if "parameters" in cell.metadata.get("tags", []):
            given = ["device=cpu", f"dataset.root={tmp_path / 'photos'}"]
            cell.source = f"profile = 'smoke'\nrun_name = {str(run)!r}\noverrides = {given!r}"
    copy.parent.mkdir(exist_ok=True)
    nbformat.write(content, copy)
    try:
        tab.goto(f"http://127.0.0.1:{server.port}/lab/tree/{copy.relative_to(PROJECT)}?token={server.token}")
        tab.locator("#jp-main-statusbar", has_text="Python 3 (ipykernel) | Idle").wait_for()
        tab.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        tab.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        picture = tab.locator(".jp-NotebookPanel .widget-interact img").last
        picture.wait_for(state="attached", timeout=300_000)
        assert tab.locator(".jp-OutputArea-output", has_text="Traceback").count() == 0
        before = picture.get_attribute("src")
        handle = tab.locator(".widget-interact .noUi-handle").last
        handle.scroll_into_view_if_needed()
        handle.focus()
        tab.keyboard.press("ArrowRight")
        for _ in range(120):
            if picture.get_attribute("src") != before:
                break
            tab.wait_for_timeout(250)
        assert picture.get_attribute("src") != before
    finally:
        copy.unlink(missing_ok=True)
