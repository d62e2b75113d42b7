#!/usr/bin/env bash
# The tests, in the pinned environment: ./run_tests.sh [--thorough] [pytest arguments]; --thorough adds those that take minutes
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
. ./setup_environment.sh
"$PYTHON" -c 'import pytest, xdist, hypothesis' ||
  { echo "run_tests.sh: $PYTHON lacks the packages of the tests; pip (25.1 or newer) or uv pip install --group tests" >&2; exit 1; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # two processes share the tests, a file at a time
exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
