#!/usr/bin/env bash
# The benchmarks, in the pinned environment: ./run_benchmarks.sh [NAME…], all without a name; results/benchmarks/NAME.json
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
exec "$PYTHON" -m benchmarks "$@"
