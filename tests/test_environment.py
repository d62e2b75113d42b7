"""The pins are one set, this environment has them, and the set-up never takes half an environment for a whole
one.

Set-ups run in a miniature checkout. Its PATH holds a few system tools and stand-ins for python, pip and uv,
which note each call and "install" a pin as an empty package with that version; the checks of
setup_environment.sh are the real ones.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = ["run_all.sh", "run_tests.sh", "run_benchmarks.sh", "setup_environment.sh", ".ci/run"]
OPTIONS = ["--profile", "--run", "--device", "--only", "--set", "--lab", "--help"]
TOOLS = [
    "sh", "bash", "env", "cat", "chmod", "cksum", "cp", "dirname", "find", "id", "ls", "mkdir", "mktemp",
    "readlink", "rm", "sed", "sleep", "tail", "timeout",
]  # fmt: skip
PYTEST = "-m pytest -n 2 --dist loadfile --no-loadscope-reorder"
PINS = "# a comment\nnumpy==2.4.6\nPyYAML==6.0.3  # named otherwise in its own metadata\n\ntorch==2.14.1\n"

BASE_PYTHON = """#!/bin/sh
case "$1 $2" in
  "-m venv")
    echo "venv" >>"$CALLS"
    mkdir -p "$3/bin" "$3/site" && cp "$STUBS/environment-python" "$3/bin/python" && : >"$3/has-pip" ;;
  "-c "*ensurepip*) [ -z "${FAKE_NO_VENV:-}" ] && echo "$0" ;;
  "-c "*_base_executable*) "$REAL_PYTHON" "$@" >/dev/null && echo "$0" ;;
  "-c "*) exec "$REAL_PYTHON" "$@" ;;
  *) exit 1 ;;
esac
"""
ENVIRONMENT_PYTHON = """#!/bin/sh
here=$(cd "$(dirname "$0")/.." && pwd)
case "$*" in
  "-m pip --version") [ -f "$here/has-pip" ]; exit ;;
  "-m pip install"*) [ -f "$here/has-pip" ] || exit 1 ;;
  "-m uv install"*) ;;
  "-m pytest"* | "-m lib.pipeline"*) echo "for $SEMIVARIOGRAM_CALLER in $PWD:" "$@"; exit 0 ;;
  "-m jupyterlab"*) echo "$@"; exit 0 ;;
  "-c import pytest"*) exit ${FAKE_NO_TESTS:-0} ;;
  *) PYTHONPATH=$here/site exec "$REAL_PYTHON" -S "$@" ;;
esac
echo "$2 $*" >>"$CALLS"
sleep "${FAKE_SECONDS:-0}"
for last in "$@"; do :; done
while read -r pin rest; do
  [ -z "${FAKE_PIP_FAILS:-}" ] || { echo "ERROR: no distribution of $pin"; exit 1; }
  case "$pin" in --hash* | "#"*) continue ;; torch==*) pin=$pin+cpu ;; esac
  [ "$pin" != "${FAKE_FORGOTTEN:-}" ] || continue
  info="$here/site/${pin%%==*}-${pin##*==}.dist-info"
  mkdir -p "$info"
  printf 'Name: %s\nVersion: %s\n' "${pin%%==*}" "${pin##*==}" >"$info/METADATA"
done <"$last"
"""
UV = """#!/bin/sh
for last in "$@"; do :; done
case "$1" in
  venv)
    echo "uv venv" >>"$CALLS"
    [ -z "${FAKE_UV_FAILS:-}" ] || { echo "No interpreter found"; exit 1; }
    mkdir -p "$last/bin" "$last/site" && cp "$STUBS/environment-python" "$last/bin/python" ;;
  python) exit 1 ;;
  pip) python=$4; shift 4; exec "$python" -m uv install "$@" ;;
