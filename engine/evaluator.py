"""Evaluation of the weights of a run on its test images, with the backend that its steps have."""

import dataclasses
import time
from collections.abc import Callable

from torch import Tensor

from .backends import CAPTURING, make_scorer
from .device import synchronize
from .evaluate import Accuracy, LabelledImages, Scores, read_scores
from .recipe import View
from .step import TrainingState


class Evaluator:
    """Evaluates the live or the averaged weights of a state; each kind is compiled or captured when first asked for.

    Args:
        state: whose net is evaluated.
        data: all test images, on the device of the state; their content may change.
        backend: how.
    """

    def __init__(self, state: TrainingState, data: LabelledImages, backend: str) -> None:
        self._state, self._data, self._backend = state, data, backend
        self._scorers: dict[tuple[str, View], Callable[[], dict[str, Tensor]]] = {}

    def warm_up(self) -> None:
        """Do once what the final evaluation does, so that compilation and the libraries' own set-up are over."""
        settings = self._state.recipe.evaluation
        if self._backend in CAPTURING:
            self.evaluate()
            return
        few = slice(0, settings.batch_size)  # one batch sets everything up
        part = dataclasses.replace(self._data, images=self._data.images[few], labels=self._data.labels[few])
        self._state.net.eval()
        self._scorer(settings.weights, settings.view, part)()

    def scores(self, weights: str, view: View = "single_view") -> Scores:
        """Accuracy and loss on all test images of the `live` or `averaged` weights; leaves the net evaluating."""
        self._state.net.eval()
        if (weights, view) not in self._scorers:
            self._scorers[weights, view] = self._scorer(weights, view, self._data)
        return read_scores(self._scorers[weights, view](), len(self._data.labels))

    def evaluate(self) -> tuple[Accuracy, float]:
        """The recipe's final evaluation, and the seconds it took."""
        started = time.perf_counter()
        settings = self._state.recipe.evaluation
        accuracy = self.scores(settings.weights, settings.view).accuracy
        synchronize(self._state.images.device)
        return Accuracy(weights=settings.weights, **accuracy), time.perf_counter() - started

    def _scorer(self, weights: str, view: View, data: LabelledImages) -> Callable[[], dict[str, Tensor]]:
        other = self._state.averaged_state() if weights == "averaged" else None
        return make_scorer(self._state, self._backend, other, data, view)
