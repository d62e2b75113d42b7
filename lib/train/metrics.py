"""What an error in kilometres is worth: accuracies within radii, mean, median, GeoScore."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RADII_KM = {1: "street", 25: "city", 200: "region", 750: "country", 2500: "continent"}
"""Radii of the field's five granularities, kilometres (Hays & Efros, 2008)."""
COMPARED_KM = (25, 100, 200, 750, 2500)
"""Radii of validation and of comparisons, kilometres. Windows of the embedded data set show 256 km: they do
not resolve 1 km, and 100 km lies between city and region."""
CHOICE_KM = 200
"""Radius of the validation accuracy that chooses a run's strategy, kilometres."""
GEOSCORE_SCALE_KM = 1492.7
"""Decay length of GeoScore, kilometres (OSV5M)."""

METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{f"acc_{radius}km": lambda error, radius=radius: error <= radius for radius in RADII_KM},
    "mean_km": lambda error: error,
    "geoscore": lambda error: 5000.0 * np.exp(-error / GEOSCORE_SCALE_KM),
    "acc_100km": lambda error: error <= 100,
}
"""Metrics that are means over photos, of great-circle errors in km. The median is not one of them."""
COLUMNS = [*list(METRICS)[:5], "median_km", "mean_km", "geoscore", "acc_100km"]
COMPARED = tuple(f"acc_{radius}km" for radius in COMPARED_KM)
"""The accuracies that strategies are compared by."""
HEADLINE = f"acc_{CHOICE_KM}km"
"""The accuracy of short answers: region, the granularity at which the paper claims its gain."""


def summarise(error_km: np.ndarray) -> dict[str, float]:
    """Accuracies (0..1), median and mean error (km), GeoScore (0..5000) of errors [N], km, N > 0."""
    values = {name: float(np.mean(of(error_km))) for name, of in METRICS.items()}
    return {name: float(np.median(error_km)) if name == "median_km" else values[name] for name in COLUMNS}
