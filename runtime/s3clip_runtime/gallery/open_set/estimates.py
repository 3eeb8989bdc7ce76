"""What simulated searches tell: thresholds, error rates with intervals, probabilities. People are the sample.

Searches of one person resemble each other, so each person counts the same, however many searches there are,
and finite samples are counted in people.
"""

from __future__ import annotations

from math import ceil, log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.gallery.open_set.trials import Found, Ints
from s3clip_runtime.inference.evidence import Interval
from s3clip_runtime.inference.ranking import bootstrap_interval

STRANGERS_PER_FPIR: Final = 3.0
"""The rule of three: if none of n people matches, the rate is below 3 / n with 95 % confidence. So a target
needs 3 / fpir strangers before even the best result could show that it is held."""

ROUNDING: Final = 1e-6
"""Scores of two ways of adding up differ by less; a threshold stands that much above what it excludes."""

TAIL_SHARE: Final = 0.1
"""Of the strangers' best scores, those that the exponential tail is fitted to."""

_RIDGE: Final = 0.01
"""Of the logistic slope, in scores of variance 1; against as many searches as there are people."""

_STEPS: Final = 100

Floats = NDArray[np.float64]


def people_needed(fpir: float) -> int:
    """Strangers from whom a threshold for `fpir` can be told."""
    return ceil(STRANGERS_PER_FPIR / fpir - 1e-9)  # the quotient may lie a rounding above a whole number


def person_weights(person: Ints) -> Floats:
    """Of searches, by their people: each person has the same sum, and all together 1. Not for none."""
    _, place, counts = np.unique(person, return_inverse=True, return_counts=True)
    weights: Floats = 1 / (len(counts) * counts[place])
    return weights


def threshold_at(strangers: Found, fpir: float) -> float:
    """The smallest cosine at which strangers match at a rate of `fpir` at most, one person on the safe side.

    With P people of whom the share r matches, (P r + 1) / (P + 1) <= fpir must hold: as if the next person
    matched. Then the expected rate of the next person is at most fpir (conformal risk control).
    """
    weights = person_weights(strangers.person)
    people = len(np.unique(strangers.person))
    allowed = fpir - (1 - fpir) / people
    order = np.argsort(-strangers.score, kind="stable")
    above = np.cumsum(weights[order])
    first = int(np.argmax(above > allowed + 1e-12))  # equal scores follow, all of them excluded with it
    return float(strangers.score[order[first]]) + ROUNDING


def growth_threshold_at(strangers: Found, fpir: float) -> tuple[float, bool]:
    """The cosine at which strangers match at a tenth of `fpir`, and whether it was measured.

    Where there are too few people for that, it lies above the highest score by what an exponential tail says:
    the highest of P people stands at a rate of about 1 / P, and each factor e in rate costs the tail's mean
    excess. Cosines end at 1, so their true tail is shorter.
    """
    strict = fpir / 10
    people = len(np.unique(strangers.person))
    if people >= people_needed(strict):
        return threshold_at(strangers, strict), True
    weights = person_weights(strangers.person)
    order = np.argsort(-strangers.score, kind="stable")
    tail = order[np.cumsum(weights[order]) <= TAIL_SHARE]
    tail = tail if len(tail) else order[:1]
    least = strangers.score[tail].min()
    excess = float(np.average(strangers.score[tail] - least, weights=weights[tail]))
    margin = excess * max(log(1 / (strict * people)), 0.0)
    return float(strangers.score.max()) + ROUNDING + margin, False


def fpir_at(strangers: Found, threshold: float, seed: int) -> Interval:
    """Rate at which strangers match, and its bootstrap interval.

    Two people make a false match: the one who searches and the one who is found. Both were drawn by chance,
    so a person's value is the rate in the one role and in the other, less what is counted twice. Two who
    resemble each other count in both, so the interval errs on the wide side, by half for rates below 0.2;
    with the searching role alone it would be a fourth too narrow.
    """
    false = person_weights(strangers.person) * (strangers.score >= threshold)
    rate = float(false.sum())
    everybody = np.unique(np.concatenate([strangers.person, strangers.gallery]))
    searching = np.bincount(np.searchsorted(everybody, strangers.person), false, len(everybody))
    being_found = np.bincount(np.searchsorted(everybody, strangers.found), false, len(everybody))
    return _interval((searching + being_found) * float(len(everybody)) - rate, seed)


def fnir_at(enrolled: Found, threshold: float, seed: int) -> Interval:
    """Rate at which enrolled people are not found, and its bootstrap interval over people."""
    missed = (enrolled.score < threshold) | (enrolled.found != enrolled.person)
    names, place = np.unique(enrolled.person, return_inverse=True)
    rates = np.bincount(place, person_weights(enrolled.person) * missed, len(names))
    return _interval(rates * float(len(names)), seed)


def _interval(values: NDArray[np.floating], seed: int) -> Interval:
    low, high = bootstrap_interval(values.astype(np.float64), seed=seed)
    # A sample without a single error bootstraps to no doubt at all; n people leave at least this much.
    doubt = 1 - 0.025 ** (1 / len(values))
    value = min(max(float(values.mean()), 0.0), 1.0)
    return Interval(value=value, low=max(min(low, 1 - doubt), 0.0), high=min(max(high, doubt), 1.0))


def logistic(searches: Found) -> tuple[float, float] | None:
    """Slope and intercept of the log odds that a best match is right, by its score.

    Half of the weight is on searches of enrolled people, half on strangers', so that the prior share of
    enrolled people is 1/2. A wrong name for an enrolled person is as wrong as any name for a stranger.

    Returns:
        None: higher scores are not more often right, or no match is.
    """
    mated = searches.mated
    right = mated & (searches.found == searches.person)
    weights = np.empty(len(right))
    for side in (mated, ~mated):
        weights[side] = person_weights(searches.person[side]) / 2
    weights *= len(np.unique(searches.person))
    mean = float(np.average(searches.score, weights=weights))
    spread = float(np.sqrt(np.average((searches.score - mean) ** 2, weights=weights)))
    if not right.any() or right.all() or spread < ROUNDING:
        return None
    intercept, slope = _fit((searches.score - mean) / spread, right, weights)
    return (slope / spread, intercept - slope * mean / spread) if slope > 0 else None


def _fit(x: Floats, right: NDArray[np.bool_], weights: Floats) -> tuple[float, float]:
    """Intercept and slope by Newton's method, whose steps are halved until the loss falls."""
    design = np.stack([np.ones_like(x), x])
    ridge = np.diag([0.0, _RIDGE])
    at = np.zeros(2)

    def loss(point: Floats) -> float:
        logits = point @ design
        return float(weights @ (np.logaddexp(0, logits) - right * logits) + point @ ridge @ point / 2)

    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(at @ design, -700, 700)))
        gradient = design @ (weights * (chance - right)) + ridge @ at
        curvature = (design * (weights * chance * (1 - chance))) @ design.T + ridge
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), gradient)
        while loss(at - step) > loss(at) and np.abs(step).max() > 1e-12:
            step = step / 2
        at = at - step
        if np.abs(step).max() < 1e-10:
            break
    return float(at[0]), float(at[1])
