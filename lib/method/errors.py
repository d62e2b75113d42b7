"""The one base class of this project's own errors."""


class BundleError(Exception):
    """Something cannot go on as asked; the message says what is wrong, where (file, row), and what to do."""

    def _render_traceback_(self) -> list[str]:  # what Jupyter shows of it
        return [f"{type(self).__name__}: {self}"]
