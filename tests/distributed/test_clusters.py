"""The samples for clusters: what a shell, a YAML parser and the command line find in them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "sample_configs" / "clusters"


def test_the_slurm_script_is_one_and_needs_a_spec() -> None:
    script = str(FOLDER / "slurm.sh")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    found = subprocess.run(["bash", script], check=False, capture_output=True, text=True)
    assert (found.returncode != 0, "usage: sbatch slurm.sh" in found.stderr) == (True, True)


def test_the_kubernetes_job_starts_all_processes_of_one_run() -> None:
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    template = job["spec"]["template"]
    assert service["metadata"]["name"] == template["spec"]["subdomain"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    container = template["spec"]["containers"][0]
    words = container["command"]
    assert f"--nnodes={job['spec']['completions']}" in words
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in words
    assert words[words.index("-m") :][:4] == ["-m", "bigmodel_cli", "pretrain", "spec.yaml"]
