"""What a run is: a recipe holds every number of it, nested by what the number concerns.

A recipe is built by a function (see `recipes/`), changed with `with_settings(recipe, ["optimizer.momentum=0.9"])`
and stored whole in every run record. Learning rates and decays are those of the mean loss; `loss.scale` only
changes the magnitude that gradients have in half precision.
"""

import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import UserError

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "celu"]
View = Literal["single_view", "mirror", "six_view"]
VIEWS: tuple[View, ...] = typing.get_args(View)


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """Shape and initialisation of `nets.SpeedyResNet`."""

    widths: tuple[int, ...] = (64, 256, 256)
    """Channels of each group, before `width_multiplier`."""
    group_convolutions: int = 2
    """3x3 convolutions a group; the first is followed by the 2x2 max-pool."""
    residual: Literal["none", "after_activation", "before_activation"] = "none"
    """Where the output of a group's first convolution is added to that of its last."""
    activation: Activation = "gelu"
    """Behind every batch norm."""
    whitening_activation: Activation = "gelu"
    """Right behind the whitening, where no projection follows it."""
    pool: Literal["before_norm", "after_norm"] = "before_norm"
    """Where the max-pool of a group stands; behind the norm it is behind the activation too."""
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """Of weights and activations; the kernels of the net take channels_last only."""
    whitening_kernel: int = 2
    """0: no whitening, groups see the images themselves."""
    whitening_stride: int = 1
    whitening_padding: int = 0
    whitening_sign_pairs: bool = True
    """Append the negated filters, so that an activation right behind them loses nothing."""
    whitening_bias: bool = True
    whitening_bias_init: Literal["zero", "uniform"] = "zero"
    """`uniform`: within 1 / sqrt(inputs of one output), PyTorch's default for the bias of a convolution."""
    whitening_images: int = 5000
    whitening_centered: bool = False
    """Subtract the mean patch from the covariance."""
    whitening_epsilon: float = 5e-4
    project_width: int = 0
    """Channels of a 1x1 convolution, batch norm and activation behind the whitening; 0 leaves them out."""
    batch_norm_momentum: float = 0.4
    """Weight of the new batch in the running statistics (PyTorch's sense)."""
    batch_norm_epsilon: float = 1e-12
    batch_norm_precision: Literal["float32", "native"] = "float32"
    """Of its parameters and statistics, at least; `native`: that of the other weights, which no kernel takes."""
    batch_norm_scale: Literal["frozen", "learned"] = "frozen"
    """`frozen` at 1."""
    convolution_init: Literal["default", "dirac", "dirac_blend"] = "dirac"
    """`dirac`: the first C_in filters become identities. `dirac_blend`: identities are added to a group's first
    convolution, which is brought back to its old mean and deviation; its other convolutions are pure identities."""
    head_init: Literal["default", "unit_deviation"] = "default"
    """`unit_deviation`: PyTorch's default, brought to a standard deviation of 1."""
    logit_scale: float = 1 / 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What is drawn anew for each image and epoch."""

    padding: int = 2
    """Pixels added on each side before a window of the image's own size is cropped out."""
    padding_mode: Literal["reflect", "zero"] = "reflect"
    flip: Literal["none", "random", "alternating"] = "alternating"
    """`alternating`: a coin per image decides the first epoch, then every epoch mirrors it anew."""
    cutout: int = 0
    """Side of the zeroed square in pixels; 0 is off."""
    cutmix: int = 0
    """Side of the square pasted from another image in pixels; 0 is off."""
    brightness: float = 0.0
    """A number drawn from [-brightness, brightness) is added to an image, in normalised units."""
    contrast: float = 0.0
    """Then it is multiplied with one from [1 - contrast, 1 + contrast)."""
    cutmix_epochs: float = 0.0
    """Cutmix is on in whole epochs that begin in the last so many epochs."""
    sizes: tuple[int, ...] = ()
    """Side that windows are scaled down to, epoch by epoch; the last one holds on, 0 leaves them as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Cross-entropy against smoothed labels."""

    label_smoothing: float = 0.2
    scale: float = 1.0
    """Factor on the loss summed over the batch; keeps half-precision gradients in range, changes no update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Muon:
    """Orthogonalised Nesterov momentum, see `optim.muon_`; its learning rate does not depend on the loss's scale."""

    learning_rate: float = 0.24
    """Peak."""
    momentum: float = 0.6
    weight_decay: float = 0.0
    """A step at learning rate r shrinks the filter banks by r * weight_decay."""
    newton_schulz_steps: int = 3
    newton_schulz_coefficients: tuple[float, ...] = (3.4445, -4.7750, 2.0315)
    """Of x, (x x^T) x and (x x^T)^2 x."""
    newton_schulz_dtype: Literal["float16", "bfloat16", "float32", "float64"] = "bfloat16"
    renormalise_every: int = 1
    """Steps between two renormalisations of the filter banks at the start of a run; 0: never."""
    renormalise_growth: int = 0
    """Steps by which that interval has grown when a run ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """SGD with Nesterov momentum as torch.optim.SGD defines it; with `muon` not for the weights of convolutions."""

    kind: Literal["sgd", "muon"] = "sgd"
    """Who trains the weights of convolutions."""
    learning_rate: float = 1.5
    """Peak, for the mean loss."""
    momentum: float = 0.85
    weight_decay: float = 0.0153 / 11.5
    """For the mean loss: a step at the peak shrinks weights by learning_rate * weight_decay."""
    batch_norm_bias_scale: float = 64.0
    """Batch-norm biases learn that much faster, with the same decay a step."""
    head_scale: float = 1.0
    """The head learns that much faster, with the same decay a step."""
    whitening_bias_epochs: float = 3.0
    """Epochs after which the whitening bias is frozen."""
    master_weights: bool = False
    """Keep weights, gradients and momentum in float32 and cast the weights in each step, whatever `dtype` is."""
    muon: Muon = field(default_factory=Muon)

    @property
    def convolution_learning_rate(self) -> float:
        """Peak learning rate of the weights of convolutions."""
        return self.muon.learning_rate if self.kind == "muon" else self.learning_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Learning rate as a multiple of its peak, one value a step; see `schedules.py`."""

    kind: Literal["triangle", "one_cycle", "linear"] = "triangle"
    """`linear` has no rise: neither `start` nor `peak` matters."""
    start: float = 0.2
    peak: float = 0.23
    """Fraction of the steps at which the peak is reached."""
    end: float = 0.07
    epochs: float | None = None
    """Epochs until the end of the curve, whose last value holds on; none: those of the run."""
    floor: float = 0.0
    """Never less than that."""
    whitening_bias: Literal["shared", "linear"] = "shared"
    """`linear`: the whitening bias has a schedule of its own, from 1 at the first step to 0 where it is frozen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaging:
    """A slow copy of weights and statistics, moved every few steps; `lookahead` also writes it back."""

    kind: Literal["none", "ema", "lookahead"] = "lookahead"
    every: int = 5
    """Steps between two moves."""
    decay: float = 0.95
    """Per step, so that the copy keeps decay ** every of itself at a move."""
    power: float = 3.0
    """The decay grows with (step / steps) ** power; 0 keeps it constant."""
    epochs: int | None = None
    """Averages only the last so many of the whole epochs; none starts from the initial weights."""
    tail: float | None = None
    """Averages only so many epochs at the end of the run, instead."""
    finish: bool = True
    """Ends with the slow copy written back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is reported at the end."""

    view: View = "six_view"
    """The most views to average; those with fewer come with it."""
    share: float = 1.0
    """Extra views only for so many of the images, those whose single view is least confident."""
    weights: Literal["live", "averaged"] = "live"
    batch_size: int = 2000
    every: int = 1
    """Epochs between validations during training (outside the clocks); 0 leaves them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A figure somebody published for a recipe."""

    accuracy: float
    seconds: float
    hardware: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a run, but for the data, the seed and the machine."""

    name: str
    summary: str
    source: str
    claim: Claim | None = None
    batch_size: int = 1024
    epochs: float = 9.9
    """May end in the middle of an epoch."""
    width_multiplier: float = 1.0
    """Scales the channels of every layer but the whitening."""
    dtype: Literal["auto", "float16", "bfloat16", "float32", "float64"] = "auto"
    """Of activations and, without master weights, of weights; batch norm is never below float32.

    auto: float16 on a GPU; on a CPU float32, or bfloat16 where the recipe keeps master weights and the CPU has
    instructions for it (AMX or AVX512-BF16).
    """
    kernels: Literal["auto", "triton", "reference"] = "auto"
    net: Net = field(default_factory=Net)
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    averaging: Averaging = field(default_factory=Averaging)
    evaluation: Evaluation = field(default_factory=Evaluation)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 over all numbers (name, texts and claim left out)."""
        numbers = dataclasses.asdict(self)
        for text in ("name", "summary", "source", "claim"):
            del numbers[text]
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]


RecipeFunction = Callable[[], Recipe]


def _registered() -> dict[str, RecipeFunction]:
    from .recipes import registered_recipes  # the recipes import this module

    return registered_recipes()


def nearest_names(name: str, names: Iterable[str]) -> str:
    """A hint that lists those of `names` that are like `name`, or else the three that are least unlike it."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=3) or difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    return f"did you mean {' or '.join(close)}?" if close else "there is none"


