"""Proof on one GPU: ``python -m benchmarks.gpu``; with ``--small`` on the processor, in two minutes.

Prints a line a check, ``PASS name figure``, ``FAIL name why`` or ``SKIP name why``, and at last one JSON
document of all that. A check that needs a GPU is skipped where there is none. Exit status 1 where one fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks.reweighting import CURVE
from benchmarks.semivariogram import world
from lib import settings
from lib.data import backbones, features
from lib.data.draws import generator
from lib.evaluate import evaluation
from lib.method import empirical, negatives
from lib.method.loss import SemivariogramLoss
from lib.runs import Run
from lib.runs.machine import check_gpu, deterministic, find_device, machine, one_ahead
from lib.settings import PROJECT
from lib.train import checkpoints, gallery, training
from lib.train.metrics import COLUMNS

TIMED = ("infonce", "semivariogram", "semivariance_margin")


class Skipped(Exception):
    """A check needs what is not there."""


def photos_of(count: int, device: torch.device) -> training.TrainingData:
    """``count`` photos with features of 768 dimensions, half precision, the last 256 for validation."""
    unit, places = world(count)
    frozen = features.Features(unit.half().numpy(), torch.zeros(unit.shape[1]))
    rows = np.arange(count)
    data = training.TrainingData(
        frozen, rows[:-256], rows[-256:], torch.from_numpy(places), places, CURVE, 1.0
    )
    return replace(data, frozen=frozen.near(device))


@dataclass
class Bench:
    """The checks' sizes and what they have found."""

    device: torch.device
    small: bool
    folder: Path
    found: list[dict[str, str]] = field(default_factory=list)

    def size(self, small: int, large: int) -> int:
        """``small`` with --small, else ``large``."""
        return small if self.small else large

    def run(self, *overrides: str, device: str = "") -> Run:
        """A run of the profile smoke, whose files lie in the temporary folder."""
        given = (f"device={device or self.device.type}", *overrides)
        return Run(settings.load("smoke", given), self.folder / "run")

    def needs_card(self) -> None:
        """End the check where there is no GPU."""
        if self.device.type != "cuda":
            raise Skipped("needs a GPU")

    def wait(self) -> None:
        """Until the GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds that ``call`` takes, the GPU's work included."""
        self.wait()
        started = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - started

    def say(self, kind: str, name: str, figure: str) -> None:
        """A line, kept."""
        self.found.append({"result": kind, "name": name, "figure": figure})
        print(kind, name, figure, flush=True)

    def check(self, of: Callable[[Bench], Iterator[tuple[str, bool | None, str]]]) -> None:
        """The lines of one check: name, whether it holds (None: it cannot be told here), figure."""
        name = of.__name__
        try:
            with contextlib.redirect_stdout(sys.stderr):
                for name, holds, figure in of(self):
                    with contextlib.redirect_stdout(sys.__stdout__):
                        self.say({True: "PASS", False: "FAIL", None: "SKIP"}[holds], name, figure)
        except Skipped as why:
            self.say("SKIP", name, str(why))
        except Exception as error:
            self.say("FAIL", name, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


Lines = Iterator[tuple[str, bool | None, str]]


def one_step(
    bench: Bench, name: str, device: str, precision: str, strict: bool = False
) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one step of strategy ``name`` against a queue, from the same start everywhere."""
    run = bench.run(
        "training.batch_size=64", f"training.precision={precision}", f"deterministic={strict}", device=device
    )
    data, strategy = photos_of(1_024, run.device).shuffled(0, run.device), negatives.get(name)
    model = checkpoints.initialise(0, data.frozen.mean.cpu(), 1.0, run.settings.training).to(run.device)
    queue = training.Queue.empty(256, 768, run.device)
    rows = np.arange(64, 320)
    queued = data.batch(1, rows, slice(0, 256), run.device)
    queue.push(queued.numbers, queued.places_deg, queued.features)
    parameters = {one: getattr(run.settings.training, one) for one in strategy.parameters}
    loss_of = SemivariogramLoss(CURVE, strategy, **parameters).to(run.device)
    noise = generator(0, "noise")
    batch = data.batch(1, np.arange(64), slice(0, 64), run.device)
    with deterministic(run.settings.deterministic):
        loss, _ = training.loss_of_batch(model, queue, data, batch, loss_of, run, noise)
        loss.backward()
    gradient = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
    return loss.item(), gradient.double().cpu()


def strategies(bench: Bench) -> Lines:
    """Every strategy's loss and gradient against the processor's in float32."""
    names = sorted(negatives.REGISTRY)[:: bench.size(5, 1)]  # without bfloat16 each takes seconds
    expected = {name: one_step(bench, name, "cpu", "float32") for name in names}
    for precision, bound in (("float32", 0.01), ("bfloat16", 0.2)):
        if bench.small and precision == "float32":
            yield "strategies-float32", None, "needs a GPU"
            continue
        off = {}
        for name in names:
            loss, gradient = one_step(bench, name, bench.device.type, precision)
            wanted, reference = expected[name]
            of_loss = abs(loss - wanted) / abs(wanted)
            off[name] = max(float((gradient - reference).norm() / reference.norm()), of_loss)
        worst = max(off, key=off.get)
        yield (
            f"strategies-{precision}",
            off[worst] < bound,
            f"{len(off)} strategies, loss and gradient off by {off[worst]:.1e} at most ({worst})",
        )
    differing = []
    for name in names:
        first, second = (one_step(bench, name, bench.device.type, "auto", strict=True) for _ in range(2))
        if first[0] != second[0] or not torch.equal(first[1], second[1]):
            differing.append(name)
    said = f"{len(names) - len(differing)} of {len(names)} give the same bits twice"
    yield (
        "strategies-deterministic",
        not differing,
        said + (f"; not {', '.join(differing)}" if differing else ""),
    )


def trainings(bench: Bench) -> Lines:
    """The same trainings in both orders: hashes of their weights."""
    for strict in (True, False):
        changes = ("training.batch_size=256", "training.queue_size=512", f"deterministic={strict}")
        run = bench.run(*changes, "training.epochs=2")
        data, hashes = photos_of(bench.size(512, 8_448), torch.device("cpu")), []
        for order in (TIMED[:2], TIMED[1::-1]):
            made = {}
            for name in order:
                with deterministic(run.settings.deterministic):
                    model, _ = training.train(run, data, negatives.get(name), 0)
                weights = [one.detach().cpu().numpy().tobytes() for one in model.state_dict().values()]
                made[name] = hashlib.sha256(b"".join(weights)).hexdigest()[:12]
            hashes.append(made)
        same = hashes[0] == hashes[1]
        what = "the same bits" if same else "other bits"
        name = "trainings-deterministic" if strict else "trainings"
        yield name, same or not strict, f"twice, in both orders: {what} ({hashes[0][TIMED[0]]})"


def curves(bench: Bench) -> Lines:
    """The exact curve against the processor's compiled one, and their bytes over three runs."""
    unit, places = world(bench.size(2_000, 20_000))
    wanted = empirical.exact(unit.__getitem__, places)
    found = [empirical.exact(unit.__getitem__, places, device=bench.device) for _ in range(3)]
    seconds = bench.seconds(lambda: empirical.exact(unit.__getitem__, places, device=bench.device))
    there = (wanted.pairs > 100) & (found[0].pairs > 100)
    off = float(np.abs(wanted.gamma - found[0].gamma)[there].max())
    moved = int(np.abs(wanted.pairs - found[0].pairs).sum())
    said = f"{len(unit):,} photos in {seconds:.2f} s, off by {off:.1e}, {moved} pairs in another lag"
    yield "curve-exact", off < 1e-4, said
    sums = {one.gamma_sum.tobytes() + one.distance_sum_rad.tobytes() for one in found}
    yield "curve-bytes", None if bench.small else len(sums) == 1, f"{len(sums)} outcome of 3 runs"


def clip_folder(bench: Bench) -> Path:
    """A checkpoint folder of CLIP ViT-L/14's shape (--small: a tiny one) with random weights."""
    import transformers

    shape = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    if bench.small:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPVisionConfig(**shape, image_size=224, patch_size=14, projection_dim=768)
    torch.manual_seed(0)
    folder = bench.folder / "clip"
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


def write_photos(folder: Path, count: int = 64) -> tuple[list[str], float]:
    """Names of JPEG files of 910 x 512 px, about as large as OSV5M's; their mean size in kB."""
    noise, names = np.random.default_rng(0), []
    for number in range(count):
        coarse = Image.fromarray(noise.integers(0, 255, (32, 57, 3), dtype=np.uint8))
        image = np.asarray(coarse.resize((910, 512), Image.Resampling.BICUBIC), dtype=np.float32)
        image = (image + noise.normal(0.0, 6.0, image.shape)).clip(0, 255).astype(np.uint8)
        names.append(f"{number}.jpg")
        Image.fromarray(image).save(folder / names[-1], quality=60)
    return names, float(np.mean([(folder / name).stat().st_size for name in names])) / 1e3


def photos(bench: Bench) -> Lines:
    """Photos a second: CLIP ViT-L/14 with random weights, from bytes and from JPEG files."""
    run = bench.run(
        f"backbone.name={clip_folder(bench)}", "backbone.image_px=null", "backbone.batch_size=512"
    )
    backbone, batch = backbones.build(run.settings.backbone, bench.device), bench.size(16, 512)
    pixels = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8).to(bench.device)
    repeats = bench.size(1, 12)

    def encode() -> None:
        with torch.inference_mode(), run.autocast("auto"):
            for _ in range(repeats):
                backbone.encode(pixels)

    encode()
    seconds = bench.seconds(encode)
    yield "photos-from-bytes", True, f"{repeats * batch / seconds:,.0f} photos a second"
    folder = bench.folder / "photos"
    folder.mkdir()
    names, kilobytes = write_photos(folder)
    first = backbone.preprocess(Image.open(folder / names[0]))
    one_core = (
        bench.seconds(lambda: [backbone.preprocess(Image.open(folder / one)) for one in names[:32]]) / 32
    )
    yield (
        "photos-decoding",
        first.dtype == torch.uint8,
        f"{1e3 * one_core:.1f} ms a photo of {kilobytes:.0f} kB on one core",
    )
    for workers in (2,) if bench.small else (8, 12, 16):
        own = run.settings.backbone.model_copy(update={"workers": workers})
        count = bench.size(64, 1_024 * workers)
        listed = features.Photos(folder, [names[number % len(names)] for number in range(count)], backbone)

        def read(listed: features.Photos = listed, own: settings.Backbone = own, count: int = count) -> None:
            for plain, _, unreadable in features.encode(listed, backbone, own, bench.device, [range(count)]):
                if unreadable or not np.isfinite(plain).all():
                    raise ValueError("a photo was not read")

        seconds = bench.seconds(read)
        yield f"photos-{workers}-workers", True, f"{count / seconds:,.0f} photos a second from JPEG files"


