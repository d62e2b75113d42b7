"""Run the benchmarks that are named, or all: ``python -m benchmarks [NAME…]``."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

NAMES = tuple(
    sorted(
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if path.stem not in {"__init__", "__main__", "gpu", "harness", "osv5m_table", "reference"}
    )
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where a name is unknown; a goal that is missed is said, and is no failure."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        print(f"run_benchmarks.sh [NAME…]: all, or some of {', '.join(NAMES)}; results/benchmarks/NAME.json")
        return 0
    chosen = given or list(NAMES)
    if unknown := [name for name in chosen if name not in NAMES]:
        print(
            f"run_benchmarks.sh: there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}",
            file=sys.stderr,
        )
        return 1
    for name in chosen:
        started = time.perf_counter()
        module = importlib.import_module(f"benchmarks.{name}")
        result = module.run(module.SIZES)
        print(f"\n{name}: {result.goal}\n{result.table()}")
        print(
            f"{'met' if result.met else 'NOT met'}; {time.perf_counter() - started:.0f} s; {result.save()}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
