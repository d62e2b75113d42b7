"""Where a run's files lie, when they may be reused, and what is written down about it."""

from lib.runs.code import code_digest
from lib.runs.files import ArtefactError, checksum, write_json, writing
from lib.runs.machine import autocast, find_device, generator, machine, progress
from lib.runs.provenance import is_output, provenance
from lib.runs.run import RESULTS, Run, note

__all__ = [
    "RESULTS", "ArtefactError", "Run", "autocast", "checksum", "code_digest", "find_device", "generator",
    "is_output",
    "machine", "note", "progress", "provenance", "write_json", "writing",
]  # fmt: skip
