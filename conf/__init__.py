"""The configs of all runs: one Hydra group a room's choices.

Hydra imports this package to find them. It then knows the networks of `networks.yaml` by name.
"""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

for name, network in OmegaConf.load(Path(__file__).with_name("networks.yaml")).items():
    ConfigStore.instance().store(group="network", name=str(name), node=network)
