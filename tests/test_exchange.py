"""What we export, the package geoclip loads, and it predicts the same."""

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import CLIPImageProcessor

from lib import exchange
from lib.exchange import export_geolocation, export_location_encoder
from lib.method.errors import BundleError
from lib.predict.predictors import Release
from lib.settings import Training
from lib.train.checkpoints import initialise, published

PLACES = np.array([[48.8, 2.3], [-33.9, 151.2], [1.3, 103.8], [64.1, -21.9], [-17.7, 178.1]])
PHOTOS = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def package(tiny_clip, monkeypatch):
    """The package geoclip with a tiny CLIP; ``asked`` holds what it would have downloaded."""
    import geoclip
    from geoclip.model import _hub, image_encoder

    geoclip.asked = {}
    download = lambda config, **_: geoclip.asked.update(config["backbone"]) or str(tiny_clip)  # noqa: E731
    monkeypatch.setattr(_hub, "download_backbone", download)
    monkeypatch.setattr(image_encoder.AutoProcessor, "from_pretrained", CLIPImageProcessor.from_pretrained)
    return geoclip


def raw_features(model):
    """What the CLIP inside a model of the package makes of ``PHOTOS``."""
    from geoclip.model.image_encoder import _extract_image_features as extract

    return extract(model.image_encoder.CLIP.get_image_features(pixel_values=PHOTOS))


def trained(dimension=768):
    mean = torch.randn(dimension, generator=torch.Generator().manual_seed(3))
    return initialise(7, mean, 0.25, Training()).eval()


def test_the_package_loads_the_location_encoder_bit_for_bit(tmp_path):
    import geoclip

    ours = trained(1280)
    loaded = geoclip.LocationEncoder.from_pretrained(export_location_encoder(ours, tmp_path))
    places = torch.tensor(PLACES, dtype=torch.float32)
    assert torch.equal(loaded(places), ours.location_encoder(places))


def test_the_package_predicts_from_our_release_what_we_predict(tmp_path, package):
    ours, clip = trained(), "openai/clip-vit-large-patch14"
    loaded = package.GeoCLIP.from_pretrained(export_geolocation(Release(ours, PLACES, clip, "abc"), tmp_path))
    assert package.asked == {"repo_id": clip, "revision": "abc"}
    assert np.allclose(loaded.gps_gallery.numpy(), PLACES)
    with torch.inference_mode():
        theirs, embedded = loaded(PHOTOS, loaded.gps_gallery), ours.embed_photos(raw_features(loaded))
        logits = ours.logits(embedded, ours.embed_places(torch.tensor(PLACES)))
    assert torch.allclose(theirs, logits, atol=1e-4)
    assert torch.equal(theirs.argmax(1), logits.argmax(1))


def test_without_mean_and_scale_the_package_gives_the_same_bits(tmp_path, package):
    ours = initialise(7, torch.zeros(768), 1.0, Training()).eval()
    folder = export_geolocation(Release(ours, PLACES, "a/b", None), tmp_path)
    head = package.GeoCLIP.from_pretrained(folder).image_encoder.mlp.state_dict()
    assert all(torch.equal(head[name], value) for name, value in ours.image_head.state_dict().items())


def test_the_published_model_gives_the_packages_own_logits(tiny_clip, package):
    theirs, ours = package.GeoCLIP(clip_path=str(tiny_clip)).eval(), published()
    places = torch.tensor(PLACES, dtype=torch.float32)
    with torch.inference_mode():
        logits = ours.logits(ours.embed_photos(raw_features(theirs)), ours.embed_places(places))
        assert torch.allclose(logits, theirs(PHOTOS, places), atol=1e-4)
    assert ours.logit_scale.exp() > 20  # not where training starts


def test_fine_tuning_begins_where_geoclip_ended():
    settings = Training(image_head="geoclip", location_encoder="geoclip")
    begun = initialise(5, torch.zeros(768), 1.0, settings).state_dict()
    assert all(torch.equal(value, begun[name]) for name, value in published().state_dict().items())


def test_what_cannot_be_exported_is_named(tmp_path, capsys):
    with pytest.raises(BundleError, match="768 features and this model 1280"):
        export_geolocation(Release(trained(1280), PLACES, "a/b", None), tmp_path)
    assert exchange.main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "provenance.json: not the provenance of a finished run" in capsys.readouterr().err


def test_a_strategy_or_seed_that_the_run_does_not_train_is_named_with_those_that_it_does(make_run, tmp_path):
    with pytest.raises(BundleError, match="has no strategy shuffled; it has infonce"):
        exchange.export(make_run(), tmp_path, "shuffled")
    with pytest.raises(BundleError, match="has no seed 9; it has"):
        exchange.export(make_run(), tmp_path, "infonce", 9)


def test_the_card_tells_what_the_model_was_trained_on_and_how_well_it_does(make_run, monkeypatch):
    table = pd.DataFrame({"strategy": "infonce", "seed": [0, 1], "split": "test", "acc_200km": [0.5, 0.9],
                          "acc_2500km": 0.75, "median_km": 1_234.0})  # fmt: skip
    monkeypatch.setattr(exchange.evaluation, "evaluate", lambda run: {"accuracy": table})
    card = exchange.card(make_run(), "infonce", 0)
    assert "96 photos of the data set `blue_marble`" in card and "| test | 50.0 | 75.0 | 1,234 |" in card
    assert "Not for" in card and "90.0" not in card
