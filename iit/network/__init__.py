"""Networks: loading them, their tokens, and where their components are."""

from iit.network.fingerprint import fingerprint
from iit.network.language_model import LanguageModel
from iit.network.load import load_network

__all__ = ["LanguageModel", "fingerprint", "load_network"]
