"""The configs of all runs: one Hydra group a room's choices.

Hydra imports this package to find them. It then knows the networks of `networks.yaml` by name, and
the launchers of its plugins under other names, so that files of ours can take theirs.
"""

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

EXTRAS = {
    "launcher/joblib": "sweeps",
    "launcher/submitit_local": "sweeps",
    "launcher/submitit_slurm": "sweeps",
    "launcher/ray": "ray",
    "sweeper/optuna": "sweeps",
}
"""Entries of Hydra's plugins that the configs build on, and the extra that installs each."""

store = ConfigStore.instance()
networks: Any = OmegaConf.load(Path(__file__).with_name("networks.yaml"))
for name, network in networks.items():
    store.store(group="network", name=name, node=network)

# Now every plugin that is installed has its entries in the store.
Plugins.instance()
for entry, extra in EXTRAS.items():
    group, name = entry.split("/")
    entries: Any = store.repo["hydra"].setdefault(group, {})
    # A file of the same name as an entry would be merged with it, with a warning of Hydra's.
    node = entries.pop(f"{name}.yaml", None) or entries.get(f"{name}_plugin.yaml")
    if node is not None:
        settings = node.node
    else:
        # Hydra's error shows the name of a class that it does not know.
        settings = {"_target_": f"hydra_plugins.{name} is missing: pip install 'iit[{extra}]'"}
    store.store(group=f"hydra/{group}", name=f"{name}_plugin", node=settings)
