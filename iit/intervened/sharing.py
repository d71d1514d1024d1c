"""To the hub and back: only the files of a save go up, only what loading reads comes down."""

import re
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from iit.intervened.card import card
from iit.intervened.folder import written_folder
from iit.intervened.saving import CARD, LOADED, Saved, foreign, write

OURS = [*LOADED, CARD]
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def save(saved: Saved, folder: str | Path) -> None:
    """Write a save and its card in place of what an earlier save left in the folder.

    Raises ValueError for interventions that cannot be saved, FileExistsError when the folder holds
    other files.
    """
    with written_folder(folder, foreign) as temporary:
        _write(saved, temporary, Path(folder).name)


def push(
    saved: Saved,
    repo_id: str,
    private: bool,
    revision: str | None,
    token: str | None,
    commit_message: str,
) -> str:
    """Upload a save and its card in one commit; returns the commit's address. The arguments are
    `push_to_hub`'s.

    Raises ValueError, before anything is uploaded, when the repository exists and is public
    although `private` was asked for.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write(saved, Path(folder), repo_id)
        api = HfApi(token=token)
        # with the user's name before a bare one
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id).private:
            raise ValueError(
                f"private=True, but {repo_id} exists and is public: make it private first, or "
                "choose another name."
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            allow_patterns=OURS,
            delete_patterns=OURS,
        )
    return str(done.commit_url)


def _write(saved: Saved, folder: Path, address: str) -> None:
    write(folder, saved)
    (folder / CARD).write_text(card(saved, address), encoding="utf-8")


def fetched(place: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is, or a repository of the hub, downloaded (JSON and tensors only).

    Raises FileNotFoundError when it is neither, saying what was tried; ValueError for a folder with
    a revision.
    """
    folder = Path(place).expanduser()
    if folder.exists():
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} is for repositories of the hub; {place} is a folder."
            )
        return folder
    tried = f"There is no folder {folder.absolute()}"
    if isinstance(place, Path) or not HUB_ID.fullmatch(place):
        raise FileNotFoundError(
            f"{tried}, and {str(place)!r} is no repository's name (they look like 'user/name')."
        )
    try:
        return Path(snapshot_download(place, revision=revision, allow_patterns=list(LOADED)))
    except (OSError, ValueError) as error:  # the hub's own errors are of these
        at = "" if revision is None else f" at revision {revision!r}"
        raise FileNotFoundError(
            f"{tried}, and the hub gave no repository {place!r}{at}: {str(error).splitlines()[0]}"
        ) from error
