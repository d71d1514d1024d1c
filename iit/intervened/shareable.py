"""Saving and sharing: folders, the hub, pyvene's checkpoints."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from iit.intervened import saving, sharing
from iit.intervened.card import card
from iit.intervened.edit import Edit
from iit.intervened.folder import written_folder
from iit.intervened.pyvene import Position, read_pyvene
from iit.intervened.sources import Variable
from iit.network import Network
from iit.site import Index

Model = TypeVar("Model", bound="Shareable")


class Shareable(nn.Module):
    """Edits on a network that are saved, shared and loaded; made as `cls(network, edits, source_grad=…)`."""

    edits: dict[Variable, Edit]
    source_grad: bool

    @abstractmethod
    def _network(self) -> Network | nn.Module:
        """The network as it was given."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `interventions.safetensors` and a model card, `README.md`; an earlier save is replaced as a whole.

        Raises ValueError for interventions that cannot be saved, FileExistsError when the folder holds other files.
        """
        with written_folder(folder, saving.foreign) as temporary:
            self._write(temporary, Path(folder).name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str = "Upload interventions",
    ) -> str:
        """Upload what `save_pretrained` writes in one commit, making the repository where there is none; returns the commit's address.

        revision: a branch, made where it is missing. token: by default the one `hf auth login` left.
        Raises ValueError for interventions that cannot be saved, and for private=True with a repository that is public.
        """
        kept = {"private": private, "revision": revision, "token": token, "commit_message": commit_message}
        return sharing.push(lambda folder: self._write(folder, repo_id), repo_id, **kept)

    def _write(self, folder: Path, address: str) -> None:
        saved = saving.Saved(self.edits, saving.identity(self._network()), self.source_grad, self._record())
        saving.write(folder, saved)
        (folder / saving.CARD).write_text(card(saved, address), encoding="utf-8")

    def _record(self) -> dict[str, Any] | None:
        """What a save tells beside the edits."""
        return None

    def _recall(self, record: dict[str, Any] | None) -> None:
        """Take over what `_record` gave."""

    @classmethod
    def from_pretrained(
        cls: type[Model],
        folder_or_hub_id: str | Path,
        network: Network | nn.Module,
        *,
        revision: str | None = None,
        types: Mapping[str, Any] | None = None,
        check_network: bool = True,
    ) -> Model:
        """Load from a folder or from the hub, in eval mode, on the network it was saved for; no code of the folder is run.

        revision: branch, tag or commit of a repository of the hub.
        types: bases, gates and operations of one's own by name, beside those of `iit.intervention`; they give all of their
            constructor's arguments to `super().__init__`:

        >>> from iit.intervention import All, Identity, Intervention, Operation
        >>> class Scale(Operation):
        ...     def __init__(self, factor: float):
        ...         super().__init__(factor=factor)
        ...         self.factor = factor
        ...     def forward(self, base, source, activation):
        ...         return self.factor * base
        >>> halved = Intervention("Halved", Identity(), All(), Scale(0.5))
        >>> iit.IntervenedModel(network, {site: halved}).save_pretrained(folder)
        >>> iit.IntervenedModel.from_pretrained(folder, network, types={"Scale": Scale})

        Raises FileNotFoundError when there is neither such a folder nor such a repository, and for missing files; ValueError for
        damaged or altered files, unknown types, and another network.
        """
        saved = saving.read(sharing.fetched(folder_or_hub_id, revision), types)
        if check_network:
            saving.check_network(saved.network, network)
        make: Any = cls
        model: Model = make(network, saved.edits, source_grad=saved.source_grad)
        model._recall(saved.record)
        return model.eval()

    @classmethod
    def from_pyvene(
        cls: type[Model],
        folder: str | Path,
        network: Network | nn.Module,
        positions: Sequence[Position] | Mapping[str | tuple[str, ...], Position],
        *,
        heads: Sequence[Index] | None = None,
    ) -> Model:
        """Load what pyvene 0.1 saved, in eval mode, on the network it was made for; no code of the folder is run.

        positions: one for each representation, which pyvene only gets when it runs; in a mapping the keys name the variables.
        heads: likewise, for representations by head.
        Raises FileNotFoundError and ValueError as `iit.intervened.pyvene.read_pyvene`, which says what is carried over.
        """
        make: Any = cls
        return make(network, read_pyvene(folder, network, positions, heads)).eval()
