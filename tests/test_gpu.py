"""What a GPU would do, told without one: devices under fake tensors; a CUDA that is absent, old or busy."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import gpu
from lib import pipeline
from lib.data import features
from lib.data.draws import generator
from lib.method import empirical, negatives
from lib.method.errors import BundleError
from lib.method.loss import SemivariogramLoss
from lib.method.model import GeoCLIP
from lib.runs.machine import find_device, machine
from lib.settings import PROJECT, SettingsError
from lib.train import gallery, training
from tests.conftest import fitted

machine_module = importlib.import_module("lib.runs.machine")
CARD = torch.device("cuda")


class Copies(TorchDispatchMode):
    """Counts what goes from the processor to a GPU, or back, and lets the processor wait for it."""

    blocking = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function is torch.ops.aten._to_copy.default and options.get("device") is not None:
            moves = arguments[0].device.type != torch.device(options["device"]).type
            self.blocking += moves and not options.get("non_blocking", False)
        return function(*arguments, **options)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def on_card(with_features: bool) -> training.TrainingData:
    """40 photos for a training on a GPU, their features there or on the host."""
    stored = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float16)
    held = torch.zeros(40, 8, dtype=torch.float16, device=CARD) if with_features else None
    frozen = features.Features(stored, torch.zeros(8, device=CARD), on_card=held)
    places = np.random.default_rng(1).uniform(-60, 60, (40, 2))
    return training.TrainingData(
        frozen, np.arange(32), np.arange(32, 40), torch.from_numpy(places), places, fitted(), 1.0
    )


@pytest.mark.parametrize("with_features", [True, False], ids=["features on the card", "on the host"])
@pytest.mark.parametrize("name", sorted(negatives.REGISTRY))
def test_a_step_has_all_it_needs_on_the_card_and_waits_for_nothing(name, with_features, fake, make_run):
    """Forward only: torch goes no way back without a real GPU. benchmarks/gpu.py counts the waits of both."""
    settings = make_run("training.batch_size=8").settings
    run = SimpleNamespace(settings=settings, autocast=lambda _: torch.autocast("cpu", enabled=False))
    with CARD:
        model = GeoCLIP(8)
    loss_of = SemivariogramLoss(fitted(), name).to(CARD)
    data, queue = on_card(with_features), training.Queue.empty(16, 8, CARD)
    if name == "shuffled":
        data = replace(data, partner_deg=torch.zeros(40, 2, device=CARD))
    noise = generator(0, "noise")
    with Copies() as copies:
        for rows in np.split(np.arange(24), 3):
            batch = data.batch(1, rows, slice(0, 8), CARD)
            loss, _ = training.loss_of_batch(model, queue, data, batch, loss_of, run, noise)
    assert loss.requires_grad and loss.device.type == "cuda" and len(queue) == 16 and copies.blocking == 0


def test_the_graph_is_replayed_once_the_queue_is_full(fake, make_run, monkeypatch):
    settings, replayed = make_run("training.batch_size=8", "training.queue_size=16").settings, []
    run = SimpleNamespace(settings=settings, autocast=lambda _: torch.autocast("cpu"), device=CARD)

    def captured(module, samples, allow_unused_input):
        plain, shapes = module.forward, [one.shape for one in samples]
        module.forward = lambda *given: (
            replayed.append([one.shape for one in given] == shapes) or plain(*given)
        )
        assert allow_unused_input and not torch.is_autocast_cache_enabled()

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", captured)
    with CARD:
        model = GeoCLIP(8)
    training.capture(model, run, 8, 8 + 16)
    data, queue = on_card(True), training.Queue.empty(16, 8, CARD)
    loss_of, noise = SemivariogramLoss(fitted(), "infonce").to(CARD), generator(0, "noise")
    for step, rows in enumerate(np.split(np.arange(32), 4)):
        assert len(replayed) == max(0, step - 2), "the first two steps meet a queue that is not full"
        batch = data.batch(1, rows, slice(0, 8), CARD)
        training.loss_of_batch(model, queue, data, batch, loss_of, run, noise)
    assert replayed == [True, True] and torch.is_autocast_cache_enabled()


def test_of_what_a_graph_replays_only_the_temperature_has_no_part():
    """torch refuses to capture a parameter that is not used, unless ``allow_unused_input`` says so."""
    model = GeoCLIP(8)
    named = {name: one for name, one in model.named_parameters() if one.requires_grad}
    outputs = [one.sum() for one in model(torch.rand(2, 8), torch.zeros(3, 2))]
    found = torch.autograd.grad(outputs, [*named.values()], allow_unused=True)
    assert [name for name, one in zip(named, found, strict=True) if one is None] == ["logit_scale"]


def test_a_graph_needs_a_gpu_and_a_process_of_its_own(make_run):
    run = make_run("training.cuda_graph=true")
    with pytest.raises(BundleError, match="cuda_graph needs a GPU, and device is cpu"):
        training.capture(GeoCLIP(8), run, 8, 24)
    with pytest.raises(SettingsError, match="cuda_graph needs training.parallel=trainings"):
        make_run("training.cuda_graph=true", "training.parallel=batches")


@pytest.mark.parametrize(("processes", "cards", "fits"), [(1, 1, True), (2, 1, False), (2, 2, True)])
def test_processes_that_share_a_card_share_its_memory(fake, monkeypatch, processes, cards, fits):
    frozen = on_card(False).frozen
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * frozen.stored.nbytes, 0))
    assert (frozen.near(CARD).on_card is not None) == fits


def test_a_copy_that_waits_is_counted(fake):
    with Copies() as copies:
        torch.ones(2).to(CARD)
        torch.ones(2).to(CARD, non_blocking=True)
        torch.ones(2, device=CARD).cpu()
    assert copies.blocking == 2


def test_retrieval_and_the_curve_stay_on_the_card(fake):
    with CARD:
        model = GeoCLIP(8)
    embedded = gallery.embed(model, np.random.default_rng(0).uniform(-60, 60, (30, 2)), CARD)
    best, rows = gallery.retrieve(model, torch.randn(5, 8), embedded)
    assert embedded.device.type == "cuda" and best.device.type == rows.device.type == "cpu"
    lags = torch.randint(0, 9, (50,), device=CARD)
    assert empirical.sum_by_lag(lags, torch.rand(50, device=CARD), 9).device.type == "cuda"


def test_the_order_in_which_pairs_are_added_changes_no_bit():
    drawn = np.random.default_rng(0)
    lag = torch.from_numpy(drawn.integers(0, 7, 200_000))
    values, order = torch.from_numpy(drawn.uniform(0, 4, 200_000)), drawn.permutation(200_000)
    first = empirical.sum_by_lag(lag, values, 7)
    assert torch.equal(first, empirical.sum_by_lag(lag[order], values[order], 7))
    assert torch.allclose(first, torch.zeros(7).double().index_add(0, lag, values), rtol=1e-7)
    assert 2**24 * 4 / empirical.QUANTUM <= 2**53  # a tile of the largest values adds up exactly


@pytest.fixture
def no_memory(monkeypatch):
    """What was found about a GPU is asked anew."""
    monkeypatch.setenv(machine_module.GPU, "")
    monkeypatch.delenv(machine_module.GPU)
    remembered = machine_module.note_once, machine_module.why_no_cuda, machine_module.has_native_bfloat16
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


@pytest.mark.usefixtures("no_memory")
class TestCudaThatCannotBeUsed:
    @pytest.fixture(autouse=True)
    def absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    @pytest.fixture
    def old_driver(self, monkeypatch):
        reason = "The NVIDIA driver on your system is too old (found version 12020). Please update it"
        monkeypatch.setattr(torch.cuda, "init", Mock(side_effect=RuntimeError(f"{reason} by a new one")))

    def test_an_old_driver_is_torchs_own_reason_and_where_help_stands(self, old_driver):
        with pytest.raises(BundleError, match=r"too old \(found version 12020\).*docs/osv5m.md"):
            find_device("cuda")

    def test_auto_that_passes_over_a_card_says_so_once(self, old_driver, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(machine_module, "SIGNS_OF_A_CARD", (str(tmp_path),))
        assert {find_device("auto").type for _ in range(3)} == {"cpu"}
        said = capsys.readouterr().out
        assert said.count("there is a card, but the processor is used: The NVIDIA driver") == 1


@pytest.mark.usefixtures("no_memory")
class TestCudaThatIsThere:
    @pytest.fixture(autouse=True)
    def there(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "init", lambda: pytest.fail("started in this process"))
        monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("started in this process"))

    def test_name_and_cuda_are_said_and_nothing_is_started_here(self, monkeypatch, make_run):
        found = {"name": "NVIDIA H100", "capability": [9, 0], "count": 2}
        monkeypatch.setattr(machine_module, "_ASK", f"print({json.dumps(found)!r})")
        said = make_run("device=cuda", "training.precision=auto").describe()
        assert "cuda/bfloat16" in said
        assert f"2 x NVIDIA H100, CUDA {torch.version.cuda}" in said
        assert machine()["accelerator"] == "NVIDIA H100"

    @pytest.mark.parametrize(
        "reason",
        ["CUDA-capable device(s) is/are busy or unavailable",
         "no kernel image is available for execution on the device"],
        ids=["busy", "old"],
    )  # fmt: skip
    def test_a_card_that_does_not_compute_is_found_before_anything_else(self, reason, monkeypatch, make_run):
        monkeypatch.setattr(machine_module, "_ASK", f"raise RuntimeError('CUDA error: {reason}')")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
        said = f"the GPU cannot be used: .*{re.escape(reason)}.*sm_75, sm_90.*--device cpu"
        with pytest.raises(BundleError, match=said):
            pipeline.check_before_computing(make_run("device=cuda"))


def test_the_question_to_a_gpu_is_a_program_that_runs():
    compile(machine_module._ASK, "ask", "exec")
    if not torch.cuda.is_available():
        said = machine_module.subprocess.run(
            [sys.executable, "-c", machine_module._ASK], capture_output=True, text=True
        )
        assert said.returncode and "Error" in said.stderr.strip().splitlines()[-1]


def test_photos_are_decoded_where_there_is_next_to_no_shared_memory(tmp_path):
    """Two workers, one batch of 140 photos of 224 px: a container's 64 MB would not hold it as floats."""
    for number in range(140):
        Image.new("RGB", (60, 60), (number, 2 * number % 255, 7)).save(tmp_path / f"{number}.jpg")
    inside = f"mount -t tmpfs -o size=16m tmpfs /dev/shm && exec {sys.executable} -c '{DECODE}' {tmp_path}"
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", inside],
        cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True,
        timeout=180,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this system lets nobody mount")
    assert done.stdout.split() == ["140", "16"], done.stderr


