"""Where smelt is, how it is run, and a cache of sources and results.

`SMELT_BIN` names the binary; without it target/release/smelt is taken.
"""

import contextlib
import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from checkpoints import Variant
from formats import Format

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples" / "tiny-moe"
PLAIN = Variant()
FAST_FIRST = [
    "test_golden",
    "test_options",
    "test_bits",
    "test_importance",
    "test_verify",
    "test_load",
    "test_convert",
    "test_weights",
    "test_families",
]

# Nothing here needs the network; a missing file must not become a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        stem = item.path.stem
        return FAST_FIRST.index(stem) if stem in FAST_FIRST else -1

    items.sort(key=place)


class Smelt:
    """The binary under test."""

    def __init__(self, binary: Path) -> None:
        self.binary = binary

    def run(self, *args: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run it and check the exit code; a failure shows what it said."""
        command = [str(self.binary), *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != code:
            said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            pytest.fail(f"{' '.join(command)}\nexit {done.returncode}, not {code}\n{said}")
        return done

    def quantize(self, source: Path, out: Path, *args: str) -> Path:
        """`smelt quantize` by the CPU rule, which is the one mlx has on Linux, bit for bit."""
        self.run("quantize", source, "-o", out, "--rounding", "cpu", "--method", "rtn", *args)
        return out


def mlx_lm_convert(source: Path, out: Path, **options: Any) -> Path:
    """Stock mlx-lm in this process, quietly."""
    import mlx.core as mx
    from mlx_lm.convert import convert

    # The oracle is the CPU's rule, also on a Mac.
    mx.set_default_device(mx.cpu)

    with contextlib.redirect_stdout(io.StringIO()):
        convert(str(source), str(out), **options)
    return out


class Workspace:
    """Makes each source and each plain result once per session."""

    def __init__(self, root: Path, smelt: Smelt) -> None:
        self.root = root
        self.smelt = smelt

    def source(self, family: str, variant: Variant = PLAIN) -> Path:
        """The checkpoint of a manifest, or the sample of the repository."""
        if family == "sample":
            return SAMPLE
        manifest = checkpoints.load_manifest(family)
        name = f"source/{family}/{variant.id}"
        return self._once(name, lambda out: checkpoints.write_checkpoint(out, manifest, variant))

    def theirs(self, family: str, fmt: Format, variant: Variant = PLAIN) -> Path:
        """What mlx-lm makes of a source."""
        source = self.source(family, variant)
        make = lambda out: mlx_lm_convert(source, out, **fmt.convert_args)  # noqa: E731
        return self._once(f"mlx-lm/{family}/{variant.id}/{fmt.id}", make)

    def ours(self, family: str, fmt: Format, variant: Variant = PLAIN) -> Path:
        """What smelt makes of it."""
        source = self.source(family, variant)
        make = lambda out: self.smelt.quantize(source, out, *fmt.smelt_args)  # noqa: E731
        return self._once(f"smelt/{family}/{variant.id}/{fmt.id}", make)

    def _once(self, name: str, make: Callable[[Path], Path]) -> Path:
        out = self.root / name
        if not (out / "config.json").exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            make(out)
        return out


@pytest.fixture(scope="session")
def smelt() -> Smelt:
    binary = Path(os.environ.get("SMELT_BIN", ROOT / "target" / "release" / "smelt"))
    if not binary.exists():
        pytest.exit(f"no {binary}: run `cargo build --release` or set SMELT_BIN", returncode=4)
    return Smelt(binary)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory, smelt: Smelt) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("work"), smelt)
