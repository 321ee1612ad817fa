"""`bench report`: makes one self-contained page from the stored results of the other commands and pytest-benchmark.

Every file is recognised by its content. Names in it appear on the page as text, never as markup.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from speedyresnet.engine.errors import UserError
from speedyresnet.engine.json_files import fault_in, json_lines, json_value, read_content
from speedyresnet.engine.record import SCHEMA as RUN_SCHEMA
from speedyresnet.engine.record import machine_name

from .charts import Cloud, plot_history, plot_lines, series_colors, svg_picture
from .compare import SCHEMA as COMPARISON_SCHEMA
from .kernel_table import SCHEMA as KERNEL_PROFILE_SCHEMA
from .measured import COLUMNS, RunGroup, measured_rows, run_groups, told
from .profiling import SCHEMA as PROFILE_SCHEMA
from .record import Clock
from .report_blocks import (
    Block,
    Document,
    Picture,
    Table,
    accuracy_picture,
    benchmark_blocks,
    comparison_blocks,
    kernel_blocks,
    kernel_profile_blocks,
    kernel_table_blocks,
    profile_blocks,
    regress_blocks,
    remarks_in,
    start_blocks,
    step_blocks,
    step_recipe,
    suite_blocks,
    trim_blocks,
    versus_blocks,
)
from .statistics import Interval, mean_interval
from .trim import SCHEMA as TRIM_SCHEMA

_TEMPLATE = "report.html.jinja"
_CLOCK: Clock = "prepare+train"
"""Clock that accuracies are plotted against."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Kind of file."""

    name: str
    keys: frozenset[str]
    """Keys that every document of this kind has, besides its schema."""
    blocks: Callable[[str, list[Document]], list[Block]]
    """Returns what the page shows of one file, given its name and documents."""
    title: str = ""
    note: str = ""
    """Note in the section that this kind makes; `title` is its heading."""
    schema: str | None = None
    """Schema of its documents, which the first files of some kinds lack."""


@dataclass(frozen=True, slots=True)
class Source:
    """File that was read."""

    path: Path
    kind: Kind
    documents: list[Document]
    blocks: list[Block]
    environments: list[Document]
    """Environment of each document; empty for one that does not store it."""


@dataclass(frozen=True, slots=True)
class Section:
    """Part of the page under its own heading."""

    title: str
    note: str
    blocks: Sequence[Block]


def documents_in(path: Path) -> list[Document]:
    """Return the JSON objects in `path`: one, or one per line.

    Raises:
        UserError: the file cannot be read or holds anything else.
    """
    content = read_content(path)
    try:
        found = [json_value(content)]
    except ValueError:
        found = json_lines(path, content.splitlines(), "finish a pool that was cut off with the same bench record")
    if not found or not all(isinstance(each, dict) for each in found):
        raise UserError(f"{path} holds no results; give files that a bench command, train --out or pytest has written")
    return found


def read_source(path: Path) -> Source:
    """Return the content of `path` and what the page shows of it.

    Raises:
        UserError: the file cannot be read, is of no known kind or is damaged; or an extra package is missing.
    """
    documents = documents_in(path)
    for kind in KINDS:
        if all(each.get("schema") in (None, kind.schema) and each.keys() >= kind.keys for each in documents):
            break
    else:
        raise UserError(f"{path} is none of these: {', '.join(kind.name for kind in KINDS)}; leave it out")
    try:
        environments = [_checked_environment(environment_of(each)) for each in documents]
        source = Source(path, kind, documents, kind.blocks(path.name, documents), environments)
        history_series([source])  # raises its errors now, while the file is known
        return source
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} is a damaged {kind.name} ({type(error).__name__}: {error}); leave it out") from error


def _checked_environment(environment: Document) -> Document:
    """Return `environment`; raise ValueError if it does not consist of names and plain values."""
    fault = fault_in(environment, {"commit": str | None}, "environment")
    nested = [key for key, value in environment.items() if isinstance(value, dict | list)] if fault is None else []
    if fault or nested:
        raise ValueError(fault or f"environment.{nested[0]} is not a plain value")
    return dict(environment)


def groups_of(sources: Sequence[Source]) -> list[RunGroup]:
    """Return the groups of the runs of all files together."""
    return run_groups((each.path, each.documents) for each in sources if each.kind.blocks is check_runs)


def check_runs(name: str, documents: list[Document]) -> list[Block]:
    """Raise the errors in run records; the runs themselves are shown together with those of other files."""
    groups = run_groups([(Path(name), documents)])
    measured_rows(groups)
    for group in groups:
        series_name(group), commit_name(group)
        group_cloud(group)
        group_losses(group)
    return []


def group_cloud(group: RunGroup) -> Cloud:
    """Return accuracies in percent over seconds."""
    seconds, accuracies = group.seconds(_CLOCK), group.accuracies(group.view)
    runs = list(zip(seconds, accuracies, strict=True))
    return Cloud(runs, mean_interval(seconds), mean_interval(accuracies))


