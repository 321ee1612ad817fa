"""What a run is: a recipe holds every number of it, nested by what the number concerns.

A recipe is built by a function (see `recipes/`), changed with `with_settings(recipe, ["optimizer.momentum=0.9"])`
and stored whole in every run record and model file. A stored recipe that lacks a setting has its default, so the
default of a new setting is what was done before there was one. Learning rates and decays are those of the mean loss;
`loss.scale` only changes the magnitude that gradients have in half precision.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import inspect
import json
import operator
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import UserError
from .python_files import failures_explained, module_of_file

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "celu"]
View = Literal["single_view", "mirror", "six_view"]
VIEWS: tuple[View, ...] = typing.get_args(View)


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """Shape and initialisation of `nets.SpeedyResNet`."""

    widths: tuple[int, ...] = (64, 256, 256)
    """Channels of each group, before `width_multiplier`."""
    group_convolutions: int = 2
    """3x3 convolutions a group, but for the two settings below; the first is followed by the 2x2 max-pool."""
    first_kernel: int = 3
    """Side of the first of them, which pads by half of it."""
    pointwise_groups: tuple[int, ...] = ()
    """Places, from 0, of the groups whose convolutions after the first are 1x1: a ninth of their FLOPs."""
    single_groups: tuple[int, ...] = ()
    """Places, from 0, of the groups that have their first convolution only."""
    residual: Literal["none", "after_activation", "before_activation"] = "none"
    """Where the output of a group's first convolution is added to that of its last."""
    squeeze_excite_ratio: int = 0
    """Channels of a group for each hidden unit of its squeeze-and-excite, see `nets.SqueezeExcite`; 0 leaves it out."""
    pre_activation_blocks: int = 0
    """Makes each group of so many `nets.PreActivationBlock` instead of convolutions and a pool; all groups but the
    first halve the map."""
    pre_activation_branches: bool = True
    """Off, only the shortcuts of these blocks are left."""
    activation: Activation = "gelu"
    """Behind every batch norm."""
    whitening_activation: Activation = "gelu"
    """Right behind the whitening, where no projection follows it."""
    pool: Literal["before_norm", "after_norm", "none"] = "before_norm"
    """Where the max-pool of a group stands; behind the norm it is behind the activation too. `none`: the group's first
    convolution has a stride of 2 instead."""
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
    """Channels of a convolution, batch norm and activation behind the whitening; 0 leaves them out."""
    project_kernel: int = 1
    """Side of that convolution, which pads by half of it."""
    batch_norm_momentum: float = 0.4
    """Weight of the new batch in the running statistics (PyTorch's sense)."""
    batch_norm_epsilon: float = 1e-12
    batch_norm_precision: Literal["float32", "native"] = "float32"
    """Of its parameters and statistics, at least; `native`: that of the other weights, which no kernel takes."""
    batch_norm_scale: Literal["frozen", "learned"] = "frozen"
    """`frozen` at 1."""
    batch_norm_scale_init: Literal["one", "uniform"] = "one"
    """`uniform`: drawn from [0, 1), PyTorch's default before version 1.2."""
    batch_norm_groups: int = 1
    """Ghost batch norm: image n of a batch is normalised with the images of its group, n % batch_norm_groups."""
    project_ghost_norm: bool = True
    """Those groups behind the projection too; else ordinary batch norm there."""
    convolution_init: Literal["default", "dirac", "dirac_blend"] = "dirac"
    """`dirac`: the first C_in filters become identities. `dirac_blend`: identities are added to a group's first
    convolution, which is brought back to its old mean and deviation; its other convolutions are pure identities."""
    head_pool: Literal["max", "max_and_mean"] = "max"
    """What of each channel of the last map the head sees; `max_and_mean`: all maxima, then all means."""
    head_bias: bool = False
    head_init: Literal["default", "unit_deviation"] = "default"
    """`unit_deviation`: PyTorch's default, brought to a standard deviation of 1."""
    logit_scale: float = 1 / 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What is drawn anew for each image and epoch."""

    crop: int = 0
    """Side of the window cropped out of the padded image in pixels; 0: the image's own height and width."""
    padding: int = 2
    """Pixels added on each side before a window is cropped out."""
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
    learning_rate_inside: bool = False
    """SGD's momentum holds steps, each at the learning rate it was taken with, not gradients, as in cifar10-fast."""
    weight_decay: float = 0.0153 / 11.5
    """For the mean loss: a step at the peak shrinks weights by learning_rate * weight_decay."""
    batch_norm_bias_scale: float = 64.0
    """Biases of batch norm, squeeze-and-excite and head learn that much faster, with the same decay a step."""
    head_scale: float = 1.0
    """The head (and squeeze-and-excite) learns that much faster, with the same decay a step."""
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

    kind: Literal[
        "triangle",
        "one_cycle",
        "one_cycle_cosine",
        "linear",
        "cosine",
        "exponential",
        "piecewise",
        "cyclic_triangular",
        "cyclic_triangular2",
        "cyclic_exp_range",
    ] = "triangle"
    """`linear`, `cosine` and `exponential` begin at the peak: neither `start` nor `peak` matters to them; `piecewise`
    has `knots` and `values` only."""
    start: float = 0.2
    """Where the curve begins, and cycles end."""
    peak: float = 0.23
    """Fraction of the steps at which the peak is reached, but for the cyclic kinds."""
    end: float = 0.07
    """What the curve falls to, in `cyclic_exp_range` the height of the cycles; the other cyclic kinds ignore it."""
    half_cycle: float = 1.0
    """Of `cosine` and the cyclic kinds: from one turn to the next, a fraction of the steps."""
    knots: tuple[float, ...] = ()
    """Fractions of the steps at which the corners of `piecewise` are."""
    values: tuple[float, ...] = ()
    """Its values there."""
    epochs: float | None = None
    """Epochs until the end of the curve, whose last value holds on; none: those of the run."""
    floor: float = 0.0
    """Never less than that."""
    whitening_bias: Literal["shared", "linear"] = "shared"
    """`linear`: the whitening bias has a schedule of its own, from 1 at the first step to 0 where it is frozen."""
    batch_norm_biases: Literal["shared", "one_cycle"] = "shared"
    """`one_cycle`: those biases have a schedule of their own, linear from 0 to 1 at `peak`, then to 0."""


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
    seconds: float | None
    """None: not published."""
    hardware: str


