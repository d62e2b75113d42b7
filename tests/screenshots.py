"""Screenshots of a finished run's pages, to be looked at: ``python tests/screenshots.py results/quick``.

Index, maps and executed notebooks at 1280 and 390 pixels, light and dark, go to results/screenshots. Says
what each page complained about and how long it took to load, and ends with status 1 where a page complained,
fetched something or is wider than its screen.
"""

from __future__ import annotations

import sys
import time
from itertools import product
from pathlib import Path

from browsing import CHROMIUM, MISSING, SWITCHES, Visit
from playwright.sync_api import sync_playwright

SCREENS = ((1280, 800), (390, 844))
FOLDER = Path(__file__).parents[1] / "results" / "screenshots"


def main(run: Path) -> int:
    """Exit status."""
    if CHROMIUM is None:
        sys.exit(MISSING)
    FOLDER.mkdir(parents=True, exist_ok=True)
    pages = [run / "index.html", *sorted(run.glob("maps/*.html")), *sorted(run.glob("notebooks/*.html"))]
    wrong = 0
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        for page, (width, height), scheme in product(pages, SCREENS, ("light", "dark")):
            started = time.perf_counter()
            visit = Visit(browser, page, width, height, ready="body", scheme=scheme)
            seconds = time.perf_counter() - started
            visit.tab.wait_for_timeout(400)
            target = FOLDER / f"{page.stem}_{width}_{scheme}.png"
            visit.tab.screenshot(path=target, full_page=page.name == "index.html", timeout=60_000)
            bad = [*visit.complaints, *visit.fetched]
            if visit.width() > width:
                bad.append(f"{visit.width()} pixels wide")
            visit.context.close()
            megabytes = page.stat().st_size / 1e6
            print(f"{target.name:50} {seconds:5.2f} s  {megabytes:5.2f} MB  {'; '.join(bad) or 'well'}")
            wrong += bool(bad)
        browser.close()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "results/quick").resolve()))
