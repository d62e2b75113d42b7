"""JupyterLab on the notebooks, as ``./run_all.sh --lab`` starts it: this environment's kernel, this machine only, with a token.

The token is new every time. It lies in a file that only its owner can read, not on the command line, where every user of the
machine could; and that file has the last word over whatever the user's own Jupyter configuration says of tokens.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from lib.method.errors import BundleError
from lib.settings import PROJECT

NOTEBOOKS = PROJECT / "notebooks"
LOOPBACK = "127.0.0.1"
PORTS = range(8_888, 8_988)
QUIET = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
"""Settings of JupyterLab: it asks no network for news and newer versions, and nobody whether it may."""


class LabError(BundleError):
    """JupyterLab cannot be started; the message says why."""


def free_port() -> int:
    """The first of ``PORTS`` on which nothing listens.

    Raises:
        LabError: there is none.
    """
    for port in PORTS:
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise LabError(f"no port from {PORTS.start} to {PORTS.stop - 1} of {LOOPBACK} is free; stop a JupyterLab that you need no more")


def command(port: int, first: str = "", opens_browser: bool = True) -> list[str]:
    """The command line of JupyterLab.

    Args:
        first: name of the notebook that it opens with; the launcher where empty.
    """
    options = {
        "ServerApp.ip": LOOPBACK,
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.allow_remote_access": False,
        "ServerApp.root_dir": str(NOTEBOOKS),
        "ServerApp.open_browser": opens_browser,
        "LabApp.default_url": f"/lab/tree/{first}" if first else "/lab",
    }
    return [sys.executable, "-m", "jupyterlab", "--log-level=WARN", *(f"--{name}={value}" for name, value in options.items())]


def environment(private: Path, token: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of JupyterLab; ``token`` is written to a configuration in ``private``.

    The environment's own kernels go before those of the user, so that ``python3`` is this Python.
    """
    private.chmod(0o700)
    configuration = {"IdentityProvider": {"token": token}}
    (private / "jupyter_server_config.json").write_text(json.dumps(configuration))
    (private / "labconfig").mkdir()
    (private / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(QUIET))
    before = [path for path in (inherited.get("JUPYTER_CONFIG_PATH"),) if path]
    ours = {"JUPYTER_CONFIG_PATH": os.pathsep.join([str(private), *before]), "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": with_this_checkout(inherited)}
    return {**inherited, **ours}


def with_this_checkout(inherited: Mapping[str, str]) -> str:
    """``PYTHONPATH`` by which kernels take ``lib`` from this checkout, even where the environment was linked to another one meanwhile."""
    before = [path for path in inherited.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(PROJECT)]
    return os.pathsep.join([str(PROJECT), *before])


def start(first: str = "") -> int:
    """Start JupyterLab, say where it is, and wait until it is stopped; its exit status.

    Raises:
        LabError: no port is free.
    """
    port, token = free_port(), secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="semivariogram-lab-") as private:
        variables = environment(Path(private), token, os.environ)
        print(f"JupyterLab: http://{LOOPBACK}:{port}/lab/tree/{first}?token={token}\nCtrl-C twice stops it.", flush=True)
        server = subprocess.Popen(command(port, first), cwd=NOTEBOOKS, env=variables)  # noqa: S603 - our own command
        while True:
            try:
                return server.wait()
            except KeyboardInterrupt:  # it got the signal too, and asks or stops by itself
                continue
