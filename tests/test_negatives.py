"""Statements about the strategies, against the equations of the method written here as plain double loops.

z_ij logit, d_ij = 1 - u_i . u_j, h_ij great-circle distance in radians, gamma the fitted curve, rho its
range, r_ij = gamma(h_ij) - d_ij. L_i = -log(e^z_ii / (e^z_ii + sum over j != i of w_ij e^(s_ij z_ij))).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import fitted

from lib.method import negatives
from lib.method.errors import BundleError
from lib.method.loss import SemivariogramLoss, contrastive_loss
from lib.method.negatives import REGISTRY, Pairs, Reweighting, get, infonce, strategy
from lib.method.semivariogram import Curve

ALPHA, BETA = 1.5, 2.5
SHARPNESS, SOFTNESS_KM, CONCENTRATION = 3.0, 900.0, 0.4
PHOTOS, PLACES = 6, 11
MODEL = fitted()
NUGGET, PARTIAL_SILL, LENGTH, EXPONENT, RHO = 0.1, 0.85, 0.3, 0.8, 0.9


def gamma(h: float) -> float:
    return NUGGET + PARTIAL_SILL * (1.0 - math.exp(-((h / LENGTH) ** EXPONENT)))


def correlation(h: float) -> float:
    return 1.0 - (gamma(h) - NUGGET) / PARTIAL_SILL


def positive_part(x: float) -> float:
    return x if x > 0.0 else 0.0


# name: (s_ij, log w_ij) of d and h, with the plain formulas of the method
Formula = Callable[[float, float], tuple[float, float]]
FORMULAS: dict[str, Formula] = {
    "infonce": lambda d, h: (1.0, 0.0),
    "thesis": lambda d, h: (math.exp(positive_part(d - gamma(h))) if h <= RHO else 1.0, 0.0),
    "semivariogram": lambda d, h: (1.0, (BETA if h > RHO else -ALPHA) * positive_part(gamma(h) - d)),
    "hard_only": lambda d, h: (1.0, BETA * positive_part(gamma(h) - d) if h > RHO else 0.0),
    "false_only": lambda d, h: (1.0, -ALPHA * positive_part(gamma(h) - d) if h <= RHO else 0.0),
    "residual": lambda d, h: (1.0, BETA * positive_part(gamma(h) - d)),
    "decayed": lambda d, h: (1.0, BETA * positive_part(gamma(h) - d) * (1.0 - correlation(h))),
    "similarity": lambda d, h: (1.0, BETA * (1.0 - d)),
    "semivariance_margin": lambda d, h: (1.0, BETA * (1.0 - correlation(h))),
    "constant_offset": lambda d, h: (1.0, BETA),
    "distance_margin": lambda d, h: (1.0, BETA * (1.0 - math.exp(-h * 6371.0088 / SOFTNESS_KM))),
}  # fmt: skip
TARGETS: dict[str, Callable[[float], float]] = {
    "soft_targets": lambda h: correlation(h) ** SHARPNESS,
    "distance_soft": lambda h: math.exp(-h * 6371.0088 / SOFTNESS_KM),
}
"""Share of a place in the target, of its distance; the own place has 1."""
OF_THEIR_OWN = {"hcl", "shuffled"}
"""Strategies whose weight is not a function of d and h alone; each has a class below."""


def haversine(a: list[float], b: list[float]) -> float:
    la, lo, lb, lp = map(math.radians, (*a, *b))
    squared = math.sin((lb - la) / 2.0) ** 2 + math.cos(la) * math.cos(lb) * math.sin((lp - lo) / 2.0) ** 2
    return 2.0 * math.asin(min(1.0, math.sqrt(squared)))


def batch(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> Pairs:
    """Six photos against eleven places, near and far, alike and unlike, with logits of both signs."""
    generator = torch.Generator().manual_seed(seed)
    near = [[48.0, 11.0], [47.0, 12.0], [-33.0, 151.0], [10.0, 179.5], [11.0, -179.5], [60.0, 20.0]]
    more = [[48.0, 11.0], [-34.0, 150.0], [0.0, 0.0], [49.0, 10.0], [-48.0, -169.0]]
    place_deg = torch.tensor(near + more, dtype=dtype)
    unit = F.normalize(torch.randn(PLACES, 4, generator=generator, dtype=torch.float64), dim=1).to(dtype)
    logits = 3.0 * torch.randn(PHOTOS, PLACES, generator=generator, dtype=torch.float64).to(dtype)
    values = {
        "logits": logits, "unit": unit, "place_deg": place_deg, "curve": Curve(MODEL), "alpha": ALPHA,
        "beta": BETA, "sharpness": SHARPNESS, "softness_km": SOFTNESS_KM, "concentration": CONCENTRATION,
        "partner_deg": place_deg.roll(4, 0),
    }  # fmt: skip
    return Pairs(**(values | changes))


def pairs(candidates: Pairs) -> list[tuple[int, int, float, float, float]]:
    """(i, j, z, d, h) of every pair, positives included."""
    u, a = candidates.unit.tolist(), candidates.place_deg.tolist()
    found = []
    for i, j in itertools.product(range(PHOTOS), range(PLACES)):
        d = 1.0 - sum(x * y for x, y in zip(u[i], u[j], strict=True))
        found.append((i, j, candidates.logits[i, j].item(), d, haversine(a[i], a[j])))
    return found


def loss_by_hand(candidates: Pairs, formula: Formula) -> float:
    denominators = [0.0] * PHOTOS
    for i, j, z, d, h in pairs(candidates):
        factor, log_weight = (1.0, 0.0) if i == j else formula(d, h)
        denominators[i] += math.exp(log_weight) * math.exp(factor * z)
    return sum(math.log(denominators[i]) - candidates.logits[i, i].item() for i in range(PHOTOS)) / PHOTOS


def test_no_strategy_is_without_its_formula_here() -> None:
    here = [name for name, one in REGISTRY.items() if one.reweight.__module__.startswith("lib.method.")]
    assert sorted([*FORMULAS, *TARGETS, *OF_THEIR_OWN]) == sorted(here)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(FORMULAS))
class TestFormula:
    def test_weights_of_every_negative(self, name: str, dtype: torch.dtype) -> None:
        candidates = batch(dtype)
        found = get(name).reweight(candidates).effect()
        assert (found is None) == (name == "infonce")
        for i, j, _, d, h in pairs(candidates) if found is not None else ():
            factor, log_weight = FORMULAS[name](d, h)
            assert i == j or found[i, j].item() == pytest.approx(math.log(factor) + log_weight, abs=5e-5)

    @pytest.mark.parametrize("seed", range(3))
    def test_the_loss(self, name: str, dtype: torch.dtype, seed: int) -> None:
        candidates = batch(dtype, seed)
        found, expected = get(name).reweight(candidates), loss_by_hand(candidates, FORMULAS[name])
        assert contrastive_loss(candidates.logits, found).item() == pytest.approx(expected, rel=5e-5)


def test_the_baseline_the_peers_and_three_controls_need_no_curve() -> None:
    without = {name for name, one in REGISTRY.items() if not one.needs_curve}
    peers = {"infonce", "distance_soft", "hcl"}
    assert without == {*peers, "similarity", "constant_offset", "distance_margin"}
    for name in without:
        contrastive_loss(batch().logits, get(name).reweight(batch(curve=None)))


def test_the_two_halves_make_the_whole() -> None:
    names, plain = ("hard_only", "false_only", "semivariogram"), batch()
    hard, false, both = (get(name).reweight(plain).log_weight for name in names)
    assert torch.equal(hard + false, both)
    assert torch.equal(get("semivariogram").reweight(batch(alpha=0.0)).log_weight, hard)
    assert torch.equal(get("semivariogram").reweight(batch(beta=0.0)).log_weight, false)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_loss_is_the_cross_entropy_to_the_spread_target(name: str) -> None:
    candidates, expected = batch(), 0.0
    shares = [[0.0] * PLACES for _ in range(PHOTOS)]
    for i, j, _, _, h in pairs(candidates):
        shares[i][j] = 1.0 if i == j else TARGETS[name](h)
    for i, row in enumerate(candidates.logits.tolist()):
        denominator = math.log(sum(map(math.exp, row)))
        for share, z in zip(shares[i], row, strict=True):
            expected -= share / sum(shares[i]) * (z - denominator) / PHOTOS
    found = contrastive_loss(candidates.logits, get(name).reweight(candidates)).item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_photo_whose_targets_are_no_candidates_has_no_loss_and_no_nan() -> None:
    logits = batch().logits.clone()
    logits[2, 2] = -math.inf
    logits.requires_grad_()
    loss = contrastive_loss(logits, Reweighting(targets=torch.eye(PHOTOS, PLACES)))
    loss.backward()
    others = [0, 1, 3, 4, 5]
    expected = F.cross_entropy(logits[others], torch.tensor(others), reduction="sum") / PHOTOS
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.isfinite(logits.grad).all() and not logits.grad[2].any()


def test_hcls_weights_grow_with_the_logit_and_have_mean_one_over_the_candidates() -> None:
    logits = batch().logits.clone()
    logits[2, 8] = -math.inf  # no candidate
    weights = get("hcl").reweight(batch(logits=logits)).log_weight.exp()
    for i in range(PHOTOS):
        others = [j for j in range(PLACES) if j != i and (i, j) != (2, 8)]
        raw = {j: math.exp(CONCENTRATION * logits[i, j].item()) for j in others}
        for j in others:
            assert weights[i, j].item() == pytest.approx(raw[j] * len(raw) / sum(raw.values()), rel=1e-4)
    for strength in (CONCENTRATION, 0.0):
        found = get("hcl").reweight(batch(logits=logits, concentration=strength))
        assert torch.isfinite(contrastive_loss(logits, found))


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_photo_without_any_candidate_but_its_own_has_no_loss_and_no_nan(name: str) -> None:
    logits = batch().logits.clone()
    logits[1] = -math.inf
    logits[1, 1] = 2.0
    logits.requires_grad_()
    loss = contrastive_loss(logits, get(name).reweight(batch(logits=logits.detach())))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all() and logits.grad[1].abs().max() < 1e-6


def test_shuffled_takes_each_weight_from_the_partner_of_the_place() -> None:
    candidates = batch()
    found, places = get("shuffled").reweight(candidates).log_weight, candidates.place_deg.tolist()
    for i, j in itertools.product(range(PHOTOS), range(PLACES)):
        h = haversine(places[i], places[(j - 4) % PLACES])
        assert found[i, j].item() == pytest.approx(BETA * (1.0 - correlation(h)), abs=5e-5)
    with pytest.raises(BundleError, match="needs partner_deg"):
        get("shuffled").reweight(batch(partner_deg=None))


@pytest.mark.parametrize("name", ["thesis", "semivariogram", "hard_only", "false_only"])
def test_a_given_range_replaces_the_curves(name: str) -> None:
    given = get(name).reweight(batch(range_km=RHO * 6371.0088 / 9.0)).effect()
    moved = get(name).reweight(batch(curve=Curve(fitted(range_rad=RHO / 9.0)))).effect()
    assert torch.equal(given, moved) and not torch.equal(given, get(name).reweight(batch()).effect())


class TestInfoNCE:
    @pytest.mark.parametrize("places", [PHOTOS, PLACES])
    def test_weights_of_one_give_exactly_infonce(self, places: int) -> None:
        logits = batch().logits[:, :places]
        plain, zeros = F.cross_entropy(logits, torch.arange(PHOTOS)), torch.zeros_like(logits)
        for added, factor in itertools.product((None, zeros), (None, zeros + 1.0)):
            assert torch.equal(contrastive_loss(logits, Reweighting(added, factor)), plain)

    def test_without_alpha_and_beta_every_log_weight_is_zero(self) -> None:
        candidates = batch(alpha=0.0, beta=0.0)
        for name in set(FORMULAS) - {"infonce", "thesis"}:
            assert not get(name).reweight(candidates).log_weight.any(), name


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_no_gradient_flows_through_the_weights(name: str) -> None:
    plain, curve = batch(), Curve(MODEL)
    unit, logits, again = (one.clone().requires_grad_() for one in (plain.unit, plain.logits, plain.logits))
    curve.values.requires_grad_()
    contrastive_loss(logits, get(name).reweight(batch(logits=logits, unit=unit, curve=curve))).backward()
    assert unit.grad is None and curve.values.grad is None
    constant, off_diagonal = get(name).reweight(plain), 1.0 - torch.eye(PHOTOS, PLACES)
    factor = 1.0 if constant.factor is None else constant.factor
    added = 0.0 if constant.log_weight is None else constant.log_weight
    weighted = again * (1.0 + off_diagonal * (factor - 1.0)) + off_diagonal * added
    (torch.logsumexp(weighted, 1) - again.diagonal()).mean().backward()
    assert torch.allclose(logits.grad, again.grad, atol=1e-6)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_weights_and_loss_never_leave_the_device(name: str) -> None:
    """On the device ``meta`` tensors have a shape and no values: what asks for a number fails."""
    with torch.device("meta"):
        logits = torch.empty(PHOTOS, PLACES, requires_grad=True)
        unit, places = torch.empty(PLACES, 8), torch.empty(PLACES, 2)
    curve = Curve(MODEL).to("meta")
    seen = Pairs(logits.detach(), unit, places, curve, ALPHA, BETA, partner_deg=places)
    loss = contrastive_loss(logits, get(name).reweight(seen))
    loss.backward()
    assert loss.device.type == logits.grad.device.type == "meta" and loss.shape == ()


class TestModule:
    """The loss as other people's training loops use it."""

    @staticmethod
    def made(name: str) -> SemivariogramLoss:
        values = {"alpha": ALPHA, "beta": BETA, "sharpness": SHARPNESS, "softness_km": SOFTNESS_KM,
                  "concentration": CONCENTRATION, "range_km": None}  # fmt: skip
        return SemivariogramLoss(MODEL, name, **{key: values[key] for key in get(name).parameters})

    @pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"shuffled"}))
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_it_is_the_strategys_loss_of_features_of_any_length_autocast_or_not(
        self, name: str, dtype: torch.dtype
    ) -> None:
        plain = batch()
        logits = plain.logits.to(dtype).requires_grad_()
        expected = contrastive_loss(logits.float(), get(name).reweight(batch(logits=logits.detach().float())))
        found = self.made(name)(logits, plain.place_deg, 7.0 * plain.unit)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        found.backward()
        assert torch.isfinite(logits.grad).all() and logits.grad.dtype == dtype
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(found, self.made(name)(logits, plain.place_deg, 7.0 * plain.unit))

    def test_nothing_but_the_logits_gets_a_gradient_and_the_curve_moves_with_the_module(self) -> None:
        plain, loss = batch(), self.made("decayed")
        logits, features = plain.logits.clone().requires_grad_(), plain.unit.clone().requires_grad_()
        loss(logits, plain.place_deg, features).backward()
        assert logits.grad is not None and features.grad is None and not list(loss.parameters())
        assert loss.to("meta").curve.values.device.type == "meta"

    def test_the_margin_is_infonce_plus_the_risk_of_a_wrong_place(self) -> None:
        """L = InfoNCE + log sum_j p_ij e^(a_ij), a = beta (1 - C): an identity of the softmax."""
        plain = batch(torch.float64)
        a = BETA * (1.0 - plain.correlation.double()).masked_fill(plain.positive, 0.0)
        risk = (torch.softmax(plain.logits, 1) * a.exp()).sum(1).log().mean()
        infonce = F.cross_entropy(plain.logits, torch.arange(PHOTOS))
        found = self.made("semivariance_margin")(plain.logits, plain.place_deg, plain.unit)
        assert found.item() == pytest.approx((infonce + risk).item(), rel=1e-5)

    @pytest.mark.parametrize("name", ["infonce", "soft_targets", "distance_soft"])
    def test_a_photo_whose_own_place_is_no_candidate_is_named(self, name: str) -> None:
        plain, logits = batch(), batch().logits.clone()
        logits[2, 2] = -math.inf
        with pytest.raises(BundleError, match="row 2 from 0: the photo's own place is no candidate"):
            self.made(name)(logits, plain.place_deg, plain.unit)

    @pytest.mark.parametrize(
        ("curve", "given", "said"),
        [
            (MODEL, {"sharpness": 0.1, "alpha": 2.0}, "does not read alpha, sharpness; it reads beta"),
            (None, {"strategy": "decayed"}, "'decayed' needs a fitted semivariogram;"),
            ("curve.json", {}, "fitted semivariogram, not a str; call fit_semivariogram"),
            (MODEL, {"strategy": None}, "is unknown; registered: infonce"),
            (MODEL, {"strategy": infonce}, "is unknown; registered: infonce"),
            *[(MODEL, {"beta": wrong}, f"={wrong!r} is no number") for wrong in ("8", math.nan, math.inf)],
        ],
    )
    def test_what_it_cannot_be_made_of_is_a_sentence(self, curve: object, given: dict, said: str) -> None:
        with pytest.raises(BundleError, match=said):
            SemivariogramLoss(curve, **given)

    def test_shapes_that_do_not_fit_and_places_that_are_none_are_refused(self) -> None:
        plain, loss = batch(), SemivariogramLoss(None, "infonce")
        z, places, unit = plain.logits, plain.place_deg, plain.unit
        for wrong in (
            (z.T, places[:PHOTOS], unit[:PHOTOS]), (z, places[:PHOTOS], unit), (z, places, unit[1:]),
            (z, unit, places), (z, places[:, 0], unit), (z, places, unit[:, 0]), (z[0], places, unit),
        ):  # fmt: skip
            with pytest.raises(BundleError, match=r"\[B, M >= B\].*do not fit: \["):
                loss(*wrong)
        lost = places.clone()
        lost[3, 1] = math.nan
        for wrong, said in (
            (lost, "row 3 from 0: .*, nan is no latitude"),
            (torch.full_like(lost, 120.0), "row 0 from 0: 120, 120 is no latitude and longitude in degrees"),
            (places.deg2rad(), "they are radians, not degrees"),
            (places.half(), "float16 are off by up to 7 km: give float32"),
            (places.bfloat16(), "bfloat16 are off by up to 56 km: give float32"),
        ):
            with pytest.raises(BundleError, match=said):
                loss(z, wrong, unit)
        toy = places / 180.0  # a world within a degree of 0, 0
        assert torch.isfinite(SemivariogramLoss(MODEL, beta=np.int64(3))(z, toy, unit))

    def test_a_strategy_of_ones_own_is_registered_from_anywhere_and_held_to_the_rules(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(negatives, "REGISTRY", dict(REGISTRY))
        with pytest.raises(BundleError, match="is a strategy 'infonce'"):
            strategy("infonce", "of a test", "beta")(lambda pairs: Reweighting())
        for _ in range(2):  # a notebook's cell is executed more than once
            strategy("new", "of a test", "beta")(lambda pairs: Reweighting(pairs.beta * pairs.gamma[:, 0]))
        plain, said = batch(), rf"answered with \[{PHOTOS}\] for logits \[{PHOTOS}, {PLACES}\]"
        for given in ("new", get("new")):
            with pytest.raises(BundleError, match=said):
                SemivariogramLoss(MODEL, given, beta=1.0)(plain.logits, plain.place_deg, plain.unit)
