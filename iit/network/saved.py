"""Networks in folders: safetensors and a config.

The config of a classifier names one of the architectures below.
"""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from iit.network.classifier import Classifier, Network
from iit.network.language_model import LanguageModel
from iit.network.small import MLP, ConvNet

FORMAT = "iit.network/1"
ARCHITECTURES = {"MLP": MLP, "ConvNet": ConvNet}
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_network(network: Network, folder: str | Path) -> None:
    """Write a folder that `load_network` reads.

    Raises ValueError for an architecture that is neither transformers' nor one of this package's,
    and for a network with an adapter, or inside of a wrapper.
    """
    model = network.model
    kind = type(model).__name__
    if isinstance(network, LanguageModel) and isinstance(model, PreTrainedModel):
        # transformers would save the adapter alone.
        if model._hf_peft_config_loaded:
            raise ValueError(
                f"{network.name} has an adapter, and a folder holds the one or the other: load it "
                "from the folders of both."
            )
        model.save_pretrained(folder)
        # A processor saves its tokenizer, too.
        network.processor.save_pretrained(folder)
        return
    # Not `isinstance`: a subclass would come back as the class that the config names.
    if ARCHITECTURES.get(kind) is not type(model):
        raise ValueError(
            f"Only models of transformers, {', '.join(ARCHITECTURES)} can be saved, for their "
            f"folders hold no code; this is {kind}."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The arguments that made the network make it again; the tensors follow.
    config = {
        "format": FORMAT,
        "name": network.name,
        "architecture": kind,
        "arguments": model.arguments,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # safetensors takes contiguous tensors only.
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)


def is_classifier(folder: Path) -> bool:
    """Whether `save_network` wrote a classifier to this folder, in any version of the format."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return str(config.get("format")).startswith("iit.network/")


def load_classifier(folder: Path) -> Classifier:
    """Read a classifier that `save_network` wrote; no code of the folder is run.

    Raises ValueError for unknown formats and architectures, and for weights of another network.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    architecture = config.get("architecture")
    if config["format"] != FORMAT or architecture not in ARCHITECTURES:
        raise ValueError(
            f"{folder / CONFIG} has the format {config['format']!r} and the architecture "
            f"{architecture!r}; this version reads {FORMAT!r} and {list(ARCHITECTURES)}."
        )
    model = ARCHITECTURES[architecture](**config["arguments"])
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} does not hold this network's weights: {error}"
        ) from error
    return Classifier(model, config.get("name"))
