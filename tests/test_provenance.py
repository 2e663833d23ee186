"""What a run was."""

import json
import re
import subprocess

import pytest
import torch

from companion.files import ROOT
from companion.runs import provenance as room
from companion.runs.provenance import provenance


def test_provenance_says_what_ran_and_names_no_place():
    found = provenance()
    assert found["device"] == "cpu"
    assert found["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert re.fullmatch(r"([0-9a-f]{12})?", found["commit"])
    text = json.dumps(found)
    assert str(ROOT) not in text
    assert not re.search(r"(?<![\w)])/\w", text)  # no absolute path; "(R)/" may be in a CPU's name


def test_provenance_does_without_git_and_without_a_package(monkeypatch):
    monkeypatch.setenv("PATH", "")

    def absent(name):
        raise room.PackageNotFoundError(name)

    monkeypatch.setattr(room, "version", absent)
    found = provenance()
    assert found["commit"] == ""
    assert found["changed_since_commit"] is None
    assert set(found["packages"].values()) == {"absent"}


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)
    return done.stdout.decode().strip()


def test_provenance_knows_changes_from_none_and_from_not_knowing(tmp_path, monkeypatch):
    root = tmp_path / "project"
    (root / "src").mkdir(parents=True)
    (root / "src" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(room, "ROOT", root)
    monkeypatch.delenv("COMPANION_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert room._commit() == ("", None)
    monkeypatch.setenv("COMPANION_COMMIT", "0123456789abcdef")
    assert room._commit() == ("0123456789ab", None)

    # a repository around an unpacked archive says nothing about the archive
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "around")
    assert room._commit() == ("0123456789ab", None)

    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "one")
    head = git(root, "rev-parse", "HEAD")[:12]
    assert room._commit() == (head, False)
    (root / "src" / "a.py").write_text("a = 2\n")
    assert room._commit() == (head, True)


@pytest.mark.parametrize("given", ["main", "12345", "ABCDEF0", "0123456 "])
def test_a_commit_that_is_none_is_refused(tmp_path, monkeypatch, given):
    monkeypatch.setattr(room, "ROOT", tmp_path)
    monkeypatch.setenv("COMPANION_COMMIT", given)
    with pytest.raises(ValueError, match=re.escape(f"COMPANION_COMMIT = {given!r}: expected")):
        provenance()
