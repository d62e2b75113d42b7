"""Benchmarks: ours beside the plain way of doing the same work, in one run, on the same data, with the same
answer.

``./run_benchmarks.sh [NAME…]`` runs them; each is one file with ``SIZES`` and ``run(sizes)``. Times are of
this machine, so what may be quoted are ratios.
"""
