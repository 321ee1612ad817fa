import torch

from speedyresnet.engine.setup import set_up
from speedyresnet.engine.trainer import Trainer


def trainer_of(made, pack, device="cpu", backend="eager"):
    """Return a trainer of a recipe on a data set."""
    return Trainer(set_up(made, pack.facts, torch.device(device), backend), pack)
