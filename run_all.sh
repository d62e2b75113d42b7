#!/usr/bin/env bash
# The whole study: see --help. Everything but the help is lib/pipeline.py.
set -euo pipefail
unset CDPATH

help() {
  cat <<'TEXT'
Usage: ./run_all.sh [options]

Runs the notebooks in order and leaves them, executed, with their tables, figures and maps under results/NAME.
What an earlier run of the same name has made from the same inputs, settings and code is reused.

  --profile NAME|FILE.yaml   smoke, quick (default), study, osv5m_small, osv5m, or a YAML file
  --run NAME                 folder under results/ (default: the profile's name)
  --device auto|cpu|cuda     default: auto, CUDA where there is one
  --only 03,05               run only the notebooks with these numbers
  --set group.key=value      one setting instead of the profile's; may be given several times
  --list                     say what would be computed, what reused, and how long it takes here; run nothing
  --lab                      open JupyterLab on the notebooks (with --only 03: on that one) instead of executing them
  --fresh                    make everything again; photos that are there and whole stay
  -h, --help                 this text

The environment is made on the first run, from requirements.txt, in .venv or in the folder $SEMIVARIOGRAM_ENV; an active
environment that has the same versions is taken as it is. NPROC=8 ./run_all.sh … lets that many processes make features and
trainings (one a GPU, or a part of the cores each).
TEXT
}

# By hand: macOS had no `readlink -f` for long.
script=${BASH_SOURCE[0]}
while [ -L "$script" ]; do
  target=$(readlink "$script")
  case $target in /*) script=$target ;; *) script=$(dirname "$script")/$target ;; esac
done

# Paths of a profile and of a run are the caller's, and the next thing is to leave the caller's folder.
previous=
for argument in "$@"; do
  shift
  case $argument in -h | --help) help && exit 0 ;; esac
  case $previous$argument in
    --profile/* | --profile=/*) ;;
    --profile=*.yaml | --profile=*.yml) if [ -f "${argument#*=}" ]; then argument=--profile=$PWD/${argument#*=}; fi ;;
    --profile*.yaml | --profile*.yml) if [ -f "$argument" ]; then argument=$PWD/$argument; fi ;;
    --run/* | --run=/*) ;;
    --run=*/*) argument=--run=$PWD/${argument#*=} ;;
    --run*/*) argument=$PWD/$argument ;;
  esac
  set -- "$@" "$argument"
  case $argument in --profile | --run) previous=$argument ;; *) previous= ;; esac
done

cd "$(dirname "$script")"
. ./setup_environment.sh
exec "$PYTHON" -m lib.pipeline "$@"
