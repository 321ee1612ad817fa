"""For CPUs: what a laptop trains in about two minutes."""

import dataclasses

from ..recipe import Recipe
from .airbench import airbench94


def pocket() -> Recipe:
    """airbench94 at half width and a smaller batch."""
    base = airbench94()
    return dataclasses.replace(
        base,
        name="pocket",
        summary="for CPUs: airbench94 at half width with batch 512",
        source="this project",
        claim=None,
        batch_size=512,
        epochs=4.0,
        width_multiplier=0.5,
        dtype="bfloat16",
    )


RECIPES = (pocket,)
