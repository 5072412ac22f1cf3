"""Scores: pure functions, and torchmetrics around them; no Lightning, no files."""

from callbacks.metrics.discrimination import area, discrimination
from callbacks.metrics.frechet import frechet_distance
from callbacks.metrics.galleries import Block, rank_queries
from callbacks.metrics.identification import identification
from callbacks.metrics.pearson import encoding, pearson, resampled_pearson
from callbacks.metrics.picture_pairs import compare, mean_of_pairs, two_way_of_pairs
from callbacks.metrics.pictures import class_scores, perceptual_distance, pixel_correlation, ssim
from callbacks.metrics.published import clip_correlation, one_permutation_two_way
from callbacks.metrics.ranks import (
    CHANCE_TWO_WAY,
    Ranks,
    chance_n_way,
    chance_top_k,
    classifier_n_way,
    n_way,
    top_k,
    two_way,
)
from callbacks.metrics.resampling import Estimate, wilson
from callbacks.metrics.stateful import IdentificationMetric, PearsonMetric

__all__ = [
    "CHANCE_TWO_WAY",
    "Block",
    "Estimate",
    "IdentificationMetric",
    "PearsonMetric",
    "Ranks",
    "area",
    "chance_n_way",
    "chance_top_k",
    "class_scores",
    "classifier_n_way",
    "clip_correlation",
    "compare",
    "discrimination",
    "encoding",
    "frechet_distance",
    "identification",
    "mean_of_pairs",
    "n_way",
    "one_permutation_two_way",
    "pearson",
    "perceptual_distance",
    "pixel_correlation",
    "rank_queries",
    "resampled_pearson",
    "ssim",
    "top_k",
    "two_way",
    "two_way_of_pairs",
    "wilson",
]