def steps(bench: Bench) -> Lines:
    """Milliseconds and waits a step: batch 512, full queue of 4,096, features on the card or on the host."""
    data = photos_of(bench.size(512, 51_456), bench.device)
    on_host = replace(data, frozen=replace(data.frozen, on_card=None))
    places = {"card": data, "host": on_host} if bench.device.type == "cuda" else {"host": on_host}
    for name in TIMED:
        for where, of in places.items():
            some = stepper(bench, of, name)
            some(bench.size(3, 20))
            count = bench.size(3, 60)
            milliseconds = 1e3 * bench.seconds(partial(some, count)) / count
            waits = waits_of(bench, partial(some, 4)) / 4
            said = f"{milliseconds:.2f} ms a step, {bench.run().arithmetic('auto')}"
            yield f"step-{name}-{where}", True, said
            yield f"waits-{name}-{where}", None if bench.small else waits == 0, f"{waits:g} a step"


def graph(bench: Bench) -> Lines:
    """200 steps with the encoders as a CUDA graph against two plain trainings; then the time of a step."""
    bench.needs_card()
    data, strategy = photos_of(5_376, bench.device), negatives.get("semivariance_margin")
    for precision in ("float32", "auto"):
        made = []
        for is_graph in (False, True, False):
            changes = [
                f"precision={precision}",
                f"cuda_graph={is_graph}",
                "batch_size=512",
                "queue_size=4096",
            ]
            run = bench.run(*(f"training.{one}" for one in [*changes, "epochs=20", "validate_every=20"]))
            made.append(training.train(run, data, strategy, 0))
        plain, replayed, again = ([*one.parameters(), torch.tensor(told["loss"])] for one, told in made)
        apart, by_itself = (
            max((a - b).abs().max().item() for a, b in zip(plain, other, strict=True))
            for other in (replayed, again)
        )
        yield f"graph-{precision}", apart <= 1e-5, f"apart by {apart:.1e}, two plain ones by {by_itself:.1e}"
    seconds = []
    for is_graph in (False, True, False):
        some = stepper(bench, data, "semivariance_margin", is_graph)
        some(20)
        seconds.append(bench.seconds(partial(some, 60)))
    before, with_graph, after = (1e3 * one / 60 for one in seconds)
    yield "graph-step", with_graph <= 3.0, f"{with_graph:.2f} ms a step; plain {before:.2f}, {after:.2f}"


