"""Executed notebooks for readers: tidied, without a machine's paths, and as pages that fetch nothing."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat

from lib.runs import writing
from lib.settings import PROJECT

PICTURES_ONLY = "SEMIVARIOGRAM_PICTURES_ONLY"
"""Environment variable of kernels that show pictures without controls: those of a whole run."""

READABLE = """<style>:root { --jp-mirror-editor-operator-color: #7d15c7;
--jp-mirror-editor-number-color: #006b00; --jp-mirror-editor-comment-color: #2f6666 }
body > nav { padding: 1em } body > nav a { color: #0b5cad; text-decoration: underline }</style>"""
"""Style of the links, and colours of code: nbconvert has these too pale to be read on grey."""


def tidy(path: Path) -> None:
    """Collapse each cell's output of an executed notebook to what a terminal would finally show. Paths in the
    project or in the Python environment are named from there."""
    content = nbformat.read(path, as_version=4)
    content.metadata.pop("papermill", None)  # names the files, and the time, of the execution
    for cell in (cell for cell in content.cells if "outputs" in cell):
        kept = []
        for output in cell.outputs:
            if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
            else:
                kept.append(output)
        for output in (output for output in kept if "text" in output):
            output.text = as_a_terminal_shows(output.text)
        cell.outputs = [output for output in kept if output.get("text") != ""]
    text = nbformat.writes(content)
    for folder in (sys.prefix, str(PROJECT)):  # the environment may lie in the project
        text = re.sub(rf"{re.escape(folder)}(/|\b)", "", text)
    with writing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def as_a_terminal_shows(text: str) -> str:
    """``text`` without what a carriage return overwrote, and without the empty lines of progress bars."""
    lines = [line.rpartition("\r")[2].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return "".join(f"{line}\n" for line in lines if line)


def title(notebook: Path) -> str:
    """The first heading of a notebook."""
    lines = nbformat.read(notebook, as_version=4).cells[0].source.splitlines()
    return next((line[2:].strip() for line in lines if line.startswith("# ")), notebook.stem)


def render(executed: Path, order: Sequence[str] = ()) -> Path:
    """The executed notebook as a page beside it, formulas as MathML: nothing is fetched to show them. It
    links to the report, and to the pages before and after it in ``order``, names of notebooks."""
    from nbconvert import HTMLExporter

    content = nbformat.read(executed, as_version=4)
    content.metadata["title"] = title(executed)
    for cell in (cell for cell in content.cells if cell.cell_type == "markdown"):
        cell.source = with_mathml(cell.source)
    nothing = {"mathjax_url": "", "require_js_url": ""}
    exporter = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True, **nothing)
    body, _ = exporter.from_notebook_node(content)
    body = re.sub(r'<script[^>]*\bsrc="(https?:|")[^>]*>\s*</script>', "", body)  # scripts to fetch
    here = [*order].index(executed.stem) if executed.stem in order else len(order)
    links = {"../index.html": "Report"}
    links |= {f"{one}.html": f"← {one.replace('_', ' ')}" for one in order[max(0, here - 1) : here]}
    links |= {f"{one}.html": f"{one.replace('_', ' ')} →" for one in order[here + 1 : here + 2]}
    found = " · ".join(f'<a href="{html.escape(to)}">{html.escape(text)}</a>' for to, text in links.items())
    nav = f'<nav aria-label="Report and notebooks">{found}</nav>'
    body = re.sub("<body[^>]*>", lambda tag: tag[0] + READABLE + nav, body, count=1)
    body, end, rest = body.rpartition("</body>")
    with writing(executed.with_suffix(".html")) as aside:
        aside.write_text(body + nav + end + rest, encoding="utf-8")
    return executed.with_suffix(".html")


def with_mathml(markdown: str) -> str:
    """``markdown`` with $formulas$ and $$displayed ones$$ as MathML; code spans are left alone."""
    from latex2mathml.converter import convert

    def formula(found: re.Match[str]) -> str:
        if found["display"]:
            mathml = convert(found["display"].strip(), display="block")
            return f'\n\n<div style="margin: 1em 0">{mathml}</div>\n\n'
        return found["code"] or convert(found["inline"].strip(), display="inline")

    pattern = r"(?s)(?P<code>`[^`]*`)|\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$"
    return re.sub(pattern, formula, markdown)
