"""The traced graph, evaluated op by op with MLX, must give the bits of the real load_model.

Weights are random, headers and configs are those of small models in `manifests`.  `discover.py`
runs as smelt runs it, in a process of its own; the reference runs here, unpatched but for
`load_weights`, where the weights are taken.
"""

import base64
import copy
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "crates" / "smelt-core" / "python" / "discover.py"
MANIFESTS = Path(__file__).parent / "manifests"
CASES = [
    ("mlx-lm", "qwen3_moe"),
    ("mlx-lm", "deepseek_v3"),
    ("mlx-lm", "deepseek_v3_fp8"),
    ("mlx-lm", "gpt_oss"),
    ("mlx-lm", "falcon_h1"),
    ("mlx-lm", "qwen3_5"),
    ("mlx-vlm", "qwen3_5"),
    ("mlx-vlm", "qwen3_vl_moe"),
    ("mlx-vlm", "qwen2_vl"),
]
DTYPES = {
    "BOOL": mx.bool_, "U8": mx.uint8, "U16": mx.uint16, "U32": mx.uint32, "U64": mx.uint64,
    "I8": mx.int8, "I16": mx.int16, "I32": mx.int32, "I64": mx.int64,
    "F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32,
}  # fmt: skip
RENAMED = {"and": "bitwise_and", "or": "bitwise_or"}


def manifest(name: str) -> dict[str, Any]:
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def ask(library: str, content: dict[str, Any], script: str | Path = SCRIPT) -> dict[str, Any]:
    """One run of discover.py; stdout must be the answer and nothing else."""
    files = content["files"]
    request = {"library": library, "index": len(files) > 1, "side": {}} | content
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


# -- a checkpoint with random contents ----------------------------------------------------


def random_bytes(stored: str, shape: list[int], seed: np.random.Generator) -> bytes:
    size = int(np.prod(shape))
    values = seed.standard_normal(size).astype(np.float32) * 0.1
    if stored == "F32":
        return values.tobytes()
    if stored == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    if stored == "F8_E4M3":
        # 0x7f and 0xff are NaN, which is not equal to itself.
        return (seed.integers(0, 255, size, dtype=np.uint8) & 0xFE).tobytes()
    assert stored == "U8", stored
    return seed.integers(0, 256, size, dtype=np.uint8).tobytes()