esac
"""


def read(name):
    return (PROJECT / name).read_text(encoding="utf-8")


def pins():
    """Name -> version of what a run needs and of what the tests need besides."""
    lines = [line.partition("#")[0].strip() for line in read("requirements.txt").splitlines()]
    groups = tomllib.loads(read("pyproject.toml"))["dependency-groups"]
    lines = [line for line in [*lines, *groups["tests"]] if line]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    found = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower(): line.split("==")[1] for line in lines}
    assert len(found) == len(lines)
    return found


def test_the_lock_file_and_the_running_environment_have_every_pin_and_no_other_version_of_it():
    locked = re.findall(r"^([a-z0-9._-]+)==([^\s;\\]+)", read("requirements.lock"), re.MULTILINE)
    assert {(name, version) for name, version in locked if name in pins()} == set(pins().items())
    assert {name: metadata.version(name).partition("+")[0] for name in pins()} == pins()


def test_conda_takes_its_versions_from_requirements_txt():
    environment = yaml.safe_load(read("environment.yml"))
    *from_conda, from_pip = environment["dependencies"]
    assert environment["name"] == "semivariogram-geolocalization"
    assert re.fullmatch(r"python=3\.\d+ pip", " ".join(from_conda))
    assert from_pip == {"pip": ["-r requirements.txt"]}


def test_the_image_has_the_python_of_conda_the_cuda_of_the_lock_and_files_that_are_there():
    image, locked = read("Dockerfile"), read("requirements.lock")
    python = re.search(r"^  - python=(3\.\d+)$", read("environment.yml"), re.MULTILINE)[1]
    assert (
        re.findall(r"uv python install (\S+)", image)
        == re.findall(r"--python-version (\S+)", locked)
        == [python]
    )
    assert python in re.search(r"for name in (python.*); do", read("setup_environment.sh"))[1]
    cuda = re.search(r"^nvidia-cuda-runtime==(\d+\.\d+)\.", locked, re.MULTILINE)[1]
    assert re.findall(r"^FROM nvidia/cuda:(\d+\.\d+)\.", image, re.MULTILINE) == [cuda]
    copied = re.search(r"^COPY (.*) /opt/setup/$", image, re.MULTILINE)[1].split()
    assert [name for name in copied if not (PROJECT / name).is_file()] == []
    assert {"setup_environment.sh", "requirements.txt", "requirements.lock"} == set(copied)
    assert re.search(r" uv==[\d.]+ ", image) and len(image.splitlines()) <= 30
    container = json.loads(read(".devcontainer/devcontainer.json"))
    assert (PROJECT / ".devcontainer" / container["build"]["dockerfile"]).resolve() == PROJECT / "Dockerfile"
    environment = re.search(r"SEMIVARIOGRAM_ENV=(\S+)", image)[1]
    settings = container["customizations"]["vscode"]["settings"]
    assert settings["python.defaultInterpreterPath"] == f"{environment}/bin/python"


SRUN = """#!/bin/sh
echo "srun $NPROC processes on each of $NNODES, $RDZV_ENDPOINT, $SRUN_CPUS_PER_TASK cores: $*" >>"$CALLS"
if [ -n "${FAKE_TIME_IS_OVER:-}" ]; then kill -USR1 $PPID; sleep 0.2; exit 1; fi
shift && exec "$@"
"""


def test_a_job_of_slurm_starts_run_all_on_each_machine_and_is_queued_again_before_its_time_is_over(made):
    made.stub("srun", SRUN)
    made.stub("scontrol", '#!/bin/sh\necho "scontrol $*" >>"$CALLS"; printf "node7\\nnode8\\n"\n')
    job = {"SLURM_SUBMIT_DIR": str(made.root), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "12345", "SLURM_CPUS_PER_TASK": "128"}
    script = str(PROJECT / "slurm" / "osv5m.sbatch")
    code, out, error = made.run("bash", script, "--run", "mine", **job)
    asked = "-m lib.pipeline --profile osv5m --device cuda --run mine\n"
    assert (code, out) == (0, f"for {made.root} in {made.root}: {asked}"), error
    wanted = (
        "srun 8 processes on each of 2, node7:22345, 128 cores: --kill-on-bad-exit=1 ./run_all.sh --profile"
    )
    said = made.calls_file.read_text()
    assert wanted in said and "requeue" not in said
    assert made.run("bash", script, FAKE_TIME_IS_OVER="1", **job)[0] != 0
    assert "scontrol requeue 12345" in made.calls_file.read_text()


def test_the_citation_names_the_version_and_licence_of_the_package():
    project, citation = tomllib.loads(read("pyproject.toml"))["project"], yaml.safe_load(read("CITATION.cff"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


class Checkout:
    """A copy of the scripts with two-line inputs, and the PATH that they see."""

    def __init__(self, folder: Path):
        self.root, self.stubs, self.calls_file = folder / "check out", folder / "stubs", folder / "calls"
        self.environment = self.root / ".venv"
        for part in (self.root / "lib", self.root / ".ci", self.stubs):
            part.mkdir(parents=True)
        for script in SCRIPTS:
            shutil.copy(PROJECT / script, self.root / script)
        (self.root / "lib" / "__init__.py").touch()
        self.pin(PINS)
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.stubs / tool).symlink_to(found)
        self.stub("environment-python", ENVIRONMENT_PYTHON)
        self.stub("python3", BASE_PYTHON)

    def pin(self, lines, locked=""):
        """Write requirements.txt, and the lock file with the same versions and the lines ``locked``."""
        (self.root / "requirements.txt").write_text(lines)
        pins = re.findall(r"^[a-z]+==[0-9.]+", lines.lower(), re.MULTILINE)
        text = "".join(f"{pin} \\\n    --hash=sha256:0\n" for pin in pins)
        (self.root / "requirements.lock").write_text(text + locked)

    def stub(self, name, text):
        """Put an executable of this name on the PATH."""
        (self.stubs / name).unlink(missing_ok=True)
        (self.stubs / name).write_text(text)
        (self.stubs / name).chmod(0o755)

    def start(self, *command, cwd=None, **variables):
        """``command`` (default: the bare set-up) with ``variables`` and those of the stand-ins."""
        script = ["bash", "-c", "set -euo pipefail; . ./setup_environment.sh; echo python: $PYTHON"]
        seen = {"PATH": str(self.stubs), "STUBS": str(self.stubs), "CALLS": str(self.calls_file)}
        seen |= {"LC_ALL": "C", "REAL_PYTHON": sys.executable}
        heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # ignored under nohup and &
        return subprocess.Popen(
            list(command) or script, cwd=cwd or self.root, env=seen | variables, text=True, preexec_fn=heed,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *command, cwd=None, **variables):
        """Return code, standard output and standard error of :meth:`start`."""
        process = self.start(*command, cwd=cwd, **variables)
        out, error = process.communicate(timeout=15)
        return process.returncode, out, error

    def calls(self):
        """What the stand-ins were asked for since the last call of this method, first word of each."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return [line.split()[0] for line in lines]

    def stamps(self):
        return list(self.root.rglob("*.stamp*"))


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.fixture
def made(checkout):
    """A checkout whose environment has been made."""
    code, out, error = checkout.run()
    assert (code, checkout.calls()) == (0, ["venv", "pip"]), error
    assert out == f"python: {checkout.environment}/bin/python\n"
    assert re.search(r"^environment: created .*/\.venv in \d+ s$", error, re.MULTILINE)
    return checkout


