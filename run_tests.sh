#!/usr/bin/env bash
# The tests, in the pinned environment: ./run_tests.sh [--thorough] [pytest arguments]; --thorough adds those that take minutes
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
. ./setup_environment.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # two processes share the tests, a file at a time
exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
