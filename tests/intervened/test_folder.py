import os
import shutil

import pytest

from iit.intervened.folder import settled, written_folder


class Killed(BaseException):
    pass


def foreign(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != "ours")


def save(folder, text):
    with written_folder(folder, foreign) as temporary:
        (temporary / "ours").write_text(text)


def test_a_save_replaces_an_earlier_one_as_a_whole(tmp_path):
    for text in ("one", "two"):
        save(tmp_path / "deep" / "s", text)
        assert (tmp_path / "deep" / "s" / "ours").read_text() == text
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["s"]
    os.symlink(tmp_path / "deep" / "s", tmp_path / "link")
    save(tmp_path / "link", "three")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "deep" / "s" / "ours").read_text() == "three"


def test_killed_at_any_step_the_old_or_the_new_is_there_whole(tmp_path, monkeypatch):
    """Every change to the file system is counted; the process dies before the n-th, and nothing is cleaned up."""
    found, n = [], 0
    while True:
        folder = tmp_path / str(n) / "s"
        save(folder, "old")
        left = n

        def dying(real, folder=folder):
            def call(*args, **kwargs):
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patched:
            for module, name in ((os, "replace"), (shutil, "rmtree")):
                patched.setattr(module, name, dying(getattr(module, name)))
            try:
                save(folder, "new")
                died = False
            except Killed:
                died = True
        text = (settled(folder) / "ours").read_text()
        assert text in ("old", "new")
        found.append(text)
        save(folder, "next")  # and the next save finds its way
        assert (folder / "ours").read_text() == "next"
        assert not (folder.parent / ".s.before").exists()
        if not died:
            break
        n += 1
    assert n >= 4
    assert found[0] == "old"
    assert found[-1] == "new"


def test_an_exception_inside_leaves_the_old_one_and_no_rest(tmp_path):
    save(tmp_path / "s", "old")
    with pytest.raises(IsADirectoryError), written_folder(tmp_path / "s", foreign) as temporary:
        temporary.joinpath(".").write_text("half")
    assert (tmp_path / "s" / "ours").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("name", ["thesis.tex", ".git"])
def test_other_peoples_files_are_left_alone(name, tmp_path):
    save(tmp_path / "s", "old")
    (tmp_path / "s" / name).write_text("years of work")
    with pytest.raises(FileExistsError, match=rf"holds other files \({name}\)"):
        save(tmp_path / "s", "new")
    assert (tmp_path / "s" / name).read_text() == "years of work"
    assert (tmp_path / "s" / "ours").read_text() == "old"
    (tmp_path / "file").write_text("a file")
    with pytest.raises(FileExistsError, match="is a file"):
        save(tmp_path / "file", "new")
