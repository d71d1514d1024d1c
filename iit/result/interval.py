"""Intervals of means.

Pairs that share a base prompt are not independent of each other, nor are figures that differ in
their seed alone. The intervals respect both.
"""

from collections.abc import Sequence
from functools import partial
from math import sqrt
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with its interval; n is the number of pairs."""

    value: float
    low: float
    high: float
    n: int


def clustered_interval(
    values: Any,
    clusters: Any,
    *,
    groups: Any = None,
    paired: bool = False,
    bounded: bool = True,
    over_draws: bool = False,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """A mean and its percentile-bootstrap interval.

    Clusters (base prompts) are resampled with replacement.

    Where all clusters have the same mean (a single cluster, say, or nothing but right pairs), the
    bootstrap has no width. The interval then is the mean ± (1 − (α/2)^(1/m)), cut to the range of
    the values. That is the width of the exact binomial interval where m of m pairs are right. For
    differences it is twice as wide. m is the number of clusters; with groups it is the number of
    clusters of the kind that has the fewest. For unbounded values the interval goes from the least
    to the largest value.

    Arguments:
        values: [n], a value for each pair; or [n, draws], whose mean over draws stands for the
            pair. They are outcomes in 0..1, in −1..1 if `paired`, any numbers if not `bounded`.
        clusters: [n], which base prompt a pair belongs to.
        groups: [n], kinds of pairs. The figure is then the mean of the kinds' means, and each kind
            has the same weight.
        paired: whether the values are differences of outcomes on the same pairs.
        bounded: whether the values have a range.
        over_draws: whether draws (seeds, say) are resampled, too. The interval is then about other
            draws than these.
        confidence: 1 − α.
        resamples, seed: of the bootstrap.

    Raises:
        ValueError: for no values, lengths that differ, values that are not finite or out of range,
            and groups beside resampled draws.
    """
    values = np.asarray(values, dtype=float)
    clusters = np.asarray(clusters)
    # [draw, pair]
    draws = np.atleast_2d(values.T)
    values = draws.mean(0)
    n = len(values)
    if over_draws and groups is not None:
        raise ValueError("Draws are resampled for plain means only, without groups.")
    if n == 0:
        raise ValueError("There is no pair to compute an interval over.")
    if len(clusters) != n:
        raise ValueError(f"{n} values need as many clusters; got {len(clusters)}.")
    if not np.isfinite(values).all():
        raise ValueError("An interval needs finite values.")
    bottom = -1.0 if paired else 0.0
    if bounded and (values.min() < bottom or values.max() > 1):
        hint = "" if paired else " (differences need paired=True)"
        raise ValueError(
            f"Values lie in {bottom:g}..1{hint}; got {values.min():g}..{values.max():g}."
        )

    # The number of each pair's cluster, [pair], of m clusters.
    _, index = np.unique(clusters, return_inverse=True)
    m = int(index.max()) + 1
    # [pair] → [cluster]: the sum of a value over each cluster's pairs.
    by_cluster = partial(np.bincount, index, minlength=m)

    kinds = np.zeros(n) if groups is None else np.asarray(groups)
    # [kind, pair]
    is_kind = kinds == np.unique(kinds)[:, None]
    # [kind, cluster]: how many pairs, and the sum of their values.
    sizes = np.stack(list(map(by_cluster, is_kind)))
    sums = np.stack(list(map(by_cluster, values * is_kind)))
    mean = float((sums.sum(1) / sizes.sum(1)).mean())

    # Draws add width only where they are resampled, and differ.
    alike = np.ptp(draws.mean(1)) < 1e-12 or not over_draws
    # A cluster without a pair of the kind has no mean: NaN.
    with np.errstate(invalid="ignore"):
        cluster_means = sums / sizes
    widths = np.nanmax(cluster_means, 1) - np.nanmin(cluster_means, 1)
    if alike and (widths < 1e-12).all():
        if not bounded:
            return Interval(mean, float(values.min()), float(values.max()), n)
        fewest_clusters = (sizes > 0).sum(1).min()
        reach = (1 - bottom) * (1 - ((1 - confidence) / 2) ** (1 / fewest_clusters))
        return Interval(mean, max(bottom, mean - reach), min(1.0, mean + reach), n)

    rng = np.random.default_rng(seed)
    # [resample, cluster]: how often each cluster is drawn.
    counts = rng.multinomial(m, np.full(m, 1 / m), size=resamples)
    if over_draws:
        # [draw, cluster]: sums of values.
        per_draw = np.stack(list(map(by_cluster, draws)))
        # [resample, draw]: the share that each draw has in a resample.
        n_draws = len(draws)
        times_drawn = rng.multinomial(n_draws, np.full(n_draws, 1 / n_draws), size=resamples)
        weights = times_drawn / n_draws
        means = (weights * (counts @ per_draw.T)).sum(1) / (counts @ sizes.sum(0))
    else:
        with np.errstate(invalid="ignore"):  # a resample may lack a kind
            means = np.nanmean((counts @ sums.T) / (counts @ sizes.T), 1)

    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high), n)


def over_seeds(figures: Sequence[Interval], *, confidence: float = 0.95) -> Interval:
    """The mean of shares that were measured with different seeds, with its interval.

    n counts the seeds. On either side the interval reaches as far as the wider of two. One is
    Student's t over the seeds, which is about other seeds than these. The other is the mean of the
    figures' own intervals, which is about other pairs. Seeds may share their pairs, whose error
    does not average out. They may also agree by chance, where Student's t has no width. For one
    seed it is the seed's own interval.

    Raises:
        ValueError: for no figures.
    """
    if not figures:
        raise ValueError("There is no seed to compute an interval over.")
    values, lows, highs, _ = np.array(figures).T
    mean, low, high = float(values.mean()), float(lows.mean()), float(highs.mean())
    n = len(figures)
    if n > 1:
        from scipy.stats import t  # takes half a second to import, which no other figure needs

        quantile = t.ppf((1 + confidence) / 2, n - 1)
        reach = float(quantile * values.std(ddof=1) / sqrt(n))
        low = min(low, max(0.0, mean - reach))
        high = max(high, min(1.0, mean + reach))
    return Interval(mean, low, high, n)
