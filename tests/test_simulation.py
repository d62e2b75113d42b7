"""Statements about the simulated world: its semivariogram is the known one, its negatives are what they are
called, the oracle knows."""

from __future__ import annotations

import gstools
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Runs

from lib.data import manifest as manifests
from lib.method.empirical import exact
from lib.method.geodesy import distance_km
from lib.method.negatives import Pairs
from lib.method.semivariogram import fit
from lib.settings import Simulation
from study import figures as study_figures
from study import simulation
from study.simulation import FALSE, HARD

SMALL = Simulation(
    train=600,
    validation=40,
    test=60,
    epochs=1,
    seeds=[0],
    strategies=["infonce", "false_only"],
    twins=0.2,
    doubles=0.1,
)


def unit(features: np.ndarray):
    normal = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    return lambda rows: normal[torch.from_numpy(np.asarray(rows))]


class TestWorld:
    @pytest.mark.parametrize("nugget", [0.2, 0.5])
    def test_its_semivariogram_is_the_known_one(self, nugget: float) -> None:
        settings = Simulation(
            train=1_200,
            validation=10,
            test=10,
            twins=0.0,
            doubles=0.0,
            nugget=nugget,
            dimensions=200,
            length_scale_km=1_000,
        )
        world = simulation.make(settings)
        places = manifests.coordinates(world.manifest)
        empirical = exact(unit(world.features), places, 0.02)
        used = empirical.pairs > 2_000
        assert np.abs(empirical.gamma[used] - world.gamma(empirical.lag_rad[used])).max() < 0.06
        fitted = fit(empirical, family="Exponential", metric="sphere", weights="pairs")
        assert fitted.nugget == pytest.approx(nugget, abs=0.06)
        assert fitted.sill == pytest.approx(1.0, abs=0.03)
        assert fitted.length_scale_km == pytest.approx(1_000, rel=0.25)

    def test_the_known_curve_is_gstools_yadrenko_variogram(self) -> None:
        h = np.linspace(0.01, 3.1, 50)
        model = gstools.Exponential(latlon=True, var=0.7, nugget=0.3, len_scale=800.0 / 6371.0088)
        assert np.allclose(simulation.make(SMALL).gamma(h), model.vario_yadrenko(h))

    def test_twins_are_near_doubles_far_and_as_many_as_asked_for(self) -> None:
        world = simulation.make(SMALL)
        scene, places = world.manifest["scene"].to_numpy(), manifests.coordinates(world.manifest)
        first, second = np.triu_indices(len(scene), 1)
        kinds = world.kinds(first, second)
        apart = distance_km(places[first], places[second])
        twins = apart[kinds == FALSE]
        assert len(twins) == 120 and twins.max() < 10.0
        assert apart[kinds == HARD].min() > simulation.DOUBLE_KM - 20.0
        with_both = pd.Series(scene).value_counts().eq(3).sum()
        assert (kinds == HARD).sum() == 60 + with_both
        assert (world.manifest["split"] == "train").sum() == 600 and world.manifest["latitude"].is_unique

    def test_no_two_photos_share_a_place_by_which_the_oracle_knows_them(self) -> None:
        """The pool holds some places twice."""
        world = simulation.make(Simulation(train=3_000, test=2_000, dimensions=4))
        places = manifests.coordinates(world.manifest).astype(np.float32)
        assert len(np.unique(places, axis=0)) == len(places)


class TestOracle:
    def test_it_knows_every_pair_and_touches_no_other(self, make_run: Runs) -> None:
        world = simulation.make(SMALL)
        rows = np.flatnonzero(world.manifest["split"] == "train")
        places = torch.from_numpy(manifests.coordinates(world.manifest)[rows]).float()
        features = unit(world.features)(rows)
        seen = Pairs(torch.zeros(600, 600), features, places)
        first, second = np.indices((600, 600))
        kinds = world.kinds(rows[first.ravel()], rows[second.ravel()]).reshape(600, 600)
        np.fill_diagonal(kinds, "itself")
        for name, false, hard in (
            ("oracle", -30.0, 4.0),
            ("oracle_false", -30.0, 0.0),
            ("oracle_hard", 0.0, 4.0),
        ):
            found = simulation.oracle(world, name, 4.0).reweight(seen).log_weight.numpy()
            assert (found[kinds == FALSE] == false).all() and (found[kinds == HARD] == hard).all()
            assert (found[kinds == "easy negative"] == 0.0).all()


@pytest.mark.usefixtures("narrow")
class TestStudy:
    def run(self, make_run: Runs):
        run = make_run(
            "training.batch_size=64", "training.learning_rate=1e-3", "training.strategies=infonce,decayed"
        )
        world = simulation.make(SMALL)
        return world, simulation.as_run(world, run)

    def test_the_oracle_finds_all_chance_nothing_and_the_curve_something(self, make_run: Runs) -> None:
        world, simulated = self.run(make_run)
        names = [
            "oracle",
            "infonce",
            "decayed",
            "false_only",
            "hard_only",
            "constant_offset",
            "soft_targets",
            "hcl",
        ]
        found, curves = simulation.detection(world, simulated, names, resamples=20)
        table = found.set_index(["strategy", "kind"])["average_precision"]
        assert table["oracle", FALSE] == table["oracle", HARD] == pytest.approx(1.0)
        prevalence = found.set_index(["strategy", "kind"])["prevalence"]
        assert table["constant_offset", HARD] == pytest.approx(prevalence["constant_offset", HARD])
        for missing in (
            ("infonce", FALSE),
            ("hcl", HARD),
            ("decayed", FALSE),
            ("soft_targets", HARD),
            ("hard_only", FALSE),
        ):
            assert np.isnan(table[missing])
        assert table["false_only", FALSE] > 2 * prevalence["false_only", FALSE]
        assert table["decayed", HARD] > 20 * prevalence["decayed", HARD]
        rows = found.dropna(subset=["average_precision"])
        assert (rows["ci_low"] <= rows["average_precision"]).all() and (
            rows["ci_high"] >= rows["average_precision"]
        ).all()
        figure = study_figures.precision_recall(curves, found)
        assert "oracle: 1.000" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]

    def test_strategies_and_oracles_are_trained_on_the_same_batches_and_reused(self, make_run: Runs) -> None:
        world, simulated = self.run(make_run)
        first = simulation.train_all(world, simulated, ["infonce", "oracle"])
        made = len(simulated.reports)
        again = simulation.train_all(world, simulated, ["infonce", "oracle"])
        assert all(report.startswith("reused") for report in simulated.reports[made:])
        pd.testing.assert_frame_equal(first, again)
        assert set(first["strategy"]) == {"infonce", "oracle"} and set(first["split"]) == {"test"}
        errors = first.pivot(index="id", columns="strategy", values="error_km")
        assert not np.allclose(errors["infonce"], errors["oracle"])


def test_ranks_deal_its_trainings_out_whole_even_where_others_share_out_each_batch(make_run: Runs) -> None:
    """Else one rank would gather with another's batch of another strategy."""
    simulated = simulation.as_run(
        simulation.make(SMALL), make_run("training.parallel=batches", "training.epochs=1")
    )
    assert simulated.settings.training.parallel == "trainings"