def group_losses(group: RunGroup) -> list[tuple[list[float], list[float]]]:
    """Return epochs and mean losses of each run, without losses that are not finite."""
    rows = [[each for each in record["history"] if each["loss"] is not None] for record in group.records]
    return [([float(each["epoch"]) for each in run], [float(each["loss"]) for each in run]) for run in rows]


def series_name(group: RunGroup) -> str:
    """Return everything that distinguishes a group from others, except the commit."""
    first = group.records[0]
    return f"{group.recipe}, {first['data']['name']}, {group.machine}, {first['backend']} {first['dtype']}"


def commit_name(group: RunGroup) -> str:
    """Return the abbreviated commit."""
    return (group.commit or "no commit")[:9]


def run_sections(groups: Sequence[RunGroup]) -> list[Section]:
    """Return the sections on runs: accuracy against time with its table, and losses."""
    if not groups:
        return []
    names = [f"{commit_name(group)}: {series_name(group)}" for group in groups]
    picture = accuracy_picture("", _CLOCK, "the recipe's view", [group_cloud(group) for group in groups], names)
    files = [", ".join(file.name for file in group.files) for group in groups]
    rows = [[*cells, name] for cells, name in zip(measured_rows(groups), files, strict=True)]
    table = Table("", COLUMNS[:4], COLUMNS[4:6], rows, COLUMNS[6:])
    colors = series_colors(len(groups))
    lines = [(color, *run) for group, color in zip(groups, colors, strict=True) for run in group_losses(group)]
    losses = svg_picture(functools.partial(plot_lines, lines=lines, labels=("epoch", "training loss")))
    about = "Pale points are runs, full ones their means; bars and ±: 95 % intervals of the mean, Student's t."
    about_loss = "Mean training loss of each epoch, a line a run; recipes may count it differently."
    return [
        Section("Accuracy against time", about, [picture, table]),
        Section("Loss", about_loss, [Picture("", losses, list(zip(colors, names, strict=True)))]),
    ]


def history_series(sources: Sequence[Source]) -> dict[str, dict[str, list[tuple[str, Interval]]]]:
    """Return (commit, value) pairs in the order of the files, by measure, then by recipe and machine."""
    found: dict[str, dict[str, list[tuple[str, Interval]]]] = {}

    def add(measure: str, name: str, commit: str | None, value: Interval) -> None:
        if commit is not None:
            found.setdefault(measure, {}).setdefault(name, []).append((commit, value))

    for group in groups_of(sources):
        name, cloud, commit = series_name(group), group_cloud(group), group.commit
        add(f"accuracy, % ({group.view.replace('_', ' ')})", name, commit, cloud.y)
        add(f"{_CLOCK}, s", name, commit, cloud.x)
    for document in (each for source in sources if source.kind.blocks is step_blocks for each in source.documents):
        environment = document["environment"]
        about = (step_recipe(document), machine_name(environment), remarks_in(document))
        for row in document["backends"]:
            value = Interval(mean=row["milliseconds"], lower=row["quartiles"][0], upper=row["quartiles"][1])
            name = ", ".join(filter(None, (*about, f"{row['backend']} {row['dtype']}")))
            add("ms/step", name, environment.get("commit"), value)
    return found


def _cells(value: Interval) -> list[str]:
    return ["" if each is None else f"{each:.5g}" for each in (value.mean, value.lower, value.upper)]


def history_section(sources: Sequence[Source]) -> list[Section]:
    """Return the section of what was measured at two commits or more, if anything was."""
    blocks: list[Block] = []
    for measure, series in history_series(sources).items():
        lines = {name: line for name, line in series.items() if len({commit for commit, _ in line}) > 1}
        if lines:
            picture = svg_picture(functools.partial(plot_history, series=list(lines.values())), height=2.8)
            colors = series_colors(len(lines))
            blocks.append(Picture(measure, picture, list(zip(colors, lines, strict=True))))
            rows = [[name, commit[:9], *_cells(value)] for name, line in lines.items() for commit, value in line]
            blocks.append(Table("", ("", "commit"), (measure, "from", "to"), rows))
    note = "In the order of the files. From, to: the 95 % interval of the mean of runs; of steps the rounds' quartiles."
    return [Section("History by commit", note, blocks)] if blocks else []


def environment_of(document: Document) -> Document:
    """Return the environment in which a document was measured, as far as the document stores it."""
    found: Document = document.get("environment") or document.get("machine_info", {}).get("speedyresnet") or {}
    return found


