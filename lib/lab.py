"""JupyterLab on the notebooks, as ``./run_all.sh --lab`` starts it: this machine only, with a new token, this
Python's kernel."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

from lib.settings import PROJECT

LOOPBACK = "127.0.0.1"


def start(notebook: Path) -> int:
    """Start JupyterLab on ``notebook`` and wait until it is stopped; it says where it is.

    Its options are handed over in this process: so they outrank whatever the user has configured, and no
    other user of the machine reads the token off a command line.
    """
    from jupyterlab.labapp import LabApp

    with socket.socket() as probe:  # a port that is free now, for the address to be known
        probe.bind((LOOPBACK, 0))
        port, token = probe.getsockname()[1], secrets.token_urlsafe(24)
    shown = f"/lab/tree/{notebook.relative_to(PROJECT)}"
    options = {
        "ServerApp.ip": LOOPBACK,
        "ServerApp.port": port,
        "ServerApp.allow_remote_access": False,
        "ServerApp.root_dir": PROJECT,
        "IdentityProvider.token": token,
        "LabApp.default_url": shown,
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "Application.log_level": "WARN",
    }
    print(f"JupyterLab: http://{LOOPBACK}:{port}{shown}?token={token}\nCtrl-C twice stops it.", flush=True)
    os.environ |= {"PYTHONPATH": python_path(), "JUPYTER_PREFER_ENV_PATH": "1"}
    LabApp.launch_instance([f"--{name}={value}" for name, value in options.items()])
    return 0


def python_path() -> str:
    """``PYTHONPATH`` by which kernels take ``lib`` from this checkout."""
    before = [
        path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(PROJECT)
    ]
    return os.pathsep.join([str(PROJECT), *before])
