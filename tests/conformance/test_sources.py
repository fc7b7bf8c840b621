"""Quantized checkpoints of every kind: smelt reads them right, and what it makes of them is used.

The expected values come from `sources.py`, which knows nothing of smelt. Where mlx-lm or mlx-vlm
load a format themselves, they are held against those values too, so that the judge is judged.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import source_cases
from checkpoints import write_json
from compare import Stored, assert_same_tensors, read_json, read_tensors
from conftest import Smelt, Workspace, mlx_lm_convert
from formats import AFFINE, DEFAULT, MXFP4, MXFP8, NVFP4, Format
from library import TOKENS
from loaded import dequantized, floats, logits, packed_modules, parameters, rounded
from number_formats import E2M1, E4M3, E8M0
from source_cases import Case, Made
from source_table import BY_ID, CASES, GENUINE, WIDE

SOURCE_KEYS = ("quantization_config", "compression_config")

# The library makes floats of these on its own.
DECODED_BY_LIBRARY = [
    ("fp8-block-f32-edges", "mlx-lm"),
    ("fp8-block-f32-dsa", "mlx-lm"),
    ("fp8-block-f32-kimi", "mlx-lm"),
    ("fp8-block-f32-minimax", "mlx-lm"),
    ("fp8-block-f32-mimo", "mlx-lm"),
    ("fp8-block-ct", "mlx-vlm"),
    ("fp8-tensor-static-vlm", "mlx-vlm"),
    ("fp8-tensor-ct", "mlx-vlm"),
    ("fp8-channel-ct", "mlx-vlm"),
    ("fp8-channel-ct-qwen3", "mlx-vlm"),
    ("fp8-channel-1d", "mlx-vlm"),
]
# It keeps these packed, and mx.dequantize decodes them.
PACKED_BY_LIBRARY = [
    ("mxfp4-gpt-oss", "mlx-lm"),
    ("mxfp4-gpt-oss", "mlx-vlm"),
    ("nvfp4-modelopt", "mlx-vlm"),
    ("nvfp4-modelopt-vlm", "mlx-vlm"),
    ("nvfp4-ct", "mlx-vlm"),
    ("int4-g32-kimi", "mlx-lm"),
    ("int4-g32-kimi-k2.5", "mlx-vlm"),
    ("int4-g32-moe", "mlx-vlm"),
    ("int4-g32-llama", "mlx-vlm"),
    ("int4-g128-i64-shape", "mlx-vlm"),
    ("int8-g128", "mlx-vlm"),
    ("awq-exact", "mlx-lm"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Each case's checkpoints, written once."""
    root, known = tmp_path_factory.mktemp("sources"), {}

    def get(name: str) -> Made:
        if name not in known:
            known[name] = source_cases.make(BY_ID[name], root / name)
        return known[name]

    return get


every_case = pytest.mark.parametrize("case", CASES, ids=str)


# -- the judge -----------------------------------------------------------------------


def test_tables_are_those_of_mlx() -> None:
    codes = mx.array(np.arange(256, dtype=np.uint8))
    assert np.array_equal(np.array(mx.from_fp8(codes, mx.float32)), E4M3, equal_nan=True)
    words = mx.array(np.array([[0x76543210, 0xFEDCBA98] * 2], np.uint32))
    unit = mx.array(np.array([[127]], np.uint8))
    values = mx.dequantize(words, unit, group_size=32, bits=4, mode="mxfp4", dtype=mx.float32)
    assert np.array_equal(np.array(values)[0, :16], E2M1)
    ones = mx.array(np.full((255, 8), 0x38383838, np.uint32))
    scales = mx.array(np.arange(255, dtype=np.uint8)[:, None])
    values = mx.dequantize(ones, scales, group_size=32, bits=8, mode="mxfp8", dtype=mx.float32)
    assert np.array_equal(np.array(values)[:, 0], E8M0[:255])


@pytest.mark.parametrize("case", GENUINE, ids=str)
def test_names_dtypes_and_shapes_are_genuine(case: Case, made: Callable[[str], Made]) -> None:
    expected = {
        name: (dtype, shape) for name, dtype, shape in source_cases.stored_tensors(case.manifest)
    }
    ours = {name: (array.dtype, array.shape) for name, array in made(case.id).stored.items()}
    assert ours == expected


@pytest.mark.parametrize(("name", "library"), DECODED_BY_LIBRARY)
def test_library_decodes_to_the_expected(
    name: str, library: str, made: Callable[[str], Made]
) -> None:
    case = made(name)
    assert parameters(case.source, library) == parameters(case.plain, library)


