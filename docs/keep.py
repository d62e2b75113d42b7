"""Keeps a finished run of ``quick`` as the reference: ``python docs/keep.py results/quick``.

Tables, figures (PNG), provenance, curve, predictions for the bench, and the executed notebooks for people who
read without running: pictures at about 100 dots an inch, no maps and no state of widgets.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
from pathlib import Path

import nbformat
from PIL import Image

from lib.runs import Run
from study import bench

WIDEST_PX = 900
LONGEST_HTML = 60_000
"""Longer output is a map, of which a sentence stays."""


def slim(source: Path, target: Path) -> None:
    """The notebook ``source`` at ``target``, small enough for a repository."""
    content = nbformat.read(source, as_version=4)
    content.metadata.pop("widgets", None)
    for output in (one for cell in content.cells for one in cell.get("outputs", [])):
        data = output.get("data", {})
        data.pop("application/vnd.jupyter.widget-view+json", None)
        if len(data.get("text/html", "")) > LONGEST_HTML:
            data["text/html"] = "<p>A map stands here: open <code>maps/</code> of a run in a browser.</p>"
        if "image/png" in data:
            data["image/png"] = smaller(data["image/png"])
    nbformat.write(content, target)


def smaller(picture: str) -> str:
    """A PNG in base64, at most ``WIDEST_PX`` wide, of 128 colours."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.thumbnail((WIDEST_PX, 4 * WIDEST_PX))
    buffer = io.BytesIO()
    image.quantize(128).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def main(folder: Path) -> None:
    """Replace the kept reference by the run at ``folder``."""
    kept = bench.KEPT
    for part in ("tables", "figures", "notebooks"):
        shutil.rmtree(kept / part, ignore_errors=True)
        (kept / part).mkdir(parents=True)
    for path in (*folder.glob("tables/*.csv"), *folder.glob("figures/*.png")):
        shutil.copy(path, kept / path.relative_to(folder))
    for name in ("provenance.json", "semivariogram.json"):
        shutil.copy(folder / name, kept)
    for notebook in sorted(folder.glob("notebooks/0[1-6]*.ipynb")):
        slim(notebook, kept / "notebooks" / notebook.name)
    bench.keep(Run.open("quick", str(folder.resolve())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
