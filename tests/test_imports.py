"""What `import iit` waits for."""

import subprocess
import sys

import pytest
import torch

import iit
import iit.alignment
import iit.data
from iit.result import correct

HEAVY = {
    "lightning",
    "torchmetrics",
    "wandb",
    "hydra",
    "matplotlib",
    "sklearn",
    "pyvene",
    "IPython",
}


def test_what_only_training_and_reports_need_is_imported_later():
    code = (
        f"import sys, iit; print(sorted({HEAVY!r} & set(sys.modules))); print(callable(iit.fit), "
        "'lightning' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "True True"]


@pytest.mark.long
def test_the_function_fit_is_not_the_module_of_that_name():
    code = (
        "from iit.alignment import Fitted, fit; import iit; print(type(fit).__name__, "
        "iit.fit is fit)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "function True"


@pytest.mark.parametrize(
    "module", [iit, iit.alignment, iit.data], ids=lambda module: module.__name__
)
def test_all_names_are_there(module):
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert type(iit.alignment.fit).__name__ == "function", "not the module of that name"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_shapes_are_checked_here():
    with pytest.raises(TypeError, match=r"Float\[Tensor, 'batch n_answer vocab'\]"):
        correct(torch.zeros(2, 5), torch.zeros(2, 1, dtype=torch.long))
