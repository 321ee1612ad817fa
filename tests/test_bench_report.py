import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from speedyresnet.bench.charts import Cloud, plot_clouds, plot_history, plot_lines
from speedyresnet.bench.cli import main
from speedyresnet.bench.measured import BEGIN, END, measured_markdown, measured_rows, run_groups
from speedyresnet.bench.report import read_source
from speedyresnet.bench.statistics import Interval
from speedyresnet.bench.versus import OWN_CLOCK
from speedyresnet.engine import UserError, recipe
from speedyresnet.engine.plots import matplotlib_pyplot

REPOSITORY = Path(__file__).resolve().parent.parent
EVIDENCE = sorted((REPOSITORY / "bench/evidence").glob("*.json*"))
KNOWN = [file for file in EVIDENCE if file.name.startswith(("2026-11-21-pocket", "2026-11-21-peers"))]
"""Files whose content the tests check; more evidence must not change what they expect."""
POOL = REPOSITORY / "bench/evidence/2026-11-21-pocket-cpu.jsonl"
HOSTILE = '</title><script>alert("1")</script><img src=x onerror=alert(2)> & | $x$'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

ENVIRONMENT = {
    "gpu": "NVIDIA H200", "driver": "580.1", "power_limit_watts": 700.0, "torch": "2.15.0+cu132", "processor": "x",
    "threads": 16, "commit": "f00dfeed00",
}  # fmt: skip
ABOUT = {"recipe": {"name": "fast", "hash": "a1b2c3d4e5", "batch_size": 512}, "environment": ENVIRONMENT}


def interval(mean, margin):
    return {"mean": mean, "lower": mean - margin, "upper": mean + margin}


def arm(name, accuracy, seconds):
    runs = [{"seed": seed, "status": "finished", "accuracy": accuracy, "seconds": seconds} for seed in range(3)]
    found = {"accuracy": interval(accuracy, 0.001), "seconds": interval(seconds, 0.05)}
    return {"name": name, "recipe": ABOUT["recipe"], "backend": "graph", "runs": runs} | found


COMPARISON = ABOUT | {
    "schema": "speedyresnet.comparison/1", "data": {"name": "cifar10", "train_images": 50_000}, "device": "cuda:0",
    "view": "six_view", "clock": "train", "confidence": 0.95, "seeds": [0, 1, 2],
    "arms": [arm("base", 0.94, 2.5), arm("shorter", 0.9385, 2.2)],
    "differences": [{"name": "shorter", "runs": 3, "accuracy": interval(-0.0015, 0.001), "seconds": interval(-0.3, 0.1),
                     "seconds_per_tenth_point": 0.2, "verdict": "worse", "why": "less accurate"}],
}  # fmt: skip
TRIM = ABOUT | {
    "schema": "speedyresnet.trim/1", "data": {"name": "cifar10"}, "device": "cuda:0", "backend": "graph",
    "base_step_seconds": 0.002,
    "rows": [{"what": "averaging", "change": "averaging.kind=none", "step_seconds": 0.0019, "why": "pays",
              "saving_seconds": interval(0.04, 0.01), "accuracy_difference": None, "verdict": "cannot tell"}],
    "ladder": [{"name": "all", "step_seconds": 0.002}, {"name": "no averaging", "step_seconds": 0.0015}],
    "impossible": [{"what": "head", "change": "net.head=none", "reason": "nothing would be trained"}],
}  # fmt: skip
BENCHMARK = {
    "machine_info": {"speedyresnet": ENVIRONMENT}, "commit_info": {}, "version": "5",
    "benchmarks": [{"name": "test_case[pool]", "extra_info": {"floor_seconds": 1e-5},
                    "stats": {"median": 25e-6, "q1": 24e-6, "q3": 1.5e-3, "rounds": 15}}],
}  # fmt: skip
RATIO = {"n": 2, "value": 1.5, "low": 1.25, "high": 1.75}
VERSUS = ABOUT | {
    "ours": {"name": "ours", "status": "finished", "total": {"mean": 2.5}, "wall_seconds": {"mean": 20.0},
             "six_view": {"mean": 0.9401}},
    "peers": [{"name": "hiverge", "status": "finished", OWN_CLOCK: {"mean": 3.75}, "wall_seconds": {"mean": 30.0},
               "six_view": {"mean": 0.9399}, "clock": {"ours": "total", "ratio": RATIO, "theirs": "all but loading",
                                                       "ours_contains": "everything"},
               "process": {"ratio": RATIO}, "accuracy": {"view": "six_view", "our_view": "six_view"}}],
}  # fmt: skip
REGRESS = {
    "mode": "interleaved", "effect": 0.03, "base": {"revision": "main"}, "head": {"revision": "topic"},
    "only_in_base": [], "only_in_head": [], "left_out": ["head"], "unconfirmed": [], "environment": ENVIRONMENT,
    "cases": [{"name": "step-eager", "base_seconds": 2e-3, "head_seconds": 2.2e-3, "change": 0.1, "noise_floor": None,
               "verdict": "slower"}],
}  # fmt: skip
SUITE = {"environment": ENVIRONMENT, "minutes": 9.0, "parts": [{"name": "tests", "exit_code": None, "seconds": 61.0}]}
MADE = {
    "comparison": COMPARISON, "trim": TRIM, "benchmark": BENCHMARK, "regress": REGRESS, "versus": VERSUS,
    "suite": SUITE,
}  # fmt: skip