def environment_section(sources: Sequence[Source]) -> list[Section]:
    """Return a section with a column for each machine and set of versions, with the commits measured there."""
    places: dict[str, tuple[Document, list[str]]] = {}
    for environment in (each for source in sources for each in source.environments):
        facts = {key: value for key, value in environment.items() if key != "commit" and value is not None}
        if facts:
            _, commits = places.setdefault(json.dumps(facts), (facts, []))
            commits.append(str(environment.get("commit"))[:9])
    keys = dict.fromkeys(key for facts, _ in places.values() for key in facts)
    rows = [[key.replace("_", " "), *(str(facts.get(key, "")) for facts, _ in places.values())] for key in keys]
    rows.append(["commits", *(", ".join(dict.fromkeys(commits)) for _, commits in places.values())])
    return [Section("Environments", "", [Table("", ("",), (), rows, [""] * len(places))])] if places else []


def files_section(sources: Sequence[Source]) -> Section:
    """Return the section that lists the files of the page."""
    rows = [[each.path.name, each.kind.name, str(len(each.documents))] for each in sources]
    return Section("Files", "", [Table("", ("file", "kind"), ("documents",), rows)])


def page_sections(sources: Sequence[Source]) -> list[Section]:
    """Return the sections that have something to show, in the order of the page."""
    sections = run_sections(groups_of(sources))
    for kind in KINDS:
        blocks = [block for source in sources if source.kind is kind for block in source.blocks]
        if blocks:
            sections.append(Section(kind.title, kind.note, blocks))
    return [*sections, *history_section(sources), *environment_section(sources), files_section(sources)]


def page_html(sources: Sequence[Source]) -> str:
    """Return the whole page.

    Raises:
        UserError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise UserError("a report needs jinja2: pip install 'speedyresnet[bench]'") from error
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    cards = [(group, commit_name(group), group_cloud(group)) for group in groups_of(sources)]
    page = pages.get_template(_TEMPLATE)
    return page.render(sections=page_sections(sources), cards=cards, clock=_CLOCK, told=told)


KINDS = (
    Kind("run record", frozenset({"recipe", "environment", "seconds", "history"}), check_runs, schema=RUN_SCHEMA),
    Kind(
        "comparison",
        frozenset({"arms", "differences"}),
        comparison_blocks,
        "Comparisons",
        "The same seeds in turns; differences to the first arm are paired by seed. Intervals: 95 %, Student's t.",
        schema=COMPARISON_SCHEMA,
    ),
    Kind(
        "trim",
        frozenset({"rows", "ladder"}),
        trim_blocks,
        "What can be left out",
        "Each change alone against the whole recipe; the ladder takes one after the other.",
        schema=TRIM_SCHEMA,
    ),
    Kind(
        "profile",
        frozenset({"parts", "step_seconds", "ceilings"}),
        profile_blocks,
        "A step, part by part",
        "Pale: measured. Dark: the floor, max(bytes / bandwidth, FLOPs / rate), ceilings measured in the same minute.",
        schema=PROFILE_SCHEMA,
    ),
    Kind(
        "kernel profile",
        frozenset({"parts", "step_seconds", "variants", "table"}),
        kernel_profile_blocks,
        "A run, kernel by kernel",
        "The step that really runs. Pale: measured. Dark: the floor. First what is furthest above it in a whole run.",
        schema=KERNEL_PROFILE_SCHEMA,
    ),
    Kind(
        "table of a step's kernels",
        frozenset({"variants", "prepare_kernels", "evaluate_seconds"}),
        kernel_table_blocks,
        "Kernels of a run",
        "Stored without recipe and order; bench profile --recipe NAME --from FILE has the floors.",
    ),
    Kind(
        "kernel table",
        frozenset({"cases", "ceilings"}),
        kernel_blocks,
        "Operations on their own",
        "Medians. Pale: measured. Dark: the floor, as above.",
    ),
    Kind(
        "step table",
        frozenset({"backends"}),
        step_blocks,
        "Steps by backend",
        "Medians over rounds. Host: until a step is issued; on a CPU the host does the work itself.",
    ),
    Kind(
        "pytest-benchmark file",
        frozenset({"machine_info", "benchmarks"}),
        benchmark_blocks,
        "Benchmarks",
        "Stored by pytest-benchmark; medians and quartiles over rounds.",
    ),
    Kind(
        "regress table",
        frozenset({"mode", "effect", "cases", "base", "head"}),
        regress_blocks,
        "What got slower",
        "Head against base; of two revisions measured in turns. The noise floor: smaller changes drown.",
    ),
    Kind(
        "versus table",
        frozenset({"ours", "peers"}),
        versus_blocks,
        "Against the scripts of others",
        "Ratio: theirs over ours, geometric mean of the rounds, with its 95 % interval.",
    ),
    Kind("start of peers", frozenset({"torch", "peers"}), start_blocks, "Whether the scripts of others start"),
    Kind("suite", frozenset({"minutes", "parts"}), suite_blocks, "Suites", "In the order in which they ran."),
)
