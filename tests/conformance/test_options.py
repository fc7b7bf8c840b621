"""Options and sources that must change the result in one way, or not at all."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import Tensor, Variant, write_shard
from compare import assert_equivalent_config, assert_same_tensors, read_tensors
from conftest import Smelt, Workspace, mlx_lm_convert
from formats import DEFAULT, MXFP4, NONE, Format

DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
SIDE_FILES = [
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


def digest(checkpoint: Path) -> dict[str, bytes]:
    """All files but those that tell how a run was started and how long it took."""
    files = (path for path in checkpoint.iterdir() if path.is_file())
    told = ("README.md", "smelt-report.json")
    return {p.name: p.read_bytes() for p in sorted(files) if p.name not in told}


# -- what must not change anything ---------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "sample"])
@pytest.mark.parametrize(
    "option",
    [("--threads", "1"), ("--threads", "4"), ("--max-memory", "64MiB"), ("--max-memory", "4GiB")],
    ids="=".join,
)
def test_resources_do_not_change_a_byte(
    family: str, option: tuple[str, str], workspace: Workspace, tmp_path: Path
) -> None:
    source = workspace.source(family)
    out = workspace.smelt.quantize(source, tmp_path / "out", *option)
    assert digest(out) == digest(workspace.ours(family, DEFAULT))


@pytest.mark.parametrize("family", ["llama_tied", "phi3", "qwen3_moe", "mixtral"])
@pytest.mark.parametrize(
    "variant",
    [Variant(shards=3), Variant(shuffle=True), Variant(shards=5, shuffle=True)],
    ids=lambda v: v.id,
)
def test_layout_of_the_source_does_not_matter(
    family: str, variant: Variant, workspace: Workspace
) -> None:
    """Experts of one layer lie in several files, in any order."""
    assert_same_tensors(workspace.ours(family, DEFAULT, variant), workspace.theirs(family, DEFAULT))


@pytest.mark.parametrize("fmt", [DEFAULT, NONE], ids=lambda f: f.id)
@pytest.mark.parametrize("family", ["llama", "sample"])
def test_side_files_are_copied(family: str, fmt: Format, workspace: Workspace) -> None:
    source, ours = workspace.source(family), workspace.ours(family, fmt)
    for name in SIDE_FILES:
        assert (ours / name).read_bytes() == (source / name).read_bytes(), name


def test_source_is_left_alone(workspace: Workspace) -> None:
    source = workspace.source("llama", Variant(shards=2))
    before = digest(source)
    workspace.ours("llama", DEFAULT, Variant(shards=2))
    assert digest(source) == before


def test_dry_run_writes_nothing(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    workspace.smelt.run("quantize", workspace.source("llama"), "-o", out, "--dry-run")
    assert list(tmp_path.iterdir()) == []


# -- dtype ---------------------------------------------------------------------


@pytest.mark.parametrize("fmt", [DEFAULT, MXFP4, NONE], ids=lambda f: f.id)
@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("given", ["BF16", "F32"])
def test_dtype(given: str, target: str, fmt: Format, workspace: Workspace, tmp_path: Path) -> None:
    """Weights are cast before they are quantized, so the scales follow."""
    source = workspace.source("llama", Variant(given))
    ours = workspace.smelt.quantize(source, tmp_path / "ours", "--dtype", target, *fmt.smelt_args)
    theirs = mlx_lm_convert(source, tmp_path / "theirs", dtype=DTYPES[target], **fmt.convert_args)
    assert_same_tensors(ours, theirs)


# -- overrides -----------------------------------------------------------------

OVERRIDES = {
    "higher-bits": {r"model\.layers\.\d+\.mlp\..*down_proj": "8"},
    "group": {r"model\.layers\.\d+\.self_attn\..*": "6:32"},
    "mode": {r"model\.layers\.\d+\.mlp\..*up_proj": "4:32:mxfp4"},
    "keep": {r"model\.embed_tokens": "keep", r".*o_proj": "keep"},
    "two": {r".*v_proj": "8:64", r".*k_proj": "3:32:affine"},
    "router-wins-over-family": {r".*mlp\.gate": "4:64"},
}


def params_of(spec: str) -> bool | dict[str, Any]:
    """`BITS[:GROUP[:MODE]]` or `keep`, as an mlx-lm predicate answers it."""
    if spec == "keep":
        return False
    bits, group, mode = [*spec.split(":"), *["64", "affine"][spec.count(":") :]]
    return {"bits": int(bits), "group_size": int(group), "mode": mode}


def predicate(
    overrides: dict[str, str], family: str
) -> Callable[[str, Any], bool | dict[str, Any]]:
    def decide(path: str, _module: Any) -> bool | dict[str, Any]:
        for pattern, spec in overrides.items():
            if re.fullmatch(pattern, path):
                return params_of(spec)
        if family == "qwen3_moe" and path.endswith("mlp.gate"):
            return {"group_size": 64, "bits": 8}  # mlx-lm's own rule for this family
        return True

    return decide


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("name", OVERRIDES)
def test_override(name: str, family: str, workspace: Workspace, tmp_path: Path) -> None:
    overrides, source = OVERRIDES[name], workspace.source(family)
    args = [arg for item in overrides.items() for arg in ("--override", "=".join(item))]
    ours = workspace.smelt.quantize(source, tmp_path / "ours", *args)
    theirs = mlx_lm_convert(
        source,
        tmp_path / "theirs",
        quant_predicate=predicate(overrides, family),
        **DEFAULT.convert_args,
    )
    assert_same_tensors(ours, theirs)
    assert_equivalent_config(ours, theirs, source)


# -- the user's matters --------------------------------------------------------


def test_missing_model(smelt: Smelt, tmp_path: Path) -> None:
    done = smelt.run("quantize", tmp_path / "nothing", "-o", tmp_path / "out", code=1)
    assert "nothing" in done.stderr


def test_truncated_shard_is_named(workspace: Workspace, tmp_path: Path) -> None:
    source = copy_of(workspace.source("llama"), tmp_path / "source")
    shard = source / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    done = workspace.smelt.run("quantize", source, "-o", tmp_path / "out", code=1)
    assert shard.name in done.stderr
    assert not (tmp_path / "out").exists()


def test_nan_is_refused_with_its_tensor(workspace: Workspace, tmp_path: Path) -> None:
    source = copy_of(workspace.source("llama"), tmp_path / "source")
    victim = "model.layers.2.mlp.up_proj.weight"
    tensors = mx.load(str(source / "model.safetensors"))
    tensors[victim][3, 5] = float("nan")
    mx.save_safetensors(str(source / "model.safetensors"), tensors)
    done = workspace.smelt.run("quantize", source, "-o", tmp_path / "out", code=1)
    assert victim in done.stderr
    assert not (tmp_path / "out" / "config.json").exists()
    workspace.smelt.quantize(source, tmp_path / "allowed", "--allow-nonfinite")


def test_missing_shard_is_named(workspace: Workspace, tmp_path: Path) -> None:
    source = copy_of(workspace.source("llama", Variant(shards=3)), tmp_path / "source")
    (source / "model-00002-of-00003.safetensors").unlink()
    done = workspace.smelt.run("quantize", source, "-o", tmp_path / "out", code=1)
    assert "model-00002-of-00003.safetensors" in done.stderr


def test_unindexed_file_is_not_read(workspace: Workspace, tmp_path: Path) -> None:
    """Other weights in the directory (adapters, consolidated files) are no part of it."""
    source = copy_of(workspace.source("llama"), tmp_path / "source")
    write_shard(source / "consolidated.safetensors", [Tensor("stray.weight", "BF16", (64, 64))])
    out = workspace.smelt.quantize(source, tmp_path / "out")
    assert_same_tensors(out, workspace.theirs("llama", DEFAULT))
    assert "stray.weight" not in read_tensors(out)


def copy_of(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