class Page(HTMLParser):
    """Parser that keeps tags with their attributes, the cells of each table row, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.words, self.source, self.in_cell = [], [], [], text, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("th", "td")

    def handle_data(self, data):
        self.words.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data

    def row(self, *beginning):
        """Return the rest of the only row that begins with `beginning`."""
        (found,) = {tuple(row) for row in self.rows if tuple(row[: len(beginning)]) == beginning}
        return list(found[len(beginning) :])


def run_command(monkeypatch, capsys, *words):
    """Return the exit code and the text on standard error."""
    monkeypatch.setattr(sys, "argv", ["speedyresnet", "bench", "report", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, capsys.readouterr().err


def records_of_pool():
    return [json.loads(line) for line in POOL.read_text().splitlines()]


def write_lines(path, documents):
    path.write_text("".join(json.dumps(each) + "\n" for each in documents))
    return path


def page_of(files, folder):
    """Return the path of the page that the command makes of `files` in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["speedyresnet", "bench", "report", *map(str, files), "--out", f"{folder}/page.html"]
        )
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0
    return folder / "page.html"


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    """Return the path of a page of committed evidence, a file of every other kind, and evidence of later commits."""
    folder = tmp_path_factory.mktemp("report")
    files = [*KNOWN]
    for name, document in MADE.items():
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps(document))
    records = records_of_pool()
    for record in records:
        record["environment"]["commit"] = "beefbeefbeef"
        record["seconds"]["train"] -= 50
        record["history"][-1]["loss"] = None  # as in a run that diverged
    files.append(write_lines(folder / "later.jsonl", records))
    steps = json.loads((REPOSITORY / "bench/evidence/2026-11-21-pocket-step-cpu.json").read_text())
    steps["environment"]["commit"] = "cafecafe"
    steps["backends"] = steps["backends"][1:]
    steps["backends"][0]["milliseconds"] -= 1
    files.append(write_lines(folder / "later-steps.json", [steps]))
    return page_of(files, folder)


@pytest.fixture(scope="module")
def page(page_path):
    return Page(page_path.read_text())


def test_runs_are_told_with_intervals_of_the_mean(page):
    # Accuracies 0.9003, 0.9029, 0.9025: 4.3027 (t table, two degrees of freedom) times 0.0014 over the root of three.
    machine = "Intel(R) Xeon(R) Processor, 2 threads, PyTorch 2.15.0"
    told = "89.42 ± 0.25 % single view, 90.19 ± 0.35 % mirror"
    assert ["pocket", machine, told, "", "95.3 to 99.1 s", "3", POOL.name] in page.rows
    assert ["pocket", machine, told, "", "45.3 to 49.1 s", "3", "later.jsonl"] in page.rows
    assert page.row("pocket", "AMD EPYC, 2 threads, PyTorch 2.15.0")[:3] == [
        "89.62 % single view, 89.99 % mirror", "", "182 s"
    ]  # fmt: skip
    assert page.words.count("90.19 ± 0.35 %") == 2
    assert page.words.count("96.86 ± 5.17 s") == 1


