"""GeoCLIP on frozen features: image head, geoclip's location encoder, temperature."""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geodesy import check_precision

EMBEDDING = 512
"""Dimension of the space that photos and places share (GeoCLIP)."""


@lru_cache(maxsize=1)
def geoclip_locations() -> ModuleType:
    """The module ``location_encoder`` of ``geoclip``, alone: the whole package imports transformers."""
    package = ModuleType("geoclip_model")
    places = getattr(find_spec("geoclip"), "submodule_search_locations", ())
    package.__path__ = [f"{place}/model" for place in places]
    sys.modules[package.__name__] = package  # relative imports look it up
    with warnings.catch_warnings():  # it scripts three functions in a way that torch calls outdated
        warnings.simplefilter("ignore", FutureWarning)
        return importlib.import_module("geoclip_model.location_encoder")


class GeoCLIP(nn.Module):
    """Photos and places in one space of unit vectors [*, 512]; the head is D-768-ReLU-512.

    Args:
        dimension: D of the frozen features.
        mean, scale: the head sees (features - mean [D]) / scale; zeros and 1 are GeoCLIP's own protocol.
        location_weights: ``scratch``, or ``geoclip`` for the package's pretrained location encoder.

    Source: GeoCLIP paper and package.
    """

    def __init__(
        self, dimension: int, mean: Tensor | None = None, scale: float = 1, location_weights: str = "scratch"
    ) -> None:
        super().__init__()
        self.image_head = nn.Sequential(nn.Linear(dimension, 768), nn.ReLU(), nn.Linear(768, EMBEDDING))
        is_pretrained = location_weights == "geoclip"
        self.location_encoder = geoclip_locations().LocationEncoder(from_pretrained=is_pretrained)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1.0 / 0.07)))
        self.register_buffer("feature_mean", torch.zeros(dimension) if mean is None else mean.clone())
        self.register_buffer("feature_scale", torch.tensor(float(scale)))

    def embed_photos(self, features: Tensor) -> Tensor:
        """Unit embeddings [B, 512] of frozen features v [B, D]."""
        scaled = (features - self.feature_mean) / self.feature_scale
        return F.normalize(self.image_head(scaled).float(), dim=1)

    def embed_places(self, coordinates_deg: Tensor) -> Tensor:
        """Unit embeddings [M, 512] of latitude and longitude [M, 2], degrees; half precision is refused.

        The Fourier features are made in float32 under autocast too. bfloat16 would lose their phases,
        hundreds of radians at sigma = 2^8, and with them everything below some 50 km.
        """
        check_precision(coordinates_deg)
        encoder = self.location_encoder
        capsules = [getattr(encoder, f"LocEnc{number}") for number in range(encoder.n)]
        projected = geoclip_locations().equal_earth_projection(coordinates_deg.float())
        with torch.autocast(projected.device.type, enabled=False):
            # the package's own features are TorchScript, which a GPU compiles anew as shapes change
            phases = [(2.0 * math.pi * projected) @ capsule.capsule[0].b.T for capsule in capsules]
            encoded = [torch.cat((phase.cos(), phase.sin()), -1) for phase in phases]
        parts = [capsule.head(capsule.capsule[1:](x)) for capsule, x in zip(capsules, encoded, strict=True)]
        return F.normalize(sum(part.float() for part in parts), dim=1)

    def forward(self, features: Tensor, coordinates_deg: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`embed_photos` and :meth:`embed_places` in one call, which DistributedDataParallel needs."""
        return self.embed_photos(features), self.embed_places(coordinates_deg)

    def logits(self, photos: Tensor, places: Tensor) -> Tensor:
        """z = exp(s) x cosine, float32 [B, M], of embeddings [B, 512] and [M, 512]."""
        with torch.autocast(photos.device.type, enabled=False):
            return self.logit_scale.exp() * photos @ places.T
