"""Verdicts on differences in accuracy and time: better, worse or cannot tell, and why."""

from typing import Literal

from .statistics import Interval

Verdict = Literal["better", "worse", "cannot tell"]
ACCURACY_TOLERANCE = 0.001
"""Difference in accuracy that does not count as a loss or gain: 0.1 points."""
TIME_TOLERANCE = 0.01
"""The same for time, as a fraction of the base's time."""


def told(interval: Interval, factor: float, digits: int, unit: str) -> str:
    """Return a difference in words, with its interval if there is one."""
    text = f"{factor * interval.mean:+.{digits}f}{unit}"
    if interval.lower is None or interval.upper is None:
        return text
    return f"{text} ({factor * interval.lower:+.{digits}f} to {factor * interval.upper:+.{digits}f})"


def told_accuracy(difference: Interval) -> str:
    """Return a difference in accuracy in words, in points."""
    return told(difference, 100, 2, " points")


def seconds_per_tenth_point(accuracy: Interval, seconds: Interval) -> float | None:
    """Return the seconds that 0.1 points of accuracy cost or, if both fall, save.

    None if the accuracy may not differ at all, or if nothing is traded: one rises and the other falls.
    """
    if accuracy.lower is None or accuracy.upper is None or accuracy.lower <= 0 <= accuracy.upper:
        return None
    ratio = seconds.mean / (accuracy.mean * 1000)
    return ratio if ratio >= 0 else None


def verdict_on(accuracy: Interval, seconds: Interval, base_seconds: float) -> tuple[Verdict, str]:
    """Return the verdict on a difference in accuracy and time.

    Better: one metric improves (its 95 % interval excludes zero) and neither gets worse by 0.1 points or 1 % of the
    time (their intervals exclude it). Worse: the reverse.

    Args:
        accuracy: difference to the base, a fraction.
        seconds: difference to the base.
        base_seconds: time of the base.

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
    """Return the verdict if accuracy has a price.

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
    """Return the verdict if runs diverged: by accuracy alone, since their time means nothing.

    Args:
        accuracy: difference to the base, a fraction; a diverged run guesses.
        diverged: which runs diverged, in words.
    """
    why = f"{diverged}, so only accuracy counts: {told_accuracy(accuracy)}"
    if accuracy.lower is not None and accuracy.lower > 0:
        return "better", why
    return ("worse", why) if accuracy.upper is not None and accuracy.upper < 0 else ("cannot tell", why)