def test_parts_have_bars_beside_their_floors(page):
    assert page.row("pool", "") == ["12.258", "2.040", "17", "175.98", "0.000", ""]
    assert page.row("group3.conv2 3x3 wgrad")[-1] == "18"  # numbered among those that compute
    start = page.source.index('<th scope="row">pool</th>')
    widths = re.findall(r'class="(\w+)" style="width: ([\d.]+)%', page.source[start : start + 300])
    assert [name for name, _ in widths] == ["measured", "floor"]
    assert [float(width) for _, width in widths] == pytest.approx(
        [100 * 12.258 / 17.826, 100 * 2.040 / 17.826], abs=0.02
    )


@pytest.mark.parametrize(
    ("beginning", "cells"),
    [
        (("shorter", "graph"), ["93.85 ± 0.10", "2.200 ± 0.050", "3"]),
        (("shorter", "-0.15 (-0.25 to -0.05)"), ["-0.300 (-0.400 to -0.200)", "0.200", "worse", "less accurate"]),
        (("averaging", "averaging.kind=none"), ["1.900", "+0.040 (+0.030 to +0.050)", "", "cannot tell", "pays"]),
        (("no averaging",), ["", "1.500"]),
        (("head", "net.head=none"), ["nothing would be trained"]),
        (("test_case[pool]",), ["25.0", "24.0", "1,500.0", "10.0", "15"]),
        (("step-eager",), ["2", "2.2", "+10.0", "?", "slower"]),
        (("left out, there was no time for: head",), []),
        (("s its clock, our total",), ["3.750", "2.500", "1.500", "1.250–1.750"]),
        (("hiverge", "all but loading"), ["everything"]),
        (("% six_view",), ["93.99", "94.01", "", ""]),
        (("tests",), ["61", "cut off"]),
        (("optimizer reference step",), ["", "399.4", "58.5", "15", "9.94", "0.000", ""]),
        (("step eager step",), ["", "151,299.2", "95,404.0", "63", "8.74", "40.600", ""]),
        (("pocket b715eb49, cifar10", "net.activation: silu", "eager", "bfloat16"),
         ["140.25", "139.62–143.18", "1,825", "140.24", "1.24", "3.2"]),
        (("pocket 614a68b8, cifar10", "", "compile", "bfloat16", "97.84"),
         ["94.85–104.98", "2,616", "97.84", "1.65", "6.3", "69.0", "4.9"]),
        (("e1", "2.11.0+cu130"), ["yes"]),
        (("power limit watts",), ["", "", "700.0"]),
        (("suite.json",), ["suite", "1"]),
    ],
)  # fmt: skip
def test_every_kind_of_file_is_shown(page, beginning, cells):
    assert page.row(*beginning) == cells


def test_all_evidence_is_shown(tmp_path):
    page = page_of(EVIDENCE, tmp_path).read_text()
    assert all(file.name in page for file in EVIDENCE)


def test_history_has_what_was_measured_at_several_commits(page):
    machine = "Intel(R) Xeon(R) Processor, 2 threads, PyTorch 2.15.0"
    steps, runs = (f"pocket 614a68b8, cifar10, {machine}, {how}" for how in ("compile bfloat16", "eager bfloat16"))
    assert [row for row in page.rows if len(row) == 5 and machine in row[0]] == [
        [runs, "71ba0d48e", "90.19", "89.842", "90.538"], [runs, "beefbeefb", "90.19", "89.842", "90.538"],
        [runs, "71ba0d48e", "96.855", "91.688", "102.02"], [runs, "beefbeefb", "46.855", "41.688", "52.022"],
        [steps, "ab493030b", "97.842", "94.852", "104.98"], [steps, "cafecafe", "96.842", "94.852", "104.98"],
    ]  # fmt: skip


