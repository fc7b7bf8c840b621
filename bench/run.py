"""Benchmarks of smelt against mlx-lm and against the disk. See README.md.

run.py [llama] [qwen3_moe] [sparse] [fp8] [deepseek] [kimi] --dir CACHE [--smelt BIN] [--rounds 3]
"""

import argparse
import datetime
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import measure
from measure import Run, median

HERE = Path(__file__).resolve().parent
SMELT = Path(os.environ.get("SMELT_BIN", HERE.parent / "target" / "release" / "smelt"))
MODES = {"affine": ["--bits", "4", "--group-size", "64"], "mxfp4": ["--mode", "mxfp4"]}
CONVERT = {
    "affine": ["--q-bits", "4", "--q-group-size", "64"],
    "mxfp4": ["--q-mode", "mxfp4"],
}
SPARSE_LAYER_BYTES = 3_700_000_000
SPARSE_REST_BYTES = 800_000_000
DEEPSEEK_LAYERS = 61
DEEPSEEK_LAYER_BYTES = 6_600_000_000
DEEPSEEK_REST_BYTES = 2_200_000_000


@dataclass
class Contender:
    """A program under measurement; it writes to `out`, if anywhere."""

    name: str
    command: list[str]
    out: Path | None = None
    rounds: int = 3
    runs: list[Run] = field(default_factory=list)


