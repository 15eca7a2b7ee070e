"""An optional package that is missing: one form of message with the command that installs it,
before anything is trained.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from bigmodel_cli.packages import MissingPackage, need

Cli = Callable[..., Result]


@pytest.mark.parametrize(
    ("package", "extra", "changes"),
    [
        ("tensorboard", "tensorboard", ["train.tensorboard=true"]),
        ("wandb", "wandb", ["train.trackers=[tensorboard, wandb]"]),
        ("mlflow", "mlflow", ["train.trackers=[{type: mlflow, uri: 'sqlite:///m.db'}]"]),
        ("sklearn", "digits", ["data={type: digits}"]),
        ("pyarrow", "parquet", ["data={type: parquet_images, train: [a.parquet]}"]),
        (
            "soundfile",
            "audio",
            ["data={type: audio, files: [a_1.flac], pattern: '(?P<label>a)_', seconds: 0.1}"],
        ),
    ],
)
def test_a_missing_package_is_reported_with_the_install_command(
    package: str,
    extra: str,
    changes: list[str],
    cnn_spec: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    Path("a.parquet").write_bytes(b"PAR1")
    Path("a_1.flac").write_bytes(b"fLaC")
    result = cli("pretrain", cnn_spec, "--out", "run", *(w for c in changes for w in ("--set", c)))
    assert result.status == 2
    assert re.search(
        rf"needs {package}, which is not installed: pip install 'bigmodel\[{extra}\]'\n$",
        result.err,
    )
    assert "step 1/" not in result.err


def test_a_package_that_does_not_load_is_not_called_missing() -> None:
    sys.path.insert(0, ".")
    Path("brokenpackage.py").write_text("import its_own_dependency\n")
    with pytest.raises(
        MissingPackage, match=r"x needs brokenpackage, which cannot be imported \(No module named"
    ):
        need("brokenpackage", "extra", "x")
    sys.path.remove(".")
