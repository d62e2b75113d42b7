# shellcheck shell=bash
# Sourced by the run scripts. Sets PYTHON to a python that has every pin of requirements.txt and this checkout's lib:
#   1. the active environment ($VIRTUAL_ENV, then $CONDA_PREFIX), if it has all of them;
#   2. the folder $SEMIVARIOGRAM_ENV (default .venv, relative to the checkout), if it was made from these pins;
#   3. that folder, made anew by uv where there is one, else by venv and pip.
# Speaks on standard error only. Kept to what bash 3.2 (macOS) knows, and to `set -euo pipefail`.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
environment=${SEMIVARIOGRAM_ENV:-.venv}
case $environment in /*) ;; *) environment=$checkout/$environment ;; esac
while [ "${environment%/}" != "$environment" ]; do environment=${environment%/}; done
if [ -z "$environment" ]; then
  echo "environment: SEMIVARIOGRAM_ENV=${SEMIVARIOGRAM_ENV:-} is no folder for an environment; name one" >&2
  exit 1
fi
environment_name=${environment#"$checkout"/}
environment_log=$environment/semivariogram-setup.log  # also the mark of a folder that is ours to empty
environment_stamp=$environment/semivariogram-setup.stamp
environment_lock=$environment.lock
passed_over=

say() { printf 'environment: %s\n' "$*" >&2; }

fail() {
  say "$@"
  exit 1
}

# A damaged or older python fails here as one without the pins does: -P came with 3.11, and keeps the working
# directory's lib out of the answer.
first_lacking_pin() {  # python
  "$1" -P - "$checkout/requirements.txt" 2>/dev/null <<'PROGRAM'
import pathlib
import sys
from importlib import metadata

for line in pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
    name, _, pin = line.partition("#")[0].strip().partition("==")
    try:
        found = metadata.version(name) if name else ""  # compares names normalised: PyYAML is pyyaml
    except metadata.PackageNotFoundError:
        found = "none"
    if found.partition("+")[0] != pin:  # 2.14.1+cpu is a build of 2.14.1
        print(f"{name} {found} instead of {pin}")
        sys.exit(1)
PROGRAM
}

lib_is_ours() {  # python
  "$1" -P - "$checkout" 2>/dev/null <<'PROGRAM'
import importlib.util
import os
import sys

spec = importlib.util.find_spec("lib")
folder = os.path.dirname(os.path.dirname(os.path.realpath(spec.origin))) if spec and spec.origin else os.devnull
sys.exit(not os.path.samefile(folder, sys.argv[1]))
PROGRAM
}

# Nothing is resolved or built apart: all that it needs is pinned and installed. An environment made by uv has no pip.
link_checkout() {  # python
  local editable="--no-deps --no-build-isolation -e"
  # shellcheck disable=SC2086
  if "$1" -m pip --version >/dev/null 2>&1; then
    "$1" -m pip install --disable-pip-version-check $editable "$checkout"
  else
    uv pip install --python "$1" $editable "$checkout"
  fi
}

# Ours without a stamp is half made, whatever it seems to have installed.
half_made() { [ -f "$1/${environment_log##*/}" ] && [ ! -f "$1/${environment_stamp##*/}" ]; }

adopt() {  # folder of an environment that was made elsewhere
  local lacking
  if half_made "$1"; then return 1; fi
  if ! lacking=$(first_lacking_pin "$1/bin/python"); then
    passed_over="$1 has ${lacking:-no python >= 3.11}"
    return 1
  fi
  if ! lib_is_ours "$1/bin/python" && ! link_checkout "$1/bin/python" >/dev/null 2>&1; then
    passed_over="$1 has every pin, but this checkout could not be installed into it"
    return 1
  fi
  PYTHON=$1/bin/python
  say "reused $1"
}

adopt_active() {
  local folder
  for folder in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
    if [ -n "$folder" ] && adopt "$folder"; then return 0; fi
  done
  return 1
}

# The folder's own path is part of it: an environment that was moved has wrong paths inside.
stamp_of_pins() {
  printf '%s\n' "$environment"
  cksum <"$checkout/requirements.txt"
}

has_stamp() { [ "$(cat "$environment_stamp" 2>/dev/null)" = "$(stamp_of_pins)" ]; }

reuse_folder() {
  has_stamp && lib_is_ours "$environment/bin/python" && say "reused $environment_name"
}

# 3.11 first: the version of environment.yml. Each is asked, because a version manager's shim may be there and yet run
# nothing; the answer is the base python, because the active environment may be the folder about to be emptied.
find_python() {  # statement that it must be able to run
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do
    if "$candidate" -c "$1
import sys
assert (3, 11) <= sys.version_info[:2] < (3, 15)
print(getattr(sys, '_base_executable', sys.executable))" 2>/dev/null; then return 0; fi
  done
  return 1
}

process_lives() { kill -0 "$1" 2>/dev/null || ps -p "$1" >/dev/null 2>&1; }

# mkdir lets one waiter in: two that remove a dead owner's lock at the same time could remove each other's.
take_over_lock() {  # its owner
  mkdir "$environment_lock.taking" 2>/dev/null || return 1
  if [ "$(readlink "$environment_lock")" = "$1" ]; then rm -f "$environment_lock"; fi
  rmdir "$environment_lock.taking"
}

# A symbolic link, as its making is atomic and says whose it is at once; flock is not on macOS.
hold_lock() {
  local host me owner said='' seconds=0
  host=$(uname -n)
  me=$(exec sh -c 'echo $PPID')@$host  # $$ would be the script, which may be killed while pip goes on
  mkdir -p "$(dirname "$environment")" 2>/dev/null
  [ -w "$(dirname "$environment")" ] || fail "$environment cannot be made: its folder is not writable"
  until ln -s "$me" "$environment_lock" 2>/dev/null; do
    owner=$(readlink "$environment_lock") || owner=
    if [ "${owner#*@}" = "$host" ] && ! process_lives "${owner%@*}" && take_over_lock "$owner"; then continue; fi
    if [ -n "$owner" ] && [ -z "$said" ]; then
      said=yes
      say "waiting for the set-up that process ${owner%@*} has begun (if there is none: rm $environment_lock)"
    fi
    seconds=$((seconds + 1))
    [ "$seconds" -lt 3600 ] || fail "waited an hour for $environment_lock; remove it if no set-up is running"
    sleep 1
  done
  trap 'rm -f "$environment_lock"' EXIT
}

# The stamp goes first, in case that the rest is interrupted. The folder and the log stay: the one may be a mount or a link
# to a larger disk, the other marks it as ours.
empty_folder() {
  rm -f "$environment_stamp"
  mkdir -p "$environment" || return 1
  find "$environment/" -mindepth 1 ! -path "*/${environment_log##*/}" -delete
}

# What cannot be listed is not empty.
is_ours_to_empty() {
  local there
  [ -f "$environment_log" ] || [ ! -e "$environment" ] || { there=$(ls -A "$environment/") && [ -z "$there" ]; }
}

install_with_uv() {
  uv venv --allow-existing --python "$(find_python '' || echo 3.11)" "$environment" &&
    uv pip install --python "$environment/bin/python" -r "$checkout/requirements.txt" &&
    link_checkout "$environment/bin/python"
}

install_with_pip() {  # base python
  "$1" -m venv "$environment" &&
    "$environment/bin/python" -m pip install --disable-pip-version-check --no-input -r "$checkout/requirements.txt" &&
    link_checkout "$environment/bin/python"
}

fail_with_log() {
  tail -n 15 "$environment_log" >&2
  fail "$* (whole log: $environment_log)"
}

try_uv() {
  command -v uv >/dev/null 2>&1 || return 1
  say "creating $environment_name with uv (log: $environment_log)"
  if install_with_uv >>"$environment_log" 2>&1; then return 0; fi
  say "uv could not install the pins (it reads no pip configuration, such as extra indexes); taking venv and pip"
  empty_folder
  return 1
}

try_pip() {
  local base
  if ! base=$(find_python 'import ensurepip, venv'); then
    if ! base=$(find_python ''); then
      fail "there is no Python from 3.11 to 3.14 on PATH; install one, or uv, or use environment.yml with conda"
    fi
    fail "$base has no venv module with pip (Debian, Ubuntu: apt-get install python3-venv); install it, or uv"
  fi
  say "creating $environment_name with pip, which takes minutes (log: $environment_log)"
  install_with_pip "$base" >>"$environment_log" 2>&1 || fail_with_log "pip could not install the pins"
}

create_folder() {
  local started=$SECONDS lacking
  [ -z "$passed_over" ] || say "$passed_over; not used"
  if ! empty_folder || ! : >"$environment_log"; then fail "$environment cannot be emptied and written"; fi
  try_uv || try_pip
  lacking=$(first_lacking_pin "$environment/bin/python") || fail_with_log "after the installation: ${lacking:-no python}"
  lib_is_ours "$environment/bin/python" || fail_with_log "after the installation lib is not this checkout's"
  stamp_of_pins >"$environment_stamp.part" || fail "$environment_stamp cannot be written"
  mv "$environment_stamp.part" "$environment_stamp" || fail "$environment_stamp cannot be written"
  say "created $environment_name in $((SECONDS - started)) s"
}

# A subshell, so that the trap that gives the lock back is its own.
provide_folder() (
  hold_lock
  if reuse_folder; then exit 0; fi  # made while we waited
  if has_stamp && link_checkout "$environment/bin/python" >/dev/null 2>&1 && reuse_folder; then exit 0; fi
  if ! is_ours_to_empty; then
    if adopt "$environment"; then exit 0; fi
    fail "$passed_over, and was not made by this script; remove it, or let SEMIVARIOGRAM_ENV name another folder"
  fi
  create_folder
)

# shellcheck disable=SC2034  # it is for the script that sources this one
PYTHON=$environment/bin/python
adopt_active || reuse_folder || provide_folder || exit 1
