"""Plays the game of a prediction map, and keeps pictures of it in docs/pictures/.

``python docs/pictures.py results/quick/maps/predictions.html``; needs Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).resolve().parent / "pictures"
GAME = "#guess-2026-11-30"
PLACES = ((0.5, 0.5), (0.7, 0.4), (0.3, 0.55), (0.57, 0.5), (0.28, 0.35))
"""Guesses in turn, in widths and heights of the map."""


def keep(tab: Page, name: str) -> None:
    """The page as a PNG of few colours."""
    tab.wait_for_timeout(1_000)
    picture = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    picture.quantize(48).save(FOLDER / f"{name}.png", optimize=True)


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    tab = browser.new_page(viewport={"width": 780, "height": 480})
    tab.goto(Path(sys.argv[1]).resolve().as_uri() + GAME)
    keep(tab, "question")
    box = tab.locator(".folium-map").bounding_box()
    for turn in range(10):
        across, down = PLACES[turn % len(PLACES)]
        tab.mouse.click(across * box["width"], down * box["height"])
        tab.keyboard.press("Enter")
        keep(tab, "answer" if turn == 0 else "end")
        tab.keyboard.press("Enter") if turn < 9 else None
