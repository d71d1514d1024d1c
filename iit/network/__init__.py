"""Networks: loading them, what encodes their inputs, and where their components are."""

from iit.network.classifier import Classifier
from iit.network.fingerprint import fingerprint
from iit.network.language_model import LanguageModel
from iit.network.load import load_network

Network = LanguageModel | Classifier
"""A model under study, with what encodes its inputs and asks for its answers."""

__all__ = ["Classifier", "LanguageModel", "Network", "fingerprint", "load_network"]
