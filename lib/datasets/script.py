"""A data set in one Python file of one's own: whatever its photos and tables look like, it ends in the same manifest.

The file (``dataset.file``) has a function ``build(settings, root)`` that returns one row a photo (id, path, latitude, longitude, split,
and what it likes to add), or that and what was left out (:class:`lib.datasets.manifest.Built`). It may have ``obtain`` and
``listing`` too, see ``lib.datasets.MODULES``. Where the file changes, the manifest is made anew. docs/howto-data-set.md has one.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pandas as pd

from lib.datasets.manifest import Built, ManifestError
from lib.files import one_line
from lib.settings import PROJECT, Script


def obtain(settings: Script, root: Path) -> None:
    """What the file's own ``obtain`` does; nothing where it has none."""
    getattr(_module(settings), "obtain", lambda *_: None)(settings, root)


def listing(settings: Script, root: Path) -> str | None:
    """What the file's own ``listing`` says; None where it has none."""
    return getattr(_module(settings), "listing", lambda *_: None)(settings, root)


def build(settings: Script, root: Path) -> Built:
    """The manifest as the file's ``build`` makes it.

    Raises:
        ManifestError: there is no such file, it cannot be run, or it has no ``build``.
    """
    built = _module(settings).build(settings, root)
    return built if isinstance(built, Built) else Built(built, pd.DataFrame(columns=["id", "path", "reason"]))


def _module(settings: Script) -> ModuleType:
    """The file, run anew."""
    path = PROJECT / settings.file
    if not path.is_file():
        raise ManifestError(f"{path}: no such file; set dataset.file to the Python file that builds the data set")
    spec = importlib.util.spec_from_file_location(f"data_set_{path.stem}", path)
    if spec is None:
        raise ManifestError(f"{path}: is no Python file; set dataset.file to one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ManifestError(f"{path}: cannot be run ({type(error).__name__}: {one_line(error)}); mend it") from error
    if not callable(getattr(module, "build", None)):
        raise ManifestError(f"{path}: has no function build(settings, root), which returns one row a photo; write one")
    return module