def materialize(content: dict[str, Any], root: Path) -> None:
    (root / "config.json").write_text(json.dumps(content["config"]))
    seed = np.random.default_rng(7)
    for file, tensors in content["files"].items():
        header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
        for name, (stored, shape) in tensors.items():
            blobs.append(random_bytes(stored, shape, seed))
            end = at + len(blobs[-1])
            header[name] = {"dtype": stored, "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        (root / file).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def real_weights(library: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, mx.array]:
    """What the unmodified library passes to load_weights."""
    taken: dict[str, mx.array] = {}

    class Taken(BaseException):
        pass

    def take(self: nn.Module, weights: list[tuple[str, mx.array]], strict: bool = True) -> None:
        taken.update(weights)
        raise Taken

    if library == "mlx-lm":
        from mlx_lm.utils import load_model
    else:
        from mlx_vlm.utils import load_model
    monkeypatch.setattr(nn.Module, "load_weights", take)
    with pytest.raises(Taken):
        load_model(root, lazy=True)
    return taken


# -- a small executor -----------------------------------------------------------------------


def valued(node: dict[str, Any]) -> Any:
    """NaN and the infinities are strings, as JSON has no such numbers."""
    return float(node["value"]) if isinstance(node["value"], str) else node["value"]


def constant(node: dict[str, Any]) -> mx.array:
    raw = np.frombuffer(base64.b64decode(node["data"]), np.uint8)
    return mx.array(raw).view(DTYPES[node["dtype"]]).reshape(node["shape"])


def sliced(node: dict[str, Any], a: mx.array) -> mx.array:
    index = []
    for start, length, step in zip(node["start"], node["len"], node["step"], strict=True):
        stop = start + length * step
        index.append(slice(start, stop if stop >= 0 else None, step))
    return a[tuple(index)]


def padded(node: dict[str, Any], a: mx.array) -> mx.array:
    widths = list(zip(node["low"], node["high"], strict=True))
    return mx.pad(a, widths, constant_values=valued(node))


def decoded(value: Any, inputs: list[mx.array]) -> Any:
    if isinstance(value, dict):
        return inputs[value["in"]]
    return [decoded(v, inputs) for v in value] if isinstance(value, list) else value


def called(node: dict[str, Any], *inputs: mx.array) -> mx.array:
    args = [decoded(v, list(inputs)) for v in node["args"]]
    return getattr(mx, node["fn"])(*args)


def quantized(node: dict[str, Any]) -> dict[str, Any]:
    return {k: node[k] for k in ("mode", "bits", "group_size")}


OPS: dict[str, Callable[..., Any]] = {
    "const": constant,
    "scalar": lambda n: mx.array(valued(n), DTYPES[n["dtype"]]),
    "full": lambda n: mx.full(n["shape"], valued(n), DTYPES[n["dtype"]]),
    "stack": lambda n, *a: mx.stack(a, n["axis"]),
    "concat": lambda n, *a: mx.concatenate(a, n["axis"]),
    "slice": sliced,
    "transpose": lambda n, a: mx.transpose(a, n["perm"]),
    "reshape": lambda n, a: mx.reshape(a, n["shape"]),
    "cast": lambda n, a: a.astype(DTYPES[n["dtype"]]),
    "bitcast": lambda n, a: a.view(DTYPES[n["dtype"]]),
    "compare": lambda n, a, b: getattr(mx, n["fn"])(a, b),
    "unary": lambda n, a: getattr(mx, n["fn"])(a),
    "from_fp8": lambda n, a: mx.from_fp8(a, DTYPES[n["dtype"]]),
    "pad": padded,
    "repeat": lambda n, a: mx.repeat(a, n["count"], n["axis"]),
    "broadcast": lambda n, a: mx.broadcast_to(a, n["shape"]),
    "take": lambda n, a, i: mx.take(a, i, n["axis"]),
    "where": lambda n, c, a, b: mx.where(c, a, b),
    "sum": lambda n, a: mx.sum(a, n["axes"], n["keepdims"]),
    "norm": lambda n, a: mx.linalg.norm(a, n["ord"], n["axes"], n["keepdims"]),
    "quantize": lambda n, a: mx.quantize(a, **quantized(n)),
    "get": lambda n, parts: parts[n["index"]],
    "call": called,
}


def evaluate(answer: dict[str, Any], sources: dict[str, mx.array]) -> dict[str, mx.array]:
    """Every output of the graph; each node must have the shape and dtype it claims."""
    values: list[Any] = []
    for node in answer["nodes"]:
        inputs = [values[i] for i in node["in"]]
        if node["op"] == "source":
            value = sources[node["name"]]
        elif node["op"] in OPS:
            value = OPS[node["op"]](node, *inputs)
        else:
            value = getattr(mx, RENAMED.get(node["op"], node["op"]))(*inputs)
        if node["op"] != "quantize":
            assert (list(value.shape), value.dtype) == (node["shape"], DTYPES[node["dtype"]]), node
        values.append(value)
    return {name: values[number] for name, number in answer["outputs"]}


def bits(array: mx.array) -> bytes:
    return bytes(memoryview(mx.contiguous(array).reshape(-1).view(mx.uint8)))


# -- (a) the same bits ----------------------------------------------------------------------


@pytest.mark.parametrize(("library", "name"), CASES)
def test_graph_gives_the_librarys_bits(
    library: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = manifest(name)
    answer = ask(library, content)
    assert "error" not in answer, answer
    assert not answer["model"]["missing"]
    assert not answer["model"]["mismatched"]
    materialize(content, tmp_path)
    sources: dict[str, mx.array] = {}
    for file in content["files"]:
        sources.update(mx.load(str(tmp_path / file)))
    result = evaluate(answer, sources)
    expected = real_weights(library, tmp_path, monkeypatch)
    assert result.keys() == expected.keys()
    for key, value in expected.items():
        assert (result[key].shape, result[key].dtype) == (value.shape, value.dtype), key
        assert bits(result[key]) == bits(value), key


def test_the_cases_use_what_is_hard() -> None:
    """Guards the manifests: without these ops the test above would show little."""
    seen = set()
    for library, name in CASES:
        seen |= {node["op"] for node in ask(library, manifest(name))["nodes"]}
    wanted = "stack slice transpose reshape cast bitcast from_fp8 pad multiply add scalar"
    assert seen >= set(wanted.split())


# -- operations, one by one, against MLX ------------------------------------------------------

# A library of one model whose sanitize is `body`; it stands in for mlx_lm.
LIBRARY = """
import mlx.core as mx, mlx.nn as nn, glob
class Model(nn.Module):
    pass
def load_model(path, lazy):
    weights = {{}}
    for file in glob.glob(str(path / "*.safetensors")):
        weights.update(mx.load(file))
    a, b, u, f = (weights[k] for k in "abuf")
    out = {{}}
{body}
    Model().load_weights(list(out.items()))
"""
EXPRESSIONS = [
    "a[1]", "a[-1, 1:3]", "a[..., ::2]", "a[:, None, ::-1]", "a[0, ..., 1]", "a[2:1]", "a[5:99]",
    "mx.stack([a, b], axis=-1)", "mx.stack([a, f.astype(mx.float32)])", "mx.moveaxis(a, 0, -1)",
    "mx.swapaxes(a, -1, 0)", "a.T", "a.transpose(1, 2, 0).transpose((2, 1, 0))", "a.mT",
    "a.reshape(6, -1).reshape(-1)", "mx.flatten(a, 1)", "a.squeeze()", "mx.expand_dims(a, (0, 2))",
    "mx.split(a, 2, axis=2)[1]", "mx.split(a, [1, 3], axis=-1)[1]", "mx.concatenate([a, f], 0)",
    "a + 1", "1.5 - a", "-8 * a", "u + 200", "u / 3", "u * 0.5", "a * f", "f < 0.5", "a == a",
    "u >> 2", "(u & 15) | (u << 4)", "mx.array([2.0, 3.0, 5.0, 7.0]) * a", "mx.zeros_like(a) + a",
    "mx.array([0.1] * 256)[u]", "mx.clip(a, -0.1, 0.1)", "mx.sqrt(u)", "-a", "abs(a)",
    "mx.pad(a, [(0, 1), (2, 0), (0, 0)])", "mx.pad(a, 1, constant_values=2.5)", "a.view(mx.uint16)",
    "mx.repeat(a, 2, axis=-1)", "mx.take(a, mx.array([1, 0, 1]), axis=2)", "mx.where(a > 0, a, 0)",
    "mx.where(u > 3, 1.0, f)", "a.sum(axis=(0, -1))", "mx.linalg.norm(f, axis=-1, keepdims=True)",
    "mx.broadcast_to(a[0], (5, 3, 4))", "mx.matmul(a, a.mT)", "a @ mx.ones((4, 2))", "a ** 2",
    "mx.maximum(a, f)", "mx.sigmoid(f)", "mx.from_fp8(u)", "mx.contiguous(a.T)", "f * float('inf')",
    "mx.quantize(mx.broadcast_to(a.reshape(24, 1), (24, 64)), bits=8)[1]", "a.astype(mx.bfloat16)",
    "mx.array(a) + b", "mx.array(a, mx.float32)", "mx.array(f, dtype=mx.float16)",
]  # fmt: skip
SMALL = {
    "a": ["BF16", [2, 3, 4]],
    "b": ["BF16", [2, 3, 4]],
    "u": ["U8", [3, 4]],
    "f": ["F32", [2, 3, 4]],
}


def fake_library(tmp_path: Path, body: str) -> Path:
    """discover.py, in front of a `mlx_lm` of our own."""
    package = tmp_path / "mlx_lm"
    package.mkdir()
    (package / "__init__.py").touch()
    text = LIBRARY.format(body="\n".join("    " + line for line in body.splitlines()))
    (package / "utils.py").write_text(text)
    runner = tmp_path / "run.py"
    source = f"import runpy, sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
    runner.write_text(source + f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n")
    return runner


def small(**change: Any) -> dict[str, Any]:
    return {"config": {}, "files": {"model.safetensors": SMALL}} | change


def test_every_expression_gives_mlxs_bits(tmp_path: Path) -> None:
    body = "\n".join(f"out['{i}'] = {text}" for i, text in enumerate(EXPRESSIONS))
    answer = ask("mlx-lm", small(), fake_library(tmp_path, body))
    assert "error" not in answer, answer
    materialize(small(), tmp_path)
    sources = mx.load(str(tmp_path / "model.safetensors"))
    result = evaluate(answer, sources)
    for i, text in enumerate(EXPRESSIONS):
        expected = eval(text, {"mx": mx} | sources)
        assert (result[str(i)].shape, result[str(i)].dtype) == (expected.shape, expected.dtype), (
            text
        )
        assert bits(result[str(i)]) == bits(expected), text
    assert {n["fn"] for n in answer["nodes"] if n["op"] == "call"} == {"matmul", "power"}


def test_in_place_operators_reach_every_alias(tmp_path: Path) -> None:
    body = "alias = a\na *= 2\na += b\nout['x'] = alias\nout['y'] = a"
    answer = ask("mlx-lm", small(), fake_library(tmp_path, body))
    (_, x), (_, y) = answer["outputs"]
    assert x == y
    assert [n["op"] for n in answer["nodes"]] == ["source", "scalar", "multiply", "source", "add"]


# -- (b) errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("if a.sum() > 0: pass", "ValueDependent"),
        ("a.item()", "ValueDependent"),
        ("mx.array_equal(a, b).item()", "ValueDependent"),
        ("c = mx.zeros((2, 3, 4))\nc[0] = a[0]", "Untraceable"),
        ("a.reshape(5, 5)", "ValueError"),
        ("u + 300", "ValueError"),
        ("weights['none']", "KeyError"),
        ("import sys; sys.exit(1)", "SystemExit"),
        ("import socket; socket.create_connection(('192.0.2.1', 80))", "Refused"),
        ("import socket; socket.getaddrinfo('example.org', 80)", "Refused"),
    ],
)
def test_what_cannot_be_traced_is_an_error(tmp_path: Path, body: str, kind: str) -> None:
    error = ask("mlx-lm", small(), fake_library(tmp_path, body))["error"]
    assert error["kind"] == kind, error
    assert error["versions"]["mlx"]


def test_unknown_model_type_is_a_config_error() -> None:
    content = manifest("qwen3_moe")
    content["config"]["model_type"] = "no_such_model"
    error = ask("mlx-lm", content)["error"]
    assert (error["kind"], error["where"]) == ("ValueError", "config")
    assert "no_such_model" in error["message"]


def test_missing_tensor_is_named() -> None:
    content = manifest("qwen3_moe")
    (tensors,) = content["files"].values()
    del tensors["model.norm.weight"]
    tensors["extra.weight"] = ["BF16", [4]]
    model = ask("mlx-lm", content)["model"]
    assert (model["missing"], model["extra"]) == (["model.norm.weight"], ["extra.weight"])


def test_dtype_that_mlx_refuses_is_its_error(tmp_path: Path) -> None:
    content = small(files={"model.safetensors": SMALL | {"x": ["F64", [2]]}})
    error = ask("mlx-lm", content, fake_library(tmp_path, "pass"))["error"]
    assert "F64" in error["message"]


# -- (c) order, predicates, isolation -----------------------------------------------------------


@pytest.mark.parametrize(("library", "name"), CASES)
def test_order_of_tensors_does_not_matter(library: str, name: str) -> None:
    content = manifest(name)
    shuffled = copy.deepcopy(content)
    for file, tensors in shuffled["files"].items():
        pairs = list(tensors.items())
        random.Random(3).shuffle(pairs)
        shuffled["files"][file] = dict(pairs)
    assert ask(library, content) == ask(library, shuffled)


def test_router_and_dense_paths() -> None:
    model = ask("mlx-lm", manifest("qwen3_moe"))["model"]
    answers = {m["path"]: m["predicate"] for m in model["modules"]}
    assert answers["model.layers.0.mlp.gate"] == {"group_size": 64, "bits": 8}
    assert answers["model.embed_tokens"] is True
    model = ask("mlx-vlm", manifest("qwen2_vl"))["model"]
    assert model["skipped"]
    dense = {m["path"] for m in model["modules"] if m["predicate"] is False}
    assert dense == set(model["skipped"])
    model = ask("mlx-lm", manifest("deepseek_v3"))["model"]
    assert model["keep_dtype"]
    assert all(name.endswith("e_score_correction_bias") for name in model["keep_dtype"])


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    for name in ("mlx", "json", "struct", "custom"):
        (tmp_path / f"{name}.py").write_text(trap.read_text())
    content = manifest("qwen3_moe")
    content["config"] |= {"model_file": str(trap), "auto_map": {"AutoModel": "trap.Model"}}
    content |= {"library": "mlx-vlm", "index": False, "side": {}}
    for command in ([sys.executable, str(SCRIPT)], [sys.executable, "-c", SCRIPT.read_text()]):
        done = subprocess.run(
            command,
            input=json.dumps(content),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=True,
        )
        assert "nodes" in json.loads(done.stdout)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["../escape.json", "model.py"])