@pytest.mark.parametrize(("name", "library"), PACKED_BY_LIBRARY)
def test_library_packs_the_expected(name: str, library: str, made: Callable[[str], Made]) -> None:
    case = made(name)
    theirs = parameters(case.source, library)
    differ = inexact(theirs, parameters(case.plain, library))
    assert differ <= (2e-5 if "nvfp4" in name else 0), differ


def inexact(packed: dict[str, Stored], plain: dict[str, Stored]) -> float:
    """The largest share of a module's elements that don't decode to the plain ones."""
    shares = [0.0]
    for module in packed_modules(packed):
        expected = floats(plain[f"{module}.weight"])
        values = dequantized(packed, module, expected.shape[-1])
        shares.append(np.mean(rounded(values, plain[f"{module}.weight"].dtype) != expected))
    assert len(shares) > 1
    return max(shares)


# -- what smelt makes of them ----------------------------------------------------------


def quantize(smelt: Smelt, source: Path, out: Path, *args: str) -> dict[str, Stored]:
    """`smelt quantize` by the CPU's rule; the tensors that it wrote."""
    smelt.quantize(source, out, *args)
    return read_tensors(out)


@every_case
def test_none_decodes_exactly(
    case: Case, smelt: Smelt, made: Callable[[str], Made], tmp_path: Path
) -> None:
    """Each value is that of the format's definition, and the library loads the result strictly."""
    out = tmp_path / "out"
    ours = quantize(smelt, made(case.id).source, out, "--mode", "none")
    expected = parameters(made(case.id).plain, case.library)
    assert ours.keys() <= expected.keys()
    differ = [
        report(name, ours[name], expected[name]) for name in ours if ours[name] != expected[name]
    ]
    assert not differ, f"{len(differ)} of {len(ours)}: {differ[:4]}"
    assert parameters(out, case.library) == expected
    assert_no_trace(out)


def report(name: str, ours: Stored, expected: Stored) -> str:
    if (ours.dtype, ours.shape) != (expected.dtype, expected.shape):
        return f"{name}: {ours.dtype} {ours.shape}, not {expected.dtype} {expected.shape}"
    left, right = floats(ours), floats(expected)
    where = left != right
    return f"{name}: {np.mean(where):.4f} differ, {left[where][:2]} not {right[where][:2]}"


def assert_no_trace(out: Path) -> None:
    """Nothing in the result speaks of the source's quantization."""
    config = read_json(out / "config.json")
    for block in [config, *(value for value in config.values() if isinstance(value, dict))]:
        left = [block[key] for key in SOURCE_KEYS if key in block]
        assert all(value == config.get("quantization") for value in left)
    assert not (out / "hf_quant_config.json").exists()


@every_case
def test_four_bits_are_those_of_the_plain_model(
    case: Case, smelt: Smelt, made: Callable[[str], Made], tmp_path: Path
) -> None:
    """Requantized, a source gives byte for byte what its plain twin gives; the result computes."""
    options = ["--bits", "4", "--group-size", "64"]
    ours = quantize(
        smelt, made(case.id).source, tmp_path / "ours", *options, "--transcode", "never"
    )
    assert ours == quantize(smelt, made(case.id).twin, tmp_path / "theirs", *options)
    assert mx.isfinite(logits(tmp_path / "ours", case.library)).all().item()
    assert_no_trace(tmp_path / "ours")


@pytest.mark.parametrize("case", WIDE, ids=str)
def test_budget_and_threads_do_not_change_a_byte(
    case: Case, smelt: Smelt, made: Callable[[str], Made], tmp_path: Path
) -> None:
    """Weights are decoded in pieces, cut where memory wants it."""
    source = made(case.id).source
    whole = quantize(smelt, made(case.id).plain, tmp_path / "whole", "--max-memory", "4GiB")
    for i, options in enumerate([("--threads", "1"), ("--max-memory", "32MiB", "--threads", "3")]):
        assert quantize(smelt, source, tmp_path / str(i), *options) == whole