def claim_told(claim: Mapping[str, Any] | None) -> str:
    """A claim, as records have it, in words; empty where there is none."""
    if not claim:
        return ""
    seconds = "" if claim["seconds"] is None else f" in {claim['seconds']} s"
    return f"{100 * claim['accuracy']:.2f} %{seconds}, {claim['hardware']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a run, but for the data, the seed and the machine; `recipe` has an example."""

    name: str
    summary: str
    source: str
    data: str = "cifar10"
    """What it is for, and trained on where nobody says otherwise: a name, a pack file or an image folder."""
    claim: Claim | None = None
    faithful: tuple[str, ...] = ()
    """Bugs of the original that it has too; a line ends with the settings, if any, that mend it: (--set key=value)."""
    mended: tuple[str, ...] = ()
    """Bugs of the original that it has not; a line ends with the settings, if any, that bring it back."""
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
        """First 16 hex digits of the SHA-256 over all numbers; what DESCRIPTION names is left out."""
        numbers = {key: value for key, value in dataclasses.asdict(self).items() if key not in DESCRIPTION}
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]


DESCRIPTION = ("name", "summary", "source", "data", "claim", "faithful", "mended")
"""What says what a recipe is and decides nothing of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A recipe and variants of it, to be compared with each other."""

    name: str
    summary: str
    base: Recipe
    variants: tuple[Recipe, ...]
    """Their names begin with the group's and a slash."""

    @property
    def members(self) -> tuple[Recipe, ...]:
        """The base, then the variants."""
        return self.base, *self.variants


RecipeFunction = Callable[[], Recipe]
GroupFunction = Callable[[], Group]


def nearest_names(name: str, names: Iterable[str]) -> str:
    """A hint that lists those of `names` that are like `name`, or else the three that are least unlike it."""
    name, names = name[:100], sorted(names)
    close = difflib.get_close_matches(name, names, n=3) or difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    return f"did you mean {' or '.join(close)}?" if close else "there is none"