def main() -> None:
    args = parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    print(f"{measure.machine()}; {datetime.date.today()}; {versions()}\n")
    for part in args.parts:
        if part in OTHERS:
            OTHERS[part](args)
        else:
            for mode in args.modes:
                compare(part, mode, args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["llama", "qwen3_moe", *OTHERS]
    parser.add_argument("parts", nargs="*", default=parts[:2], metavar="|".join(parts))
    parser.add_argument("--dir", type=Path, required=True, help="cache for checkpoints, results")
    parser.add_argument("--smelt", type=Path, default=SMELT, help="the binary (SMELT_BIN)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--cold", action="store_true", help="read sources from the disk")
    parser.add_argument("--no-mlx", action="store_true", help="leave mlx-lm out")
    parser.add_argument("--layers", nargs="+", type=int, help="of sparse runs (1 3; deepseek 3 4)")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(parts):
        parser.error(f"no such part: {', '.join(unknown)}")
    if not args.smelt.exists():
        parser.error(f"no {args.smelt}: run `cargo build --release` or pass --smelt")
    return args


def versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"mlx {version('mlx')}, mlx-lm {version('mlx-lm')}, Python {sys.version.split()[0]}"
    except PackageNotFoundError:
        return "without mlx-lm"


def made(name: str, args: argparse.Namespace, script: list[str]) -> Path:
    """The checkpoint `name` in the cache, made by a child of its own if absent."""
    out = args.dir / name
    if not out.exists():
        part = args.dir / f"{name}.partial"
        shutil.rmtree(part, ignore_errors=True)
        print(f"making {name} ...", file=sys.stderr)
        measure.run([sys.executable, str(HERE / script[0]), *script[1:], str(part)])
        part.rename(out)
    return out


# -- smelt against mlx-lm and the floor ------------------------------------------


def compare(model: str, mode: str, args: argparse.Namespace) -> None:
    source = made(model, args, ["make_models.py", model])
    reference = args.dir / "reference"
    shutil.rmtree(reference, ignore_errors=True)
    # The floor writes the bytes that smelt writes, so one result is kept.
    measure.run(smelt_command(args, source, reference, mode))
    before = (lambda: measure.evict(source)) if args.cold else (lambda: None)
    contenders = contenders_of(source, reference, mode, args)
    run_in_turns(contenders, before)
    shutil.rmtree(reference)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    cache = "cold" if args.cold else "warm"
    print(f"### {model}, {mode} 4 bit ({size / 1e9:.2f} GB, {cache} source)\n")
    print_table(contenders)


def smelt_command(args: argparse.Namespace, source: Path, out: Path, mode: str) -> list[str]:
    return [str(args.smelt), "quantize", str(source), "-o", str(out), *MODES[mode]]


def contenders_of(
    source: Path, reference: Path, mode: str, args: argparse.Namespace
) -> list[Contender]:
    out, rounds = args.dir / "out", args.rounds
    ours = smelt_command(args, source, out, mode)
    found = [Contender("smelt --method rtn", [*ours, "--method", "rtn"], out, rounds)]
    found.append(Contender("smelt", ours, out, rounds))
    if not args.no_mlx:
        convert = [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", str(source)]
        convert += ["--mlx-path", str(out), "-q", *CONVERT[mode]]
        # mxfp4 takes mlx-lm minutes on a CPU: once tells enough.
        times = 1 if mode == "mxfp4" else rounds
        found.append(Contender("mlx_lm.convert", convert, out, times))
        start = [sys.executable, "-c", "import mlx_lm.convert"]
        found.append(Contender("Python start and imports alone", start, None, rounds))
    floor = f"cat '{source}'/*.safetensors > /dev/null && mkdir '{out}'"
    for path in sorted(reference.glob("*.safetensors")):
        floor += f" && dd if='{path}' of='{out / path.name}' bs=4M conv=fsync status=none"
    found.append(Contender("floor: cat source, dd result, fsync", ["sh", "-c", floor], out, rounds))
    return found


def run_in_turns(contenders: list[Contender], before: Callable[[], None]) -> None:
    """A B C A B C: slow drifts of the machine meet every contender alike."""
    for turn in range(max(c.rounds for c in contenders)):
        for c in contenders:
            if turn < c.rounds:
                before()
                c.runs.append(measure.run(c.command))
                if c.out:
                    shutil.rmtree(c.out)


def print_table(contenders: list[Contender]) -> None:
    print("| program | wall s | min-max | wall + sync s | CPU s | peak RSS MiB | x smelt |")
    print("|---|---|---|---|---|---|---|")
    unit = median(contenders[0].runs, "wall")
    for c in contenders:
        walls = [r.wall for r in c.runs]
        wall, sync = median(c.runs, "wall"), median(c.runs, "sync")
        cells = [c.name, f"{wall:.2f}", f"{min(walls):.2f}-{max(walls):.2f}", f"{wall + sync:.2f}"]
        cells += [f"{median(c.runs, 'cpu'):.2f}", mib(median(c.runs, "peak_rss"))]
        print(f"| {' | '.join(cells)} | {wall / unit:.2f} |", flush=True)
    print()


def mib(size: float) -> str:
    return f"{size / 2**20:.0f}"


# -- a checkpoint larger than the machine ----------------------------------------


def sparse(args: argparse.Namespace) -> None:
    print("### 397B mixture of experts, sparse files, affine 4 bit, --max-memory 128MiB\n")
    print("| command | layers | wall s | CPU s | output GB | peak RSS MiB |")
    print("|---|---|---|---|---|---|")
    whole = made_sparse(60, args)
    plan = [str(args.smelt), "plan", str(whole), *MODES["affine"]]
    runs = [measure.run(plan) for _ in range(args.rounds)]
    row = f"{median(runs, 'wall'):.2f} | {median(runs, 'cpu'):.2f} | - "
    print(f"| plan | 60 | {row}| {mib(median(runs, 'peak_rss'))} |", flush=True)
    for layers in args.layers or [1, 3]:
        need = layers * SPARSE_LAYER_BYTES + SPARSE_REST_BYTES
        quantize_sparse(made_sparse(layers, args), layers, need, args)
    print()


def made_sparse(layers: int, args: argparse.Namespace) -> Path:
    return made(f"sparse-{layers}", args, ["sparse_moe.py", "--layers", str(layers)])


def quantize_sparse(source: Path, layers: int, need: int, args: argparse.Namespace) -> None:
    if shutil.disk_usage(args.dir).free < need + 10**9:
        print(f"{layers} layers need {need / 1e9:.0f} GB of disk: left out", file=sys.stderr)
        return
    out = args.dir / "out"
    command = smelt_command(args, source, out, "affine")
    result = measure.run([*command, "--max-memory", "128MiB"])
    size = sum(path.stat().st_size for path in out.glob("*.safetensors")) / 1e9
    shutil.rmtree(out)
    row = f"{result.wall:.1f} | {result.cpu:.1f} | {size:.1f} | {mib(result.peak_rss)}"
    print(f"| quantize | {layers} | {row} |", flush=True)


# -- sources in FP8 ---------------------------------------------------------------


def fp8(args: argparse.Namespace) -> None:
    """The same model from BF16 and from block FP8, in turns: rates in source parameters."""
    for model in ("llama", "qwen3_moe"):
        plain = made(model, args, ["make_models.py", model])
        packed = made(f"{model}-fp8", args, ["fp8.py", "twin", model])
        contenders = []
        for name, source in (("BF16", plain), ("FP8 128 x 128", packed)):
            out = args.dir / "out"
            command = smelt_command(args, source, out, "affine")
            contenders.append(Contender(f"smelt from {name}", command, out, args.rounds))
        run_in_turns(contenders, lambda: None)
        print(f"### {model}, affine 4 bit, from BF16 and from FP8 (warm source)\n")
        print_table(contenders)
        print_rates(contenders, parameters(plain))


def parameters(checkpoint: Path) -> int:
    """Of a checkpoint in BF16; what the headers take is nothing beside it."""
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) // 2


def print_rates(contenders: list[Contender], count: int) -> None:
    rates = [count / median(c.runs, "wall") / 1e9 for c in contenders]
    for c, rate in zip(contenders, rates, strict=True):
        share = f"{100 * rate / rates[0]:.0f} % of the first"
        print(f"{c.name}: {rate:.2f} billion source parameters a second, {share}")
    print(flush=True)


def deepseek(args: argparse.Namespace) -> None:
    print(
        "### DeepSeek-V3's shapes (671B) in FP8, sparse files, affine 4 bit, --max-memory 128MiB\n"
    )
    print("| command | layers | wall s | CPU s | output GB | peak RSS MiB |")
    print("|---|---|---|---|---|---|")
    plan = [str(args.smelt), "plan", str(made_deepseek(DEEPSEEK_LAYERS, args)), *MODES["affine"]]
    runs = [measure.run(plan) for _ in range(args.rounds)]
    row = f"{median(runs, 'wall'):.2f} | {median(runs, 'cpu'):.2f} | - "
    print(f"| plan | {DEEPSEEK_LAYERS} | {row}| {mib(median(runs, 'peak_rss'))} |", flush=True)
    for layers in args.layers or [3, 4]:
        need = max(layers - 3, 0) * DEEPSEEK_LAYER_BYTES + DEEPSEEK_REST_BYTES
        quantize_sparse(made_deepseek(layers, args), layers, need, args)
    print()


def made_deepseek(layers: int, args: argparse.Namespace) -> Path:
    return made(f"deepseek-{layers}", args, ["fp8.py", "deepseek", "--layers", str(layers)])


def kimi(args: argparse.Namespace) -> None:
    """A plan alone, of as many stored tensors as any published model has."""
    print("### Kimi K2's shapes (1T) in FP8, sparse files, affine 4 bit\n")
    print("| command | wall s | CPU s | peak RSS MiB |")
    print("|---|---|---|---|")
    source = made("kimi-fp8", args, ["fp8.py", "kimi"])
    plan = [str(args.smelt), "plan", str(source), *MODES["affine"]]
    runs = [measure.run(plan) for _ in range(args.rounds)]
    row = f"{median(runs, 'wall'):.2f} | {median(runs, 'cpu'):.2f}"
    print(f"| plan | {row} | {mib(median(runs, 'peak_rss'))} |\n", flush=True)


OTHERS: dict[str, Callable[[argparse.Namespace], None]] = {
    "sparse": sparse,
    "fp8": fp8,
    "deepseek": deepseek,
    "kimi": kimi,
}


if __name__ == "__main__":
    main()
