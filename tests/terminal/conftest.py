"""Commands as a user calls them."""

from __future__ import annotations

import pytest

from msad.terminal import cli


@pytest.fixture
def msad(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command in a folder of its own; gives exit code, output and error output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def msad(*words):
        monkeypatch.setattr("sys.argv", ["msad", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:  # anything else that is raised would be a traceback
            cli.main()
        output = capsys.readouterr()
        return exit_.value.code, output.out, output.err

    return msad


@pytest.fixture
def refused(msad, tmp_path):
    """Return a function that runs a command which must end with 2 and do nothing; gives its message."""

    def refused(*words):
        before = sorted(tmp_path.iterdir())
        code, out, err = msad(*words)
        assert code == 2 and out == "" and "Traceback" not in err
        assert sorted(tmp_path.iterdir()) == before
        return err.strip()

    return refused