def recipe(name: str, settings: Iterable[str] = ()) -> Recipe:
    """The recipe called `name`, or made by `my_file.py:function`, with `a.b=value` settings applied.

    Raises:
        UserError: unknown name, unusable file or function, unknown or ill-typed setting.

    Examples:
        >>> import dataclasses
        >>> from speedyresnet.engine import recipe
        >>> made = recipe("airbench94", ["epochs=12", "net.widths=64,256,384"])
        >>> made.name, made.epochs, made.batch_size
        ('airbench94', 12.0, 1024)
        >>> made.net.widths, made.net.activation
        ((64, 256, 384), 'gelu')
        >>> made.hash == recipe("airbench94").hash
        False
        >>> other = dataclasses.replace(made, name="mine", epochs=8.0)
        >>> other.name, other.epochs
        ('mine', 8.0)
        >>> recipe("airbench94", ["epoch=12"])
        Traceback (most recent call last):
        speedyresnet.engine.errors.UserError: unknown setting 'epoch': did you mean epochs...
    """
    made = _recipe_by_name(name) if recipe_file(name) is None else _recipe_from_file(name)
    return with_settings(made, settings)


def recipe_file(name: str | None) -> str | None:
    """The file in `my_file.py:function`; none where `name` is no such thing."""
    return name.rpartition(":")[0] if name is not None and ".py:" in name else None


def _recipe_by_name(name: str) -> Recipe:
    from .recipes import registered_groups, registered_recipes  # the recipes import this module

    functions = registered_recipes()
    if name in functions:
        return functions[name]()
    groups = [function() for function in registered_groups().values()]
    members = {each.name: each for group in groups for each in group.members}
    if name not in members:
        hint = nearest_names(name, [*functions, *members])
        raise UserError(f"unknown recipe {name!r}: {hint} (your own: --recipe file.py:function)")
    return members[name]


def group(name: str) -> Group:
    """The group called `name`.

    Raises:
        UserError: there is none of that name.
    """
    from .recipes import registered_groups  # the recipes import this module

    functions = registered_groups()
    if name not in functions:
        raise UserError(f"unknown group {name!r}: {nearest_names(name, functions)}")
    return functions[name]()


def _recipe_from_file(reference: str) -> Recipe:
    module, function = module_of_file(reference, "recipe", "my_file.py:function")
    file = reference.rpartition(":")[0]
    with failures_explained(f"recipe {reference}"):
        functions = dict(inspect.getmembers(module, callable))
        made = functions[function]() if function in functions else None
    if function not in functions:
        raise UserError(f"{file} has no function {function!r}; {nearest_names(function, functions)}")
    if not isinstance(made, Recipe):
        raise UserError(f"{reference} returned {type(made).__name__}, not a speedyresnet.engine.Recipe")
    return checked_recipe(made)


def with_settings(base: Recipe, settings: Iterable[str]) -> Recipe:
    """`base` with each `key=value` or `part.key=value` of `settings` replaced.

    Raises:
        UserError: unknown key (names its neighbours), a value of the wrong type or out of range.
    """
    base = checked_recipe(base)
    known = setting_names(Recipe)
    for setting in settings:
        key, equals, text = (part.strip() for part in str(setting).partition("="))
        if not equals:
            raise UserError(f"--set {setting}: write it as key=value, for example --set epochs=2")
        if key not in known:
            raise UserError(f"unknown setting {key!r}: {nearest_names(key, known)}")
        base = _replaced(base, key.split("."), text, key)
    _check_ranges(base)
    return base


def _replaced(part: Any, path: list[str], text: str, key: str) -> Any:
    name, *rest = path
    hint = typing.get_type_hints(type(part))[name]
    value = _replaced(getattr(part, name), rest, text, key) if rest else _parsed(text, hint, key)
    return dataclasses.replace(part, **{name: value})


