"""What a run is: a recipe holds every number of it, nested by what the number concerns.

A recipe is built by a function (see `recipes/`), changed with `settings.with_settings`, checked in `recipe_checks.py`
and stored whole in every run record and model file. A stored recipe that lacks a setting has its default, so the
default of a new setting is what was done before there was one. Learning rates and decays are those of the mean loss;
`loss.scale` only changes the magnitude that gradients have in half precision.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from .limits import Length, Within

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "celu"]
View = Literal["single_view", "mirror", "six_view"]
VIEWS: tuple[View, ...] = typing.get_args(View)


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """Shape and initialisation of `nets.SpeedyResNet`."""

    widths: Annotated[tuple[int, ...], Within(1, 65_536), Length(1, 16)] = (64, 256, 256)
    """Channels of each group, before `width_multiplier`."""
    group_convolutions: Annotated[int, Within(1, 32)] = 2
    """3x3 convolutions a group, but for the two settings below; the first is followed by the 2x2 max-pool."""
    first_kernel: Annotated[int, Within(1, 7)] = 3
    """Side of the first of them, which pads by half of it."""
    pointwise_groups: Annotated[tuple[int, ...], Within(0, 15)] = ()
    """Places, from 0, of the groups whose convolutions after the first are 1x1: a ninth of their FLOPs."""
    single_groups: Annotated[tuple[int, ...], Within(0, 15), Length(0, 16)] = ()
    """Places, from 0, of the groups that have their first convolution only."""
    residual: Literal["none", "after_activation", "before_activation"] = "none"
    """Where the output of a group's first convolution is added to that of its last."""
    squeeze_excite_ratio: Annotated[int, Within(0, 65_536)] = 0
    """Channels of a group for each hidden unit of its squeeze-and-excite, see `nets.SqueezeExcite`; 0 leaves it out."""
    pre_activation_blocks: Annotated[int, Within(0, 32)] = 0
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
    whitening_kernel: Annotated[int, Within(0, 8)] = 2
    """0: no whitening, groups see the images themselves."""
    whitening_stride: Annotated[int, Within(1, 64)] = 1
    whitening_padding: Annotated[int, Within(0, 8)] = 0
    whitening_sign_pairs: bool = True
    """Append the negated filters, so that an activation right behind them loses nothing."""
    whitening_bias: bool = True
    whitening_bias_init: Literal["zero", "uniform"] = "zero"
    """`uniform`: within 1 / sqrt(inputs of one output), PyTorch's default for the bias of a convolution."""
    whitening_images: Annotated[int, Within(1, 1_000_000_000)] = 5000
    whitening_centered: bool = False
    """Subtract the mean patch from the covariance."""
    whitening_epsilon: Annotated[float, Within(1e-12, 1e3)] = 5e-4
    project_width: Annotated[int, Within(0, 65_536)] = 0
    """Channels of a convolution, batch norm and activation behind the whitening; 0 leaves them out."""
    project_kernel: Annotated[int, Within(1, 7)] = 1
    """Side of that convolution, which pads by half of it."""
    batch_norm_momentum: Annotated[float, Within(1e-6, 1)] = 0.4
    """Weight of the new batch in the running statistics (PyTorch's sense)."""
    batch_norm_epsilon: Annotated[float, Within(1e-20, 1e3)] = 1e-12
    batch_norm_precision: Literal["float32", "native"] = "float32"
    """Of its parameters and statistics, at least; `native`: that of the other weights, which no kernel takes."""
    batch_norm_scale: Literal["frozen", "learned"] = "frozen"
    """`frozen` at 1."""
    batch_norm_scale_init: Literal["one", "uniform"] = "one"
    """`uniform`: drawn from [0, 1), PyTorch's default before version 1.2."""
    batch_norm_groups: Annotated[int, Within(1, 1_000_000)] = 1
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
    logit_scale: Annotated[float, Within(1e-6, 1e6)] = 1 / 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What is drawn anew for each image and epoch."""

    crop: Annotated[int, Within(0, 65_536)] = 0
    """Side of the window cropped out of the padded image in pixels; 0: the image's own height and width."""
    padding: Annotated[int, Within(0, 65_536)] = 2
    """Pixels added on each side before a window is cropped out."""
    padding_mode: Literal["reflect", "zero"] = "reflect"
    flip: Literal["none", "random", "alternating"] = "alternating"
    """`alternating`: a coin per image decides the first epoch, then every epoch mirrors it anew."""
    cutout: Annotated[int, Within(0, 65_536)] = 0
    """Side of the zeroed square in pixels; 0 is off."""
    cutmix: Annotated[int, Within(0, 65_536)] = 0
    """Side of the square pasted from another image in pixels; 0 is off."""
    brightness: Annotated[float, Within(0, 1e3)] = 0.0
    """A number drawn from [-brightness, brightness) is added to an image, in normalised units."""
    contrast: Annotated[float, Within(0, 1)] = 0.0
    """Then it is multiplied with one from [1 - contrast, 1 + contrast)."""
    cutmix_epochs: Annotated[float, Within(0, 1e6)] = 0.0
    """Cutmix is on in whole epochs that begin in the last so many epochs."""
    sizes: Annotated[tuple[int, ...], Within(0, 65_536), Length(0, 10_000)] = ()
    """Side that windows are scaled down to, epoch by epoch; the last one holds on, 0 leaves them as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Cross-entropy against smoothed labels."""

    label_smoothing: Annotated[float, Within(0, 0.999)] = 0.2
    scale: Annotated[float, Within(1e-9, 1e9)] = 1.0
    """Factor on the loss summed over the batch; keeps half-precision gradients in range, changes no update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Muon:
    """Orthogonalised Nesterov momentum, see `optim.muon_`; its learning rate does not depend on the loss's scale."""

    learning_rate: Annotated[float, Within(0, 1e30)] = 0.24
    """Peak."""
    momentum: Annotated[float, Within(0, 0.9999)] = 0.6
    weight_decay: Annotated[float, Within(0, 1e3)] = 0.0
    """A step at learning rate r shrinks the filter banks by r * weight_decay."""
    newton_schulz_steps: Annotated[int, Within(1, 100)] = 3
    newton_schulz_coefficients: Annotated[tuple[float, ...], Within(-1e3, 1e3), Length(3, 3)] = (
        3.4445,
        -4.7750,
        2.0315,
    )
    """Of x, (x x^T) x and (x x^T)^2 x."""
    newton_schulz_dtype: Literal["float16", "bfloat16", "float32", "float64"] = "bfloat16"
    renormalise_every: Annotated[int, Within(0, 1_000_000)] = 1
    """Steps between two renormalisations of the filter banks at the start of a run; 0: never."""
    renormalise_growth: Annotated[int, Within(0, 1_000_000)] = 0
    """Steps by which that interval has grown when a run ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """SGD with Nesterov momentum as torch.optim.SGD defines it; with `muon` not for the weights of convolutions."""

    kind: Literal["sgd", "muon"] = "sgd"
    """Who trains the weights of convolutions."""
    learning_rate: Annotated[float, Within(0, 1e30)] = 1.5
    """Peak, for the mean loss."""
    momentum: Annotated[float, Within(0, 0.9999)] = 0.85
    learning_rate_inside: bool = False
    """SGD's momentum holds steps, each at the learning rate it was taken with, not gradients, as in cifar10-fast."""
    weight_decay: Annotated[float, Within(0, 1e3)] = 0.0153 / 11.5
    """For the mean loss: a step at the peak shrinks weights by learning_rate * weight_decay."""
    batch_norm_bias_scale: Annotated[float, Within(1e-6, 1e6)] = 64.0
    """Biases of batch norm, squeeze-and-excite and head learn that much faster, with the same decay a step."""
    head_scale: Annotated[float, Within(1e-6, 1e6)] = 1.0
    """The head (and squeeze-and-excite) learns that much faster, with the same decay a step."""
    whitening_bias_epochs: Annotated[float, Within(0, 1e6)] = 3.0
    """Epochs after which the whitening bias is frozen."""
    first_group_frozen_epochs: Annotated[float, Within(0, 1e6)] = 0.0
    """Group 1 and what is in front of it are frozen in the last so many epochs: the backward pass ends behind group 1,
    weights and momentum stay. Running statistics and the average move on, and a lookahead writes them back."""
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
    start: Annotated[float, Within(0, 1e3)] = 0.2
    """Where the curve begins, and cycles end."""
    peak: Annotated[float, Within(0, 0.999)] = 0.23
    """Fraction of the steps at which the peak is reached, but for the cyclic kinds."""
    end: Annotated[float, Within(0, 1e3)] = 0.07
    """What the curve falls to, in `cyclic_exp_range` the height of the cycles; the other cyclic kinds ignore it."""
    half_cycle: Annotated[float, Within(1e-6, 1)] = 1.0
    """Of `cosine` and the cyclic kinds: from one turn to the next, a fraction of the steps."""
    knots: Annotated[tuple[float, ...], Within(0, 1), Length(0, 16)] = ()
    """Fractions of the steps at which the corners of `piecewise` are."""
    values: Annotated[tuple[float, ...], Within(0, 1e3), Length(0, 16)] = ()
    """Its values there."""
    epochs: Annotated[float | None, Within(1e-6, 1e6)] = None
    """Epochs until the end of the curve, whose last value holds on; none: those of the run."""
    floor: Annotated[float, Within(0, 1e3)] = 0.0
    """Never less than that."""
    whitening_bias: Literal["shared", "linear"] = "shared"
    """`linear`: the whitening bias has a schedule of its own, from 1 at the first step to 0 where it is frozen."""
    batch_norm_biases: Literal["shared", "one_cycle"] = "shared"
    """`one_cycle`: those biases have a schedule of their own, linear from 0 to 1 at `peak`, then to 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaging:
    """A slow copy of weights and statistics, moved every few steps; `lookahead` also writes it back."""

    kind: Literal["none", "ema", "lookahead"] = "lookahead"
    every: Annotated[int, Within(1, 1_000_000)] = 5
    """Steps between two moves."""
    decay: Annotated[float, Within(0, 1)] = 0.95
    """Per step, so that the copy keeps decay ** every of itself at a move."""
    power: Annotated[float, Within(0, 100)] = 3.0
    """The decay grows with (step / steps) ** power; 0 keeps it constant."""
    momentum: Annotated[float, Within(0, 0.9999)] = 0.0
    """Nesterov momentum with which a `lookahead` moves its slow weights, see `optim.nesterov_mix_`."""
    epochs: Annotated[int | None, Within(1, 1_000_000)] = None
    """Averages only the last so many of the whole epochs; none starts from the initial weights."""
    tail: Annotated[float | None, Within(1e-6, 1e6)] = None
    """Averages only so many epochs at the end of the run, instead."""
    finish: bool = True
    """Ends with the slow copy written back."""
    blend: Annotated[float, Within(0, 1)] = 1.0
    """With `finish`, share of the slow copy in what the run ends with; the rest is the live weights and statistics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is reported at the end."""

    view: View = "six_view"
    """The most views to average; those with fewer come with it."""
    share: Annotated[float, Within(0, 1)] = 1.0
    """Extra views only for so many of the images, those whose single view is least confident."""
    weights: Literal["live", "averaged"] = "live"
    batch_size: Annotated[int, Within(1, 1_000_000)] = 2000
    every: Annotated[int, Within(0, 1_000_000)] = 1
    """Epochs between validations during training (outside the clocks); 0 leaves them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A figure somebody published for a recipe."""

    accuracy: float
    seconds: float | None
    """None: not published."""
    hardware: str


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
    batch_size: Annotated[int, Within(1, 1_000_000)] = 1024
    epochs: Annotated[float, Within(1e-6, 1e6)] = 9.9
    """May end in the middle of an epoch."""
    width_multiplier: Annotated[float, Within(1e-6, 64)] = 1.0
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
