"""From MLX's names to those of the checkpoint's own library: what `sanitize` did, undone.

Covers models whose language part keeps its names in MLX apart from stacked experts; others end in
an error that names the tensor.
"""

import re

import torch

EXPERTS = re.compile(r"(.*\.)experts\.(gate_up_proj|down_proj|gate_proj|up_proj)$")


def experts(mlx: dict[str, torch.Tensor], name: str) -> torch.Tensor | None:
    """Stacked experts of transformers, from `switch_mlp`."""
    if not (found := EXPERTS.match(name)):
        return None
    parts = ["gate_proj", "up_proj"] if found[2] == "gate_up_proj" else [found[2]]
    stacked = [mlx.get(f"{found[1]}switch_mlp.{part}.weight") for part in parts]
    if any(part is None for part in stacked):
        return None
    return torch.cat(stacked, 1)


def one(mlx: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The tensor that fills `name`."""
    bare = name.replace("model.language_model.", "language_model.model.")
    for candidate in (name, bare):
        if candidate in mlx:
            return mlx[candidate]
        if (stacked := experts(mlx, candidate)) is not None:
            return stacked
    if name == "lm_head.weight":  # tied
        return mlx["model.embed_tokens.weight"]
    raise SystemExit(f"no tensor of the MLX model fills `{name}`")


def fill(model: torch.nn.Module, mlx: dict[str, torch.Tensor]) -> None:
    """Put an MLX model's weights into the model of the checkpoint."""
    wanted = model.state_dict()
    state = {name: one(mlx, name) for name in wanted}
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise SystemExit(f"`{name}`: {tuple(tensor.shape)} for {tuple(wanted[name].shape)}")
    model.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in state.items()})