def test_an_environment_is_made_from_the_lock_file_and_reused_while_that_stays(made):
    log = (made.environment / "semivariogram-setup.log").read_text()
    assert log.splitlines()[0] == str(made.root)
    assert made.run()[::2] == (0, f"environment: reused {made.environment}\n")
    assert made.calls() == []


@pytest.mark.parametrize("change", ["pin", "lock", "moved", "stamp"])
def test_an_environment_is_made_anew_when_it_is_not_what_it_should_be(made, change):
    (made.environment / "left-over").touch()
    if change == "pin":
        made.pin(PINS + "scipy==1.17.1\n")
    elif change == "lock":
        made.pin(PINS, "scipy==1.17.1\n")
    elif change == "moved":
        made.root.rename(made.root.with_name("moved"))
        made.root, made.environment = made.root.with_name("moved"), made.root.with_name("moved") / ".venv"
    else:
        made.stamps()[0].unlink()
    assert "created " in made.run(VIRTUAL_ENV=str(made.environment))[2]
    assert made.calls() == ["venv", "pip"]
    assert not (made.environment / "left-over").exists()


def test_a_failed_installation_says_why_and_leaves_no_stamp(checkout):
    code, out, error = checkout.run(FAKE_PIP_FAILS="1")
    assert (code, out, checkout.stamps()) == (1, "", [])
    assert "ERROR: no distribution" in error
    log = f"{checkout.environment}/semivariogram-setup.log"
    assert f"the pins could not be installed (whole log: {log})" in error
    assert checkout.run()[0] == 0
    checkout.pin("numpy==2.4.5\n")
    assert checkout.run(FAKE_PIP_FAILS="1")[0] == 1
    checkout.pin(PINS)
    assert "created " in checkout.run()[2]


@pytest.mark.parametrize("outside", [True, False])
def test_semivariogram_env_names_the_folder(checkout, tmp_path, outside):
    folder = str(tmp_path / "elsewhere") if outside else "build/env"
    for made_or_reused in ("created", "reused"):
        code, out, error = checkout.run(SEMIVARIOGRAM_ENV=folder)
        assert (code, out) == (0, f"python: {checkout.root / folder}/bin/python\n"), error
        assert f"environment: {made_or_reused} {checkout.root / folder}" in error
    assert not checkout.environment.exists()


