"""A page in a real Chromium without a network: what the tests of maps and report look at."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The browser of this machine, or None."""
MISSING = "no Chromium on this machine (Debian: apt-get install chromium)"
SWITCHES = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"]  # fmt: skip


class Visit:
    """A page in the browser, shown once ``ready`` is there; what it complained about or tried to fetch."""

    def __init__(
        self, browser: object, page: Path, width: int = 1280, height: int = 800, *,
        ready: str = ".title:not(:empty)", scheme: str = "light",
    ) -> None:  # fmt: skip
        self.complaints: list[str] = []
        self.fetched: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.context.route("**/*", self._answer)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(20_000)
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.tab.goto(page.as_uri())
        self.tab.wait_for_selector(ready)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Leaves the page, which must have stayed silent and offline to the end."""
        self.context.close()
        if kind is None:
            assert self.complaints == []
            assert self.fetched == []

    def _answer(self, route: object) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            self.fetched.append(route.request.url)
            route.abort()

    def map(self, expression: str) -> object:
        """Value of a script expression in which ``map`` is the Leaflet map."""
        found = "const map = window[document.querySelector('.folium-map').id]"
        return self.tab.evaluate(f"(() => {{ {found}; return {expression}; }})()")

    def until(self, expression: str) -> None:
        """Waits until ``expression``, in which ``map`` is the Leaflet map, is true.

        Asked from here: the page's content security policy forbids the evaluation that ``wait_for_function``
        repeats.
        """
        for _ in range(600):
            if self.map(expression):
                return
            self.tab.wait_for_timeout(50)
        raise AssertionError(f"{expression} is not true after thirty seconds")

    def find(self, wanted: str) -> None:
        """Types ``wanted`` into the search field and presses Enter."""
        self.tab.locator(".search input").click()
        self.tab.keyboard.press("Control+A")
        self.tab.keyboard.insert_text(wanted)
        self.tab.keyboard.press("Enter")

    def first_fact(self) -> str:
        """The first value that the open popup shows: of a photo its id."""
        return self.tab.locator(".leaflet-popup dd").first.text_content()

    def width(self) -> int:
        """Pixels that the page is wide."""
        return self.tab.evaluate("document.documentElement.scrollWidth")

    def light(self, selector: str, name: str) -> float:
        """Mean of red, green and blue, of 255, of the colour ``name`` of the first such element."""
        colour = self.tab.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{name}")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    def faults(self) -> list[str]:
        """Pictures without a text, controls without a name, headings out of order, and text of a contrast
        below 4.5, as axe-core would find them. Controls that are off do not count."""
        return self.tab.evaluate(FAULTS)


FAULTS = r"""() => {
  const all = (what) => [...document.querySelectorAll(what)], style = (one) => getComputedStyle(one);
  const found = [], say = (what, ones) => ones.forEach((one) => found.push(`${what}: ${one.outerHTML}`));
  const name = (one) => [one.ariaLabel, one.title, one.textContent, one.alt,
    ...[...one.labels || [], ...one.querySelectorAll("img")].map(name)].join("").trim();
  say("no text for it", all("img:not([alt])"));
  say("no name", all("a[href], button, input, select, summary, [tabindex='0']").filter(
    (one) => one.checkVisibility() && !name(one)));
  const headings = all("h1, h2, h3, h4, h5, h6"), level = (one) => one ? Number(one.tagName[1]) : 0;
  say("order of headings", headings.filter((one, k) => level(one) > level(headings[k - 1]) + 1));
  const rgba = (text) => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (below, [r, g, b, a]) => [r, g, b].map((value, k) => value * a + below[k] * (1 - a));
  const ground = (one) => one
    ? over(ground(one.parentElement), rgba(style(one).backgroundColor)) : [255, 255, 255];
  const linear = (v) => v <= 0.04045 * 255 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, share, k) => sum + share * linear(c[k]), 0.05);
  const contrast = (one) => {
    const below = ground(one), ratio = light(over(below, rgba(style(one).color))) / light(below);
    return Math.max(ratio, 1 / ratio);
  };
  say("contrast", all("body *:not(script, style, option)").filter((one) =>
    one.checkVisibility({visibilityProperty: true}) && !one.closest("math, svg, [aria-disabled=true]")
    && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) && contrast(one) < 4.5));
  return found;
}"""