@pytest.mark.parametrize(
    "name",
    [
        "fp8-block-f32-edges",
        "fp8-tensor-modelopt",
        "fp8-channel-ct",
        "mxfp8-u8",
        "mxfp4-gpt-oss",
        "fp4-i8-experts",
        "nvfp4-modelopt-exact",
        "nvfp4-ct",
        "int4-g32-moe",
        "int4-asymmetric-g32",
        "awq",
        "gptq-4-symmetric-g128",
    ],
)
def test_generates(name: str, smelt: Smelt, made: Callable[[str], Made], tmp_path: Path) -> None:
    smelt.quantize(made(name).source, tmp_path / "out")
    model, tokenizer = mlx_lm.load(str(tmp_path / "out"))
    tokens = [
        step.token for step in mlx_lm.stream_generate(model, tokenizer, TOKENS[0], max_tokens=4)
    ]
    assert tokens
    assert all(0 <= token < model.args.vocab_size for token in tokens)


@pytest.mark.parametrize(("name", "library"), DECODED_BY_LIBRARY)
def test_logits_are_those_of_the_librarys_load(
    name: str, library: str, smelt: Smelt, made: Callable[[str], Made], tmp_path: Path
) -> None:
    target = ["--target", library]
    smelt.quantize(made(name).source, tmp_path / "out", "--mode", "none", *target)
    ours = logits(tmp_path / "out", library)
    assert mx.isfinite(ours).all().item()
    assert mx.array_equal(ours, logits(made(name).source, library)).item()


@every_case
def test_inspect_names_the_format(case: Case, smelt: Smelt, made: Callable[[str], Made]) -> None:
    text = smelt.run("inspect", made(case.id).source).stdout
    assert all(word in text for word in case.words), text


# -- transcoding -----------------------------------------------------------------------

INT4 = ("--bits", "4", "--group-size")
SWITCH = r"switch_mlp\."
LINEAR = r"_proj$"
MOVED = [
    ("mxfp4-gpt-oss", ("--mode", "mxfp4"), r"\.experts\."),
    ("fp4-i8-experts", ("--mode", "mxfp4"), SWITCH),
    # By the family's own formats.
    ("fp4-i8-deepseek-v4", (), r"switch_mlp\.|shared_experts\.|attn\.w|indexer\.wq"),
    ("mxfp4-ct", ("--mode", "mxfp4"), LINEAR),
    ("mxfp8-u8", ("--mode", "mxfp8"), LINEAR),
    ("int4-g32-kimi", (*INT4, "32"), SWITCH),
    ("int4-g32-kimi-k2.5", (*INT4, "32"), SWITCH),
    ("int4-g32-moe", (*INT4, "32"), SWITCH),
    ("int4-g32-llama", (*INT4, "32"), LINEAR),
    # Only their scales and zero points tell that these are exact.
    ("nvfp4-modelopt-exact", ("--mode", "nvfp4"), r"self_attn\."),
    ("nvfp4-ct-exact", ("--mode", "nvfp4"), r"self_attn\."),
    ("awq-exact", (*INT4, "32"), LINEAR),
    ("gptq-exact", (*INT4, "32"), LINEAR),
    ("gptq-4-symmetric-g128", (*INT4, "128"), LINEAR),
]
"""case, options, the modules whose bits are moved"""
REQUANTIZED = [
    ("nvfp4-modelopt", ("--mode", "nvfp4")),
    ("nvfp4-ct", ("--mode", "nvfp4")),
    ("awq", (*INT4, "32")),
    ("gptq-4", (*INT4, "32")),
    ("gptq-4-act-order", (*INT4, "32")),
    ("int4-act-order", (*INT4, "32")),
    ("int4-asymmetric-g32", (*INT4, "32")),
    ("gptq-8-act-order", ("--bits", "8", "--group-size", "32")),
    ("fp8-block-f32-edges", ("--mode", "mxfp8")),
]
"""cases of which the target format holds no tensor exactly"""


@pytest.mark.parametrize(("name", "options", "pattern"), MOVED, ids=[m[0] for m in MOVED])
def test_bits_are_moved(
    name: str,
    options: tuple[str, ...],
    pattern: str,
    smelt: Smelt,
    made: Callable[[str], Made],
    tmp_path: Path,
) -> None:
    """The pattern's modules decode to the source's values exactly; all else is as ever."""
    case = made(name)
    expected = parameters(case.plain, case.case.library)
    ours = quantize(smelt, case.source, tmp_path / "ours", *options)
    theirs = quantize(smelt, case.twin, tmp_path / "theirs", *options)
    assert ours.keys() == theirs.keys()
    modules = packed_modules(ours)
    moved = {module for module in modules if re.search(pattern, module)}
    assert moved
    for module in moved:
        assert decodes_to(ours, module, expected[f"{module}.weight"]), module
    if "mxfp4" in options or "mxfp8" in options:
        assert bytes_of(ours[f"{module}.scales"].data for module in moved) == e8m0_of(case)
    rest = [key for key in ours if key.rpartition(".")[0] not in moved]
    assert [key for key in rest if ours[key] != theirs[key]] == []
    assert mx.isfinite(logits(tmp_path / "ours", case.case.library)).all().item()


