import inspect
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

import iit
from iit import Edit, IntervenedModel, Site
from tests.families import make, prompts
from tests.intervened.test_saving import Scale, row
from tests.seeds import shifted

REPO = "someone/subject-position"
S2 = Site("block_output", layer=1, position=[1, -1])
OURS = ["README.md", "alignment.json", "config.json", "interventions.safetensors"]


class Hub:
    """Stands for huggingface_hub: repositories are folders; calls have to fit the real
    signatures.
    """

    def __init__(self, root):
        self.root, self.private, self.messages, self.tokens, self.downloaded = root, {}, [], [], []

    def branch(self, repo_id, revision):
        return self.root / repo_id / (revision or "main")

    def api(self, token=None):
        self.tokens.append(token)
        return SimpleNamespace(
            **{
                name: checked(getattr(self, name), getattr(huggingface_hub.HfApi, name), bound=True)
                for name in CALLS
            }
        )

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        repo_id = repo_id if "/" in repo_id else f"someone/{repo_id}"
        assert exist_ok or repo_id not in self.private
        self.private.setdefault(repo_id, bool(private))
        self.branch(repo_id, None).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def repo_info(self, repo_id):
        return SimpleNamespace(private=self.private[repo_id])

    def create_branch(self, repo_id, *, branch, exist_ok=False):
        self.branch(repo_id, branch).mkdir(exist_ok=exist_ok)

    def upload_folder(
        self,
        *,
        repo_id,
        folder_path,
        commit_message,
        revision=None,
        allow_patterns,
        delete_patterns,
    ):
        place = self.branch(repo_id, revision)
        for name in filter_repo_objects(
            [p.name for p in place.iterdir()], allow_patterns=delete_patterns
        ):
            (place / name).unlink()
        for name in filter_repo_objects(
            [p.name for p in Path(folder_path).rglob("*")], allow_patterns=allow_patterns
        ):
            shutil.copy(Path(folder_path) / name, place / name)
        self.messages.append(commit_message)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/{len(self.messages)}")

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns=None):
        if repo_id.count("/") > 1:
            raise HFValidationError("a bad name")
        if not self.branch(repo_id, revision).is_dir():
            response = SimpleNamespace(headers={}, request=None, url="")
            raise RepositoryNotFoundError(
                "404 Client Error.\n\nRepository Not Found", response=response
            )
        snapshot = self.root / f"snapshot{len(self.downloaded)}"
        snapshot.mkdir()
        names = [p.name for p in self.branch(repo_id, revision).iterdir()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            shutil.copy(self.branch(repo_id, revision) / name, snapshot / name)
            self.downloaded.append(name)
        return str(snapshot)


CALLS = ("create_repo", "repo_info", "create_branch", "upload_folder")


def checked(function, real, bound=False):
    def call(*args, **kwargs):
        inspect.signature(real).bind(*([None] if bound else []), *args, **kwargs)
        return function(*args, **kwargs)

    return call


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("iit.intervened.sharing.HfApi", hub.api)
    monkeypatch.setattr(
        "iit.intervened.sharing.snapshot_download",
        checked(hub.snapshot_download, huggingface_hub.snapshot_download),
    )
    monkeypatch.chdir(tmp_path)
    return hub


def alignment(seed=0):
    torch.manual_seed(shifted(seed))
    made = iit.Alignment(
        make("llama"), {"subject_position": Edit(S2, iit.LowRankRotatedSpaceIntervention(16, 3))}
    )
    made.rows = [
        row(variable="subject_position"),
        row(variable="subject_position", control="vanilla"),
    ]
    return made.eval()


def logits(edited):
    base, source = prompts((6, 5), 1), prompts((6, 5), 2)
    return edited(base, source if edited.needs_source else None).logits


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_what_is_pushed_comes_back_bit_by_bit(hub, tmp_path):
    pushed = alignment()
    assert (
        pushed.push_to_hub(REPO, commit_message="Rank 3", token="secret")
        == f"https://hub/{REPO}/commit/1"
    )
    assert names(hub.branch(REPO, None)) == OURS
    assert (hub.messages, hub.tokens, hub.private) == (["Rank 3"], ["secret"], {REPO: False})
    back = iit.Alignment.from_pretrained(REPO, make("llama"))
    assert sorted(hub.downloaded) == OURS[1:]
    assert torch.equal(logits(back), logits(pushed))
    assert back.rows == pushed.rows
    assert back.variables == ("subject_position",)
    assert names(tmp_path) == ["hub"], "nothing is left in the working folder"


def test_a_repositorys_other_files_are_not_fetched_and_not_run(hub, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    alignment().push_to_hub(REPO)
    place = hub.branch(REPO, None)
    (place / "modeling.py").write_text("open('ran', 'w')")
    (place / "interventions.bin").write_bytes(pickle.dumps(Bomb()))
    (place / "tokenizer.json").write_text("{}")
    iit.Alignment.from_pretrained(REPO, make("llama"))
    assert sorted(hub.downloaded) == OURS[1:]
    assert not (tmp_path / "ran").exists()
    alignment().push_to_hub(REPO)
    assert set(names(place)) == {*OURS, "modeling.py", "interventions.bin", "tokenizer.json"}


def test_a_plain_model_leaves_no_rows_of_an_earlier_alignment(hub):
    alignment().push_to_hub(REPO)
    IntervenedModel(make("llama"), {S2: iit.VanillaIntervention()}).push_to_hub(REPO)
    assert names(hub.branch(REPO, None)) == [
        "README.md",
        "config.json",
        "interventions.safetensors",
    ]
    assert list(iit.Alignment.from_pretrained(REPO, make("llama")).rows) == []


def test_a_revision_is_a_branch_of_its_own(hub):
    first, second = alignment(), alignment(seed=1)
    first.push_to_hub(REPO)
    for _ in range(2):
        second.push_to_hub(REPO, revision="rank3")
    for revision, pushed in ((None, first), ("rank3", second)):
        assert torch.equal(
            logits(iit.Alignment.from_pretrained(REPO, make("llama"), revision=revision)),
            logits(pushed),
        )


def test_private_is_kept_to(hub):
    alignment().push_to_hub("secret", private=True)
    assert hub.private == {"someone/secret": True}
    alignment().push_to_hub("open")
    before = {p: p.read_bytes() for p in hub.branch("someone/open", None).iterdir()}
    with pytest.raises(ValueError, match="someone/open exists and is public"):
        alignment(seed=1).push_to_hub("open", private=True)
    assert {p: p.read_bytes() for p in hub.branch("someone/open", None).iterdir()} == before


def test_what_cannot_be_saved_does_not_touch_the_hub(hub):
    edited = IntervenedModel(make("llama"), {S2: iit.LambdaIntervention(lambda h: h)})
    with pytest.raises(ValueError, match="cannot be saved"):
        edited.push_to_hub(REPO)
    assert hub.private == {}


def test_own_parts_go_to_the_hub_and_back(hub):
    pushed = IntervenedModel(
        make("llama"),
        {
            S2: iit.intervention.Intervention(
                "Mine", iit.intervention.Identity(), iit.intervention.All(), Scale(0.5)
            )
        },
    )
    pushed.push_to_hub(REPO)
    back = IntervenedModel.from_pretrained(REPO, make("llama"), types={"Scale": Scale})
    assert torch.equal(logits(back), logits(pushed))


@pytest.mark.parametrize(
    "place", ["someone/else", "nobody", "a/b/c", "./runs/x", "/nowhere/at/all", Path("runs/x")]
)
def test_what_is_neither_says_what_was_tried(hub, place):
    with pytest.raises(FileNotFoundError) as raised:
        IntervenedModel.from_pretrained(place, make("llama"))
    assert str(Path(place).absolute()) in str(raised.value)
    asked = place in ("someone/else", "nobody")
    assert ("the hub gave no repository" in str(raised.value)) == asked
    assert ("no repository's name" in str(raised.value)) == (not asked)


def test_a_folder_has_no_revision_and_comes_first(hub, tmp_path):
    pushed = alignment(seed=1)
    pushed.push_to_hub(REPO)
    here = alignment()
    here.save_pretrained(REPO)
    assert torch.equal(logits(iit.Alignment.from_pretrained(REPO, make("llama"))), logits(here))
    with pytest.raises(ValueError, match="revision='v1' is for repositories of the hub"):
        iit.Alignment.from_pretrained(REPO, make("llama"), revision="v1")
    with pytest.raises(FileNotFoundError, match="'someone/else' at revision 'v1'"):
        iit.Alignment.from_pretrained("someone/else", make("llama"), revision="v1")


def test_without_the_hub_the_error_says_so():
    with pytest.raises(
        FileNotFoundError,
        match=r"There is no folder .*and the hub gave no repository 'someone/else'",
    ):
        IntervenedModel.from_pretrained("someone/else", make("llama"))
