"""A commit is named where the package's own files are in a repository, and not where one happens to lie around it."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version

import pytest

from msad.code_version import code_version

NUMBER = version("msad")


@pytest.fixture
def git(tmp_path):
    """Return a function that calls git in a new repository."""
    if not shutil.which("git"):
        pytest.skip("no git")

    def git(*words):
        settings = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *settings, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    return git


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "orchestrator" / "code_version.py"
    path.parent.mkdir()
    path.write_text("a = 1\n")
    return path


def test_version_of_a_checkout_has_its_commit_and_says_whether_files_were_changed(git, own_file, tmp_path):
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    commit = f"{NUMBER}+{git('rev-parse', '--short=12', 'HEAD')}"
    assert code_version(tmp_path) == commit
    (tmp_path / "notes.txt").touch()  # none of the package's
    assert code_version(tmp_path) == commit
    (own_file.parent / "new.py").touch()
    assert code_version(tmp_path) == f"{commit}.changed"
    (own_file.parent / "new.py").unlink()
    own_file.write_text("a = 2\n")
    assert code_version(tmp_path) == f"{commit}.changed"


def test_version_has_no_commit_of_a_repository_around_the_environment(git, own_file, tmp_path):
    (tmp_path / ".gitignore").write_text("orchestrator\n")
    git("add", ".gitignore")
    git("commit", "--quiet", "-m", "something else")
    assert code_version(tmp_path) == NUMBER


def test_version_before_the_first_commit_and_without_git_is_the_number(git, own_file, tmp_path, monkeypatch):
    git("add", ".")
    assert code_version(tmp_path) == NUMBER
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version(tmp_path) == NUMBER


def test_version_ignores_the_repository_of_a_hook(git, own_file, tmp_path, monkeypatch):
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    other = tmp_path.parent / f"{tmp_path.name}-other"
    other.mkdir()
    assert code_version(other) == NUMBER
