import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedyresnet.engine.evaluate import LabelledImages, all_logits, device_scores, forward_of, read_scores, view_logits


class Probe(nn.Module):
    """Logits that tell a view from any other: a fixed random linear map of all pixels."""

    def __init__(self, size=6):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.map = nn.Parameter(torch.randn(4, 3 * size * size, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return x.reshape(len(x), -1) @ self.map.T


def test_views_are_those_of_airbench_by_hand():
    net, x = Probe(), torch.randn(5, 3, 6, 6, dtype=torch.float64)
    padded = F.pad(x, (1, 1, 1, 1), "reflect")
    up_left, down_right = padded[:, :, 0:6, 0:6], padded[:, :, 2:8, 2:8]
    weighted = [(x, 0.25), (x.flip(-1), 0.25)]
    weighted += [(v, 0.125) for crop in (up_left, down_right) for v in (crop, crop.flip(-1))]
    found = view_logits(net, x, "six_view")
    torch.testing.assert_close(found["single_view"], net(x))
    torch.testing.assert_close(found["mirror"], (net(x) + net(x.flip(-1))) / 2)
    torch.testing.assert_close(found["six_view"], sum(weight * net(view) for view, weight in weighted))


@pytest.mark.parametrize(("view", "names"), [("single_view", 1), ("mirror", 2), ("six_view", 3)])
def test_fewer_views_come_with_more(view, names):
    assert len(view_logits(Probe(), torch.randn(2, 3, 6, 6).double(), view)) == names


def test_other_weights_can_be_evaluated():
    net, x = Probe(), torch.randn(2, 3, 6, 6).double()
    other = {"map": torch.zeros_like(net.map)}
    assert (view_logits(forward_of(net, other), x, "single_view")["single_view"] == 0).all()
    assert (net.map != 0).all()


def probe_data(count=23):
    images = torch.randint(0, 256, (count, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    scale, shift = torch.full((3,), 1 / 255).double(), torch.zeros(3).double()
    x = images.double().permute(0, 3, 1, 2) / 255
    labels = Probe()(x).argmax(1)
    labels[:5] = (labels[:5] + 1) % 4
    return LabelledImages(images=images, labels=labels, scale=scale, shift=shift, dtype=torch.float64), x


@pytest.mark.parametrize("batch_size", [1, 7, 22, 23, 100])
@pytest.mark.parametrize("view", ["single_view", "six_view"])
def test_scores_count_every_image_whatever_the_batch_size(batch_size, view):
    data, x = probe_data()
    found = read_scores(device_scores(Probe(), data, view=view, batch_size=batch_size), 23)
    assert found.accuracy["single_view"] == 18 / 23
    assert found.loss == pytest.approx(float(F.cross_entropy(Probe()(x), data.labels).detach()))
    whole = view_logits(Probe(), x, view)
    for name, logits in all_logits(Probe(), data, view=view, batch_size=batch_size).items():
        torch.testing.assert_close(logits, whole[name])


def test_every_batch_has_the_same_size():
    sizes = []
    data, _ = probe_data()
    device_scores(lambda x: sizes.append(len(x)) or Probe()(x), data, view="mirror", batch_size=10)
    assert sizes == [10] * 6


@pytest.mark.parametrize(("share", "chosen"), [(0.0, 0), (0.25, 5), (1.0, 23)])
def test_only_the_least_confident_get_more_views(share, chosen):
    data, x = probe_data()
    found = all_logits(Probe(), data, view="six_view", batch_size=7, share=share)
    whole = view_logits(Probe(), x, "six_view")
    confidence = whole["single_view"].softmax(1).amax(1)
    doubtful = torch.zeros(23, dtype=torch.bool)
    doubtful[confidence.argsort()[:chosen]] = True
    for name in ("mirror", "six_view"):
        torch.testing.assert_close(found[name][doubtful], whole[name][doubtful])
        torch.testing.assert_close(found[name][~doubtful], whole["single_view"][~doubtful])
    torch.testing.assert_close(found["single_view"], whole["single_view"])
