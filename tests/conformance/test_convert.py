"""smelt by the CPU rule writes the tensors and the config that mlx-lm writes."""

import checkpoints
import formats
import pytest
from checkpoints import Variant
from compare import assert_equivalent_config, assert_same_tensors
from conftest import PLAIN, Workspace
from formats import AFFINE, DEFAULT, MXFP4, MXFP8, NONE, NVFP4, Format

EVERY_FORMAT = ["sample", "llama", "qwen3_moe"]
"""A trained model, a dense and a sparse one (whose experts have rows of 64: with
groups of 128 mlx-lm leaves their down projections dense)."""

ODD_WIDTH = "llama_odd_width"
"""Rows of 96: with groups of 64 most modules stay dense."""

Case = tuple[str, Format, Variant]


def covering(index: int) -> list[Format]:
    """The common formats and two more, so that the families together cover all."""
    rest = [f for f in AFFINE if f != DEFAULT] + [MXFP8, NVFP4]
    return [DEFAULT, MXFP4, NONE, *(rest[(2 * index + k) % len(rest)] for k in range(2))]


def cases() -> list[Case]:
    rest = [f for f in checkpoints.families() if f not in (*EVERY_FORMAT, ODD_WIDTH)]
    found = [(family, fmt, PLAIN) for i, family in enumerate(rest) for fmt in covering(i)]
    odd = [f for f in AFFINE if f.group < 128] + [MXFP4, MXFP8, NVFP4]
    found += [(ODD_WIDTH, fmt, PLAIN) for fmt in odd]
    other = [Variant("F16"), Variant("F32"), Variant("BF16", norm_dtype="F32")]
    some = [DEFAULT, Format("affine", 8, 32), Format("affine", 3, 64), MXFP4, MXFP8, NVFP4, NONE]
    found += [("llama", fmt, v) for v in other for fmt in some]
    found += [("qwen3_moe", fmt, v) for v in other for fmt in (DEFAULT, MXFP4)]
    return found + [(family, fmt, PLAIN) for family in EVERY_FORMAT for fmt in formats.ALL]


def case_id(case: Case) -> str:
    family, fmt, variant = case
    source = family if variant == PLAIN else f"{family}:{variant.id}"
    return f"{source}-{fmt.id}"


@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_equals_mlx_lm(case: Case, workspace: Workspace) -> None:
    ours, theirs = workspace.ours(*case), workspace.theirs(*case)
    assert_same_tensors(ours, theirs)
    assert_equivalent_config(ours, theirs, workspace.source(case[0], case[2]))