def recipe(name: str, settings: Iterable[str] = ()) -> Recipe:
    """The recipe called `name`, or made by `my_file.py:function`, with `a.b=value` settings applied.

    Raises:
        UserError: unknown name, unusable file or function, unknown or ill-typed setting.
    """
    made = _recipe_from_file(name) if ".py:" in name else _recipe_by_name(name)
    return with_settings(made, settings)


def _recipe_by_name(name: str) -> Recipe:
    known = _registered()
    if name not in known:
        hint = nearest_names(name, known)
        raise UserError(f"unknown recipe {name!r}: {hint} (your own: --recipe file.py:function)")
    return known[name]()


def _recipe_from_file(reference: str) -> Recipe:
    file, _, function = reference.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"recipe file {file} does not exist")
    spec = importlib.util.spec_from_file_location(f"speedyresnet_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"recipe file {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made = getattr(module, function)() if hasattr(module, function) else None
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises is the user's to mend
        reason = " ".join(str(error).split())
        raise UserError(f"recipe {reference} failed: {type(error).__name__}: {reason}") from error
    if not hasattr(module, function):
        functions = [name for name, _ in inspect.getmembers(module, inspect.isfunction)]
        raise UserError(f"{file} has no function {function!r}; {nearest_names(function, functions)}")
    if not isinstance(made, Recipe):
        raise UserError(f"{reference} returned {type(made).__name__}, not a speedyresnet.engine.Recipe")
    _check_ranges(made)
    return made


def with_settings(base: Recipe, settings: Iterable[str]) -> Recipe:
    """`base` with each `key=value` or `part.key=value` of `settings` replaced.

    Raises:
        UserError: unknown key (names its neighbours), a value of the wrong type or out of range.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write it as key=value, for example --set epochs=2")
        base = _replaced(base, key.strip().split("."), text.strip(), key.strip())
    _check_ranges(base)
    return base


def _replaced(part: Any, path: list[str], text: str, key: str) -> Any:
    hints = typing.get_type_hints(type(part))
    if path[0] not in hints:
        raise UserError(f"unknown setting {key!r}: {nearest_names(key, setting_names(Recipe))}")
    value = getattr(part, path[0])
    if dataclasses.is_dataclass(value) or len(path) > 1:
        if not dataclasses.is_dataclass(value) or len(path) == 1:
            raise UserError(f"unknown setting {key!r}: {nearest_names(key, setting_names(Recipe))}")
        return dataclasses.replace(part, **{path[0]: _replaced(value, path[1:], text, key)})
    return dataclasses.replace(part, **{path[0]: _parsed(text, hints[path[0]], key)})


def setting_names(kind: type, prefix: str = "") -> list[str]:
    """All keys that `--set` takes, dotted."""
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            names += setting_names(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif name != "claim":
            names.append(prefix + name)
    return names


def _parsed(text: str, hint: Any, key: str) -> Any:
    """The value that `text` stands for under the type `hint`."""
    kinds = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        if text.lower() == "none":
            return None
        hint = next(kind for kind in kinds if kind is not types.NoneType)
    if typing.get_origin(hint) is Literal:
        if text not in kinds:
            raise UserError(f"--set {key}={text}: expected one of {', '.join(kinds)}")
        return text
    if typing.get_origin(hint) is tuple:
        return tuple(_parsed(item, kinds[0], key) for item in text.strip("()[]").split(",") if item.strip())
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"--set {key}={text}: expected true or false")
        return text.lower() == "true"
    if hint not in (int, float, str):
        raise UserError(f"--set {key}: this cannot be set from the command line")
    try:
        return hint(text)
    except ValueError:
        raise UserError(f"--set {key}={text}: expected {'a number' if hint is float else 'an integer'}") from None


def _check_ranges(made: Recipe) -> None:
    """Raises UserError for a value no run can have."""
    net, loss, optimizer, muon = made.net, made.loss, made.optimizer, made.optimizer.muon
    limits: list[tuple[str, bool, str]] = [
        ("batch_size", made.batch_size >= 1, "at least 1"),
        ("epochs", 0 < made.epochs < 1e6, "above 0"),
        ("width_multiplier", 0 < made.width_multiplier <= 64, "above 0 and at most 64"),
        ("net.widths", len(net.widths) > 0 and min(net.widths) > 0, "one or more positive integers"),
        ("net.group_convolutions", net.group_convolutions >= 1, "at least 1"),
        ("net.whitening_kernel", 0 <= net.whitening_kernel <= 8, "between 0 and 8"),
        ("net.whitening_padding", 0 <= net.whitening_padding <= net.whitening_kernel, "0 to net.whitening_kernel"),
        ("net.whitening_stride", net.whitening_stride >= 1, "at least 1"),
        ("net.whitening_images", net.whitening_images >= 1, "at least 1"),
        ("net.whitening_epsilon", net.whitening_epsilon > 0, "above 0"),
        ("net.project_width", net.project_width >= 0, "0 or more"),
        ("net.batch_norm_momentum", 0 < net.batch_norm_momentum <= 1, "above 0 and at most 1"),
        ("net.batch_norm_epsilon", net.batch_norm_epsilon >= 0, "0 or more"),
        ("augmentation.padding", made.augmentation.padding >= 0, "0 or more"),
        ("augmentation.cutout", made.augmentation.cutout >= 0, "0 or more"),
        ("augmentation.cutmix", made.augmentation.cutmix >= 0, "0 or more"),
        ("augmentation.brightness", made.augmentation.brightness >= 0, "0 or more"),
        ("augmentation.contrast", 0 <= made.augmentation.contrast <= 1, "between 0 and 1"),
        ("loss.label_smoothing", 0 <= loss.label_smoothing < 1, "between 0 and 1"),
        ("loss.scale", loss.scale > 0, "above 0"),
        ("optimizer.learning_rate", optimizer.learning_rate >= 0, "0 or more"),
        ("optimizer.momentum", 0 <= optimizer.momentum < 1, "between 0 and 1"),
        ("optimizer.weight_decay", optimizer.weight_decay >= 0, "0 or more"),
        ("optimizer.batch_norm_bias_scale", optimizer.batch_norm_bias_scale > 0, "above 0"),
        ("optimizer.head_scale", optimizer.head_scale > 0, "above 0"),
        ("optimizer.muon.learning_rate", muon.learning_rate >= 0, "0 or more"),
        ("optimizer.muon.momentum", 0 <= muon.momentum < 1, "between 0 and 1"),
        ("optimizer.muon.weight_decay", muon.weight_decay >= 0, "0 or more"),
        ("optimizer.muon.newton_schulz_steps", muon.newton_schulz_steps >= 1, "at least 1"),
        ("optimizer.muon.newton_schulz_coefficients", len(muon.newton_schulz_coefficients) == 3, "three numbers"),
        ("optimizer.muon.renormalise_every", muon.renormalise_every >= 0, "0 or more"),
        ("optimizer.muon.renormalise_growth", muon.renormalise_growth >= 0, "0 or more"),
        ("optimizer.whitening_bias_epochs", optimizer.whitening_bias_epochs >= 0, "0 or more"),
        ("schedule.peak", 0 <= made.schedule.peak < 1, "between 0 and 1"),
        ("averaging.every", made.averaging.every >= 1, "at least 1"),
        ("averaging.epochs", made.averaging.epochs is None or made.averaging.epochs >= 1, "none or at least 1"),
        ("averaging.decay", 0 <= made.averaging.decay <= 1, "between 0 and 1"),
        ("evaluation.batch_size", made.evaluation.batch_size >= 1, "at least 1"),
        ("evaluation.every", made.evaluation.every >= 0, "0 or more"),
    ]
    for key, holds, wanted in limits:
        if not holds:
            raise UserError(f"{key} must be {wanted}")
    if made.evaluation.weights == "averaged" and made.averaging.kind == "none":
        raise UserError("evaluation.weights=averaged needs an averaging.kind other than none")


def recipe_from_dict(stored: dict[str, Any]) -> Recipe:
    """The recipe whose `dataclasses.asdict` was stored in a run record or a model file.

    Raises:
        UserError: a key or a type that no recipe of this version has.
    """
    made = _dataclass_from_dict(Recipe, {key: value for key, value in stored.items() if key != "hash"}, "recipe")
    _check_ranges(made)
    return made  # type: ignore[no-any-return]


def _dataclass_from_dict(kind: Any, stored: Any, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    if not isinstance(stored, dict) or set(stored) != set(hints):
        raise UserError(f"{where} was stored by another version or is damaged")
    return kind(**{key: _from_json(value, hints[key], f"{where}.{key}") for key, value in stored.items()})


def _from_json(value: Any, hint: Any, where: str) -> Any:
    """`value` from parsed JSON, checked against the type `hint`."""
    kinds = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        return _from_json(value, next(kind for kind in kinds if kind is not types.NoneType), where)
    if dataclasses.is_dataclass(hint):
        return _dataclass_from_dict(hint, value, where)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_from_json(item, kinds[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    fits = value in kinds if typing.get_origin(hint) is Literal else type(value) is hint
    if not fits:
        raise UserError(f"{where} was stored by another version or is damaged")
    return value
