"""Blocks of a report page for each kind of stored result: tables, bars with floors, pictures.

One function per kind takes the documents of one file. All text stays text here; the page escapes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from speedyresnet.engine.plots import learning_rate_curves, plot_learning_rates
from speedyresnet.engine.recipe_checks import recipe_from_dict
from speedyresnet.engine.record import machine_name

from .charts import Cloud, plot_clouds, series_colors, svg_picture
from .kernel_profile import heading, run_milliseconds
from .kernel_table import table_from
from .measured import told
from .pictures import computing, plot_roofline
from .regress import conclusion, percent_text
from .statistics import Interval
from .versus import versus_rows

Document = dict[str, Any]
_FACTORS = {"ms": 1e3, "µs": 1e6}
"""Factors from seconds."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Cell that shows a measured time and its floor, in percent of the longest."""

    measured: float
    floor: float


Cell = str | Bar


@dataclass(frozen=True, slots=True)
class Table:
    """Table whose columns are, from left to right, labels, numbers and remarks."""

    title: str
    labels: Sequence[str]
    numbers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    remarks: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """<svg> element with its title, legend and caption."""

    title: str
    svg: str
    series: Sequence[tuple[str, str]] = ()
    """(color, name) of each series."""
    caption: str = ""


Block = Table | Picture


def _title(document: Document) -> str:
    batch = document["recipe"].get("batch_size")
    size = f", batch {batch}" if batch else ""
    return f"{document['recipe']['name']}{size}, {machine_name(document['environment'])}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def _plain(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def timed_rows(rows: Sequence[Document], unit: str, digits: int, numbers: dict[int, int]) -> list[list[Cell]]:
    """Return the cells of `rows`, each with a name, seconds, floor_seconds, bytes and flops.

    Args:
        rows: at least one.
        unit: unit of times, `ms` or `µs`.
        digits: decimal places of times.
        numbers: numbers in the roofline plot, by the index of the row.
    """
    longest = max(max(each["seconds"], each["floor_seconds"]) for each in rows) or 1.0
    cells: list[list[Cell]] = []
    for place, each in enumerate(rows):
        seconds, floor = each["seconds"], each["floor_seconds"]
        times = [f"{_FACTORS[unit] * value:,.{digits}f}" for value in (seconds, floor)]
        share = f"{100 * floor / seconds:.0f}" if seconds > 0 else ""
        work = [f"{each['bytes'] / 1e6:.2f}", f"{each['flops'] / 1e9:.3f}", str(numbers.get(place, ""))]
        cells.append([each["name"], Bar(100 * seconds / longest, 100 * floor / longest), *times, share, *work])
    return cells


def timed_blocks(title: str, unit: str, digits: int, measured: Document, rows: Sequence[Document]) -> list[Block]:
    """Return bars of `rows` with their floors, and a roofline plot with the same numbers.

    Args:
        title: title of the bars.
        unit: see `timed_rows`, as for `digits` and `rows`.
        digits: decimal places of times.
        measured: see `plot_roofline`.
        rows: at least one.
    """
    placed = computing(rows) if len(rows) > 1 else []
    numbers = {rows.index(each): number for number, each in enumerate(placed, start=1)}
    columns = (unit, f"floor, {unit}", "floor, %", "MB", "GFLOP", "roofline")
    blocks: list[Block] = [Table(title, ("", ""), columns, timed_rows(rows, unit, digits, numbers))]
    if placed:
        picture = svg_picture(lambda axes: plot_roofline(axes, measured, placed), height=4.2)
        blocks.append(Picture("Roofline", picture, caption="Numbers: the last column of the table above."))
    return blocks


def profile_blocks(name: str, documents: list[Document]) -> list[Block]:
    """Return a step by its parts."""
    blocks = []
    for each in documents:
        whole, alone = (f"{1e3 * each[key]:.2f} ms" for key in ("step_seconds", "unprofiled_step_seconds"))
        title = f"{_title(each)}, {each['backend']} {each['dtype']}: {whole} a step, {alone} without the profiler"
        blocks += timed_blocks(title, "ms", 3, each, each["parts"])
    return blocks


