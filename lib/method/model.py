"""GeoCLIP on frozen features: image head, geoclip's location encoder, learnable temperature, queue of negatives."""

from __future__ import annotations

import importlib
import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

EMBEDDING = 512
"""Dimension of the space that photos and places share (GeoCLIP)."""
INITIAL_TEMPERATURE = 0.07


@lru_cache(maxsize=1)
def geoclip_locations() -> ModuleType:
    """The package's module ``geoclip.model.location_encoder``; imported late, as it brings all of transformers along."""
    with warnings.catch_warnings():  # it scripts three functions in a way that torch calls outdated
        warnings.simplefilter("ignore", FutureWarning)
        return importlib.import_module("geoclip.model.location_encoder")


class GeoCLIP(nn.Module):
    """Photos and places in one space of unit vectors [*, 512].

    Args:
        dimension: D of the frozen features.
        mean: [D] subtracted from the features before the head (zeros: GeoCLIP's own protocol).
        scale: divides them after that (1: GeoCLIP's own protocol).
        location_weights: ``scratch``, or ``geoclip`` for the package's pretrained location encoder.

    Mean and scale are affine, so an export can fold them into the head's first layer.
    Source: GeoCLIP paper and package; head D-768-ReLU-512.
    """

    def __init__(
        self, dimension: int, mean: torch.Tensor | None = None, scale: float = 1.0, location_weights: str = "scratch"
    ) -> None:
        super().__init__()
        self.image_head = nn.Sequential(nn.Linear(dimension, 768), nn.ReLU(), nn.Linear(768, EMBEDDING))
        self.location_encoder = geoclip_locations().LocationEncoder(from_pretrained=location_weights == "geoclip")
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1.0 / INITIAL_TEMPERATURE)))
        self.register_buffer("feature_mean", torch.zeros(dimension) if mean is None else mean.clone())
        self.register_buffer("feature_scale", torch.tensor(float(scale)))

    def embed_photos(self, features: torch.Tensor) -> torch.Tensor:
        """Unit embeddings [B, 512] of frozen features v [B, D]."""
        return F.normalize(self.image_head((features - self.feature_mean) / self.feature_scale).float(), dim=1)

    def embed_places(self, coordinates_deg: torch.Tensor) -> torch.Tensor:
        """Unit embeddings [M, 512] of latitude and longitude in degrees [M, 2].

        The Fourier features are made in float32 under autocast too: bfloat16 would lose their phases, hundreds of radians at
        sigma = 2^8, and with them everything below some 50 km.
        """
        encoder = self.location_encoder
        projected = geoclip_locations().equal_earth_projection(coordinates_deg.float())
        capsules = [getattr(encoder, f"LocEnc{number}") for number in range(encoder.n)]
        with torch.autocast(projected.device.type, enabled=False):
            encoded = [capsule.capsule[0](projected) for capsule in capsules]
        parts = [capsule.head(capsule.capsule[1:](x)) for capsule, x in zip(capsules, encoded, strict=True)]
        return F.normalize(sum(part.float() for part in parts), dim=1)

    def forward(self, features: torch.Tensor, coordinates_deg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`embed_photos` and :meth:`embed_places` in one call, through which DistributedDataParallel sees a step begin."""
        return self.embed_photos(features), self.embed_places(coordinates_deg)

    def logits(self, photos: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """z = exp(s) x cosine, float32 [B, M], of embeddings [B, 512] and [M, 512]."""
        with torch.autocast(photos.device.type, enabled=False):
            return self.logit_scale.exp() * photos @ places.T


@dataclass
class Queue:
    """The latest ``size`` places and the unit features of the photos taken there: negatives beyond the batch.

    Starts empty and grows. Upstream fills it with random unit vectors instead, which are not coordinates but places
    within a degree of (0, 0). The manifest's rows tell a photo from itself when it comes back in the next epoch.
    """

    size: int
    rows: torch.Tensor
    coordinates_deg: torch.Tensor
    unit_features: torch.Tensor

    @classmethod
    def empty(cls, size: int, dimension: int, device: torch.device | str = "cpu") -> Queue:
        """A queue for ``size`` places and features of ``dimension``."""
        rows = torch.empty(0, dtype=torch.long, device=device)
        return cls(size, rows, *(torch.empty(0, width, device=device) for width in (2, dimension)))

    def __len__(self) -> int:
        return len(self.coordinates_deg)

    @torch.no_grad()
    def push(self, rows: torch.Tensor, coordinates_deg: torch.Tensor, unit_features: torch.Tensor) -> None:
        """Add rows [B], coordinates [B, 2] and unit features [B, D]; the oldest beyond ``size`` leave."""
        if self.size == 0:
            return
        self.rows = torch.cat((self.rows, rows))[-self.size :]
        self.coordinates_deg = torch.cat((self.coordinates_deg, coordinates_deg))[-self.size :]
        self.unit_features = torch.cat((self.unit_features, unit_features))[-self.size :]