def stepper(
    bench: Bench, of: training.TrainingData, name: str, is_graph: bool = False
) -> Callable[[int], None]:
    """A call that trains for so many steps, in the precision of the profiles for GPUs."""
    batch, queue_size = (64, 128) if bench.small else (512, 4_096)
    changes = (f"training.batch_size={batch}", f"training.queue_size={queue_size}")
    run = bench.run(*changes, "training.precision=auto")
    strategy = negatives.get(name)
    model = checkpoints.initialise(0, of.frozen.mean.cpu(), 1.0, run.settings.training).to(bench.device)
    if is_graph:
        training.capture(model, run, batch, batch + queue_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    queue = training.Queue.empty(queue_size, 768, bench.device)
    parameters = {one: getattr(run.settings.training, one) for one in strategy.parameters}
    loss_of = SemivariogramLoss(CURVE, strategy, **parameters).to(bench.device)
    noise = generator(0, "noise")
    order = endless(of.train_rows, batch)
    made = (of.batch(1, rows, slice(0, batch), bench.device) for rows in order)
    ahead = one_ahead(made) if bench.device.type == "cuda" else made

    def some(count: int) -> None:
        for one in itertools.islice(ahead, count):
            loss, _ = training.loss_of_batch(model, queue, of, one, loss_of, run, noise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return some


def endless(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Batches of ``rows`` in random order, without end."""
    order = generator(0, "batches")
    while True:
        yield from training.batches(rows, size, order)


def waits_of(bench: Bench, call: Callable[[], object]) -> int:
    """How often ``call`` makes the processor wait for the GPU, by torch's own count."""
    if bench.device.type == "cpu":
        return 0
    bench.wait()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    of_torch = [one for one in said if "synchronizing" in str(one.message)]
    for one in of_torch[:4]:
        print("waits at", one.filename, one.lineno, file=sys.stderr)
    return len(of_torch)


def retrieval(bench: Bench) -> Lines:
    """The best place of a gallery for each photo; some of them against the processor."""
    count, among = bench.size(1_000, 200_000), bench.size(2_000, 100_000)
    unit, places = world(bench.size(1_000, 20_000))[0], world(among, 2)[1]
    model = checkpoints.initialise(0, torch.zeros(768), 1.0, bench.run().settings.training).eval()
    some = unit[:200]
    with torch.inference_mode():
        similar = model.embed_photos(some) @ gallery.embed(model, places, torch.device("cpu")).T
    wanted = similar.max(1)
    model = model.to(bench.device)
    many, embedded = (
        unit.repeat(-(-count // len(unit)), 1)[:count],
        gallery.embed(model, places, bench.device),
    )
    seconds = bench.seconds(lambda: gallery.retrieve(model, many, embedded))
    best, rows = gallery.retrieve(model, some, embedded)
    same = float((rows == wanted.indices).float().mean())
    off = float((best - wanted.values).abs().max())
    said = (
        f"{count:,} photos x {among:,} places in {seconds:.2f} s; against the processor {same:.1%} the same"
    )
    yield "retrieval", off < 1e-3 and same > 0.9, f"{said}, cosine off by {off:.1e}"


def tables(bench: Bench) -> Lines:
    """Accuracy and comparison of 210,000 photos, four strategies, three seeds."""
    count, drawn = bench.size(3_000, 210_000), np.random.default_rng(0)
    ids = pd.Series(np.arange(count).astype(str))
    frames = [
        pd.DataFrame(
            {
                "id": ids,
                "split": "test",
                "strategy": name,
                "seed": seed,
                "error_km": drawn.lognormal(6, 2, count),
            }
        )
        for name in ("infonce", "semivariogram", "decayed", "similarity")
        for seed in range(3)
    ]
    predictions, of = pd.concat(frames), bench.run("evaluation.bootstrap=2000").settings.evaluation
    made = []
    seconds = bench.seconds(
        lambda: made.extend((evaluation.accuracy(predictions), evaluation.comparison(predictions, of)))
    )
    enough = len(made[0]) == 12 and set(COLUMNS) <= set(made[0])
    yield "evaluation", enough and seconds < 600, f"tables of {count:,} photos in {seconds:.1f} s"


def there_and_back(bench: Bench) -> Lines:
    """A checkpoint written from the device, read on the processor, and back."""
    model = checkpoints.initialise(0, torch.zeros(768), 1.0, bench.run().settings.training).to(bench.device)
    path, again = bench.folder / "one.safetensors", bench.folder / "two.safetensors"
    checkpoints.save(model, path, strategy="infonce")
    checkpoints.save(checkpoints.load(path, "cpu"), again, strategy="infonce")
    back = checkpoints.load(again, bench.device).state_dict()
    same = all(torch.equal(value, back[name]) for name, value in model.eval().state_dict().items())
    yield (
        "checkpoint",
        same and path.read_bytes() == again.read_bytes(),
        f"{len(back)} tensors, the same bytes",
    )


def whole_run(bench: Bench) -> Lines:
    """The profile smoke, killed during its trainings and started again."""
    bench.needs_card()
    folder = bench.folder / "smoke"
    command = [
        sys.executable,
        "-m",
        "lib.pipeline",
        "--profile",
        "smoke",
        "--device",
        "cuda",
        "--run",
        str(folder),
    ]
    command += ["--only", "01,02,03,04,05,06", "--set", f"dataset.root={bench.folder / 'windows'}"]
    started = time.perf_counter()
    first = subprocess.Popen(command, cwd=PROJECT, start_new_session=True, stdout=subprocess.DEVNULL)  # noqa: S603
    while first.poll() is None and not list(folder.glob("checkpoints/*.safetensors")):
        time.sleep(0.2)
    if first.poll() is not None:
        raise RuntimeError(f"ended before its trainings, exit status {first.returncode}")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    killed = time.perf_counter() - started
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)  # noqa: S603
    print(done.stdout[-3_000:], done.stderr[-3_000:], file=sys.stderr)
    seconds = time.perf_counter() - started
    accuracy = folder / "tables" / "accuracy.csv"
    holds = done.returncode == 0 and accuracy.exists() and (folder / "index.html").exists()
    yield "smoke", holds, f"killed after {killed:.0f} s, resumed and finished after {seconds:.0f} s in all"


CHECKS = (
    strategies, trainings, curves, steps, graph, retrieval, tables, there_and_back, photos, whole_run,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where a check fails."""
    given, names = list(sys.argv[1:] if arguments is None else arguments), [one.__name__ for one in CHECKS]
    small, chosen = "--small" in given, [one for one in given if one != "--small"]
    if unknown := [one for one in chosen if one not in names]:
        print(f"gpu: there is no check {unknown[0]}; there are --small, {', '.join(names)}", file=sys.stderr)
        return 1
    device = torch.device("cpu") if small else find_device("cuda")
    check_gpu(device)
    started, folder = time.perf_counter(), Path(tempfile.mkdtemp(prefix="gpu-"))
    bench = Bench(device, small, folder)
    try:
        for of in (one for one in CHECKS if not chosen or one.__name__ in chosen):
            bench.check(of)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    about = {"torch": torch.__version__, "cuda": torch.version.cuda, "small": small}
    about |= {"seconds": round(time.perf_counter() - started), **machine()}
    print(json.dumps(about | {"checks": bench.found}), flush=True)
    return int(any(one["result"] == "FAIL" for one in bench.found))


if __name__ == "__main__":
    sys.exit(main())