DECODE = """
import shutil, sys, torch
from pathlib import Path
from lib.data import features
from lib.data.backbones import Backbone
from lib.settings import Backbone as Settings
from torchvision.transforms import v2
folder, settings = Path(sys.argv[1]), Settings(batch_size=140, workers=2)
crop = v2.Compose([v2.Resize((224, 224)), v2.PILToTensor()])
of = lambda pixels: pixels.mean((2, 3))
backbone = Backbone("mean", 3, crop, [0.0] * 3, [255.0] * 3, of, torch.nn.Identity())
photos = features.Photos(folder, [f"{number}.jpg" for number in range(140)], backbone)
((plain, _, _),) = features.encode(photos, backbone, settings, torch.device("cpu"), [range(140)])
print(len(plain), shutil.disk_usage("/dev/shm").total // 2**20)
"""


def test_the_proof_on_a_gpu_passes_on_the_processor_as_far_as_it_can(capfd):
    done = gpu.main(["--small"])
    *lines, last = capfd.readouterr().out.splitlines()
    kinds = [line.split()[0] for line in lines]
    assert done == 0 and set(kinds) == {"PASS", "SKIP"} and kinds.count("PASS") >= 8
    found = json.loads(last)
    assert [one["result"] for one in found["checks"]] == kinds and found["torch"] == torch.__version__


def test_a_check_that_fails_is_a_line_with_its_reason_and_the_others_go_on(monkeypatch, capfd):
    def broken(bench: gpu.Bench) -> gpu.Lines:
        yield "first", True, "1"
        raise ValueError("no such thing")

    def after(bench: gpu.Bench) -> gpu.Lines:
        yield "second", False, "2"

    monkeypatch.setattr(gpu, "CHECKS", (broken, after))
    assert gpu.main(["--small"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[:3] == ["PASS first 1", "FAIL first ValueError: no such thing", "FAIL second 2"]
