"""What a stage depends on in the code: a changed operator anywhere remakes exactly the stages that reach it."""

from __future__ import annotations

from importlib import import_module

code = import_module("lib.runs.code")

STAGES = {
    "manifest": ["lib.data.datasets:_build", "lib.data.blue_marble:build"],
    "folder": ["lib.data.datasets:_build", "lib.data.folder:build"],
    "osv5m": ["lib.data.datasets:_build", "lib.data.osv5m:build"],
    "features": ["lib.data.features:_extract", "lib.data.backbones:load_efficientnet_lite"],
    "curve": ["lib.train.curve:_fit"],
    "training": ["lib.train.training:_train_and_save", "lib.method.negatives:decayed"],
    "control": ["lib.train.training:_train_and_save", "lib.method.controls:similarity"],
    "evaluation": ["lib.evaluate.evaluation:_evaluate"],
    "regions": ["lib.evaluate.regions:_make"],
}
"""Stage -> the functions that it names; ``test_stages_name_these`` holds this table against receipts."""
STRATEGY = """

@strategy("new", "of a test", "beta")
def new(pairs: Pairs) -> Reweighting:
    return Reweighting(log_weight=pairs.beta * pairs.residual)
"""
BACKBONE = """

def load_new(name: str, settings: BackboneSettings) -> Backbone:
    raise BundleError(name)


REGISTRY |= {"new": Entry("of a test", load_new)}
"""
