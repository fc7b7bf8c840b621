"""The golden data of the kernels' tests is what today's mlx makes of its inputs."""

import subprocess
import sys

import pytest
from conftest import ROOT

DATA = ROOT / "crates" / "smelt-kernels" / "tests" / "data"


def test_cpu_rule_data() -> None:
    script, data = DATA / "make_cpu_rule.py", DATA / "cpu_rule.safetensors"
    absent = [path.name for path in (script, data) if not path.exists()]
    if absent:
        pytest.skip(f"{', '.join(absent)} not in {DATA.relative_to(ROOT)}")
    command = [sys.executable, str(script), "--check", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
