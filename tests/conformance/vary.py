"""Compares families with the libraries on checkpoints that differ from the recorded manifests.

    python tests/conformance/vary.py [REGEX]      # SMELT_BIN names another binary

A family that fits one manifest may still have been written for that one. Each manifest is changed
in ways in which published checkpoints differ, config and names together: keys left out or null,
towers and heads that lack or are spare, buffers of old releases, other dtypes, and the names under
which the library itself would write the model. What the library refuses is passed over; where it
loads a variation, the family must give the same layout. On demand: it takes most of an hour.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

from checkpoints import expand
from pairs import LIBRARIES, MANIFESTS, ROOT, SMELT
from record import manifests

DISCOVER = ROOT / "crates" / "smelt-core" / "python" / "discover.py"
TOWER = re.compile(r"(^|\.)(vision\w*|visual|audio\w*|mm_projector|multi_modal_projector)\.")
ATTENTION = re.compile(r".*\blayers\.\d+\.(?:self_attn|attention|attn)(?=\.)")
EMBEDDING = re.compile(r"(embed_tokens|word_embeddings|wte)\.weight$")
HEAD = re.compile(r"(lm_head|embed_out)\.weight$")
# Keys that say what a model holds; of the others only an absence is worth a look.
NULLABLE = re.compile(r"tie_|head_dim|key_value|lora|shared|layer|bias|qk_norm")
UNRELATED = re.compile(r"token|dropout|max_position|initializer|rope|theta|eps|model_type|archi")

Config = dict[str, Any]
Tensors = dict[str, list[Any]]
"""names to dtype and shape"""
Variation = tuple[str, Config, Tensors]


def read(name: str) -> tuple[Config, Tensors]:
    """The config and tensors of a manifest."""
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
    tensors: Tensors = {}
    for template, shape in manifest["tensors"].items():
        typed = shape if shape and isinstance(shape[0], str) else ["BF16", shape]
        tensors |= dict.fromkeys(expand(template), typed)
    return manifest["config"], tensors


def keys(config: Config, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of the config's keys."""
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("config"):
            yield from keys(value, (*above, key))
        elif not UNRELATED.search(key):
            yield (*above, key)


def changed(config: Config, path: tuple[str, ...], *, absent: bool) -> Config:
    """The config without a key, or with null for it."""
    config = inner = copy.deepcopy(config)
    for key in path[:-1]:
        inner = inner[key]
    if absent:
        del inner[path[-1]]
    else:
        inner[path[-1]] = None
    return config


def of_config(config: Config, tensors: Tensors) -> Iterator[Variation]:
    """Keys that are absent or null."""
    for path in keys(config):
        name = ".".join(path)
        yield f"{name} absent", changed(config, path, absent=True), tensors
        if NULLABLE.search(path[-1]):
            yield f"{name} null", changed(config, path, absent=False), tensors


def of_towers(config: Config, tensors: Tensors) -> Iterator[Variation]:
    """Fine-tunes of the text alone, which keep the towers' config or not."""
    text = {name: value for name, value in tensors.items() if not TOWER.search(name)}
    if len(text) < len(tensors):
        blind = {k: v for k, v in config.items() if k not in ("vision_config", "audio_config")}
        yield "no tower's tensors", config, text
        yield "no tower's config", blind, tensors
        yield "no tower", blind, text


def of_heads(config: Config, tensors: Tensors) -> Iterator[Variation]:
    """Heads that lack, or that are there though the embedding is used."""
    heads = [name for name in tensors if HEAD.search(name)]
    without = {name: value for name, value in tensors.items() if name not in heads}
    embeddings = [name for name in without if EMBEDDING.search(name) and not TOWER.search(name)]
    if embeddings and not heads:
        yield "spare head", config, tensors | {"lm_head.weight": tensors[embeddings[0]]}
    if heads:
        tied = config | {"tie_word_embeddings": True}
        yield "no head", config, without
        yield "tied, with a head", tied, tensors
        yield "tied, without a head", tied, without


def of_tensors(config: Config, tensors: Tensors) -> Iterator[Variation]:
    """Buffers, dtypes and prefixes."""
    found = {match[0] for name in tensors if (match := ATTENTION.match(name))}
    buffers = {f"{module}.rotary_emb.inv_freq": ["F32", [16]] for module in found}
    if buffers:
        yield "inv_freq", config, tensors | buffers
    wide = {n: ["F32", s] if d == "BF16" else [d, s] for n, (d, s) in tensors.items()}
    yield "in float32", config, wide
    bare = {name.removeprefix("model."): value for name, value in tensors.items()}
    if bare.keys() != tensors.keys():
        yield "no `model.`", config, bare


def as_written(library: str, config: Config, tensors: Tensors) -> Iterator[Variation]:
    """The model as the library itself would write it."""
    request = {"library": library, "config": config, "files": {"model.safetensors": tensors}}
    command = [sys.executable, str(DISCOVER)]
    run = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, check=True
    )
    answer = json.loads(run.stdout)
    if "error" not in answer:
        nodes = answer["nodes"]
        named = {n: [nodes[i]["dtype"], nodes[i]["shape"]] for n, i in answer["outputs"]}
        yield "as the library writes it", config, named


def variations(library: str, name: str) -> Iterator[Variation]:
    """All variations of a manifest."""
    config, tensors = read(name)
    yield from as_written(library, config, tensors)
    for kind in (of_towers, of_heads, of_tensors, of_config):
        yield from kind(config, tensors)


def compare(library: str, config: Config, tensors: Tensors) -> str:
    """`equal`, `refused` by the library, or how the family fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"config": config, "files": {"model.safetensors": tensors}}, file)
        file.flush()
        command = [SMELT, "families", "check", file.name, "--json", "--library", library]
        command += ["--python", sys.executable]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = json.loads(run.stdout.splitlines()[0])
    if differences := answer.get("differences"):
        return f"{len(differences)} differences: {differences[0]}"
    error = answer.get("error", "")
    if error.startswith((f"{library} ", f"the layout that {library} makes")):
        return "refused"
    return " ".join(error.split())[:400] or "equal"


def main() -> None:
    wanted = re.compile(sys.argv[1] if sys.argv[1:] else "")
    counts: Counter[str] = Counter()
    for name in filter(wanted.search, manifests()):
        for library in LIBRARIES:
            if compare(library, *read(name)) == "refused":
                continue
            for what, config, tensors in variations(library, name):
                verdict = compare(library, config, tensors)
                counts[verdict if verdict in ("equal", "refused") else "different"] += 1
                if verdict not in ("equal", "refused"):
                    print(f"{name}, {library}, {what}: {verdict}", flush=True)
    print(dict(counts))
    sys.exit(counts["different"] > 0)


if __name__ == "__main__":
    main()
