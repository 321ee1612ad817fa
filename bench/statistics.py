"""Statistics of a few measurements: means, spreads, one-sided bounds, and ratios with an interval.

Bounds and intervals use Student's t, which needs scipy (extra `bench`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speedyresnet.engine.errors import UserError

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Summary of one quantity over n runs, in its own unit."""

    n: int
    mean: float
    std: float | None
    """Sample standard deviation; None for a single run."""
    minimum: float
    quantile_05: float
    median: float
    quantile_95: float
    maximum: float
    lower_bound: float | None
    """The mean is above this with 95 % confidence, one-sided; None for a single run."""
    upper_bound: float | None
    """The mean is below this with 95 % confidence, one-sided; None for a single run."""


def student_t_quantile(confidence: float, degrees_of_freedom: int) -> float:
    """Return the value that a t-distributed number stays below with probability `confidence`.

    Raises:
        UserError: scipy is not installed.
    """
    try:
        from scipy.stats import t
    except ModuleNotFoundError as error:
        raise UserError("confidence bounds need scipy: pip install 'speedyresnet[bench]'") from error
    return float(t.ppf(confidence, degrees_of_freedom))


def summary(values: Sequence[float]) -> Summary:
    """Return the summary of one or more `values`."""
    array = np.asarray(values, dtype=np.float64)
    n, mean = len(array), float(array.mean())
    quantiles = [float(value) for value in np.quantile(array, [0.0, 0.05, 0.5, 0.95, 1.0])]
    std = float(array.std(ddof=1)) if n > 1 else None
    margin = student_t_quantile(CONFIDENCE, n - 1) * std / n**0.5 if std is not None else None
    return Summary(
        n=n,
        mean=mean,
        std=std,
        minimum=quantiles[0],
        quantile_05=quantiles[1],
        median=quantiles[2],
        quantile_95=quantiles[3],
        maximum=quantiles[4],
        lower_bound=None if margin is None else mean - margin,
        upper_bound=None if margin is None else mean + margin,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Interval of a mean, in the unit of its values."""

    mean: float
    lower: float | None
    """The true mean is between lower and upper with 95 % confidence; None for a single value."""
    upper: float | None


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of one or more `values` with its t interval, for paired differences the paired t interval."""
    array = np.asarray(values, dtype=np.float64)
    n, mean = len(array), float(array.mean())
    if n == 1:
        return Interval(mean=mean, lower=None, upper=None)
    margin = student_t_quantile((1 + CONFIDENCE) / 2, n - 1) * float(array.std(ddof=1)) / n**0.5
    return Interval(mean=mean, lower=mean - margin, upper=mean + margin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Ratio of one quantity to another over n pairs measured side by side."""

    n: int
    value: float
    """Geometric mean of the pairs' ratios, so that swapping the two quantities inverts it."""
    low: float | None
    high: float | None
    """The true ratio is between low and high with 95 % confidence; None for a single pair."""


def paired_ratio(pairs: Sequence[tuple[float, float]]) -> Ratio | None:
    """Return the ratio of first to second in positive `pairs`, by Student's t on log ratios; None without pairs."""
    if not pairs:
        return None
    logs = mean_interval([math.log(first / second) for first, second in pairs])
    low, high = (None if bound is None else math.exp(bound) for bound in (logs.lower, logs.upper))
    return Ratio(n=len(pairs), value=math.exp(logs.mean), low=low, high=high)
