"""Statements about training: equal seeds give equal bits, strategies meet the same batches, nonsense
stops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Runs, adopt, world
from geoclip.model.location_encoder import LocationEncoder

from lib.evaluate import evaluation
from lib.method import model, negatives
from lib.method.errors import BundleError
from lib.method.model import GeoCLIP
from lib.method.negatives import REGISTRY, Pairs, Reweighting, Strategy
from lib.runs import Run, cache, ranks
from lib.settings import SettingsError
from lib.train import checkpoints, curve, training
from lib.train.training import TrainingData, train

pytestmark = pytest.mark.usefixtures("narrow")
SHORT = ("training.epochs=1", "training.batch_size=24")
STEPS = 4


def trained(run: Run, name: str | Strategy = "infonce", seed: int = 0) -> tuple[GeoCLIP, pd.DataFrame]:
    strategy = negatives.get(name) if isinstance(name, str) else name
    return train(run, TrainingData.read(run, with_curve=True), strategy, seed)


def made(capsys: pytest.CaptureFixture) -> list[str]:
    """Trainings that were made since this was asked last."""
    lines = [words for line in capsys.readouterr().out.splitlines() if (words := line.split())]
    return [words[1] for words in lines if words[0] == "made" and words[1].startswith("training-")]


def same(a: GeoCLIP, b: GeoCLIP) -> bool:
    both = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in both)


class Watch:
    """A strategy that notes what it is shown, and does what another one does."""

    def __init__(self, name: str = "infonce") -> None:
        self.seen: list[Pairs] = []
        known = negatives.get(name)
        self.strategy = Strategy(name, "watches", self, True, known.parameters)

    def __call__(self, candidates: Pairs) -> Reweighting:
        self.seen.append(candidates)
        return negatives.get(self.strategy.name).reweight(candidates)


class TestSeeds:
    @pytest.mark.parametrize("queue", [0, 24])
    def test_strategies_with_the_same_seed_meet_the_same_batches(self, make_run: Runs, queue: int) -> None:
        run = make_run(*SHORT, f"training.queue_size={queue}")
        one, two = Watch("infonce"), Watch("hard_only")
        for watch in (one, two):
            trained(run, watch.strategy)
        assert len(one.seen) == len(two.seen) == STEPS
        # the same weights, batch and noise to begin with
        assert torch.equal(one.seen[0].logits, two.seen[0].logits)
        for first, second in zip(one.seen, two.seen, strict=True):
            assert torch.equal(first.place_deg, second.place_deg)
            assert torch.equal(first.unit, second.unit)

    @pytest.mark.parametrize("name", ["residual", "semivariogram"])
    def test_weights_of_one_train_exactly_as_infonce(self, make_run: Runs, name: str) -> None:
        run = make_run(*SHORT, "training.alpha=0", "training.beta=0")
        assert same(trained(run, name)[0], trained(run)[0])

    def test_validation_moves_nothing(self, make_run: Runs) -> None:
        often, seldom = (
            make_run(*SHORT, "training.epochs=2", f"training.validate_every={every}") for every in (1, 2)
        )
        assert same(trained(often)[0], trained(seldom)[0])


class TestBatches:
    def test_an_epoch_shows_each_training_photo_once_and_no_other(self, make_run: Runs) -> None:
        run, watch = make_run(*SHORT, "training.epochs=2"), Watch()
        trained(run, watch.strategy)
        manifest = world()[0]
        train_places = manifest[manifest["split"] == "train"][["latitude", "longitude"]].to_numpy(np.float32)
        orders = []
        for epoch in range(2):
            seen = watch.seen[epoch * STEPS : (epoch + 1) * STEPS]
            shown = np.concatenate([one.place_deg[: len(one.logits)].numpy() for one in seen])
            assert sorted(map(tuple, shown)) == sorted(map(tuple, train_places))
            orders.append(shown)
        assert not np.array_equal(*orders)

    def test_strategies_see_unit_centred_features_and_true_places(self, make_run: Runs) -> None:
        run, watch = make_run(*SHORT, "backbone.centred=true", "training.batch_noise_m=50000"), Watch()
        trained(run, watch.strategy)
        manifest, features = world()
        places = manifest[["latitude", "longitude"]].to_numpy(np.float32)
        mean = features[(manifest["split"] == "train").to_numpy()].mean(0)
        seen = watch.seen[0]
        places_seen, count = seen.place_deg.numpy(), len(seen.logits)
        for place, unit in zip(places_seen[:count], seen.unit[:count].numpy(), strict=True):
            row = int(np.flatnonzero((places == place).all(1))[0])
            centred = features[row] - mean
            assert np.allclose(unit, centred / np.linalg.norm(centred), atol=1e-5)


class TestQueue:
    def test_it_starts_empty_and_holds_the_latest_batches_places_and_features(self, make_run: Runs) -> None:
        watch = Watch("semivariogram")
        trained(make_run(*SHORT, "training.queue_size=30"), watch.strategy)
        assert [tuple(one.logits.shape) for one in watch.seen] == [(24, 24), (24, 48), (24, 54), (24, 54)]
        for one in watch.seen:
            assert len(one.place_deg) == len(one.unit) == one.logits.shape[1]
            assert torch.equal(one.place_deg[:24], one.place_deg[: len(one.logits)])
        shown = torch.cat([one.place_deg[: len(one.logits)] for one in watch.seen])
        looks = torch.cat([one.unit[: len(one.logits)] for one in watch.seen])
        for step in (1, 2, 3):
            before = slice(max(0, 24 * step - 30), 24 * step)
            assert torch.equal(watch.seen[step].place_deg[24:], shown[before])
            assert torch.equal(watch.seen[step].unit[24:], looks[before])

    def test_a_photo_that_is_still_queued_is_no_negative_of_itself(self, make_run: Runs) -> None:
        watch = Watch("infonce")
        _, history = trained(make_run(*SHORT, "training.epochs=2", "training.queue_size=96"), watch.strategy)
        met = [torch.isinf(one.logits).sum().item() for one in watch.seen]
        assert met[:4] == [0, 0, 0, 0] and sum(met[4:]) > 0
        for one in watch.seen:
            hidden = torch.isinf(one.logits)
            same = (one.place_deg[: len(one.logits)][:, None] == one.place_deg[None]).all(-1)
            same[:, : len(same)] = False
            assert torch.equal(hidden, same)
        assert np.isfinite(history["loss"]).all()


class TestStrategies:
    @pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"infonce"}))
    def test_each_learns_something_else_than_infonce_and_says_what_it_did(
        self, make_run: Runs, name: str
    ) -> None:
        run = make_run("training.epochs=1", "training.batch_size=96")
        geoclip, history = trained(run, name)
        assert not same(geoclip, trained(run)[0])
        quantiles = history.filter(like="log_weight_q").iloc[-1]
        if name in {"soft_targets", "distance_soft"}:  # these weigh no negative
            assert len(quantiles) == 0
            return
        assert len(quantiles) == len(training.WEIGHT_QUANTILES)
        assert quantiles.is_monotonic_increasing
        assert history["emphasized"].iloc[-1] + history["damped"].iloc[-1] > 0.0


class TestOptions:
    @pytest.mark.parametrize(
        "option",
        ["photos=60", "range_km=300", "temperature=0.02", "frequencies=curve", "frequencies=places",
         "frequencies=1,4,16", "batch_noise_m=50000"],
    )  # fmt: skip
    def test_each_changes_what_is_learned(self, make_run: Runs, option: str) -> None:
        runs = [make_run(*SHORT, "training.epochs=2", *more) for more in ([], [f"training.{option}"])]
        assert not same(*(trained(run, "semivariogram")[0] for run in runs))

    def test_a_strategy_that_does_not_read_a_setting_keeps_its_training(
        self, make_run: Runs, capsys: pytest.CaptureFixture
    ) -> None:
        run, unread = make_run(*SHORT), {"alpha": 9.0, "range_km": 5.0, "sharpness": 0.3}
        for changes, count in (({}, 1), (unread, 0), ({"beta": 9.0}, 1)):
            training.train_job(training.Job.of(run, "decayed", 0, changes))
            assert len(made(capsys)) == count

    def test_a_batch_larger_than_the_data_set_is_told(
        self, make_run: Runs, capsys: pytest.CaptureFixture
    ) -> None:
        trained(make_run("training.epochs=1", "training.batch_size=512"))
        said = "training.batch_size=512: there are 96 training photos, and a batch is all of them"
        assert said in capsys.readouterr().out

    def test_a_fixed_temperature_stays(self, make_run: Runs) -> None:
        geoclip, history = trained(make_run(*SHORT, "training.temperature=0.05"))
        assert geoclip.logit_scale.exp().item() == pytest.approx(20.0)
        assert history["temperature"].tolist() == pytest.approx([0.05] * len(history))

    @pytest.mark.parametrize(
        ("name", "which", "reads"),
        [("infonce", "places", False), ("infonce", "curve", True), ("residual", "geoclip", True)],
    )
    def test_only_weights_and_frequencies_that_come_from_the_curve_depend_on_it(
        self, make_run: Runs, name: str, which: str, reads: bool
    ) -> None:
        run = make_run(*SHORT, f"training.frequencies={which}")
        training.train_all(run, [name])
        known = cache.read_receipt(run, f"training-{name}_seed0")
        assert ("semivariogram.json" in known["needs"]["inputs"]) == reads

    @pytest.mark.parametrize("wrong", ["1,2", "0,1,2", "sigma", "curve"])
    def test_impossible_frequencies_and_others_than_the_pretrained_are_a_sentence(
        self, make_run: Runs, wrong: str
    ) -> None:
        said = "must be geoclip where location_encoder is geoclip" if wrong == "curve" else "frequencies"
        encoder = "geoclip" if wrong == "curve" else "scratch"
        with pytest.raises(SettingsError, match=said):
            make_run(f"training.location_encoder={encoder}", f"training.frequencies={wrong}")

    def test_shuffled_puts_one_photo_in_the_stead_of_each(self, make_run: Runs) -> None:
        data = training.TrainingData.read(make_run(), True)
        first, again, other = (data.shuffled(seed, torch.device("cpu")).partner_deg for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)
        rows, places = data.train_rows, data.coordinates_deg.float()
        assert torch.equal(first[rows].sort(0).values, places[rows].sort(0).values)
        assert not torch.equal(first[rows], places[rows])
        assert torch.equal(first[data.validation_rows], places[data.validation_rows])

    def test_fewer_photos_are_some_of_the_more_and_every_seed_has_the_same(self, make_run: Runs) -> None:
        rows = {
            count: TrainingData.read(make_run(f"training.photos={count}"), False).train_rows
            for count in (20, 40, 96)
        }
        assert set(rows[20]) < set(rows[40]) < set(rows[96])
        assert [len(one) for one in rows.values()] == [20, 40, 96]


class TestHistory:
    def test_one_row_an_epoch_and_a_falling_loss(self, make_run: Runs) -> None:
        more = ("training.validate_every=3", "training.learning_rate=1e-3")
        history = trained(make_run(*SHORT, "training.epochs=4", *more))[1]
        assert history["epoch"].tolist() == [1, 2, 3, 4]
        assert history["steps"].tolist() == [4, 8, 12, 16]
        assert history["loss"].iloc[-1] < history["loss"].iloc[0] - 0.2
        assert history["validation_acc_2500km"].notna().tolist() == [False, False, True, True]
        radii = history.filter(like="validation_acc").iloc[-1]
        assert radii.is_monotonic_increasing
        assert radii.between(0.0, 1.0).all()

    def test_the_rate_falls_by_the_decay_after_every_epoch(
        self, make_run: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rates, step = [], torch.optim.Adam.step

        def watched(self: torch.optim.Adam, *arguments: object) -> None:
            rates.append(self.param_groups[0]["lr"])
            step(self, *arguments)

        monkeypatch.setattr(torch.optim.Adam, "step", watched)
        more = ("schedule=exponential", "optimizer=adam", "learning_rate=3e-5", "learning_rate_decay=0.87")
        trained(make_run("training.epochs=3", "training.batch_size=48", *(f"training.{one}" for one in more)))
        assert rates == pytest.approx([3e-5, 3e-5, 3e-5 * 0.87, 3e-5 * 0.87, 3e-5 * 0.87**2, 3e-5 * 0.87**2])


class TestErrors:
    @pytest.mark.parametrize(
        ("size", "said"),
        [(24, r"epoch 1, step 1: .*lower training\.learning_rate"), (96, "after the last step")],
    )
    def test_an_infinite_rate_stops_at_the_second_step_or_after_the_last(
        self, make_run: Runs, monkeypatch: pytest.MonkeyPatch, size: int, said: str
    ) -> None:
        monkeypatch.setattr(training, "LOOK_EVERY", 1)
        more = (f"training.batch_size={size}", "training.learning_rate=1e300", "training.schedule=constant")
        with pytest.raises(BundleError, match=said):
            trained(make_run("training.epochs=1", *more))

    def test_a_loss_that_is_not_finite_names_the_photo_that_spoils_it(self, make_run: Runs) -> None:
        run = make_run(*SHORT, "training.epochs=2", "backbone.centred=false")
        stored = np.load(run.features)
        stored[7] = np.nan
        np.save(run.features, stored)
        adopt(run)
        said = r"infonce, seed 0: epoch 1, step \d: the loss is nan; .* not finite: p0007 \(1 photos\)"
        with pytest.raises(BundleError, match=said):
            training.train_all(run, ["infonce"])
        assert not run.checkpoint("infonce", 0).exists() and not list(run.folder.glob("receipts/training*"))

    def test_each_look_takes_the_new_losses_alone(
        self, make_run: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stack, lengths = torch.stack, []

        def watched(given: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
            lengths.extend([len(given)] if given[0].ndim == 0 else [])
            return stack(given, dim)

        monkeypatch.setattr(torch, "stack", watched)
        monkeypatch.setattr(training, "LOOK_EVERY", 3)
        trained(make_run(*SHORT))
        assert lengths == [3, 1, STEPS]  # the last for the mean


def die(monkeypatch: pytest.MonkeyPatch, run: Run, epoch: int) -> None:
    """Let a training of ``run`` end in the midst of ``epoch``, as if it were killed."""
    real, met = TrainingData.batch, []

    def batch(self: TrainingData, of: int, *given: object) -> object:
        met.extend([of] if of == epoch else [])
        if len(met) == 3:
            raise KeyboardInterrupt
        return real(self, of, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingData, "batch", batch)
        training.train_all(run, ["semivariogram"])


def results(run: Run) -> list[bytes]:
    training.train_all(run, ["semivariogram"])
    assert not list(run.folder.rglob("*unfinished*"))
    return [path("semivariogram", 0).read_bytes() for path in (run.checkpoint, run.history)]


class TestKilled:
    LONG = ("training.epochs=6", "training.batch_size=24", "training.validate_every=2")
    STATE = "checkpoints/semivariogram_seed0.unfinished/state.safetensors"

    @pytest.mark.parametrize(
        ("epochs", "more"),
        [
            ([2], ["queue_size=30"]),
            ([4], ["queue_size=60", "schedule=exponential"]),
            ([6], ["queue_size=0", "temperature=0.05", "optimizer=adam"]),
            ([2, 4, 6], ["queue_size=30", "frequencies=curve"]),
        ],
        ids=str,
    )
    def test_it_goes_on_after_its_last_epoch_and_ends_with_the_same_bits(
        self,
        make_run: Runs,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
        epochs: list,
        more: list,
    ) -> None:
        monkeypatch.setattr(checkpoints, "SAVE_EVERY_S", 0.0)
        whole, run = (make_run(*self.LONG, *(f"training.{one}" for one in more)) for _ in range(2))
        for epoch in epochs:
            die(monkeypatch, run, epoch)
        assert results(run) == results(whole)
        said = capsys.readouterr().out
        for epoch in epochs:
            assert f"note    semivariogram, seed 0: goes on after epoch {epoch - 1} of 6\n" in said

    @pytest.mark.parametrize("what", ["torn", "other settings"])
    def test_a_state_that_is_damaged_or_of_other_settings_is_not_used(
        self, make_run: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, what: str
    ) -> None:
        monkeypatch.setattr(checkpoints, "SAVE_EVERY_S", 0.0)
        rate = "training.learning_rate=0.002" if what == "other settings" else "training.learning_rate=0.001"
        run, whole = make_run(*self.LONG, "training.learning_rate=0.001"), make_run(*self.LONG, rate)
        die(monkeypatch, run, 4)
        content = (run.folder / self.STATE).read_bytes()
        (run.folder / self.STATE).write_bytes(content[: 999 if what == "torn" else None])
        assert results(Run(whole.settings, run.folder)) == results(whole)
        said = capsys.readouterr().out
        assert "goes on" not in said
        assert said.count(f"{run.folder / self.STATE}: damaged (") == (what != "other settings")

    def test_a_training_of_seconds_saves_no_state(
        self, make_run: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = make_run(*self.LONG)
        die(monkeypatch, run, 4)
        assert not (run.folder / self.STATE).exists()

    def test_processes_that_find_other_states_stop(
        self, make_run: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training, "_is_shared", lambda run: True)
        monkeypatch.setattr(ranks, "from_first", lambda epochs: epochs + 1)
        with pytest.raises(BundleError, match="another state of infonce, seed 0.*delete this file"):
            trained(make_run(*SHORT))


class TestWhereLooksDoNotDependOnThePlace:
    def test_the_run_goes_on_without_the_strategies_that_need_the_curve(self, make_run: Runs) -> None:
        run = make_run("training.strategies=infonce,semivariogram,similarity,decayed", *SHORT)
        shape = np.load(run.features).shape
        np.save(run.features, np.random.default_rng(0).normal(size=shape).astype(np.float32))
        adopt(run)
        run.semivariogram.unlink()  # so that it is made
        _, fitted = curve.fit_run(run)
        assert not fitted.rises
        left = training.strategies_of(run)
        assert left == ["infonce", "similarity"]
        training.train_all(run, left)
        assert training.best_strategy(run)[0] in left
        with pytest.raises(BundleError, match="beats a constant.*training.strategies"):
            training.train_all(run, ["decayed"])
        told = evaluation.evaluate(run)["accuracy"]["strategy"]
        assert set(left) <= set(told) and "semivariogram" not in set(told)


class TestReuse:
    def test_only_what_is_new_is_trained(self, make_run: Runs, capsys: pytest.CaptureFixture) -> None:
        run = make_run(*SHORT)
        training.train_all(run, ["infonce"])
        assert made(capsys) == ["training-infonce_seed0"]
        training.train_all(run, ["infonce", "similarity"])
        assert made(capsys) == ["training-similarity_seed0"]
        histories = training.histories(run, ["infonce", "similarity"])[["strategy", "seed", "epoch"]]
        assert histories.values.tolist() == [["infonce", 0, 1], ["similarity", 0, 1]]


class TestPretrained:
    def test_a_training_can_start_from_geoclips_own_location_encoder(
        self, make_run: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model.geoclip_locations(), "LocationEncoder", LocationEncoder)  # the whole one
        more = ("training.location_encoder=geoclip", "training.learning_rate=1e-9")
        found = trained(make_run("training.epochs=1", "training.batch_size=96", *more))[0]
        expected = LocationEncoder().state_dict()
        for name, value in found.location_encoder.state_dict().items():
            assert torch.allclose(value, expected[name], atol=1e-6)
