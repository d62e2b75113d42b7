# shellcheck shell=bash disable=SC2034
# Sourced by the run scripts, in the checkout. Sets PYTHON to a python with every pin: that of the active environment
# ($VIRTUAL_ENV, $CONDA_PREFIX), else of the folder $SEMIVARIOGRAM_ENV (default .venv), which any checkout may have made, else
# of that folder made anew from requirements.lock by uv or pip. PYTHONPATH names lib and nothing else, so that checkouts can
# share one and no other copy of a package answers. Speaks on standard error only; bash 3.2 (macOS) runs it.
checkout=$(pwd -P)
environment=${SEMIVARIOGRAM_ENV:-.venv}
case $environment in /*) ;; *) environment=$checkout/$environment ;; esac
if [ -d "$environment" ]; then environment=$(cd "$environment" && pwd -P); fi
log=$environment/semivariogram-setup.log  # its first line is the checkout that made the environment
stamp=$environment/semivariogram-setup.stamp

say() { printf 'environment: %s\n' "$*" >&2; }
fail() { say "$@" && exit 1; }

for name in PYTHONPATH PYTHONHOME PYTHONOPTIMIZE PYTHONWARNINGS PYTHONINSPECT JUPYTER_PATH; do
  case ${!name:-} in "" | "$checkout") ;; *) say "$name=${!name} is set aside for this command" ;; esac
  unset "$name"
done
export PYTHONPATH=$checkout PYTHONNOUSERSITE=1

has_pins() {  # python; its last line says which it lacks
  "$1" -c 'import sys, importlib.metadata as metadata
if sys.version_info < (3, 11): sys.exit("no python >= 3.11")
for line in open("requirements.txt", encoding="utf-8"):
    name, _, pin = line.partition("#")[0].strip().lower().partition("==")
    try: there = metadata.version(name).partition("+")[0] if name else pin  # 2.14.1+cpu is a build of 2.14.1
    except metadata.PackageNotFoundError: there = "none"
    if there != pin: sys.exit(f"{name} {there} instead of {pin}")' 2>&1 | tail -n 1
}

# The folder's path counts too: an environment that was moved has wrong paths inside.
stamp_of() { (cd "$1" && pwd -P) && cksum <requirements.lock; }

take() {  # folder; one of ours without the right stamp is outdated or half made
  if [ -L "$1/bin/python" ] && [ ! -x "$1/bin/python" ]; then
    passed_over="$1/bin/python leads to $(readlink "$1/bin/python"), which is gone or which you may not execute"
  fi
  [ -n "$1" ] && [ -x "$1/bin/python" ] || return 1
  if [ -f "$1/${log##*/}" ] && [ "$(cat "$1/${stamp##*/}" 2>/dev/null)" != "$(stamp_of "$1")" ]; then return 1; fi
  passed_over=$(has_pins "$1/bin/python") && PYTHON=$1/bin/python && say "reused $1" && return
  passed_over="$1 has $passed_over; not used"
  return 1
}

find_python() {  # statement that it must run; prints the base python, as the active one may be in the folder to be emptied
  for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
    "$name" -c "$1; import sys; sys.version_info[:2] in ((3, 11), (3, 12), (3, 13), (3, 14)) or sys.exit(1)
print(getattr(sys, '_base_executable', sys.executable))" 2>/dev/null && return
  done
  return 1
}

refuse_what_is_not_ours() {
  owner='' advice='let SEMIVARIOGRAM_ENV name another folder'
  there=$(ls -A "$environment" || echo closed)  # before the log is looked for, which another set-up may write at any moment
  if [ -f "$log" ]; then read -r owner <"$log" || true
  elif [ -n "$there" ]; then
    fail "$environment was not made by this script${passed_over:+ ($passed_over)}; $advice"
  fi
  [ "$owner" = "$checkout" ] || [ ! -e "$owner/setup_environment.sh" ] ||
    fail "$environment belongs to $owner, which has other pins or has not finished it; $advice"
}

install_with() {  # uv or pip; the log stays, as it is the lock, and the mark that the folder is ours
  find "$environment/" -mindepth 1 ! -path "$log" -delete || fail "$environment cannot be emptied"
  say "creating $environment with $1, which takes minutes (log: $log)"
  here=(--no-user --target= --root=/ "--prefix=$environment")  # whatever PIP_TARGET or a pip.conf says
  set -- "$1" "$environment/bin/python" --require-hashes --no-deps -r requirements.lock
  case $1 in
    uv) uv venv --allow-existing --python "$base" "$environment" && shift && uv pip install --python "$@" ;;
    pip) "$base" -m venv "$environment" && "$2" -m pip install --no-input "${here[@]}" "${@:3}" ;;
  esac >>"$log" 2>&1
}

provide() (  # a subshell: its end closes the log. The system's lock on it dies with this process and what it has started
  base=$(find_python pass) || base=$(uv python install -q 3.11 2>/dev/null && uv python find 3.11) ||
    fail "there is no Python from 3.11 to 3.14 on PATH that you may execute ($(python3 -V 2>&1 | tail -n 1));" \
      "install one, or uv, or use environment.yml with conda"
  "$base" -c pass 2>/dev/null || fail "$base, the base of the Python on PATH, is gone or you may not execute it"
  mkdir -p "$environment" && refuse_what_is_not_ours
  { exec 9>>"$log"; } || fail "$environment cannot be written"
  lock='import fcntl, sys
try: fcntl.flock(9, fcntl.LOCK_EX | int(sys.argv[1]))
except OSError as error: sys.exit(isinstance(error, BlockingIOError))  # some network disks know no locks'
  "$base" -c "$lock" 4 || { say "waiting for another set-up of $environment"; "$base" -c "$lock" 0; }  # 4: LOCK_NB
  if take "$environment"; then exit 0; fi
  refuse_what_is_not_ours
  [ -z "$passed_over" ] || say "$passed_over"
  rm -f "$stamp" && echo "$checkout" >"$log" && start=$SECONDS
  if ! command -v uv >/dev/null || ! install_with uv; then
    find_python 'import ensurepip, venv' >/dev/null || fail "$base has no venv module (Debian: apt-get install python3-venv)"
    install_with pip || { tail -n 15 "$log" >&2; fail "the pins could not be installed (whole log: $log)"; }
  fi
  lacking=$(has_pins "$environment/bin/python") ||
    fail "after the installation: $lacking; does a pip.conf or uv.toml of yours name another target? (log: $log)"
  site=$(echo "$environment"/lib/python3*/site-packages)  # an editor that takes this python for notebooks finds lib, too
  case $site in "$checkout"/*) if [ -d "$site" ]; then echo "$checkout" >"$site/semivariogram.pth"; fi ;; esac
  stamp_of "$environment" >"$stamp" && say "created $environment in $((SECONDS - start)) s"
)

PYTHON=$environment/bin/python passed_over=
take "${VIRTUAL_ENV:-}" || take "${CONDA_PREFIX:-}" || take "$environment" || provide || exit 1
