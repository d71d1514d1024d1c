"""What a run can do. Each job is called: (config, folder, loggers) → (rows, facts)."""

from iit.job.align import align
from iit.job.atlas import atlas
from iit.job.folders import Folders
from iit.job.patch import patch
from iit.job.steer import Steering
from iit.job.train_network import train_network, trained_network

__all__ = [
    "Folders",
    "Steering",
    "align",
    "atlas",
    "patch",
    "train_network",
    "trained_network",
]
