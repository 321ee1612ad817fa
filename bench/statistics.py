"""What a handful of measurements says: means, spreads, one-sided bounds, and ratios with an interval.

Bounds and intervals are Student's t, which needs scipy (extra `bench`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speedyresnet.engine.errors import UserError

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of one quantity over n runs, in its own unit."""

    n: int
    mean: float
    std: float | None
    """Sample standard deviation; none of a single run."""
    minimum: float
    quantile_05: float
    median: float
    quantile_95: float
    maximum: float
    lower_bound: float | None
    """The mean is above this with 95 % confidence, one-sided; none of a single run."""
    upper_bound: float | None
    """The mean is below this with 95 % confidence, one-sided; none of a single run."""


def student_t_quantile(confidence: float, degrees_of_freedom: int) -> float:
    """The value that a t-distributed number stays below with probability `confidence`.

    Raises:
        UserError: scipy is not installed.
    """
    try:
        from scipy.stats import t
    except ModuleNotFoundError as error:
        raise UserError("confidence bounds need scipy: pip install 'speedyresnet[bench]'") from error
    return float(t.ppf(confidence, degrees_of_freedom))


def summary(values: Sequence[float]) -> Summary:
    """The summary of one or more `values`."""
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
    """Of a mean, in the unit of its values."""

    mean: float
    lower: float | None
    """The true mean is between lower and upper with 95 % confidence; none of a single value."""
    upper: float | None


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of one or more `values`, with Student's t; of paired differences that is the paired t interval."""
    array = np.asarray(values, dtype=np.float64)
    n, mean = len(array), float(array.mean())
    if n == 1:
        return Interval(mean=mean, lower=None, upper=None)
    margin = student_t_quantile((1 + CONFIDENCE) / 2, n - 1) * float(array.std(ddof=1)) / n**0.5
    return Interval(mean=mean, lower=mean - margin, upper=mean + margin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as much one thing took as another, over n pairs measured side by side."""

    n: int
    value: float
    """Geometric mean of the pairs' ratios, so that a over b is one over b over a."""
    low: float | None
    high: float | None
    """The true ratio is between low and high with 95 % confidence; none of a single pair."""


def paired_ratio(pairs: Sequence[tuple[float, float]]) -> Ratio | None:
    """The first over the second of `pairs`, all positive; none of no pairs. Student's t on the pairs' log ratios."""
    if not pairs:
        return None
    logs = mean_interval([math.log(first / second) for first, second in pairs])
    low, high = (None if bound is None else math.exp(bound) for bound in (logs.lower, logs.upper))
    return Ratio(n=len(pairs), value=math.exp(logs.mean), low=low, high=high)
