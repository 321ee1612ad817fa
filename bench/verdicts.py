"""Whether a difference in accuracy and time is an improvement: better, worse, cannot tell, and why."""

from typing import Literal

from .statistics import Interval

Verdict = Literal["better", "worse", "cannot tell"]
ACCURACY_TOLERANCE = 0.001
"""Accuracy lost or gained that is no loss or gain: 0.1 points."""
TIME_TOLERANCE = 0.01
"""Likewise, of the base's time."""


def told(interval: Interval, factor: float, digits: int, unit: str) -> str:
    """A difference in words, with the interval where there is one."""
    text = f"{factor * interval.mean:+.{digits}f}{unit}"
    if interval.lower is None or interval.upper is None:
        return text
    return f"{text} ({factor * interval.lower:+.{digits}f} to {factor * interval.upper:+.{digits}f})"


def told_accuracy(difference: Interval) -> str:
    """A difference in accuracy in words, in points."""
    return told(difference, 100, 2, " points")


def seconds_per_tenth_point(accuracy: Interval, seconds: Interval) -> float | None:
    """Seconds that 0.1 point of accuracy costs or, where both fall, that it is given up for.

    None where the accuracy may not differ at all, and where nothing is traded: one rises and the other falls.
    """
    if accuracy.lower is None or accuracy.upper is None or accuracy.lower <= 0 <= accuracy.upper:
        return None
    ratio = seconds.mean / (accuracy.mean * 1000)
    return ratio if ratio >= 0 else None


def verdict_on(accuracy: Interval, seconds: Interval, base_seconds: float) -> tuple[Verdict, str]:
    """Better: a sure gain in accuracy or time, and surely no loss in either that matters. Worse: the other way round.

    A gain is sure where its interval leaves out zero; a loss matters beyond 0.1 points or 1 % of the time.

    Args:
        accuracy: difference to the base, a fraction.
        seconds: difference to the base.
        base_seconds: what the base takes.

    Returns:
        The verdict and one sentence.
    """
    if accuracy.lower is None or accuracy.upper is None or seconds.lower is None or seconds.upper is None:
        return "cannot tell", "one run says nothing about the spread: run more seeds"
    limit = TIME_TOLERANCE * base_seconds
    gains, losses = accuracy.lower > 0 or seconds.upper < 0, accuracy.upper < 0 or seconds.lower > 0
    no_loss = accuracy.lower > -ACCURACY_TOLERANCE and seconds.upper < limit
    no_gain = accuracy.upper < ACCURACY_TOLERANCE and seconds.lower > -limit
    found = f"accuracy {told_accuracy(accuracy)}, time {told(seconds, 1, 3, ' s')}"
    if no_loss and no_gain:
        return "cannot tell", f"{found}: no difference that matters"
    if gains and no_loss:
        return "better", f"{found}: a gain, and no loss that matters"
    if losses and no_gain:
        return "worse", f"{found}: a loss, and no gain that matters"
    if gains and losses:
        return "cannot tell", f"{found}: a trade, --seconds-per-tenth-point says what accuracy is worth"
    return "cannot tell", f"{found}: too uncertain, run more seeds"


def verdict_at_rate(seconds_worth: Interval, rate: float) -> tuple[Verdict, str]:
    """The same where accuracy has a price.

    Args:
        seconds_worth: seconds saved, with the accuracy gained counted as seconds at `rate`.
        rate: seconds per 0.1 point.
    """
    found = f"at {rate:g} s per 0.1 point worth {told(seconds_worth, 1, 3, ' s')}"
    if seconds_worth.lower is None or seconds_worth.upper is None:
        return "cannot tell", f"{found}, but one run says nothing about the spread: run more seeds"
    if seconds_worth.lower > 0:
        return "better", found
    return ("worse", found) if seconds_worth.upper < 0 else ("cannot tell", f"{found}: run more seeds")


def verdict_of_diverged(accuracy: Interval, diverged: str) -> tuple[Verdict, str]:
    """The same where runs diverged, whose time says nothing: by accuracy alone.

    Args:
        accuracy: difference to the base, a fraction; a diverged run guesses.
        diverged: who did, in words.
    """
    why = f"{diverged}, so only accuracy counts: {told_accuracy(accuracy)}"
    if accuracy.lower is not None and accuracy.lower > 0:
        return "better", why
    return ("worse", why) if accuracy.upper is not None and accuracy.upper < 0 else ("cannot tell", why)
