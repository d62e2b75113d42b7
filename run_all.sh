#!/usr/bin/env bash
# Usage: ./run_all.sh [options]: executes the notebooks in order; all that they make lies under results/NAME. What an earlier run
# of that name has made from the same inputs, settings and code is reused. NPROC=8 ./run_all.sh … works in that many processes;
# several machines: NNODES, NODE_RANK and RDZV_ENDPOINT too (docs/scaling.md).
#   --profile NAME|FILE.yaml   smoke, quick (default), folder, osv5m_small, osv5m, or a file
#   --run NAME                 folder under results/ (default: the profile's name), or a path with a slash
#   --device auto|cpu|cuda     default: auto, CUDA where there is one
#   --only 03,05               only the notebooks with these numbers
#   --set group.key=value      one setting instead of the profile's; may be given several times
#   --lab                      open JupyterLab on the notebooks, on this machine only; takes no other option
#   -h, --help                 this text
set -euo pipefail
script=$(readlink -f "${BASH_SOURCE[0]}")
case " $* " in *" --help "* | *" -h "*) sed -n '2,/^set/s/^# \{0,1\}//p' "$script" && exit ;; esac
export SEMIVARIOGRAM_CALLER=$PWD  # the paths of --profile and --run are the caller's
cd "$(dirname "$script")"
. ./setup_environment.sh
if [ "$*" = --lab ]; then  # with a new token, and this environment's kernel
  first=/lab/tree/notebooks/01_data_preparation.ipynb
  JUPYTER_PREFER_ENV_PATH=1 exec "$PYTHON" -m jupyterlab --ServerApp.ip=127.0.0.1 --ServerApp.allow_root=True \
    --ServerApp.root_dir=. --LabApp.default_url="$first"
fi
exec "$PYTHON" -m lib.pipeline "$@"
