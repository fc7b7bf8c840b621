"""A multimodal checkpoint in 4 bits sees an image in mlx-vlm; without its tower mlx-lm runs it.

The layout is the published one of Qwen3.5-MoE: nested configs, a tower, experts singly or fused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import Variant, manifest_tensors, write_json, write_tensors
from compare import resolve
from conftest import Smelt
from pairs import MANIFESTS

SPECIAL = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
MODELS = ["qwen3_5_moe", "qwen3_5_moe_fused"]


def write_processor(out: Path, config: dict[str, Any]) -> None:
    """A byte-level tokenizer with the config's special tokens, and the image processor's sizes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = {config[key]: token for key, token in SPECIAL.items()}
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {special.get(i, f"<{i}>"): i for i in range(256, config["text_config"]["vocab_size"])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token) for token in special.values()])
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<511>",
            "unk_token": "<511>",
            "pad_token": "<510>",
        },
    )
    (out / "chat_template.jinja").write_text(TEMPLATE)
    vision = config["vision_config"]
    write_json(
        out / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "processor_class": "Qwen3VLProcessor",
            "patch_size": vision["patch_size"],
            "temporal_patch_size": vision["temporal_patch_size"],
            "merge_size": vision["spatial_merge_size"],
            "size": {"shortest_edge": 1024, "longest_edge": 16384},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    manifest = json.loads((MANIFESTS / f"{request.param}.json").read_text())
    out = tmp_path_factory.mktemp(request.param)
    write_json(out / "config.json", manifest["config"])
    write_tensors(out, [manifest_tensors(manifest, Variant())])
    write_processor(out, manifest["config"])
    return out


def in_float32(model: Any) -> Any:
    """A CPU multiplies stacked experts in nothing else."""
    model.set_dtype(mx.float32)
    return model


def test_an_image_and_a_text(source: Path, tmp_path: Path, smelt: Smelt) -> None:
    from mlx_vlm import generate, load
    from PIL import Image

    smelt.run("quantize", source, "-o", tmp_path / "out")
    model, processor = load(str(tmp_path / "out"))
    picture = Image.radial_gradient("L").convert("RGB").resize((64, 64))
    picture.save(tmp_path / "picture.png")
    said = generate(
        in_float32(model),
        processor,
        "<|vision_start|><|image_pad|><|vision_end|>What is this?",
        image=[str(tmp_path / "picture.png")],
        max_tokens=4,
        verbose=False,
    )
    assert said.generation_tokens > 0
    # A patch of the picture is 16 pixels wide, and two by two of them are a token.
    assert said.prompt_tokens == len("What is this?") + (64 // 32) ** 2 + 2


def test_text_only(source: Path, tmp_path: Path, smelt: Smelt) -> None:
    import mlx_lm

    smelt.run("quantize", source, "-o", tmp_path / "out", "--text-only")
    model, tokenizer = mlx_lm.load(str(tmp_path / "out"))
    steps = list(mlx_lm.stream_generate(in_float32(model), tokenizer, [5, 17, 101], max_tokens=4))
    assert steps
    names = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert not [name for name in names if "visual" in name or "vision" in name]


def test_like_a_model_of_mlx_vlm(source: Path, tmp_path: Path, smelt: Smelt) -> None:
    """Widths of a model with a tower are copied, for all of it and for its language model alone."""
    from mlx_vlm.convert import convert

    theirs = tmp_path / "theirs"
    convert(str(source), str(theirs), quantize=True, quant_predicate="mixed_3_6")
    expected = resolve(theirs)
    assert len(set(expected.values())) > 2
    smelt.run("quantize", source, "-o", tmp_path / "all", "--strict", "--like", theirs)
    assert resolve(tmp_path / "all") == expected
    text = ("--text-only", "--like", theirs)
    done = smelt.run("quantize", source, "-o", tmp_path / "text", *text)
    found = resolve(tmp_path / "text")
    quantized = {module: fmt for module, fmt in found.items() if fmt}
    inside = {name: fmt for name, fmt in expected.items() if fmt and "vision" not in name}
    assert quantized == inside
    assert "not in" not in done.stderr
