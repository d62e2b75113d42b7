"""Semivariogram-regularized GeoCLIP: the code behind the numbered notebooks.

Rooms, from the bottom to the top: method (the paper; imports nothing else of lib), settings, runs, data,
train, evaluate, show, predict; then the programs. A room imports only from rooms before it.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; else cuBLAS may vary

_here = Path(__file__).resolve().parents[1]
if "ipykernel" in sys.modules:  # an editor's kernel: the environment may name another checkout
    _of_notebook = (
        one for one in (Path.cwd(), *Path.cwd().parents) if (one / "lib" / "method" / "negatives.py").exists()
    )
    if (_there := next(_of_notebook, _here)).resolve() != _here:
        raise ImportError(
            f"this notebook lies in {_there}, but its kernel takes lib from {_here}: run "
            f"`import sys; sys.path.insert(0, {str(_there)!r})` first, or open it by ./run_all.sh --lab"
        )

__version__ = "0.1.0"
