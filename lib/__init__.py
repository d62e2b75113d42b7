"""Semivariogram-regularized GeoCLIP: the code behind the numbered notebooks.

Rooms, from the bottom to the top: method (the paper; imports nothing else of lib), settings, runs, data,
train, evaluate, show, predict; then the programs. A room imports only from rooms before it.
"""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; else cuBLAS may vary

__version__ = "0.1.0"
