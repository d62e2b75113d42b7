"""A data set in one file of one's own: what it may return, and what is said where it cannot be used."""

import pytest

from lib.datasets import script
from lib.datasets.manifest import Built, ManifestError
from lib.settings import Script, load

BUILD = "import pandas as pd\ndef build(settings, root):\n    return pd.DataFrame({'id': [settings.options['first']], 'path': [str(root)]})\n"


def settings_of(path, **options):
    return Script(file=path, options=options)


def test_rows_alone_mean_that_nothing_was_left_out(tmp_path):
    (tmp_path / "mine.py").write_text(BUILD)
    built = script.build(settings_of(tmp_path / "mine.py", first="a"), tmp_path)
    assert list(built.photos["id"]) == ["a"] and built.left_out.empty and list(built.left_out) == ["id", "path", "reason"]


def test_what_it_says_of_itself_is_kept(tmp_path):
    text = "from lib.datasets.manifest import Built\nimport pandas as pd\n"
    text += "def build(settings, root):\n    return Built(pd.DataFrame({'id': [1]}), pd.DataFrame({'id': [2], 'path': ['p'], 'reason': ['dark']}))\n"
    text += "def listing(settings, root):\n    return 'three photos'\ndef obtain(settings, root):\n    (root / 'obtained').touch()\n"
    (tmp_path / "mine.py").write_text(text)
    settings = settings_of(tmp_path / "mine.py")
    script.obtain(settings, tmp_path)
    assert (tmp_path / "obtained").exists() and script.listing(settings, tmp_path) == "three photos"
    built = script.build(settings, tmp_path)
    assert isinstance(built, Built) and list(built.left_out["reason"]) == ["dark"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(None, "no such file; set dataset.file"), ("x = 1", "has no function build"), ("1 / 0", "cannot be run (ZeroDivisionError"), ("def build(", "cannot be run (SyntaxError")],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ManifestError, match=r"mine\.py: ") as error:
        script.build(settings_of(path), tmp_path)
    assert sentence in str(error.value)


def test_its_file_and_options_are_settings():
    loaded = load("smoke", ["data.options.seed=7", "data.file=mine.py", "dataset=script"])
    assert (str(loaded.dataset.file), loaded.dataset.options) == ("mine.py", {"seed": "7"})
