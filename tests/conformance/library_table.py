"""The model types that the installed libraries know, with the keys that they can't do without.

    python tests/conformance/library_table.py > crates/smelt-core/data/libraries.json

Such keys are the fields of the library's dataclass that have no default. Classes that read their
config in a way of their own have none here: what they need can't be told from the fields.
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
NAMED_BY_CLASS = {"mlx_vlm": ["extractor"]}
"""model types that a library has no module for, and reads by `architectures` (`get_model_type`)"""

SHOWN_FIRST = ("version", "any_case")
"""what stands before the model types"""


def fields_without_default(owner: type) -> list[str]:
    """In alphabetical order."""
    missing = dataclasses.MISSING
    return sorted(
        field.name
        for field in dataclasses.fields(owner)
        if field.default is missing and field.default_factory is missing and field.init
    )


def modules(package: ModuleType) -> Iterator[tuple[str, ModuleType | None]]:
    """The library's modules by model type; nothing for one that lacks a package of its own."""
    for found in pkgutil.iter_modules(package.__path__):
        module = None
        with contextlib.suppress(BaseException), contextlib.redirect_stdout(io.StringIO()):
            module = importlib.import_module(f"{package.__name__}.{found.name}")
        yield found.name, module


def known(package: str, name: str, base: str) -> dict[str, list[str]]:
    """All model types, with the keys that the class `name` needs if `base` reads it."""
    models = importlib.import_module(f"{package}.models")
    usual = getattr(importlib.import_module(f"{package}.models.base"), base).from_dict.__func__
    found: dict[str, list[str]] = {}
    for model_type, module in modules(models):
        owner: Any = getattr(module, name, None)
        if module is None:
            found[model_type] = []
        elif owner is not None and hasattr(module, "Model"):
            plain = dataclasses.is_dataclass(owner) and owner.from_dict.__func__ is usual
            keys = fields_without_default(owner) if plain else []
            found[model_type] = [key for key in keys if key not in NESTED]
    utils = importlib.import_module(f"{package}.utils")
    aliases = {alias: found[name] for alias, name in utils.MODEL_REMAPPING.items() if name in found}
    # What is read by another class for some `architectures`, or by those alone, needs no one set.
    several = [model_type for model_type, _ in getattr(utils, "MODEL_ARCHITECTURE_REMAPPING", ())]
    free = {model_type: [] for model_type in [*several, *NAMED_BY_CLASS.get(package, ())]}
    return dict(sorted((found | aliases | free).items()))


def any_case(package: str) -> bool:
    """Whether the library looks for a model type in lower case."""
    model_type = getattr(importlib.import_module(f"{package}.utils"), "get_model_type", None)
    return model_type is not None and model_type({"model_type": "LLAMA"}) == "llama"


def entry(package: str, name: str, base: str) -> dict[str, Any]:
    """What is known of a library."""
    found = {"version": version(package.replace("_", "-")), "any_case": any_case(package)}
    return found | {"models": known(package, name, base)}


def table() -> dict[str, Any]:
    """For both libraries."""
    return {
        "mlx-lm": entry("mlx_lm", "ModelArgs", "BaseModelArgs"),
        "mlx-vlm": entry("mlx_vlm", "ModelConfig", "BaseModelConfig"),
    }


def text() -> str:
    """With a line for each model type."""
    libraries = []
    for library, found in table().items():
        lines = [
            f"   {json.dumps(name)}: {json.dumps(keys)}" for name, keys in found["models"].items()
        ]
        models = ",\n".join(lines)
        head = ", ".join(f"{json.dumps(key)}: {json.dumps(found[key])}" for key in SHOWN_FIRST)
        libraries.append(
            f' {json.dumps(library)}: {{\n  {head},\n  "models": {{\n{models}\n  }}\n }}'
        )
    return "{\n" + ",\n".join(libraries) + "\n}\n"


if __name__ == "__main__":
    print(text(), end="")