def test_nothing_is_loaded_and_nothing_runs(page):
    attributes = [(tag, name, value) for tag, given in page.tags for name, value in given.items()]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "img", "base", "form"}
    assert not [each for each in attributes if each[1].startswith("on") or each[1] in ("src", "srcset", "action")]
    assert all(value.startswith("#") for _, name, value in attributes if name.endswith("href"))
    assert set(re.findall(r"url\((.)", page.source)) == {"#"}
    assert "@import" not in page.source
    policy = dict(given.values() for tag, given in page.tags if given.get("http-equiv"))
    assert policy == {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


def arms_of(recipes):
    """Return the arms of a comparison that keeps the recipes whole."""
    return [arm(name, 0.94, 2.5) | {"recipe": dataclasses.asdict(made)} for name, made in recipes.items()]


def test_learning_rates_are_drawn_where_arms_differ_in_them(tmp_path):
    same = {"base": recipe("airbench94"), "other": recipe("airbench94", ["net.activation=relu"])}
    cosine = {"half a cosine": recipe("airbench94", ["schedule.kind=cosine"])}
    titles = []
    for number, recipes in enumerate((same, same | cosine)):
        file = write_lines(tmp_path / f"{number}.json", [COMPARISON | {"arms": arms_of(recipes)}])
        blocks = read_source(file).blocks
        titles.append([block.title for block in blocks])
    assert "Learning rates" not in titles[0]
    (picture,) = (block for block in blocks if block.title == "Learning rates")
    assert [name for _, name in picture.series][:3] == ["base", "other", "half a cosine"]
    assert [name.endswith("(dashed)") for _, name in picture.series] == [False, False, False, True, True]
    assert picture.svg.count("<path") > 5
    assert "learning rate of the convolutions" in picture.svg


def test_a_comparison_of_recipes_of_another_version_is_named(tmp_path):
    arms = arms_of({"base": recipe("airbench94")})
    arms[0]["recipe"]["surprise"] = 1
    file = write_lines(tmp_path / "newer.json", [COMPARISON | {"arms": arms}])
    with pytest.raises(UserError, match=r"newer\.json: the recipe was stored by another version"):
        read_source(file)


def test_names_are_text(tmp_path, monkeypatch, capsys):
    made = copy.deepcopy(MADE) | {"profile": json.loads(next(f for f in KNOWN if "profile" in f.name).read_text())}
    records = records_of_pool()[:2]
    for record, commit in zip(records, ("a", "b"), strict=True):
        record["environment"]["commit"] = commit + HOSTILE
        record["recipe"]["claim"] = {"accuracy": 0.94, "seconds": 2.5, "hardware": HOSTILE}
    for document in (*made.values(), *records):
        document.setdefault("recipe", {})["name"] = HOSTILE
        document.setdefault("environment", copy.deepcopy(ENVIRONMENT))["platform"] = HOSTILE
    made["comparison"] |= {"clock": HOSTILE, "view": HOSTILE}
    made["comparison"]["arms"][0]["name"] = HOSTILE
    made["profile"]["parts"][0]["name"] = made["benchmark"]["benchmarks"][0]["name"] = HOSTILE
    files = [write_lines(tmp_path / f"{name}.json", [document]) for name, document in made.items()]
    files.append(write_lines(tmp_path / "<script>.jsonl", records))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter")
    out = tmp_path / "page.html"
    assert run_command(monkeypatch, capsys, *files, "--out", out, "--readme", readme)[0] == 0
    page = Page(out.read_text())
    test_nothing_is_loaded_and_nothing_runs(page)
    assert page.words.count(HOSTILE) >= 7
    assert f"accuracy, % ({HOSTILE})" in page.words  # label of an axis, where a formula would be drawn instead
    *_, first, second, _, _ = readme.read_text().splitlines()
    assert "<" not in first + second
    assert first.count("|") == 8
    assert "| 94.00 % in 2.5 s, " in first
    assert first.endswith("[runs](%3Cscript%3E.jsonl) |")


def test_runs_are_grouped_by_what_they_have_in_common():
    records = [copy.deepcopy(records_of_pool()[0]) for _ in range(6)]
    records[2]["environment"]["torch"] = "2.11.0"
    records[3]["recipe"]["hash"] = "0" * 16
    records[4]["environment"]["commit"] = None
    records[5]["status"] = "interrupted"
    records[1]["status"] = "diverged"
    groups = run_groups([(Path("a"), records[:1]), (Path("b"), records[1:])])
    assert [len(group.records) for group in groups] == [2, 1, 1, 1]
    assert groups[0].files == [Path("a"), Path("b")]


def test_a_pool_that_was_cut_off_says_how_many_runs_were_planned():
    records = records_of_pool()
    for each in records:
        each["pool"] = {"runs": len(records), "first_seed": 0, "validation": 0}
    assert [row[-1] for row in measured_rows(run_groups([(POOL, records)]))] == ["3"]
    assert [row[-1] for row in measured_rows(run_groups([(POOL, records[:2])]))] == ["2 of 3"]


def test_the_readme_table_has_the_fastest_runs_first_and_names_the_backend(tmp_path):
    slow, fast = copy.deepcopy(records_of_pool()[:1]), copy.deepcopy(records_of_pool()[1:2])
    fast[0]["backend"], fast[0]["seconds"]["train"], slow[0]["seconds"]["train"] = "graph", 1.5, 2.5
    *_, first, second = measured_markdown(run_groups([(POOL, slow + fast)]), tmp_path).splitlines()
    assert ("PyTorch 2.15.0, graph |" in first, "| 1.5 s |" in first) == (True, True)
    assert ("PyTorch 2.15.0 |" in second, "| 2.5 s |" in second) == (True, True)


def test_charts_show_means_and_intervals():
    pyplot = matplotlib_pyplot()
    figure, (clouds, lines, history) = pyplot.subplots(3)
    several, one = Interval(mean=2.0, lower=1.5, upper=2.5), Interval(mean=30.0, lower=None, upper=None)
    plot_clouds(clouds, [Cloud([(1.0, 29.0), (3.0, 31.0)], several, one), Cloud([(30.0, 2.0)], one, several)])
    assert [bars.lines[0].get_xydata().tolist() for bars in clouds.containers] == [[[2.0, 30.0]], [[30.0, 2.0]]]
    segments = [[each.get_segments()[0].tolist() for each in bars.lines[2]] for bars in clouds.containers]
    assert segments[0] == [[[1.5, 30.0], [2.5, 30.0]], [[2.0, 30.0], [2.0, 30.0]]]
    assert segments[1] == [[[30.0, 2.0], [30.0, 2.0]], [[30.0, 1.5], [30.0, 2.5]]]
    assert [each.get_offsets().tolist() for each in clouds.collections if len(each.get_offsets()) > 1] == [
        [[1.0, 29.0], [3.0, 31.0]]
    ]
    plot_lines(lines, [("red", [1.0, 2.0], [5.0, 4.0])], ("epoch", "loss"))
    assert lines.lines[0].get_xydata().tolist() == [[1.0, 5.0], [2.0, 4.0]]
    plot_history(history, [[("aaaaaaaaa", several)], [("bbbbbbbbb", one), ("aaaaaaaaa", several)]])
    assert [bars.lines[0].get_xydata().tolist() for bars in history.containers] == [
        [[0.0, 2.0]], [[1.0, 30.0], [0.0, 2.0]]
    ]  # fmt: skip
    assert [label.get_text() for label in history.get_xticklabels()] == ["aaaaaaa", "bbbbbbb"]
    pyplot.close(figure)


def test_readme_says_what_the_committed_records_say(tmp_path, monkeypatch, capsys):
    pools = [file for file in EVIDENCE if file.suffix == ".jsonl"]
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "evidence").symlink_to(REPOSITORY / "bench/evidence")
    readme = tmp_path / "README.md"
    written = (REPOSITORY / "README.md").read_text()
    readme.write_text(re.sub(f"{BEGIN}.*{END}", f"{BEGIN}\n{END}", written, flags=re.DOTALL))
    files = [folder / "evidence" / file.name for file in pools]
    assert run_command(monkeypatch, capsys, *files, "--readme", readme)[0] == 0
    assert readme.read_text() == written


