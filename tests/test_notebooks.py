"""The notebooks as they lie in git: they tell a story, hide nothing, and show the method by hand."""

import ast
import re

import nbformat
import pytest

from lib import pipeline

NOTEBOOKS = list(pipeline.notebooks().values())
PROFILES = [one.stem for one in (pipeline.PROJECT / "notebooks" / "profiles").glob("*.yaml")]


def read(notebook):
    return nbformat.read(notebook, as_version=4)


def code_cells(notebook):
    return [cell for cell in read(notebook).cells if cell.cell_type == "code"]


def code_lines(cell):
    """The lines of a cell that do something: its imports do not count."""
    passed_over = ("%", "from ", "import ")
    return [line for line in cell.source.splitlines() if line.strip() and not line.startswith(passed_over)]


def test_the_steps_are_there_in_order():
    names = [
        "data_preparation", "baseline_geoclip", "semivariogram", "regularized_training",
        "error_at_granularity", "where_is_this_photo", "study",
    ]  # fmt: skip
    assert [one.stem for one in NOTEBOOKS] == [f"{number:02d}_{name}" for number, name in enumerate(names, 1)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda one: one.stem)
class TestEachNotebook:
    def test_holds_no_outputs(self, notebook):
        assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))

    def test_has_the_parameters_that_the_pipeline_gives_as_plain_literals(self, notebook):
        (cell,) = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
        set_there = {one.targets[0].id: ast.literal_eval(one.value) for one in ast.parse(cell.source).body}
        assert set_there.keys() == {"profile", "run_name", "overrides"}

    def test_calls_lib_in_at_most_ten_lines_a_cell_and_defines_nothing(self, notebook):
        for cell in code_cells(notebook):
            assert len(code_lines(cell)) <= 10, cell.source
            assert not any(
                word in cell.source for word in ("def ", "class ", "lambda", "sys.path", "pip install")
            )

    def test_names_only_what_is_there(self, notebook):
        prose = "\n".join(cell.source for cell in read(notebook).cells if cell.cell_type == "markdown")
        numbers = {int(one) for one in re.findall(r"notebook (\d)", prose)}
        assert numbers <= set(range(1, len(NOTEBOOKS) + 1))
        files = re.findall(r"`((?:docs|study|lib|notebooks)/[\w/.-]+)`", prose)
        assert [one for one in files if not (pipeline.PROJECT / one).exists()] == []
        for names in re.findall(r"`profile` is one of (.+) or a YAML file", prose):
            assert set(names.replace("`", "").split(", ")) == set(PROFILES)

    def test_is_at_least_half_prose(self, notebook):
        cells = read(notebook).cells
        prose = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
        assert prose >= 0.5 * sum(len(cell.source.split()) for cell in cells)

    def test_says_something_before_each_result(self, notebook):
        kinds = [cell.cell_type for cell in read(notebook).cells]
        code = [position for position, kind in enumerate(kinds) if kind == "code"]
        assert sum(kinds[position - 1] == "markdown" for position in code) >= 0.75 * len(code)

    def test_quotes_no_result_in_its_prose(self, notebook):
        """What was measured is printed by a cell: of another run it would be another number."""
        prose = "\n".join(cell.source for cell in read(notebook).cells if cell.cell_type == "markdown")
        assert not re.findall(r"\[[+-]?\d+\.\d+, [+-]?\d+\.\d+\]|\d+(?:\.\d+)? points", prose)
        assert "With `quick`" not in prose

    def test_is_valid_and_runs_in_the_environments_own_kernel(self, notebook):
        nbformat.validate(read(notebook))
        assert read(notebook).metadata.kernelspec.name == "python3"
