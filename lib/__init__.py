"""Semivariogram-regularized GeoCLIP: the code behind the numbered notebooks.

Rooms, from the bottom to the top: method (the paper; imports nothing else of lib), settings, runs, data,
train, evaluate, show, predict; then the programs. A room imports only from rooms before it.
"""

__version__ = "0.1.0"
