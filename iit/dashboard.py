"""A workspace of W&B that compares the runs of a project.

`python -m iit.dashboard PROJECT` prints its JSON. `--out FILE` writes it there, and `--save` sends
it to W&B.
"""

import argparse
import os
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf


def main() -> None:
    """Write the workspace that `dashboard.yaml` describes.

    Raises:
        SystemExit: where wandb-workspaces is not installed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project")
    parser.add_argument("--entity", default=os.getenv("WANDB_ENTITY", ""))
    parser.add_argument("--out")
    parser.add_argument("--save", action="store_true")
    chosen = parser.parse_args()
    if find_spec("wandb_workspaces") is None:
        parser.error("A dashboard needs wandb-workspaces: pip install 'iit[dashboards]'.")
    panels = OmegaConf.load(str(files("iit") / "dashboard.yaml"))
    workspace = instantiate(panels, project=chosen.project, entity=chosen.entity)
    text = workspace._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2)
    if chosen.out:
        Path(chosen.out).write_text(text)
    else:
        print(text)
    if chosen.save:
        workspace.save()


if __name__ == "__main__":
    main()
