"""The keys of config.json without which the installed libraries do not load a model type.

    python tests/conformance/required_keys.py > crates/smelt-core/data/required_keys.json

They are the fields of the library's dataclass that have no default. Classes that read their config in
a way of their own are left out: what they need can't be told from the fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import pkgutil
from collections.abc import Iterator
from importlib.metadata import version
from types import ModuleType
from typing import Any

NESTED = {"text_config", "vision_config", "audio_config"}
"""what mlx-vlm fills in by itself"""


def fields_without_default(owner: type) -> list[str]:
    """In alphabetical order."""
    missing = dataclasses.MISSING
    return sorted(
        field.name
        for field in dataclasses.fields(owner)
        if field.default is missing and field.default_factory is missing and field.init
    )


def modules(package: ModuleType) -> Iterator[tuple[str, ModuleType]]:
    """The library's modules by model type; those that can't be imported load nothing."""
    for found in pkgutil.iter_modules(package.__path__):
        with contextlib.suppress(BaseException), contextlib.redirect_stdout(io.StringIO()):
            yield found.name, importlib.import_module(f"{package.__name__}.{found.name}")


def required(package: str, name: str, base: str) -> dict[str, list[str]]:
    """By model type the keys that the class called `name` needs, if it is read as `base` reads it."""
    models = importlib.import_module(f"{package}.models")
    usual = getattr(importlib.import_module(f"{package}.models.base"), base).from_dict.__func__
    found = {}
    for model_type, module in modules(models):
        owner: Any = getattr(module, name, None)
        if not dataclasses.is_dataclass(owner) or owner.from_dict.__func__ is not usual:
            continue
        if keys := [key for key in fields_without_default(owner) if key not in NESTED]:
            found[model_type] = keys
    renamed = importlib.import_module(f"{package}.utils").MODEL_REMAPPING
    aliases = {alias: found[name] for alias, name in renamed.items() if name in found}
    return dict(sorted((found | aliases).items()))


def table() -> dict[str, Any]:
    """For both libraries."""
    lm = required("mlx_lm", "ModelArgs", "BaseModelArgs")
    vlm = required("mlx_vlm", "ModelConfig", "BaseModelConfig")
    return {
        "mlx-lm": {"version": version("mlx-lm"), "models": lm},
        "mlx-vlm": {"version": version("mlx-vlm"), "models": vlm},
    }


def text() -> str:
    """With a line for each model type."""
    libraries = []
    for library, entry in table().items():
        lines = [f"   {json.dumps(name)}: {json.dumps(keys)}" for name, keys in entry["models"].items()]
        models = ",\n".join(lines)
        head = f'"version": {json.dumps(entry["version"])}'
        libraries.append(f' {json.dumps(library)}: {{\n  {head},\n  "models": {{\n{models}\n  }}\n }}')
    return "{\n" + ",\n".join(libraries) + "\n}\n"


if __name__ == "__main__":
    print(text(), end="")
