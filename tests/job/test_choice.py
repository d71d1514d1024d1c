"""The choice stands in the run's folder before a test figure is computed, and what is trained sees
no test row.
"""

import importlib
import json

import pytest

from iit.run import run
from tests.conftest import SMALL

EXPERIMENTS = {
    "job.align": ["+experiment=das_equality_by_hand"],
    "job.train_network": ["+experiment=iit_equality"],
    "investigation.ladder": [
        "+experiment=das_equality_by_hand",
        "job=ladder",
        "job.ranks=[1]",
        "job.depths=[]",
        "job.depth_rank=1",
    ],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("job", EXPERIMENTS)
def test_the_choice_is_on_disk_before_test_is_seen(job, configured, tmp_path, monkeypatch):
    module = importlib.import_module(f"iit.{job}")
    folder, seen = tmp_path / "run", []
    for name in {"evaluate", "scored_rows", "fitting", "_scored"} & set(vars(module)):
        plain = getattr(module, name)

        def watched(*args, plain=plain, name=name, **kwargs):
            given = [getattr(a, "pairs", a) for a in (*args, *kwargs.values())]
            pairs = next(a for a in given if hasattr(a, "dataset"))
            test = "test" in set(pairs.dataset["split"])
            frozen = (folder / "choice.json").is_file()
            seen.append((name, test))
            assert test <= frozen, f"{name} sees test pairs before the choice is frozen"
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)
    run(configured(*EXPERIMENTS[job], *SMALL))
    assert {test for _, test in seen} == {False, True}
    assert json.loads((folder / "choice.json").read_text())


def test_a_trained_network_has_no_controls_to_train(configured):
    with pytest.raises(ValueError, match="trust=full trains controls in a frozen network"):
        run(configured("+experiment=train_equality", *SMALL, "trust=full"))
