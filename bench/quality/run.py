"""Quality of smelt and of its peers at equal bytes. See README.md.

run.py CHECKPOINT --text FILE [--peers NAME...] [--also NAME=DIR...] [--sizes BYTES...]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import unpack

HERE = Path(__file__).resolve().parent
SMELT = Path(os.environ.get("SMELT_BIN", HERE.parents[1] / "target" / "release" / "smelt"))
PEERS = {
    "uniform-2": ["convert", "-q", "--q-bits", "2"],
    "uniform-3": ["convert", "-q", "--q-bits", "3"],
    "uniform-4": ["convert", "-q", "--q-bits", "4"],
    "mixed_2_6": ["convert", "-q", "--quant-predicate", "mixed_2_6"],
    "mixed_3_4": ["convert", "-q", "--quant-predicate", "mixed_3_4"],
    "mixed_4_6": ["convert", "-q", "--quant-predicate", "mixed_4_6"],
    # These need gradients of the whole model: minutes on a GPU, hours without one.
    "dynamic-3": ["dynamic_quant", "--target-bpw", "3", "--low-bits", "2", "--high-bits", "5"],
    "dynamic-3.7": ["dynamic_quant", "--target-bpw", "3.7", "--low-bits", "3", "--high-bits", "5"],
    "dynamic-4.7": ["dynamic_quant", "--target-bpw", "4.7", "--low-bits", "4", "--high-bits", "6"],
}
COLUMNS = ["bytes", "kl", "se", "p99", "top1", "perplexity"]


@dataclass
class Session:
    """One checkpoint under measurement, and what was found."""

    checkpoint: Path
    directory: Path
    judge: evaluate.Judge
    args: argparse.Namespace
    rows: list[dict] = field(default_factory=list)

    def score(self, name: str, model: Path) -> int:
        """Score a model; its bytes."""
        row = {"model": self.args.name, "quantized": name, **self.judge.score(model).row()}
        self.rows.append(row)
        print(line([name, *(show(row[column]) for column in COLUMNS)]), flush=True)
        return row["bytes"]

    def peer(self, name: str) -> int:
        """Score what mlx-lm writes; its bytes."""
        out = self.directory / name
        if not unpack.files(out):
            tool, *options = PEERS[name]
            source = "--model" if tool == "dynamic_quant" else "--hf-path"
            paths = [source, str(self.checkpoint), "--mlx-path", str(out)]
            execute([str(self.args.mlx_python), "-m", "mlx_lm", tool, *paths, *options])
        return self.score(name, out)

    def smelt(self, size: int) -> None:
        """Score what smelt makes of the checkpoint in at most `size` bytes."""
        name = f"smelt {size}"
        out = self.directory / f"smelt-{size}"
        measures = self.directory / "measures.json"
        command = [str(self.args.smelt), "quantize", str(self.checkpoint), "-o", str(out)]
        command += ["--target-size", str(size), "--measures", str(measures), *self.args.options]
        shutil.rmtree(out, ignore_errors=True)
        execute(command)
        if (written := self.score(name, out)) > size:
            sys.exit(f"{out}: {written} bytes are more than {size}")
        if not self.args.keep:
            shutil.rmtree(out)


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def show(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def split(named: str) -> tuple[str, str]:
    """`NAME=DIR`"""
    name, _, path = named.partition("=")
    return name, path


def execute(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nexit {done.returncode}\n{done.stderr[-4000:]}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="held-out text, plain or .xz")
    parser.add_argument("--dir", type=Path, default=Path("quality"), help="where results are kept")
    parser.add_argument("--name", help="the model's name [default: its directory's]")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS)[:6])
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=DIR", help="MLX models")
    parser.add_argument("--sizes", nargs="*", type=int, default=[], help="further sizes for smelt")
    parser.add_argument("--options", type=str.split, default=[], help="further options for smelt")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--smelt", type=Path, default=SMELT, help="the binary (SMELT_BIN)")
    parser.add_argument("--mlx-python", type=Path, default=Path(sys.executable), help="has mlx-lm")
    parser.add_argument("--keep", action="store_true", help="keep what smelt writes")
    args = parser.parse_args()
    args.name = args.name or args.checkpoint.resolve().name
    return args


def main() -> None:
    args = parse_args()
    directory = args.dir / args.name
    directory.mkdir(parents=True, exist_ok=True)
    text = evaluate.Text(args.text, args.sequences, args.length)
    judge = evaluate.Judge(args.checkpoint, text)
    count = f"{args.sequences} x {args.length} tokens"
    print(f"{args.name}: perplexity {judge.perplexity:.5g}, {count}\n")
    print(line(["quantized", *COLUMNS]))
    print(line(["---", *["--:"] * len(COLUMNS)]))
    session = Session(args.checkpoint, directory, judge, args)
    sizes = {session.peer(name) for name in args.peers}
    sizes |= {session.score(name, Path(path)) for name, path in map(split, args.also)}
    for size in sorted(sizes | set(args.sizes)):
        session.smelt(size)
    results = {"model": args.name, "perplexity": judge.perplexity, "rows": session.rows}
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
