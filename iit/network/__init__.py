"""Networks: loading them, what encodes their inputs, and where their components are."""

from iit.network.classifier import Classifier, Network
from iit.network.fingerprint import content, fingerprint
from iit.network.language_model import LanguageModel
from iit.network.load import Loading, load_network
from iit.network.overview import components
from iit.network.planted import planted
from iit.network.saved import save_network
from iit.network.small import convnet, equality_by_hand, mlp, small_transformer
from iit.network.untrained import untrained

__all__ = [
    "Classifier",
    "LanguageModel",
    "Loading",
    "Network",
    "components",
    "content",
    "convnet",
    "equality_by_hand",
    "fingerprint",
    "load_network",
    "mlp",
    "planted",
    "save_network",
    "small_transformer",
    "untrained",
]
