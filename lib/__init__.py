"""Semivariogram-regularized GeoCLIP: the code behind the numbered notebooks.

Arrows run one way. From the bottom to the top: geodesy, settings, ranks, runs, places, photos, datasets, backbones, features,
shells, binning, empirical, semivariogram, variography, negatives, batches, model, gallery, training, evaluation, decoding,
significance, simulation, pairs, figures, curve_figures, study_figures, maps, candidate_maps, explore, report, exchange,
predictors, predict, study, stages, plan, terminal, lab, pipeline.
A module imports only what stands before it.
"""

__version__ = "0.1.0"
