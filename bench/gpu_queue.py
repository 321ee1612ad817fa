"""The questions that only a GPU can answer: what is asked, what is predicted, and the commands that find out.

`speedyresnet bench gpu-suite` runs them, the highest value first. A new question is one block in QUEUE. Its commands
are as a shell takes them, with names in braces that the suite fills in; an entry waits until all of them have a value:

- `{out}`: the folder of the results; files named in it are what the entry leaves.
- `{cifar10}`, `{imagenette}`: the packs of real images.
- `{noise}`: a pack of CIFAR-10's shape that is noise, where only the time matters; `{synthetic}`: drawn shapes, where
  something is to be learned.
- `{tests}`: the folder of the tests, which only a checkout has.
- `{work}`: a folder whose contents later calls on the same machine find again, but which is no result.
- `{airbench94_muon}` and the other peers: NAME=PATH as given with `--peer`.

A command may begin with environment variables. Numbers in predictions are of one H100 unless they name another card.
"""

import re
from dataclasses import dataclass

_PLACE = re.compile(r"\{(\w+)\}")
_FILE = re.compile(r"\{out\}/(\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One question for a GPU."""

    name: str
    question: str
    prediction: str
    value: int
    """What the answer is worth; the highest is asked first."""
    seconds: float
    """Expected on an H100, builds and compilation included."""
    commands: tuple[str, ...]
    """Run one after the other, or all at once where `together`."""
    together: bool = False
    """Run the commands side by side, where nothing is timed."""
    least: float | None = None
    """Seconds with which it is worth beginning, for commands that go on where they were cut off; none: `seconds`."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that the commands leave in the folder of the results."""
        return tuple(name for command in self.commands for name in _FILE.findall(command))

    @property
    def places(self) -> frozenset[str]:
        """Names in braces, which need a value before the entry can run."""
        return frozenset(name for command in self.commands for name in _PLACE.findall(command))


def _against(peer: str, value: int, seconds: float, prediction: str, recipe: str = "speedy", label: str = "") -> Entry:
    """An entry for our `recipe` and the script of a peer, unmodified, in turns."""
    name = label or f"peer-{peer}"
    return Entry(
        name=name,
        question=f"How much faster is {recipe} than {peer}, unmodified, in one sitting and by its own clock?",
        prediction=prediction,
        value=value,
        seconds=seconds,
        least=240,
        commands=(
            f"speedyresnet bench versus --recipe {recipe} --backend graph --data {{cifar10}} --peer {{{peer}}} "
            "--runs 8 --rounds 3 --timeout 240 --compile-seconds 900 --work {work}/versus "
            f"--out {{out}}/{name}.json",
        ),
    )


def _claim(recipe: str, value: int, seconds: float, data: str = "cifar10") -> Entry:
    """An entry for a recipe beside the accuracy that is published for it."""
    return Entry(
        name=f"claim-{recipe}",
        question=f"Does {recipe} reach its published accuracy?",
        prediction="The claim of `speedyresnet recipes`, within 0.15 points; more is looked into.",
        value=value,
        seconds=seconds,
        least=60,
        commands=(
            f"speedyresnet bench record --recipe {recipe} --backend capture --data {{{data}}} --runs 3 "
            f"--out {{out}}/claim-{recipe}.jsonl",
        ),
    )


def _record(name: str, value: int, seconds: float, question: str, prediction: str, words: str) -> Entry:
    """An entry for many runs of progressive, or of what `words` change, against a target."""
    return Entry(
        name=name,
        question=question,
        prediction=prediction,
        value=value,
        seconds=seconds,
        least=120,
        commands=(f"speedyresnet bench record --backend graph --data {{cifar10}} {words} --out {{out}}/{name}.jsonl",),
    )


_TIER_96 = (
    "--set net.widths=128,384,512 --set net.group_convolutions=3 --set net.residual=before_activation "
    "--set augmentation.padding=4 --set augmentation.cutout=12 --set epochs=32.5 --set schedule.epochs=32 "
    "--set augmentation.sizes=24,24,24,24,24,24,24,24,24,24,28,28,28,28,28,28,28,28,28,28,0"
)

_FACTORS = (
    "augmentation.sizes=21,21,21,25,25,25,29",
    "epochs=8.375 schedule.epochs=8",
    "evaluation.share=0.25",
    "optimizer.whitening_bias_epochs=0",
    "net.widths=64,192,384",
    "net.head_pool=max_and_mean",
    "net.whitening_images=960",
    "loss.label_smoothing=0.12",
    "optimizer.muon.learning_rate=0.25",
    "averaging.tail=1.3",
    "augmentation.padding=3",
    "optimizer.first_group_frozen_epochs=2",
    "averaging.momentum=0.5",
    "averaging.blend=0.5",
)
"""Settings that progressive may gain from, each a factor of the screening; at these sizes pooling loses no row."""

QUEUE = (
    Entry(
        name="correctness",
        question="Is everything right on this GPU: tests, kernels, captured and compiled steps, losses?",
        prediction="No test fails; capture learns synthetic images to 96 % and no tensor moves between replays; graph "
        "builds and runs; losses of six steps agree between Triton and reference kernels.",
        value=100,
        seconds=150,
        together=True,
        commands=(
            "SPEEDYRESNET_CHECK_GRAPHS=1 speedyresnet bench record --recipe speedy --backend capture "
            "--data {synthetic} --runs 2 --target 80 --out {out}/correctness-capture.jsonl",
            "speedyresnet bench record --recipe speedy --backend graph --data {noise} --runs 2 "
            "--out {out}/correctness-graph.jsonl",
            "python -m speedyresnet.bench.kernel_losses --data {synthetic} --out {out}/correctness-losses.json",
            "pytest -q -p no:cacheprovider -m gpu -n 4 --ignore-glob={tests}/test_bench_*.py {tests}",
            "pytest -q -p no:cacheprovider -m 'not slow and not gpu' -n 6 {tests}/test_*_kernel.py",
        ),
    ),
    _record(
        "record",
        95,
        290,
        "Does progressive reach 94 % with six views, by the lower bound of the mean of 200 runs?",
        "94.02 % (deviation 0.14), so a lower bound of 94.00 to 94.01; 0.77 s of prepare + train, 0.85 s in all.",
        "--recipe progressive --runs 200 --target 94 --seconds 6 --clock total",
    ),
    Entry(
        name="profile",
        question="Where does the replayed step of speedy spend its time, kernel by kernel, and does convolution_pool, "
        "which auto now takes, pay in a compiled step?",
        prediction="695 ms of kernels a run, 71 less than the table in bench/evidence, which has cuDNN's first "
        "convolution: 60 less of convolutions (447) and pooling (246), 11 less of the stem (27), which takes 60 "
        "instead of 101 us at 32 pixels with half as many instructions; Inductor's kernels 29, matrix products of "
        "Muon and head 14; the GPU is busy 99 % of the time.",
        value=90,
        seconds=90,
        commands=(
            "speedyresnet bench profile --recipe speedy --backend graph --data {noise} --out {out}/profile-graph.json",
        ),
    ),
    Entry(
        name="reductions",
        question="Do the reductions of batch norm read at the speed of copies, and does the program that arrives last "
        "combine the rows of all, also in replayed graphs and in those of torch.compile?",
        prediction="The tests pass; the 990 MB that reductions read in a step at 32 pixels take 410 us or less "
        "instead of 721, and 63 us of second stages are gone: 85 to 100 ms less a run. They stay if they read at "
        "2.4 TB/s or more.",
        value=90,
        seconds=120,
        commands=(
            "pytest -q -p no:cacheprovider -m gpu -k 'replay or graphs or shipped' {tests}/test_batch_norm_kernel.py "
            "{tests}/test_pool_batch_norm_kernel.py",
            "speedyresnet bench profile --recipe speedy --backend graph --data {noise} --out {out}/reductions.json",
        ),
    ),
    Entry(
        name="step-variants",
        question="What does one change at a time do to the time of a run?",
        prediction="Seconds of a run with capture: speedy 0.839, which took 0.907 before auto chose convolution_pool, "
        "with kernels=reference 1.90; less than without it: progressive 0.967, airbench94-muon 1.05, airbench94 1.41; "
        "hlb-v0.7 not measured yet.",
        value=85,
        seconds=80,
        commands=(
            "python -m speedyresnet.bench.step_variants --data {noise} --backend capture --variant speedy "
            "--variant 'speedy kernels=reference' --variant progressive "
            "--variant airbench94-muon --variant airbench94 --variant hlb-v0.7 --out {out}/step-variants.json",
        ),
    ),
    Entry(
        name="two-streams",
        question="Is a step faster when what is behind group 1 is updated on a second stream beside the rest of the "
        "backward pass?",
        prediction="15 to 25 ms a run of speedy less: its 40 ms of optimizer, 14 of them Muon's products, leave most "
        "of the GPU idle, and nearly all of them belong to groups 2 and 3 and the head.",
        value=83,
        seconds=90,
        commands=(
            "python -m speedyresnet.bench.step_variants --data {noise} --backend graph --overlap --variant speedy "
            "--variant progressive --out {out}/two-streams-graph.json",
            "python -m speedyresnet.bench.step_variants --data {noise} --backend capture --overlap --variant speedy "
            "--out {out}/two-streams-capture.json",
        ),
    ),
    Entry(
        name="convolutions",
        question="What does cuDNN offer for each convolution of a step, also with padded input channels and without "
        "trying algorithms, and which is the furthest from its floor?",
        prediction="Weight gradients run at 370 TFLOP/s, group 2's first input gradient at 430 (237 us), the first "
        "convolution at 170 to 190 (floor 87 us); large matrix products reach 800. Padded from 24 to 32 channels it "
        "takes 0.8 to 1.1 times as long forward and for its weight gradient, to 64 more than both; cuDNN's guess is "
        "within 3 % of what it takes after trying.",
        value=75,
        seconds=60,
        commands=(
            "speedyresnet bench kernels --recipe speedy --operation convolution --operation convolution_pool "
            "--out {out}/convolutions.json",
        ),
    ),
    Entry(
        name="evaluation",
        question="What does the final evaluation take with convolution_pool and folded statistics, which took 49 ms "
        "(graph, bench/evidence)?",
        prediction="49 -> 40 ms. By kernel, in the result of `profile`: convolutions 24, the whitening with its "
        "activation 7 to 9, norms and pools 7. The target of 34 needs the stem kernel as well, if the whitening takes "
        "that much. All images at once take 1 ms less than batches of 2000.",
        value=72,
        seconds=90,
        commands=(
            "speedyresnet bench record --recipe speedy --backend graph --data {cifar10} --runs 10 "
            "--out {out}/evaluation-batches-of-2000.jsonl",
            "speedyresnet bench record --recipe speedy --backend graph --data {cifar10} --runs 10 "
            "--set evaluation.batch_size=10000 --out {out}/evaluation-batches-of-10000.jsonl",
        ),
    ),
    _against(
        "airbench94_muon",
        70,
        560,
        "2.9 times as fast by `total` (ours 0.76 s, theirs 2.25 s) at 0.1 points less; it compiles for four minutes.",
    ),
    Entry(
        name="tests-of-measuring",
        question="Do the tests of what measures a GPU pass, with nothing beside them?",
        prediction="They pass.",
        value=65,
        seconds=60,
        commands=("pytest -q -p no:cacheprovider -m gpu {tests}/test_bench_*.py",),
    ),
    Entry(
        name="cuts",
        question="What may progressive do without, on 5,000 images held out of the training set?",
        prediction="from-20-pixels: 85 ms less for 0.15 points, which half an epoch more (34 ms) buys back; "
        "pointwise-2: 0.1 s for 21 % of the FLOPs; narrow-wide: 40 ms; whitening-960: under 1 ms and no loss.",
        value=60,
        seconds=330,
        least=120,
        commands=(
            "speedyresnet bench compare --group speedy-cuts --backend capture --data {cifar10} --validation 5000 "
            "--runs 20 --out {out}/cuts.jsonl",
        ),
    ),
    Entry(
        name="screening",
        question="Which of fourteen changes to progressive pay, on 5,000 images held out of training?",
        prediction="Effects to 0.05 points: sizes at which pooling loses no row 60 ms less for under 0.05 points; half "
        "an epoch less 34 ms for 0.1; group 1 frozen for two epochs 60 ms for 0.15; evaluation.share 20 ms for "
        "nothing; never training the whitening bias 3 ms for 0.02; the rest under 0.05 points either way.",
        value=58,
        seconds=530,
        least=240,
        commands=(
            "speedyresnet bench compare --design factorial --recipe progressive --backend capture --data {cifar10} "
            "--validation 5000 --runs 20 "
            + " ".join(f"--variant '{factor}'" for factor in _FACTORS)
            + " --out {out}/screening.jsonl",
        ),
    ),
    Entry(
        name="sizes",
        question="How small may the images of progressive be? Factors that set the same key do not fit into screening.",
        prediction="17, 21 and 29 pixels, at which pooling loses no row: 240 ms less for 0.3 points. 20, 24 and 28 "
        "pixels, never the 32 that are evaluated: 180 ms less for 0.4 points.",
        value=57,
        seconds=110,
        least=60,
        commands=(
            "speedyresnet bench compare --recipe progressive --backend capture --data {cifar10} --validation 5000 "
            "--runs 20 --variant 'augmentation.sizes=17,17,17,21,21,21,29' "
            "--variant 'augmentation.sizes=20,20,20,24,24,24,28' --out {out}/sizes.jsonl",
        ),
    ),
    _against("hiverge", 55, 560, "At least 2 times as fast by `total`; on an A100 it takes 1.98 s by its own clock."),
    _against("e1", 54, 560, "1.5 to 2 times as fast by prepare + train; on an A100 it takes 1.8 s by its own clock."),
    _against(
        "airbench94_muon",
        52,
        560,
        "1.8 times as fast or more by `total`, at accuracies within 0.05 points.",
        recipe="airbench94-muon",
        label="same-mathematics",
    ),
    Entry(
        name="kernels",
        question="How far is each kernel of airbench94 from its floor, and from PyTorch's own?",
        prediction="pool_batch_norm_act moves 33 instead of 53 bytes a pooled value: 0.14 ms a step less on an H200; "
        "stem moves 104 kB an image less forward and 136 kB less backward: 0.025 and 0.03 ms.",
        value=50,
        seconds=90,
        commands=(
            "speedyresnet bench kernels --recipe airbench94 --provider triton --provider reference "
            "--out {out}/kernels.json",
        ),
    ),
    Entry(
        name="backends",
        question="What does each backend take for a step and to build, and what of it is the host's?",
        prediction="capture 3.80 and graph 3.35 ms a step at 32 pixels with under 0.1 ms of the host's; eager waits "
        "for the host; builds: capture 5 to 10 s, graph 20 s with a cold cache and 12 s with a warm one.",
        value=48,
        seconds=200,
        commands=("speedyresnet bench step --recipe speedy --data {noise} --out {out}/backends.json",),
    ),
    _record(
        "record-speedy",
        45,
        260,
        "Does speedy reach 94 % with six views, by the lower bound of the mean of 200 runs?",
        "It does not until a winner of the cuts is in it: 93.92 % (deviation 0.13); 0.715 s of prepare + train.",
        "--recipe speedy --runs 200 --target 94 --seconds 6 --clock total",
    ),
    *(
        _claim(recipe, 40, seconds)
        for recipe, seconds in (
            ("airbench94", 30),
            ("airbench94-muon", 30),
            ("hiverge", 30),
            ("hlb-v0.7", 35),
            ("hlb-v0.4", 40),
            ("hlb-v0.3", 45),
            ("airbench93", 30),
            ("airbench95", 40),
            ("airbench96", 80),
            ("bag-of-tricks", 60),
            ("davidnet", 90),
        )
    ),
    _claim("imagenette", 38, 90, data="imagenette"),
    _record(
        "single-view",
        35,
        90,
        "Does a longer progressive reach 94 % with a single view? Nobody holds this tier.",
        "94 % in 1.3 s of prepare + train: progressive ends at 93.25 %, and an epoch more gives about 0.2 points.",
        "--recipe progressive --set epochs=13 --set schedule.epochs=12.6 "
        "--set augmentation.sizes=24,24,24,24,28,28,28,28,0 --target 94 --view single_view --runs 20",
    ),
    _record(
        "tier-95",
        34,
        150,
        "Does a wider progressive reach 95 % with six views? Nobody holds this tier with Muon and growing images.",
        "95 % for 0.88 PFLOP, 3.2 s of prepare + train.",
        "--recipe progressive --set net.widths=128,384,384 --set epochs=13.5 --set schedule.epochs=13.1 "
        "--set augmentation.sizes=24,24,24,24,28,28,28,28,28,0 --target 95 --runs 20",
    ),
    _record(
        "tier-96",
        33,
        210,
        "Does progressive with airbench96's net reach 96 % with six views?",
        "96 % for 3.1 PFLOP, 11 s of prepare + train.",
        f"--recipe progressive {_TIER_96} --target 96 --runs 10",
    ),
    _against("hlb", 30, 560, "7 times as fast by train or more; on an A100 it takes 6.3 s by its own clock."),
    Entry(
        name="kernels-all",
        question="Is any other provider faster than ours for an operation of a step, torch.compile included?",
        prediction="None by more than 5 %.",
        value=25,
        seconds=180,
        commands=("speedyresnet bench kernels --recipe airbench94 --out {out}/kernels-all.json",),
    ),
    *(
        _claim(recipe, 10, seconds)
        for recipe, seconds in (("hlb-v0.7-long", 150), ("hlb-v0.4-long", 230), ("hlb-v0.3-long", 250))
    ),
)
"""All entries, in any order."""


def by_value() -> list[Entry]:
    """The entries of QUEUE, the highest value first."""
    return sorted(QUEUE, key=lambda entry: -entry.value)
