#!/usr/bin/env bash
# The tests, in the pinned environment: ./run_tests.sh [--thorough] [pytest arguments]; --thorough adds those that take minutes
set -euo pipefail
unset CDPATH

# By hand: macOS had no `readlink -f` for long.
script=${BASH_SOURCE[0]}
while [ -L "$script" ]; do
  target=$(readlink "$script")
  case $target in /*) script=$target ;; *) script=$(dirname "$script")/$target ;; esac
done

cd "$(dirname "$script")"
. ./setup_environment.sh
exec "$PYTHON" -m pytest "$@"
