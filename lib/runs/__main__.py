"""``python -m lib.runs verify results/NAME``: see :mod:`lib.verify`."""

import runpy

runpy.run_module("lib.verify", run_name="__main__", alter_sys=True)