def setting_names(kind: type, prefix: str = "") -> list[str]:
    """All keys that `--set` takes, dotted."""
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            names += setting_names(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif name not in ("claim", "faithful", "mended"):
            names.append(prefix + name)
    return names


def _parsed(text: str, hint: Any, key: str) -> Any:
    """The value that `text` stands for under the type `hint`."""
    kinds = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if text.lower() == "none" else _parsed(text, _without_none(kinds), key)
    if typing.get_origin(hint) is tuple:
        items = text.strip("()[]").removesuffix(",")
        return tuple(_parsed(item.strip(), kinds[0], key) for item in items.split(",")) if items.strip() else ()
    if hint is str or text in kinds:
        return text
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    # Python would also take 1_000 and the digits of other scripts.
    if hint in (int, float) and re.fullmatch(r"[-+.0-9a-zA-Z]+", text):
        with contextlib.suppress(ValueError):
            return hint(text)
    raise UserError(f"--set {key}={text}: expected {_in_words(hint)}")


_RANGES: dict[str, tuple[float, float]] = {
    "batch_size": (1, 1_000_000),
    "epochs": (1e-6, 1e6),
    "width_multiplier": (1e-6, 64),
    "net.widths": (1, 65_536),
    "net.group_convolutions": (1, 32),
    "net.first_kernel": (1, 7),
    "net.single_groups": (0, 15),
    "net.pointwise_groups": (0, 15),
    "net.squeeze_excite_ratio": (0, 65_536),
    "net.pre_activation_blocks": (0, 32),
    "net.whitening_kernel": (0, 8),
    "net.whitening_padding": (0, 8),
    "net.whitening_stride": (1, 64),
    "net.whitening_images": (1, 1_000_000_000),
    "net.whitening_epsilon": (1e-12, 1e3),
    "net.project_width": (0, 65_536),
    "net.project_kernel": (1, 7),
    "net.batch_norm_momentum": (1e-6, 1),
    "net.batch_norm_epsilon": (1e-20, 1e3),
    "net.batch_norm_groups": (1, 1_000_000),
    "net.logit_scale": (1e-6, 1e6),
    "augmentation.crop": (0, 65_536),
    "augmentation.padding": (0, 65_536),
    "augmentation.cutout": (0, 65_536),
    "augmentation.cutmix": (0, 65_536),
    "augmentation.brightness": (0, 1e3),
    "augmentation.contrast": (0, 1),
    "augmentation.cutmix_epochs": (0, 1e6),
    "augmentation.sizes": (0, 65_536),
    "loss.label_smoothing": (0, 0.999),
    "loss.scale": (1e-9, 1e9),
    "optimizer.learning_rate": (0, 1e30),
    "optimizer.momentum": (0, 0.9999),
    "optimizer.weight_decay": (0, 1e3),
    "optimizer.batch_norm_bias_scale": (1e-6, 1e6),
    "optimizer.head_scale": (1e-6, 1e6),
    "optimizer.whitening_bias_epochs": (0, 1e6),
    "optimizer.muon.learning_rate": (0, 1e30),
    "optimizer.muon.momentum": (0, 0.9999),
    "optimizer.muon.weight_decay": (0, 1e3),
    "optimizer.muon.newton_schulz_steps": (1, 100),
    "optimizer.muon.newton_schulz_coefficients": (-1e3, 1e3),
    "optimizer.muon.renormalise_every": (0, 1_000_000),
    "optimizer.muon.renormalise_growth": (0, 1_000_000),
    "schedule.start": (0, 1e3),
    "schedule.peak": (0, 0.999),
    "schedule.end": (0, 1e3),
    "schedule.knots": (0, 1),
    "schedule.values": (0, 1e3),
    "schedule.half_cycle": (1e-6, 1),
    "schedule.epochs": (1e-6, 1e6),
    "schedule.floor": (0, 1e3),
    "averaging.every": (1, 1_000_000),
    "averaging.decay": (0, 1),
    "averaging.power": (0, 100),
    "averaging.epochs": (1, 1_000_000),
    "averaging.tail": (1e-6, 1e6),
    "evaluation.share": (0, 1),
    "evaluation.batch_size": (1, 1_000_000),
    "evaluation.every": (0, 1_000_000),
}
"""Least and most of every number, and of each in a list. Generous, but a net within them is laid out in a moment."""

_LENGTHS = {
    "net.widths": (1, 16),
    "net.single_groups": (0, 16),
    "augmentation.sizes": (0, 10_000),
    "optimizer.muon.newton_schulz_coefficients": (3, 3),
    "schedule.knots": (0, 16),
    "schedule.values": (0, 16),
}
"""Least and most numbers in every list."""


def _check_ranges(made: Recipe) -> None:
    """Raises UserError for a value no run can have."""
    for key, (least, most) in _LENGTHS.items():
        length = len(operator.attrgetter(key)(made))
        if not least <= length <= most:
            wanted = f"{least} to {most}" if least < most else f"{most}"
            raise UserError(f"{key} must be {wanted} numbers, not {length}")
    for key, (low, high) in _RANGES.items():
        value = operator.attrgetter(key)(made)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number <= high:
                raise UserError(f"{key} must be from {low} to {high}, not {number}")
    _check_texts(made)
    _check_combinations(made)


def _check_texts(made: Recipe) -> None:
    """Raises UserError for texts that do not print as one line."""
    lines = {key: (getattr(made, key),) for key in ("name", "summary", "source", "data")}
    for key, texts in (lines | {"faithful": made.faithful, "mended": made.mended}).items():
        if not all(text.isprintable() and len(text) <= 1000 for text in texts) or not made.name:
            raise UserError(f"{key} must be one line of at most 1000 printable characters; the name must not be empty")


def _check_combinations(made: Recipe) -> None:
    """Raises UserError for values that do not go together."""
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


def _check_pre_activation(net: Net) -> None:
    """Raises UserError for settings of what pre-activation blocks are instead of."""
    wanted = Net(convolution_init="default")
    for name in (
        "convolution_init", "group_convolutions", "first_kernel", "single_groups", "pointwise_groups", "residual",
        "squeeze_excite_ratio", "pool",
    ):  # fmt: skip
        if getattr(net, name) != getattr(wanted, name):
            blocks, value = net.pre_activation_blocks, getattr(wanted, name)
            raise UserError(f"net.pre_activation_blocks={blocks} needs net.{name}={value}")


def checked_recipe(made: object) -> Recipe:
    """`made` itself, or the recipe whose `dataclasses.asdict` it is, with every type and range checked.

    Raises:
        UserError: a part or number that is missing, of the wrong type or out of range.
    """
    typed: Recipe = typed_value(made, Recipe, "")
    _check_ranges(typed)
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


def typed_value(value: Any, hint: Any, key: str) -> Any:
    """`value`, from Python or from parsed JSON, as the type `hint`; `key` is its dotted name, empty for a recipe."""
    kinds = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if value is None else typed_value(value, _without_none(kinds), key)
    if dataclasses.is_dataclass(hint):
        return _typed_parts(value, hint, key)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(typed_value(item, kinds[0], key) for item in value)
    # Compared, because a whole number can be too large to become a float; NaN passes no comparison.
    if hint is float and isinstance(value, float | int) and type(value) is not bool and abs(value) < 1e300:
        return float(value)
    fits = isinstance(value, str) and value in kinds if typing.get_origin(hint) is Literal else type(value) is hint
    if not fits or hint is float:
        raise UserError(f"{key} must be {_in_words(hint)}, not {reprlib.repr(value)}")
    return value


def _typed_parts(value: Any, hint: Any, key: str) -> Any:
    hints = typing.get_type_hints(hint)
    parts = {name: getattr(value, name) for name in hints} if isinstance(value, hint) else value
    needed = {each.name for each in dataclasses.fields(hint) if each.default is each.default_factory}  # both missing
    if not isinstance(parts, dict) or not needed <= set(parts):
        raise UserError(f"{key or 'a recipe'} must be a {hint.__name__}, not {type(value).__name__}")
    if unknown := set(parts) - set(hints):
        raise UserError(f"{key or 'a recipe'} has an unknown setting {reprlib.repr(min(unknown, key=str))}")
    before = f"{key}." if key else ""
    return hint(**{name: typed_value(part, hints[name], before + name) for name, part in parts.items()})


def _without_none(kinds: Iterable[Any]) -> Any:
    return next(kind for kind in kinds if kind is not types.NoneType)


def _in_words(hint: Any) -> str:
    """What a value of the type `hint` is called."""
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    if typing.get_origin(hint) is tuple:
        return "a list of texts" if str in typing.get_args(hint) else "a list of numbers"
    return {bool: "true or false", int: "an integer", float: "a number"}.get(hint, "text")
