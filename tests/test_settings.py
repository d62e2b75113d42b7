"""Statements about settings: what is not one is an error that says what would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.data.blue_marble import draw_places
from lib.runs import Run
from lib.settings import OSV5M, PROFILES, BlueMarble, SettingsError, load, profiles


@pytest.mark.parametrize("profile", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_every_profile_of_the_project_loads_under_its_own_name(profile: str) -> None:
    assert profile in profiles()
    assert load(profile).profile == profile


def test_the_papers_profile_is_the_published_protocol() -> None:
    settings, training = load("osv5m"), load("osv5m").training
    assert isinstance(settings.dataset, OSV5M)
    assert settings.backbone.name == "openai/clip-vit-large-patch14"
    assert (training.queue_size, training.batch_size, training.epochs) == (4_096, 512, 20)
    assert (training.learning_rate, training.weight_decay, training.learning_rate_decay) == (3e-5, 1e-6, 0.87)
    assert (training.batch_noise_m, training.queue_noise_m) == (150.0, 1_000.0)
    small = load("osv5m_small").training
    assert (small.strategies, small.variants) == (training.strategies, training.variants)
    named = {name: training.own(name) for name in training.strategies}
    assert {name: (strategy, own.frequencies) for name, (strategy, own) in named.items()} == {
        **{name: (name, "geoclip") for name in ("infonce", "semivariogram", "semivariance_margin")},
        "infonce_frequencies": ("infonce", "places"),
        "margin_frequencies": ("semivariance_margin", "places"),
    }
    assert {own.learning_rate for _, own in named.values()} == {3e-5}
    assert training.validate_every == load("osv5m_small").training.validate_every == 1


def test_quick_is_judged_at_places_that_had_no_part_in_the_choice_of_its_settings() -> None:
    """The studies chose them, on places of their own."""
    drawn = [draw_places(load(profile).dataset) for profile in ("quick", "second")]
    quick, *others = (places.set_index(["latitude", "longitude"]).index for places in drawn)
    assert len(quick) == 10_100 and not any(quick.isin(other).any() for other in others)


@pytest.mark.parametrize("profile", ["smoke", "quick", "second"])
def test_the_embedded_profiles_compute_in_float32_everywhere(profile: str) -> None:
    settings = load(profile)
    assert settings.training.precision == "float32" and settings.backbone.precision != "bfloat16"


class TestOverrides:
    def test_what_is_set_for_all_counts_for_every_strategy_and_what_is_set_for_one_counts_more(self) -> None:
        training = load("quick", ["training.beta=4"]).training
        assert {training.own(name)[1].beta for name in training.strategies} == {4.0}
        assert training.own("semivariogram")[1].alpha == 0.5  # as in the profile
        training = load("quick", ["training.variants.decayed.beta=5", "training.beta=4"]).training
        assert (training.own("decayed")[1].beta, training.own("semivariance_margin")[1].beta) == (5.0, 4.0)

    def test_numbers_lists_and_nulls(self) -> None:
        texts = ["training.seeds=0,1,2", "training.learning_rate=2e-4", "backbone.image_px=null"]
        settings = load("smoke", texts)
        assert (settings.training.seeds, settings.training.learning_rate) == ([0, 1, 2], 2e-4)
        assert settings.backbone.image_px is None
        assert load("smoke", ["training.seeds=7"]).training.seeds == [7]

    @pytest.mark.parametrize("order", [1, -1])
    def test_another_data_set_by_its_name_alone_in_any_order(self, order: int) -> None:
        settings = load("quick", ["dataset=osv5m", "dataset.test_shards=2"][::order])
        assert settings.dataset == OSV5M(test_shards=2)

    @pytest.mark.parametrize("order", [1, -1])
    def test_another_backbone_has_the_size_that_it_was_trained_with(self, order: int) -> None:
        assert load("quick", ["backbone=facebook/dinov2-base"]).backbone.image_px is None
        given = ["backbone=facebook/dinov2-base", "backbone.image_px=112"][::order]
        assert load("quick", given).backbone.image_px == 112
        assert load("quick", ["backbone=efficientnet-lite0"]).backbone.image_px == 96

    def test_another_backbone_has_no_revision_of_the_profiles(self, tmp_path: Path) -> None:
        path = tmp_path / "own.yaml"
        path.write_text("dataset: {name: blue_marble}\nbackbone: {name: a/b, revision: abc}\n")
        given = {name: load(path, [f"backbone={name}"]).backbone.revision for name in ("a/b", "a/c")}
        assert given == {"a/b": "abc", "a/c": None}


class TestErrors:
    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("training.epoch=3", ["training.epoch", "not a setting", "did you mean 'epochs'?", "batch_size"]),
            ("trainign.epochs=3", ["trainign", "did you mean 'training'?", "evaluation"]),
            ("dataset.tran=3", ["dataset.tran", "did you mean 'train'?"]),
            ("backbone.imagepx=64", ["backbone.imagepx", "did you mean 'image_px'?"]),
            ("training.variants.decayed.betta=3", ["variants.decayed.betta", "did you mean 'beta'?"]),
            ("training.variants.decayed.beta=-1", ["variants.decayed.beta", "greater than or equal to 0"]),
            ("training.epochs=many", ["training.epochs", "'many'"]),
            ("training.epochs=0", ["training.epochs", "greater than or equal to 1"]),
            ("training.seeds=0,-1", ["training.seeds.1", "greater than or equal to 0"]),
            ("training.seeds=", ["training.seeds"]),
            ("training.seeds=1,1", ["training.seeds: names one twice"]),
            ("training.strategies=infonce,decayed,Decayed", ["training.strategies: names one twice"]),
            ("evaluation.splits=test,test", ["evaluation.splits: names one twice"]),
            ("evaluation.shown=infonce,infonce", ["evaluation.shown: names one twice"]),
            ("evaluation.baselines=geoclip_pretrained,geoclip_pretrained", ["baselines: names one twice"]),
            ("evaluation.shown=infonse", ["evaluation.shown: 'infonse' is not trained", "infonce"]),
            ("training.strategies=infonce,decayd", ["training.strategies: 'decayd' is unknown", "decayed"]),
            ("evaluation.splits=test/../x", ["evaluation.splits.0: 'test/../x' would be a file's name"]),
            ("training.learning_rate=nan", ["training.learning_rate"]),
            ("training.optimizer=sgd", ["training.optimizer", "'adam'", "'adamw'"]),
            ("semivariogram.family=Linear", ["semivariogram.family", "'Stable'", "'Matern'"]),
            ("dataset.max_abs_latitude_deg=90", ["dataset.max_abs_latitude_deg"]),
            ("dataset=imagenet", ["dataset", "blue_marble", "osv5m"]),
            ("device=tpu", ["device", "'cuda'"]),
            ("training.epochs", ["group.key=value"]),
            ("training.beta=inf", ["training.beta", "finite"]),
            ("evaluation.lattice_km=inf", ["finite"]),
            ("training.frequencies=nan,1,2", ["training.frequencies", "finite"]),
            ("dataset.seed=-1", ["dataset.seed", "greater than or equal to 0"]),
            ("evaluation.seed=-1", ["evaluation.seed", "greater than or equal to 0"]),
            ("training.seeds=18446744073709551616", ["training.seeds.0", "less than 2147483648"]),
            ("semivariogram.lag_width_rad=1e-12", ["lag_width_rad", "greater than or equal to 0.00001"]),
            ("training.strategies=infonce,../x", ["'../x' would be a file's name"]),
        ],
    )
    def test_the_message_names_the_key_and_what_would_be_right(self, override: str, words: list[str]) -> None:
        with pytest.raises(SettingsError) as caught:
            load("smoke", [override])
        assert [word for word in words if word not in str(caught.value)] == []

    @pytest.mark.parametrize(
        "text",
        ["a: [1", "- 1\n- 2\n", "just text", "a: b: c", "training: {epochs: 3}\ntraining: {beta: 2}",
         "2024-01-01: 1", "a: !!int abc",
         "training: {variants: {../../x: {beta: 2}}}", "training: !!python/object/apply:os.system ['true']"],
    )  # fmt: skip
    def test_what_is_no_mapping_of_groups_or_would_run_code_is_refused(
        self, tmp_path: Path, text: str
    ) -> None:
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(SettingsError, match=r"odd\.yaml"):
            load(tmp_path / "odd.yaml")

    def test_a_key_of_another_data_set_is_refused(self) -> None:
        with pytest.raises(SettingsError, match=r"dataset\.window_km is not a setting"):
            load("quick", ["dataset=osv5m", "dataset.window_km=10"])


def test_anchors_and_merged_keys_are_taken(tmp_path: Path) -> None:
    lines = ["decayed: &d {beta: 1}", "residual: &r {<<: *d, beta: 2}", "hcl: {<<: *r}"]
    text = "training:\n  variants:\n" + "".join(f"    {line}\n" for line in lines)
    (tmp_path / "merged.yaml").write_text(text)
    variants = load(tmp_path / "merged.yaml").training.variants
    assert variants == {"decayed": {"beta": 1}, "residual": {"beta": 2}, "hcl": {"beta": 2}}


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("{}")
    keys = ("dataset.root", "dataset.csv", "evaluation.gallery", "backbone.name")
    settings = load("~/mine.yaml", ["dataset=folder", *(f"{key}=~/x.csv" for key in keys)])
    found = settings.dataset.root, settings.dataset.csv, settings.evaluation.gallery, settings.backbone.name
    assert {*map(str, found)} == {f"{tmp_path}/x.csv"}
    assert Run.open("smoke", "~/run").folder == tmp_path / "run"


def test_an_own_profile_has_the_defaults_where_it_is_silent(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("training: {epochs: 3}\n")
    settings = load(tmp_path / "mine.yaml")
    assert (settings.profile, settings.training.epochs) == ("mine", 3)
    assert settings.dataset == BlueMarble()