@pytest.mark.parametrize("shared", ["variable", "link"])
def test_two_checkouts_share_an_environment_and_neither_empties_the_others(made, tmp_path, shared):
    (tmp_path / "second").mkdir()
    second = Checkout(tmp_path / "second")
    variables = {"SEMIVARIOGRAM_ENV": str(made.environment)} if shared == "variable" else {}
    if shared == "link":
        second.environment.symlink_to(made.environment)
    for one, more in ((second, variables), (made, {}), (second, variables)):
        assert one.run(**more)[::2] == (0, f"environment: reused {made.environment}\n")
    second.pin(PINS + "scipy==1.17.1\n")
    code, _, error = second.run(**variables)
    assert code == 1 and f"{made.environment} belongs to {made.root}, which has other pins" in error
    assert made.run()[::2] == (0, f"environment: reused {made.environment}\n")


def test_a_folder_that_is_not_an_environment_of_ours_is_never_emptied(checkout, tmp_path):
    (tmp_path / "thesis" / "bin").mkdir(parents=True)
    (tmp_path / "thesis" / "chapter").touch()
    shutil.copy(checkout.stubs / "environment-python", tmp_path / "thesis" / "bin" / "python")
    code, _, error = checkout.run(SEMIVARIOGRAM_ENV=str(tmp_path / "thesis"))
    assert code == 1
    assert "was not made by this script" in error and "numpy none instead of 2.4.6" in error
    assert {path.name for path in (tmp_path / "thesis").iterdir()} == {"bin", "chapter"}


def test_an_active_environment_is_taken_as_it_is_or_passed_over_with_the_pin_that_it_lacks(made):
    other = made.root.with_name("active")
    ignore = shutil.ignore_patterns("semivariogram-setup.*")
    shutil.copytree(made.environment, other, symlinks=True, ignore=ignore)
    for variable in ("CONDA_PREFIX", "VIRTUAL_ENV"):
        answer = made.run(**{variable: str(other)})
        assert answer == (0, f"python: {other}/bin/python\n", f"environment: reused {other}\n")
    assert made.calls() == []
    (other / "site" / "pyyaml-6.0.3.dist-info" / "METADATA").write_text("Name: PyYAML\nVersion: 6.0.2\n")
    assert made.run(VIRTUAL_ENV=str(other))[1] == f"python: {made.environment}/bin/python\n"
    shutil.rmtree(made.environment)
    assert f"{other} has pyyaml 6.0.2 instead of 6.0.3; not used" in made.run(VIRTUAL_ENV=str(other))[2]


def test_uv_is_preferred_and_where_it_fails_pip_takes_over_and_says_so(checkout):
    checkout.stub("uv", UV)
    code, _, error = checkout.run(FAKE_UV_FAILS="1")
    assert (code, checkout.calls()) == (0, ["uv", "venv", "pip"])
    assert error.index(".venv with uv") < error.index(".venv with pip") < error.index("created ")
    shutil.rmtree(checkout.environment)
    code, _, error = checkout.run()
    assert (code, checkout.calls()) == (0, ["uv", "uv"]) and ".venv with uv" in error


def test_what_would_let_other_code_answer_or_pip_install_elsewhere_is_set_aside(checkout):
    odd = dict.fromkeys(("PYTHONPATH", "PYTHONOPTIMIZE", "JUPYTER_PATH"), "1")
    code, out, error = checkout.run("bash", "-c", "set -eu; . ./setup_environment.sh; env", **odd)
    assert code == 0 and all(f"{name}=1 is set aside for this command" in error for name in odd)
    seen = dict(line.partition("=")[::2] for line in out.splitlines())
    assert odd.keys() & seen.keys() == {"PYTHONPATH"} and seen["PYTHONPATH"] == str(checkout.root)
    here = f"--no-user --target= --root=/ --prefix={checkout.environment} --require-hashes"
    assert here in checkout.calls_file.read_text()


def test_a_python_that_may_not_be_executed_is_called_that(made):
    (made.environment / "bin" / "python").unlink()
    (made.environment / "bin" / "python").symlink_to("/closed/python")
    assert "leads to /closed/python, which is gone or which you may not execute" in made.run()[2]
    shutil.rmtree(made.environment)
    (made.stubs / "python3").chmod(0o644)
    assert "that you may execute (" in (said := made.run()[2]) and "Permission denied);" in said