def test_side_files_stay_inside_and_are_json(tmp_path: Path, name: str) -> None:
    answer = ask("mlx-lm", small(side={name: "{}"}), fake_library(tmp_path, "pass"))
    assert answer["error"]["kind"] == "Untraceable"


def test_only_its_own_directory_is_opened(tmp_path: Path) -> None:
    """Outside Python's own folders, every file that is opened is one that discover.py made."""
    spy = tmp_path / "spy.py"
    log = tmp_path / "opened"
    spy.write_text(
        "import os, runpy, sys\n"
        f"log = os.open({str(log)!r}, os.O_CREAT | os.O_WRONLY)\n"
        "def hook(event, args):\n"
        "    if event == 'open' and isinstance(args[0], str):\n"
        "        os.write(log, (os.path.abspath(args[0]) + '\\n').encode())\n"
        "sys.addaudithook(hook)\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    ask("mlx-lm", manifest("qwen3_moe"), spy)
    opened = set(log.read_text().splitlines())
    assert any(path.endswith("config.json") and "smelt-discover-" in path for path in opened)
    allowed = (sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev", "/etc", str(ROOT / "crates"))
    strange = [p for p in opened if "smelt-discover-" not in p and not p.startswith(allowed)]
    home = os.path.expanduser("~")  # noqa: PTH111
    assert not [p for p in strange if p.endswith(".safetensors") or p.startswith(home)], strange