def kernel_profile_blocks(name: str, documents: list[Document]) -> list[Block]:
    """Return the mean step of a run by groups and by parts, those with the most to recover first."""
    blocks: list[Block] = []
    for each in documents:
        times = f"{1e3 * each['step_seconds']:.2f} ms a step, mean of the {each['steps']} of a run"
        title = f"{heading(each)}: {times}"
        rows = [
            [group["name"], f"{group['run_milliseconds']:.1f}", f"{group['recoverable_milliseconds']:.1f}"]
            for group in each["run"]["groups"]
        ]
        blocks.append(Table(title, ("group",), ("ms a run", "above the floor, ms"), rows))
        blocks += timed_blocks("Parts", "ms", 3, each, each["parts"])
    return blocks


def kernel_table_blocks(name: str, documents: list[Document]) -> list[Block]:
    """Return the kernels of a run by groups; such a table does not name its recipe, so there are no floors."""
    blocks: list[Block] = []
    for each in documents:
        times, steps = run_milliseconds(table_from(each))
        rows = [[part, f"{value:.1f}"] for part, value in sorted(times.items(), key=lambda pair: -pair[1])]
        title = f"{name}, {each['backend']}: {sum(times.values()):.1f} ms of kernels in {steps} steps"
        blocks.append(Table(title, ("group",), ("ms a run",), rows))
    return blocks


def kernel_blocks(name: str, documents: list[Document]) -> list[Block]:
    """Return single operations, and apart from them whole steps, beside which everything else is short."""
    blocks = []
    for each in documents:
        for title, whole in ((f"{_title(each)}, {each['dtype']}", False), ("Whole steps", True)):
            cases = [case for case in each["cases"] if (case["operation"] == "step") == whole]
            rows = [case | {"name": _case_name(case)} for case in cases]
            blocks += timed_blocks(title, "µs", 1, each, rows) if rows else []
    return blocks


def _case_name(case: Document) -> str:
    shape = "×".join(map(str, case["shape"]))
    return " ".join(filter(None, (case["operation"], case["layer"], shape, case["provider"], case["direction"])))


def benchmark_blocks(name: str, documents: list[Document]) -> list[Block]:
    """Return medians of pytest-benchmark with their quartiles."""
    blocks: list[Block] = []
    for each in documents:
        rows = []
        for test in each["benchmarks"]:
            floor, stats = test["extra_info"].get("floor_seconds"), test["stats"]
            times = [f"{1e6 * stats[key]:,.1f}" for key in ("median", "q1", "q3")]
            rows.append([test["name"], *times, "" if floor is None else f"{1e6 * floor:,.1f}", str(stats["rounds"])])
        machine = each["machine_info"].get("speedyresnet")
        title = f"{name}, {machine_name(machine)}" if machine else name
        blocks.append(Table(title, ("test",), ("median, µs", "25 %", "75 %", "floor, µs", "rounds"), rows))
    return blocks


def regress_blocks(name: str, documents: list[Document]) -> list[Block]:
    """Return the comparison of two revisions or files, and the conclusion."""
    blocks: list[Block] = []
    for each in documents:
        sides = (each[side].get("revision") or each[side]["file"] for side in ("base", "head"))
        rows = []
        for case in each["cases"]:
            times = [f"{1e3 * case[key]:.4g}" for key in ("base_seconds", "head_seconds")]
            percents = [percent_text(case["change"], "+.1f"), percent_text(case["noise_floor"], ".1f")]
            rows.append([case["name"], *times, *percents, case["verdict"]])
        columns = ("base, ms", "head, ms", "change, %", "noise floor, %")
        blocks.append(Table(" to ".join(sides), ("case",), columns, rows, ("verdict",)))
        blocks.append(Table("", ("conclusion",), (), [[line] for line in conclusion(each)]))
    return blocks


def remarks_in(document: Document) -> str:
    """Return a document's own strings and integers, such as the variant that it describes."""
    return ", ".join(f"{key}: {value}" for key, value in document.items() if isinstance(value, str | int))


def step_recipe(document: Document) -> str:
    """Return the recipe's name with its hash, which distinguishes modified versions, and the data."""
    return f"{document['recipe']['name']} {document['recipe']['hash'][:8]}, {document['data']['name']}"


