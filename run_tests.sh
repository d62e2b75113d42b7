#!/usr/bin/env bash
# The tests, in the pinned environment: ./run_tests.sh [--thorough] [pytest arguments]; --thorough adds those that take minutes
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
. ./setup_environment.sh
exec "$PYTHON" -m pytest "$@"
