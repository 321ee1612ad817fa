"""What a handful of measurements says: means, spreads and one-sided bounds.

Bounds are Student's t bounds of the mean, which need scipy (extra `bench`).
"""

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
