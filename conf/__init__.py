"""The configs of all runs: one Hydra group a room's choices.

Hydra imports this package to find them. It then knows the networks of `networks.yaml` by name.
"""

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

networks: Any = OmegaConf.load(Path(__file__).with_name("networks.yaml"))
for name, network in networks.items():
    ConfigStore.instance().store(group="network", name=name, node=network)