def bytes_of(parts: Iterable[bytes]) -> bytes:
    """All of them, in an order of their own: experts may be stacked."""
    return bytes(sorted(b"".join(parts)))


def e8m0_of(made: Made) -> bytes:
    """The scales for groups of 32 that a source holds."""
    part = ".experts." if made.case.experts else "scale"
    scales = (made.stored[name] for name in made.stored if "scale" in name and part in name)
    return bytes_of(scale.bits.tobytes() for scale in scales)


def decodes_to(tensors: dict[str, Stored], module: str, plain: Stored) -> bool:
    values = dequantized(tensors, module, plain.shape[-1])
    return np.array_equal(rounded(values, plain.dtype), floats(plain))


@pytest.mark.parametrize(("name", "options"), REQUANTIZED, ids=[r[0] for r in REQUANTIZED])
def test_what_cannot_be_moved_is_requantized(
    name: str, options: tuple[str, ...], smelt: Smelt, made: Callable[[str], Made], tmp_path: Path
) -> None:
    ours = quantize(smelt, made(name).source, tmp_path / "ours", *options)
    assert ours == quantize(smelt, made(name).plain, tmp_path / "theirs", *options)


@pytest.mark.parametrize(("name", "options", "pattern"), MOVED, ids=[m[0] for m in MOVED])
def test_transcode_never_requantizes(
    name: str,
    options: tuple[str, ...],
    pattern: str,
    smelt: Smelt,
    made: Callable[[str], Made],
    tmp_path: Path,
) -> None:
    options = (*options, "--transcode", "never")
    ours = quantize(smelt, made(name).source, tmp_path / "ours", *options)
    assert ours == quantize(smelt, made(name).twin, tmp_path / "theirs", *options)


@pytest.mark.parametrize(
    ("name", "library", "options"),
    [
        ("mxfp4-gpt-oss", "mlx-lm", ("--mode", "mxfp4")),
        ("int4-g32-kimi", "mlx-lm", (*INT4, "32")),
        ("int4-g32-kimi-k2.5", "mlx-vlm", (*INT4, "32")),
        ("int4-g32-moe", "mlx-vlm", (*INT4, "32")),
        ("int4-g32-llama", "mlx-vlm", (*INT4, "32")),
    ],
)
def test_moved_bits_are_those_of_the_library(
    name: str,
    library: str,
    options: tuple[str, ...],
    smelt: Smelt,
    made: Callable[[str], Made],
    tmp_path: Path,
) -> None:
    """What the library packs at load is, byte for byte, what smelt writes."""
    target = ("--target", library)
    ours = quantize(smelt, made(name).source, tmp_path / "out", *options, *target)
    theirs = parameters(made(name).source, library)
    keys = [f"{m}.{k}" for m in packed_modules(theirs) for k in ("weight", "scales", "biases")]
    keys = [key for key in keys if key in theirs]
    assert keys
    assert [report(key, ours[key], theirs[key]) for key in keys if ours[key] != theirs[key]] == []


def test_deepseek_v4_is_what_mlx_vlm_converts(
    smelt: Smelt, made: Callable[[str], Made], tmp_path: Path
) -> None:
    """mlx-vlm's converter gives the same formats and values, and of experts the same bits. It takes
    none but checkpoints with an index and a tower, of which the config alone has to tell."""
    from mlx_vlm.models.deepseek_v4.convert import convert_deepseek_v4_vision

    case, source = made("fp4-i8-deepseek-v4"), tmp_path / "source"
    shutil.copytree(case.source, source)
    write_json(source / "config.json", read_json(source / "config.json") | {"vision_n_layers": 1})
    places = dict.fromkeys(case.stored, "model.safetensors")
    write_json(source / "model.safetensors.index.json", {"weight_map": places})
    theirs = read_tensors(convert_deepseek_v4_vision(source, tmp_path / "theirs"))
    ours = quantize(smelt, case.source, tmp_path / "ours")
    modules = packed_modules(theirs)
    assert len(modules) == 5 * 11 + 2
    expected = parameters(case.plain, "mlx-vlm")
    for module in modules:
        for side in (ours, theirs):
            assert decodes_to(side, module, expected[f"{module}.weight"]), module
    keys = [f"{m}.{part}" for m in modules if "switch_mlp" in m for part in ("weight", "scales")]
    assert [report(key, ours[key], theirs[key]) for key in keys if ours[key] != theirs[key]] == []
    ours, theirs = (read_json(tmp_path / side / "config.json") for side in ("ours", "theirs"))
    for module in modules:
        assert ours["quantization"][module] == theirs["quantization"][module]