def damaged(**changes):
    return json.dumps(records_of_pool()[0] | changes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no results"),
        ("[1, 2]", "holds no results"),
        ("my notes", "line 1 is no JSON"),
        (POOL.read_text()[:-9], "line 3 is no JSON"),
        ('{"some": "thing"}', "none of these: run record, comparison"),
        ('{"schema": "speedyresnet.run/9"}', "none of these"),
        (damaged() + "\n" + json.dumps(COMPARISON), "none of these"),
        (damaged(recipe={}), "damaged run record (KeyError: 'name')"),
        (damaged(recipe=records_of_pool()[0]["recipe"] | {"claim": "94 %"}), "damaged run record (TypeError"),
        (damaged(seconds=None), "damaged run record"),
        (damaged(history=[{"loss": "high", "epoch": 1}]), "damaged run record"),
        (
            damaged(environment=records_of_pool()[0]["environment"] | {"commit": [None]}),
            "environment.commit is not text",
        ),
        (
            damaged(environment=records_of_pool()[0]["environment"] | {"cuda": {"a": 1}}),
            "environment.cuda is not a plain",
        ),
        (json.dumps(COMPARISON | {"seeds": None}), "damaged comparison"),
        (json.dumps(SUITE | {"environment": "here"}), "damaged suite"),
        (json.dumps(TRIM | {"ladder": [{"name": "x"}]}), "damaged trim"),
        (b"\xff\xfe\x00", "it is not text in UTF-8"),
        (100_000 * "[", "nested too deeply"),
        (damaged(seed="\ud800"), "is not Unicode"),
    ],
)
def test_a_file_that_is_no_result_is_named(content, words, tmp_path, monkeypatch, capsys):
    given = tmp_path / "given.json"
    given.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, told = run_command(monkeypatch, capsys, POOL, given, "--out", tmp_path / "page.html")
    assert code == 2
    assert len(told.splitlines()) == 1
    assert str(given) in told
    assert words in told
    assert sorted(each.name for each in tmp_path.iterdir()) == ["given.json"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "give --out report.html"),
        (("--out", "."), "it is a folder"),
        (("--out", "pool.jsonl"), "is read by the same command"),
        (("missing.json", "--out", "page.html"), "cannot read missing.json"),
        (("--out", "page.html", "--readme", "no.md"), "no.md: no such file"),
        (("--out", "page.html", "--readme", "plain.md"), f"put {BEGIN}"),
        (("--out", "page.html", "--readme", "turned.md"), f"put {BEGIN}"),
        (("--out", "page.html", "--readme", "twice.md"), f"put {BEGIN}"),
    ],
)
def test_nothing_is_written_where_something_is_wrong(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(POOL, "pool.jsonl")
    (tmp_path / "plain.md").write_text(f"{BEGIN}\nno end")
    (tmp_path / "turned.md").write_text(f"{END}\n{BEGIN}")
    (tmp_path / "twice.md").write_text(f"{BEGIN}\n{END}\n{END}")
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    code, error = run_command(monkeypatch, capsys, "pool.jsonl", *words)
    assert (code, len(error.splitlines())) == (2, 1)
    assert told in error
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_a_readme_needs_runs(tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\nthe table\n{END}")
    code, error = run_command(monkeypatch, capsys, REPOSITORY / KNOWN[0], "--readme", readme)
    assert (code, readme.read_text()) == (2, f"{BEGIN}\nthe table\n{END}")
    assert "none of the files holds completed runs" in error


def test_a_profile_without_work_has_no_roofline(tmp_path):
    profile = json.loads(next(file for file in KNOWN if "profile" in file.name).read_text())
    profile["parts"] = [part | {"flops": 0} for part in profile["parts"]]
    (only,) = read_source(write_lines(tmp_path / "profile.json", [profile])).blocks
    assert len(only.rows) == len(profile["parts"])


FRAME = """<title></title><script>onmessage = event => { document.title = event.data }</script>
<iframe src="page.html" style="border: 0; width: %dpx; height: 900px"></iframe>"""  # a window is wider than a phone
MEASURE = """<script>
const colors = element => getComputedStyle(element);
const pictures = [...document.querySelectorAll("svg")].map(each => each.getBoundingClientRect());
parent.postMessage(JSON.stringify({
  shown: innerWidth, needed: document.documentElement.scrollWidth,
  pictures: pictures.map(each => [each.width, each.height]),
  page: colors(document.body).backgroundColor, text: colors(document.body).color,
  ink: colors(document.querySelector("svg text")).fill,
}), "*");
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, False)])
def test_a_browser_shows_it(width, dark, page_path, tmp_path):
    text = page_path.read_text()
    measured = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", MEASURE)
    (tmp_path / "page.html").write_text(measured)
    (tmp_path / "frame.html").write_text(FRAME % width)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path}/profile"]
    options.append(f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    done = subprocess.run(
        [BROWSER, *options, "--dump-dom", f"file://{tmp_path}/frame.html"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert (found["shown"], found["needed"]) == (width, width)
    assert len(found["pictures"]) == text.count("<svg") == 8
    assert all(300 < wide < width and 150 < high < wide for wide, high in found["pictures"])
    assert found["page"] == ("rgb(18, 22, 27)" if dark else "rgb(255, 255, 255)")
    assert found["ink"] == found["text"] == ("rgb(228, 233, 239)" if dark else "rgb(26, 33, 41)")
