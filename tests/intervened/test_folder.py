import os

import pytest

from iit.intervened.folder import written_folder


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
