"""What makes a recipe one that can run: types, limits, and values that go together."""

from typing import Any

from .errors import UserError
from .limits import check_limits
from .recipe import Net, Recipe
from .typed_values import typed_value


def checked_recipe(made: object) -> Recipe:
    """`made` itself, or the recipe whose `dataclasses.asdict` it is, with every type and range checked.

    Raises:
        UserError: a part or number that is missing, of the wrong type or out of range.
    """
    typed: Recipe = typed_value(made, Recipe, "")
    check_values(typed)
    return typed


def recipe_from_dict(stored: dict[str, Any]) -> Recipe:
    """The recipe whose `dataclasses.asdict` was stored in a run record or a model file.

    Raises:
        UserError: a key or a type that no recipe of this version has.
    """
    if isinstance(stored, dict):
        stored = {key: value for key, value in stored.items() if key != "hash"}
    try:
        return checked_recipe(stored)
    except UserError as error:
        raise UserError(f"the recipe was stored by another version or is damaged: {error}") from error


def check_values(made: Recipe) -> None:
    """Raise UserError for a value that no run can have; its type is right."""
    check_limits(made)
    _check_texts(made)
    _check_combinations(made)


def _check_texts(made: Recipe) -> None:
    """Raise UserError for texts that do not print as one line."""
    lines = {key: (getattr(made, key),) for key in ("name", "summary", "source", "data")}
    for key, texts in (lines | {"faithful": made.faithful, "mended": made.mended}).items():
        if not all(text.isprintable() and len(text) <= 1000 for text in texts) or not made.name:
            raise UserError(f"{key} must be one line of at most 1000 printable characters; the name must not be empty")


def _check_combinations(made: Recipe) -> None:
    """Raise UserError for values that do not go together."""
    if made.net.whitening_padding > made.net.whitening_kernel:
        raise UserError("net.whitening_padding must be at most net.whitening_kernel")
    for name in ("project_kernel", "first_kernel"):
        if getattr(made.net, name) % 2 == 0:
            raise UserError(f"net.{name} must be odd, not {getattr(made.net, name)}")
    for name in ("single_groups", "pointwise_groups"):
        if max(getattr(made.net, name), default=0) >= len(made.net.widths):
            raise UserError(f"net.{name} must be below {len(made.net.widths)}, the number of groups")
    if made.net.pre_activation_blocks:
        _check_pre_activation(made.net)
    if made.batch_size % made.net.batch_norm_groups:
        raise UserError(f"batch_size must be a multiple of net.batch_norm_groups, {made.net.batch_norm_groups}")
    if made.net.squeeze_excite_ratio and made.net.group_convolutions == 1:
        raise UserError(
            "net.squeeze_excite_ratio needs net.group_convolutions of 2 or more: it scales the last of them"
        )
    knots = made.schedule.knots
    if made.schedule.kind == "piecewise" and not (knots and list(knots) == sorted(set(knots))):
        raise UserError(f"schedule.knots must be one or more rising numbers for schedule.kind=piecewise, not {knots}")
    if len(knots) != len(made.schedule.values):
        raise UserError(f"schedule.values must be as many numbers as schedule.knots, {len(knots)}")
    if made.schedule.kind in ("exponential", "cyclic_exp_range") and made.schedule.end == 0:
        raise UserError(f"schedule.kind={made.schedule.kind} needs a schedule.end above 0: it falls by factors")
    if made.evaluation.weights == "averaged" and made.averaging.kind == "none":
        raise UserError("evaluation.weights=averaged needs an averaging.kind other than none")
    if made.averaging.momentum and made.averaging.kind != "lookahead":
        raise UserError(
            f"averaging.momentum={made.averaging.momentum:g} needs averaging.kind=lookahead: it is of the slow weights "
            f"that are written back"
        )


def _check_pre_activation(net: Net) -> None:
    """Raise UserError for settings of what pre-activation blocks are instead of."""
    wanted = Net(convolution_init="default")
    for name in (
        "convolution_init", "group_convolutions", "first_kernel", "single_groups", "pointwise_groups", "residual",
        "squeeze_excite_ratio", "pool",
    ):  # fmt: skip
        if getattr(net, name) != getattr(wanted, name):
            blocks, value = net.pre_activation_blocks, getattr(wanted, name)
            raise UserError(f"net.pre_activation_blocks={blocks} needs net.{name}={value}")
