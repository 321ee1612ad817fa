"""Which cases of a test run by default, and which only with `pytest -m exhaustive`."""

import pytest


def parametrize(names, cases, *, default, ids=None):
    """`pytest.mark.parametrize`, of whose cases only some run by default.

    Args:
        names: of the arguments, a string for one and a tuple for several.
        cases: a value, or a tuple of values, each.
        default: the first so many cases, or a list of those that run by default.
        ids: as in `pytest.mark.parametrize`.
    """
    cases = list(cases)
    chosen = cases[:default] if isinstance(default, int) else default
    unknown = [case for case in chosen if case not in cases]
    assert not unknown, unknown
    values = [(case,) if isinstance(names, str) else case for case in cases]
    marked = [
        pytest.param(*value, marks=() if case in chosen else pytest.mark.exhaustive)
        for case, value in zip(cases, values, strict=True)
    ]
    return pytest.mark.parametrize(names, marked, ids=ids)
