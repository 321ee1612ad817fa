import json
import subprocess
import sys
import time

import pytest
import torch

from speedyresnet.bench.gpu_suite import Stage, run_gpu_suite, stages
from speedyresnet.engine.pack_file import save_pack

CPU = torch.device("cpu")
FILES = {
    "suite.json", "steps.json", "runs.jsonl", "profile.json", "profile.trace.json.gz", "kernels.json", "versus.json",
}  # fmt: skip


def python(name, code, share, *files):
    return Stage(name=name, arguments=("-c", code, "{}"), share=share, files=files)


def test_a_part_is_cut_off_when_its_time_is_over_and_keeps_what_it_wrote(tmp_path):
    slow = "import sys, time; open(sys.argv[1] + '/a', 'w').write('1'); print('began', flush=True); time.sleep(60)"
    parts = [python("slow", slow, 0.5, "a", "b"), python("next", "print('done')", 0.5)]
    started = time.monotonic()
    first, second = run_gpu_suite(parts, CPU, minutes=4 / 60, out=tmp_path)
    assert time.monotonic() - started < 4
    assert (first.exit_code, first.output) == (None, "began\n")
    assert 1.9 < first.seconds < 3
    assert (second.exit_code, second.output) == (0, "done\n")
    assert (tmp_path / "a").read_text() == "1"
    assert not (tmp_path / "b").exists()
    saved = json.loads((tmp_path / "suite.json").read_text())
    assert [each["name"] for each in saved["parts"]] == ["slow", "next"]
    assert saved["environment"]["torch"] == torch.__version__


def test_what_a_part_started_is_stopped_with_it(tmp_path):
    """A compiler's worker would go on and disturb the next measurement."""
    child = f"import time; time.sleep(2); open({str(tmp_path / 'alive')!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"
    (found,) = run_gpu_suite([python("parent", parent, 1.0)], CPU, minutes=1, out=tmp_path)
    assert found.exit_code == 0
    time.sleep(2.5)
    assert not (tmp_path / "alive").exists()


def test_a_part_that_fails_stops_nothing_and_leaves_its_time_to_the_next(tmp_path):
    parts = [
        python("fails", "import sys; print('why', file=sys.stderr); sys.exit(3)", 0.5),
        python("sleeps", "import time; time.sleep(2.2); print('awake')", 0.1),
    ]
    fails, sleeps = run_gpu_suite(parts, CPU, minutes=4 / 60, out=tmp_path)
    assert (fails.exit_code, fails.output) == (3, "why\n")
    assert (sleeps.exit_code, sleeps.output) == (0, "awake\n")  # 0.4 s of its own and 2 s left over


def test_nothing_begins_after_the_minutes(tmp_path):
    parts = [python("all", "import time; time.sleep(60)", 1.0), python("late", "print('late')", 1.0)]
    results = run_gpu_suite(parts, CPU, minutes=1 / 60, out=tmp_path)
    assert [each.name for each in results] == ["all"]


def test_the_parts_by_value_leave_at_most_eight_files():
    parts = stages("airbench94", ["epochs=2"], "cifar10", "cpu", 20, ["hlb=main.py"])
    assert [each.name for each in parts] == [
        "tests", "steps, eager", "runs", "profile", "kernels", "steps of all backends", "versus",
    ]  # fmt: skip
    assert {name for each in parts for name in each.files} | {"suite.json"} == FILES
    assert all("epochs=2" in each.arguments for each in parts[1:])


@pytest.mark.slow
def test_the_whole_suite_on_a_cpu(small_pack, tmp_path):
    data, out = tmp_path / "small.safetensors", tmp_path / "out"
    save_pack(small_pack, data)
    settings = ["batch_size=64", "width_multiplier=0.125", "epochs=1", "dtype=float32"]
    options = [word for each in settings for word in ("--set", each)]
    command = [sys.executable, "-c", "from speedyresnet.bench.cli import main; main()", "bench", "gpu-suite"]
    done = subprocess.run(
        [*command, "--minutes", "4", "--runs", "3", "--device", "cpu", "--data", data, "--out", out, *options],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert {each.name for each in out.iterdir()} == FILES - {"versus.json"}
    assert len((out / "runs.jsonl").read_text().splitlines()) == 3
    assert json.loads((out / "profile.json").read_text())["parts"]
    assert json.loads((out / "kernels.json").read_text())["cases"]
    backends = [row["backend"] for row in json.loads((out / "steps.json").read_text())["backends"]]
    assert backends[0] == "eager"
    ended = {each["name"]: each["exit_code"] for each in json.loads((out / "suite.json").read_text())["parts"]}
    assert ended.pop("steps of all backends") in (0, None)
    assert set(ended.values()) == {0}