_STEP_CELLS: dict[str, Callable[[Document], str]] = {
    "ms/step": lambda row: f"{row['milliseconds']:.2f}",
    "25–75 %": lambda row: "{:.2f}–{:.2f}".format(*row["quartiles"]),
    "images/s": lambda row: f"{row['images_per_second']:,.0f}",
    "host, ms": lambda row: f"{row['host_milliseconds']:.2f}",
    "idle GPU, ms": lambda row: _plain(row["idle_milliseconds"], 2),
    "launches": lambda row: _plain(row["launches"], 1),
    "memory, GB": lambda row: _plain(row["peak_bytes"] and row["peak_bytes"] / 1e9, 2),
    "build, s": lambda row: f"{row['build_seconds']:.1f}",
    "cold, s": lambda row: _plain(row["cold_build_seconds"], 1),
    "warm, s": lambda row: _plain(row["warm_build_seconds"], 1),
}
"""Functions that return the cell of a backend, by column."""


def step_blocks(name: str, documents: list[Document]) -> list[Block]:
    """Return a table with a row for each backend of each document; columns without values are left out."""
    pairs = [(document, row) for document in documents for row in document["backends"]]
    columns = {title: [cell(row) for _, row in pairs] for title, cell in _STEP_CELLS.items()}
    filled = {title: cells for title, cells in columns.items() if any(cells)}
    rows = [
        [step_recipe(document), remarks_in(document), row["backend"], row["dtype"], *cells]
        for (document, row), cells in zip(pairs, zip(*filled.values(), strict=True), strict=True)
    ]
    machines = ", ".join(dict.fromkeys(machine_name(each["environment"]) for each in documents))
    blocks: list[Block] = [Table(f"{name}, {machines}", ("recipe", "", "backend", "dtype"), tuple(filled), rows)]
    # The first files have no list of failed backends.
    failed = [
        (step_recipe(each), bad["backend"], bad["reason"]) for each in documents for bad in each.get("failed", ())
    ]
    return [*blocks, Table("Failed", ("recipe", "backend", "reason"), (), failed)] if failed else blocks


def _interval(found: Document, factor: float) -> Interval:
    mean, lower, upper = found["mean"], found["lower"], found["upper"]
    ends = {"lower": None, "upper": None} if lower is None else {"lower": factor * lower, "upper": factor * upper}
    return Interval(mean=factor * mean, **ends)


def _signed(found: Document | None, factor: float, digits: int) -> str:
    """Return a difference with its interval, or an empty string."""
    if found is None:
        return ""
    value = _interval(found, factor)
    ends = "" if value.lower is None else f" ({value.lower:+.{digits}f} to {value.upper:+.{digits}f})"
    return f"{value.mean:+.{digits}f}{ends}"


def accuracy_picture(title: str, clock: str, view: str, clouds: Sequence[Cloud], names: Sequence[str]) -> Picture:
    """Return a plot of `clouds`, percent over seconds, which are called `names`."""

    def plot(axes: Any) -> None:
        plot_clouds(axes, clouds)
        axes.set(xlabel=f"{clock}, s", ylabel=f"accuracy, % ({view.replace('_', ' ')})")

    return Picture(title, svg_picture(plot), list(zip(series_colors(len(clouds)), names, strict=True)))


def _arm_cloud(arm: Document) -> Cloud:
    """Return accuracies in percent over seconds."""
    runs = [(run["seconds"], 100 * run["accuracy"]) for run in arm["runs"]]
    return Cloud(runs, _interval(arm["seconds"], 1), _interval(arm["accuracy"], 100))


def _differences(rows: Sequence[Document], clock: str) -> Table:
    cells = []
    for row in rows:
        numbers = [_signed(row["accuracy"], 100, 2), _signed(row["seconds"], 1, 3)]
        numbers.append(_plain(row["seconds_per_tenth_point"], 3))
        cells.append([row["name"], *numbers, row["verdict"], row["why"]])
    columns = ("accuracy, points", f"{clock}, s", "s per 0.1 point")
    return Table("Differences", ("",), columns, cells, ("verdict", "why"))


def _learning_rates(document: Document) -> list[Block]:
    """Return the learning rates of the arms of a comparison if they differ; the first comparisons lack them."""
    arms = {arm["name"]: arm["recipe"] for arm in document["arms"] if "schedule" in arm["recipe"]}
    recipes = {name: recipe_from_dict(stored) for name, stored in arms.items()}
    images = document["data"]["train_images"]
    alone = [learning_rate_curves({"": made}, images) for made in recipes.values()]
    if all(each == alone[0] for each in alone):
        return []
    curves = learning_rate_curves(recipes, images)
    picture = svg_picture(lambda axes: plot_learning_rates(axes, curves))
    series = [(each.color or "currentColor", each.label + " (dashed)" * each.dashed) for each in curves]
    return [Picture("Learning rates", picture, series)]