def test_a_missing_python_or_venv_is_a_sentence(checkout):
    assert "(Debian: apt-get install python3-venv)" in checkout.run(FAKE_NO_VENV="1")[2]
    (checkout.stubs / "python3").unlink()
    code, _, error = checkout.run()
    assert (code, checkout.stamps()) == (1, [])
    assert "there is no Python from 3.11 to 3.14 on PATH" in error


def test_of_two_set_ups_at_the_same_time_one_waits_for_the_other(checkout):
    both = [checkout.start(FAKE_SECONDS="1") for _ in range(2)]
    errors = "".join(process.communicate(timeout=15)[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert checkout.calls() == ["venv", "pip"]
    assert [errors.count(word) for word in (" created ", " reused ", " waiting for ")] == [1, 1, 1]


def test_a_set_up_that_begins_its_log_while_another_looks_is_taken_for_ours(checkout):
    checkout.stub(
        "ls",
        f'#!/bin/sh\n: >"{checkout.environment}/semivariogram-setup.log"\nexec {shutil.which("ls")} "$@"\n',
    )
    assert checkout.run()[0] == 0 and checkout.calls() == ["venv", "pip"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_set_up_is_begun_again(checkout, how):
    process = checkout.start(FAKE_SECONDS="30")
    deadline = time.monotonic() + 10
    while not (checkout.calls_file.exists() and "pip" in checkout.calls_file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # again, as a shell about to start `sleep` heeds it only when that has ended
    while process.poll() is None:
        os.killpg(process.pid, how)
        time.sleep(0.05)
    process.communicate(timeout=10)
    assert (checkout.stamps(), checkout.calls()) == ([], ["venv", "pip"])
    assert "created " in checkout.run()[2]


def test_run_scripts_work_through_links_and_from_any_folder(made, tmp_path):
    for script in ("run_tests.sh", "run_all.sh"):
        (tmp_path / script).symlink_to(f"check out/{script}")
    tests = [str(tmp_path / "run_tests.sh"), "-k", "two words"]
    assert made.run(*tests, cwd=tmp_path)[:2] == (0, f"for  in {made.root}: {PYTEST} -k two words\n")
    code, _, error = made.run(*tests, FAKE_NO_TESTS="1")
    assert code == 1 and "lacks the packages of the tests; pip (25.1 or newer) or uv pip install" in error
    said = made.run(str(tmp_path / "run_all.sh"), "--lab")[1]
    assert said.startswith("-m jupyterlab --ServerApp.ip=127.0.0.1")
    said = made.run(str(tmp_path / "run_all.sh"), "--lab", "--run", cwd=tmp_path)[1]
    assert said == f"for {tmp_path} in {made.root}: -m lib.pipeline --lab --run\n"


def test_help_names_every_option_of_the_parser_and_sets_nothing_up(checkout):
    named = re.findall(r'add_argument\("(--\w+)"', read("lib/pipeline.py"))  # run, it would wait for torch
    assert sorted({*named, "--lab", "--help"}) == sorted(OPTIONS)
    for flag in ("--help", "-h"):
        code, out, error = checkout.run("./run_all.sh", "--only", flag)
        assert (code, error) == (0, "") and out.startswith("Usage: ./run_all.sh [options]")
        assert sorted(set(re.findall(r"--[a-z]+", out))) == sorted(OPTIONS)
    assert not checkout.environment.exists()


@pytest.mark.skipif(shutil.which("timeout") is None, reason="timeout, of GNU coreutils, is not installed")
def test_continuous_integration_goes_on_where_debian_gives_nothing(made):
    made.stub("apt-get", '#!/bin/sh\necho "apt-get $1" >>"$CALLS"; exit 100\n')
    made.stub("id", "#!/bin/sh\necho 0\n")
    code, out, error = made.run("./.ci/run", CI="true")
    assert (code, out) == (0, f"for  in {made.root}: {PYTEST}\n")
    assert "ci: chromium could not be installed; going on without it" in error
    assert set(made.calls()) <= {"venv", "apt-get"}


@pytest.mark.parametrize("tool", ["bash -n", "shellcheck -x"])
@pytest.mark.parametrize("script", [*SCRIPTS, "slurm/osv5m.sbatch"])
def test_scripts_are_well_formed(script, tool):
    if not shutil.which(tool.split()[0]):
        pytest.skip(f"{tool} is not installed")
    found = subprocess.run([*tool.split(), script], cwd=PROJECT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
