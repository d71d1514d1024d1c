"""Saves to the hub and back.

Only the files of a save go up, and only what loading reads comes down.
"""

import re
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from iit.intervened.card import card
from iit.intervened.folder import written_folder
from iit.intervened.saving import CARD, LOADED, SaveContent, foreign, write_save

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def save(saved: SaveContent, folder: str | Path) -> None:
    """Write a save and its card in place of what an earlier save left in the folder.

    Raises ValueError for interventions that cannot be saved, and FileExistsError when the folder
    holds other files.
    """
    with written_folder(folder, foreign) as temporary:
        _write(saved, temporary, Path(folder).name)


def push(
    saved: SaveContent,
    repo_id: str,
    private: bool,
    revision: str | None,
    token: str | None,
    commit_message: str,
) -> str:
    """Upload a save and its card in one commit. The arguments are those of `push_to_hub`.

    Returns the commit's address.

    Raises ValueError, before anything is uploaded, when `private` was asked for and the repository
    exists and is public.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write(saved, Path(folder), repo_id)
        api = HfApi(token=token)
        # The hub puts the user's name before a bare name.
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id).private:
            raise ValueError(
                f"private=True, but {repo_id} exists and is public: make it private first, or "
                "choose another name."
            )

        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)

        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            allow_patterns=[*LOADED, CARD],
            # Files of an earlier save that this one lacks go.
            delete_patterns=[*LOADED, CARD],
        )
    return str(commit.commit_url)


def _write(saved: SaveContent, folder: Path, address: str) -> None:
    write_save(folder, saved)
    (folder / CARD).write_text(card(saved, address), encoding="utf-8")


def fetched(address: str | Path, revision: str | None = None) -> Path:
    """The folder of a save: a local one as it is, or a repository of the hub, downloaded.

    Only JSON and tensors are downloaded.

    Raises FileNotFoundError when `address` is neither, saying what was tried. Raises ValueError for
    a folder with a revision.
    """
    folder = Path(address).expanduser()
    if folder.exists():
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} is for repositories of the hub; {address} is a folder."
            )
        return folder

    tried = f"There is no folder {folder.absolute()}"
    if isinstance(address, Path) or not HUB_ID.fullmatch(address):
        raise FileNotFoundError(
            f"{tried}, and {str(address)!r} is no repository's name (they look like 'user/name')."
        )

    try:
        return Path(snapshot_download(address, revision=revision, allow_patterns=list(LOADED)))
    # The hub's own errors are kinds of these.
    except (OSError, ValueError) as error:
        at = "" if revision is None else f" at revision {revision!r}"
        raise FileNotFoundError(
            f"{tried}, and the hub gave no repository {address!r}{at}: {str(error).splitlines()[0]}"
        ) from error
