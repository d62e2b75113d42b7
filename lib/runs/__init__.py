"""Where a run's files lie, when they are reused, and what is written down about it."""

from lib.runs.cache import cached
from lib.runs.files import checksum, write_json, writing
from lib.runs.machine import progress
from lib.runs.run import RESULTS, Run

__all__ = ["RESULTS", "Run", "cached", "checksum", "progress", "write_json", "writing"]
