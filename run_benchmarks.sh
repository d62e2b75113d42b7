#!/usr/bin/env bash
# The benchmarks, in the pinned environment: ./run_benchmarks.sh [NAME…], all without a name; results/benchmarks/NAME.json
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
. ./setup_environment.sh
exec "$PYTHON" -m benchmarks "$@"
