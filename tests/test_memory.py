"""Estimated memory against what a real step allocates."""

import json

import pytest
import torch
from tiers import parametrize

from speedyresnet.engine import recipe
from speedyresnet.engine.backends import variant_of_step
from speedyresnet.engine.memory import estimated_peak_bytes
from speedyresnet.engine.nets import make_net
from speedyresnet.engine.pack import DataFacts
from speedyresnet.engine.schedules import plan
from speedyresnet.engine.step import TrainingState, training_step

IMAGES = 2000


def allocated_peak(made, path):
    """Most bytes that PyTorch's profiler saw allocated on the CPU from an empty start to the end of a step."""
    schedule = plan(made, IMAGES)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        net = make_net(made, classes=10, channels=3, dtype=torch.float32, device="cpu").train()
        images, labels = torch.zeros(IMAGES, 32, 32, 3, dtype=torch.uint8), torch.zeros(IMAGES, dtype=torch.int64)
        state = TrainingState(net, made, schedule, images, labels, (0.5,) * 3, (0.25,) * 3, torch.float32)
        training_step(state, **variant_of_step(made, schedule, 0)._asdict())
    profile.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    changes = [each["args"] for each in sorted(events, key=lambda each: each["ts"]) if each["name"] == "[memory]"]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]  # the profiler goes on counting where it last ended
    return max(change["Total Allocated"] for change in changes) - before


@parametrize(
    ("name", "settings"),
    [
        ("airbench94", ["batch_size=64"]),
        ("hlb-v0.4", ["batch_size=200", "width_multiplier=0.25"]),
        ("hlb-v0.4", ["batch_size=200", "width_multiplier=0.25", "augmentation.crop=16"]),
        ("airbench94-muon", ["batch_size=8"]),
        ("page-ladder/baseline", ["batch_size=64", "width_multiplier=0.5"]),
        ("hiverge", ["batch_size=500", "width_multiplier=0.0625"]),
    ],
    default=2,
)
def test_the_estimate_is_what_a_step_allocates(name, settings, tmp_path):
    """Where activations weigh most, where weights do, and where augmentation does."""
    made = recipe(name, [*settings, "dtype=float32"])
    facts = DataFacts(image_size=(32, 32), channels=3, classes=10, train_images=IMAGES, test_images=0)
    estimate = estimated_peak_bytes(made, facts, torch.float32)
    assert estimate == pytest.approx(allocated_peak(made, tmp_path / "trace.json"), rel=0.05)