# -- MLX's own formats -----------------------------------------------------------------

OWN = [AFFINE[1], AFFINE[8], AFFINE[15], DEFAULT, MXFP4, MXFP8, NVFP4]


@pytest.mark.parametrize("fmt", OWN, ids=lambda f: f.id)
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
class TestMlx:
    """Checkpoints that mlx-lm has quantized."""

    def test_refused(self, family: str, fmt: Format, workspace: Workspace, tmp_path: Path) -> None:
        source, out = workspace.theirs(family, fmt), tmp_path / "out"
        said = workspace.smelt.run("quantize", source, "-o", out, code=1).stderr
        assert "--allow-requantize" in said
        assert not out.exists()

    def test_decoded(self, family: str, fmt: Format, workspace: Workspace, tmp_path: Path) -> None:
        source = workspace.theirs(family, fmt)
        options = ("--mode", "none", "--allow-requantize")
        ours = quantize(workspace.smelt, source, tmp_path / "ours", *options)
        theirs = mlx_lm_convert(source, tmp_path / "theirs", dequantize=True)
        assert_same_tensors(tmp_path / "ours", theirs)
        assert ours
        assert_no_trace(tmp_path / "ours")

    def test_moved(self, family: str, fmt: Format, workspace: Workspace, tmp_path: Path) -> None:
        source = workspace.theirs(family, fmt)
        options = (*fmt.smelt_args, "--allow-requantize")
        quantize(workspace.smelt, source, tmp_path / "ours", *options)
        assert_same_tensors(tmp_path / "ours", source)


def test_a_result_in_floats_is_a_source_again(
    smelt: Smelt, made: Callable[[str], Made], tmp_path: Path
) -> None:
    """gpt-oss in the library's layout has gate and up apart."""
    for target in ("mlx-lm", "mlx-vlm"):
        options = ("--target", target)
        floats = smelt.quantize(
            made("mxfp4-gpt-oss").source, tmp_path / target / "f", "--mode", "none", *options
        )
        ours = quantize(smelt, floats, tmp_path / target / "ours", *options)
        source = made("mxfp4-gpt-oss").source
        never = ("--transcode", "never")
        assert ours == quantize(smelt, source, tmp_path / target / "x", *never, *options)


def test_the_plan_says_what_happens_to_each(smelt: Smelt, made: Callable[[str], Made]) -> None:
    source = made("nvfp4-ct-exact").source
    plan = json.loads(smelt.run("plan", source, "--mode", "nvfp4", "--json").stdout)
    said = {entry["name"]: entry for entry in plan["treatments"]}
    attention = said["model.layers.0.self_attn.q_proj.weight"]
    assert attention["transcode"] == "moved"
    assert "NVFP4" in attention["source"]
    mlp = said["model.layers.0.mlp.down_proj.weight"]
    assert (mlp["transcode"], "power of two" in mlp["reason"]) == ("requantized", True)
    assert "model.norm.weight" not in said
    text = smelt.run("plan", source, "--mode", "nvfp4").stdout
    assert "moved bit by bit" in text
    assert "decoded and quantized again" in text


# -- a marker that means nothing -------------------------------------------------------


@pytest.mark.parametrize("where", ["top", "text_config"])
def test_a_mark_of_training_is_not_a_format(
    where: str, smelt: Smelt, workspace: Workspace, tmp_path: Path
) -> None:
    """Gemma's QAT checkpoints are plain BF16 and say `quantization_config` all the same."""
    plain = workspace.source("gemma3_text")
    source = tmp_path / "source"
    shutil.copytree(plain, source)
    config = read_json(source / "config.json")
    block = config if where == "top" else config.setdefault("text_config", {})
    block["quantization_config"] = {"quant_type": "q4_0", "is_qat": True}
    write_json(source / "config.json", config)
    ours = quantize(smelt, source, tmp_path / "ours")
    assert ours == quantize(smelt, plain, tmp_path / "theirs")
    assert_no_trace(tmp_path / "ours")
