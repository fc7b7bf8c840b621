"""Run a command as a child and report its time and memory. Standard library only:
Linux counts the parent's memory at the time of the fork into the child's peak, so
the process that measures must stay small."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# ru_maxrss is in KiB on Linux and in bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Run:
    """One run: seconds, and bytes of peak resident memory."""

    wall: float
    sync: float
    """seconds that `sync` took afterwards: what the command left unwritten"""
    cpu: float
    peak_rss: int


def run(command: Sequence[str]) -> Run:
    """Run to the end; the output appears only on failure."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"{' '.join(command)}\nexit {child.returncode}\n{said[-4000:]}")
    start = time.perf_counter()
    os.sync()
    sync = time.perf_counter() - start
    return Run(wall, sync, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * RSS_UNIT)


def median(runs: Sequence[Run], field: str) -> float:
    return statistics.median(getattr(r, field) for r in runs)


def evict(directory: Path) -> None:
    """Drop a directory's files from the page cache (Linux; needs no privileges)."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def machine() -> str:
    """CPU, cores, memory and system in a line."""
    cpu, memory = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").exists():
        cpu = _field("/proc/cpuinfo", "model name", cpu)
        memory = f", {int(_field('/proc/meminfo', 'MemTotal', '0 kB').split()[0]) >> 20} GiB"
    system = f"{platform.system()} {platform.release()}"
    return f"{cpu}, {os.cpu_count()} cores{memory}, {system}"


def _field(path: str, name: str, default: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.split(":", 1)[1].strip()
    return default
