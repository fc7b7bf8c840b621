"""One plot of KL divergence against size, as SVG, from what run.py found.

    plot.py RESULTS.json [--figures FIGURES.json] > docs/bits.svg

FIGURES holds figures of tools that run.py did not run: rows with `quantized`, `bytes`, `kl`.
The axis of KL is logarithmic. No library is needed.
"""

import argparse
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 40, 50
INK, GRID = "#444", "#ddd"
COLORS = ["#d1480f", "#1f6fb4", "#4a9a3d", "#8a55b8", "#99822b", "#c2528b"]


@dataclass
class Axes:
    """From bytes and KL to the picture."""

    smallest: float
    largest: float
    best: float
    worst: float

    def x(self, size: float) -> float:
        share = (size - self.smallest) / (self.largest - self.smallest)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, kl: float) -> float:
        share = math.log(self.worst / kl) / math.log(self.worst / self.best)
        return TOP + share * (HEIGHT - TOP - BOTTOM)


def family(name: str) -> str:
    """The curve that a point belongs to."""
    if name.startswith("smelt"):
        return "smelt"
    if name.startswith("uniform"):
        return "mlx-lm uniform"
    if name.startswith("mixed"):
        return "mlx-lm mixed"
    if name.startswith("dynamic"):
        return "mlx-lm dynamic_quant"
    return name.rsplit(" ", 1)[0]


def axes(rows: list[dict]) -> Axes:
    sizes, losses = [row["bytes"] for row in rows], [row["kl"] for row in rows]
    margin = (max(sizes) - min(sizes)) * 0.04
    return Axes(min(sizes) - margin, max(sizes) + margin, min(losses) * 0.8, max(losses) * 1.25)


def text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" {more}>{words}</text>'


def line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{GRID}"/>'


def grid(to: Axes) -> list[str]:
    """Lines and numbers."""
    out = []
    steps = [s * 10.0**e for e in range(-5, 2) for s in (1, 2, 5)]
    for kl in [s for s in steps if to.best <= s <= to.worst]:
        y = to.y(kl)
        out.append(line((LEFT, y), (WIDTH - RIGHT, y)))
        out.append(text(LEFT - 8, y + 4, f"{kl:g}", 'text-anchor="end"'))
    step = max(1, round((to.largest - to.smallest) / 8e6)) * 1_000_000
    for size in range(math.ceil(to.smallest / step) * step, int(to.largest), step):
        x = to.x(size)
        out.append(line((x, TOP), (x, HEIGHT - BOTTOM)))
        out.append(text(x, HEIGHT - BOTTOM + 18, f"{size / 1e6:g}", 'text-anchor="middle"'))
    return out


def curve(to: Axes, rows: list[dict], color: str) -> list[str]:
    """Points in order of size, joined by lines."""
    points = sorted((to.x(row["bytes"]), to.y(row["kl"])) for row in rows)
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    out = [f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="1.5"/>']
    return out + [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in points]


def legend(names: list[str]) -> list[str]:
    x, out = WIDTH - RIGHT + 16, []
    for row, name in enumerate(names):
        y = TOP + 14 + 20 * row
        out.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{COLORS[row % len(COLORS)]}"/>')
        out.append(text(x + 10, y, name))
    return out


def draw(title: str, rows: list[dict]) -> str:
    curves = defaultdict(list)
    for row in sorted(rows, key=lambda r: family(r["quantized"]) != "smelt"):
        curves[family(row["quantized"])].append(row)
    to = axes(rows)
    body = grid(to)
    for color, points in enumerate(curves.values()):
        body += curve(to, points, COLORS[color % len(COLORS)])
    body += legend(list(curves))
    body.append(text(LEFT, TOP - 16, title, 'font-weight="bold"'))
    body.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "size, MB", 'text-anchor="middle"'))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    head += 'font-family="sans-serif" font-size="12">'
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, paper, *body, "</svg>"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--figures", type=Path, help="rows of other tools")
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    rows = results["rows"]
    if args.figures:
        rows += json.loads(args.figures.read_text())
    print(draw(f"{results['model']}: mean KL divergence from bf16, nats (log)", rows))


if __name__ == "__main__":
    main()