def comparison_blocks(name: str, documents: list[Document]) -> list[Block]:
    """Return the arms by accuracy and time, and their differences to the first arm."""
    blocks: list[Block] = []
    for each in documents:
        arms, clock = each["arms"], each["clock"]
        clouds, names = [_arm_cloud(arm) for arm in arms], [arm["name"] for arm in arms]
        title = f"{_title(each)}, {each['data']['name']}, {len(each['seeds'])} seeds"
        blocks.append(accuracy_picture(title, clock, each["view"], clouds, names))
        blocks += _learning_rates(each)
        rows = [
            [arm["name"], arm["backend"], told(cloud.y), told(cloud.x), str(len(cloud.runs))]
            for arm, cloud in zip(arms, clouds, strict=True)
        ]
        blocks.append(Table("Arms", ("", "backend"), ("accuracy, %", f"{clock}, s", "n"), rows))
        blocks.append(_differences(each["differences"], clock))
    return blocks


def _savings(title: str, rows: Sequence[Document]) -> Table:
    cells = []
    for row in rows:
        numbers = [_milliseconds(row["step_seconds"]), _signed(row["saving_seconds"], 1, 3)]
        numbers.append(_signed(row["accuracy_difference"], 100, 2))
        cells.append([row["what"], row["change"], *numbers, row["verdict"], row["why"]])
    columns = ("ms/step", "saving, s a run", "accuracy, points")
    return Table(title, ("what", "change"), columns, cells, ("verdict", "why"))


def _ladder(rows: Sequence[Document]) -> Table:
    longest = max((row["step_seconds"] for row in rows), default=0.0)
    cells: list[list[Cell]] = [
        [row["name"], Bar(100 * row["step_seconds"] / longest, 0), _milliseconds(row["step_seconds"])] for row in rows
    ]
    return Table("Ladder", ("", ""), ("ms/step",), cells)


def trim_blocks(name: str, documents: list[Document]) -> list[Block]:
    """Return the savings of leaving something out, the ladder of all of them, and what cannot be left out."""
    blocks = []
    for each in documents:
        title = f"{_title(each)}, {each['backend']}: {_milliseconds(each['base_step_seconds'])} ms a step"
        impossible = [[row["what"], row["change"], row["reason"]] for row in each["impossible"]]
        blocks += [_savings(title, each["rows"]), _ladder(each["ladder"])]
        blocks.append(Table("Not possible", ("what", "change"), (), impossible, ("why",)))
    return [each for each in blocks if each.rows]


def versus_blocks(name: str, documents: list[Document]) -> list[Block]:
    """Return our results against the scripts of others, and what their clocks contain."""
    blocks: list[Block] = []
    for each in documents:
        rows = [row for peer in each["peers"] for row in versus_rows(peer, each["ours"])]
        blocks.append(Table(_title(each), ("",), ("theirs", "ours", "ratio", "95 %"), rows))
        clocks = [[peer["name"], peer["clock"]["theirs"], peer["clock"]["ours_contains"]] for peer in each["peers"]]
        blocks.append(Table("What the clocks contain", ("",), (), clocks, ("theirs", "ours")))
    return blocks


def start_blocks(name: str, documents: list[Document]) -> list[Block]:
    """Return whether the scripts of others start."""
    rows = [
        [peer["name"], each["torch"], "yes" if peer["starts"] else f"no: {peer['error']}"]
        for each in documents
        for peer in each["peers"]
    ]
    return [Table(name, ("script", "PyTorch"), (), rows, ("starts",))]


def suite_blocks(name: str, documents: list[Document]) -> list[Block]:
    """Return how the parts of a suite ended."""
    rows = [
        [part["name"], f"{part['seconds']:.0f}", "cut off" if part["exit_code"] is None else str(part["exit_code"])]
        for each in documents
        for part in each["parts"]
    ]
    return [Table(name, ("part",), ("s", "exit code"), rows)]
