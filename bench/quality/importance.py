"""Mean squares of what goes into the modules of a checkpoint, for `smelt quantize --imatrix`.

importance.py CHECKPOINT --text FILE -o FILE [--sequences N] [--length N]

The file is described in docs/bits.md. The model is run in float32 by transformers, all of it in
memory: for models that do not fit, there are imatrix files of llama.cpp.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import evaluate
import torch
import transformers
from safetensors.torch import save_file

BATCH = 8


class Sums:
    """Sums of squares and counts by module."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, inputs: torch.Tensor) -> None:
        """Inputs `[..., channels]` of a module."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).double()
        found = rows.square().sum(dim=0)
        self.sums[name] = self.sums[name] + found if name in self.sums else found
        self.counts[name] = self.counts.get(name, 0) + len(rows)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The means and counts of the file."""
        tensors = {}
        for name, sums in self.sums.items():
            count = self.counts[name]
            tensors[name] = (sums / max(count, 1)).float()
            tensors[f"{name}.counts"] = torch.tensor([count])
        return tensors


def watch(model: torch.nn.Module, sums: Sums) -> None:
    """Add up the inputs of every linear module and of every expert."""
    tied = model.get_input_embeddings().weight is getattr(model.lm_head, "weight", None)
    for name, module in model.named_modules():
        if hasattr(module, "gate_up_proj") and hasattr(module, "down_proj"):
            if isinstance(module.gate_up_proj, torch.nn.Parameter):
                module.register_forward_pre_hook(experts(name, sums))
        elif isinstance(module, torch.nn.Linear):
            # A table that is the head as well has the head's inputs.
            called = "model.embed_tokens" if tied and name == "lm_head" else name
            module.register_forward_pre_hook(linear(called, sums))


def linear(name: str, sums: Sums) -> Callable[..., None]:
    return lambda _, args: sums.add(name, args[0])


def experts(name: str, sums: Sums) -> Callable[..., None]:
    """Of a stack of experts: the tokens of each, and what its down projection gets of them."""

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        hidden, chosen = args[0].reshape(-1, args[0].shape[-1]), args[1]
        for expert in range(len(module.gate_up_proj)):
            rows = hidden[(chosen.reshape(len(hidden), -1) == expert).any(dim=-1)]
            gate, up = (rows @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
            for part in ("gate_proj", "up_proj"):
                sums.add(f"{name}.{expert}.{part}", rows)
            sums.add(f"{name}.{expert}.down_proj", module.act_fn(gate) * up)

    return hook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="not the text of the evaluation")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(str(args.checkpoint), dtype=torch.float32).eval()
    sums = Sums()
    watch(model, sums)
    text = evaluate.Text(args.text, args.sequences, args.length)
    with torch.no_grad():
        for batch in evaluate.tokens(args.checkpoint, text).split(BATCH):
            model(batch)
    save_file(sums.tensors(), args.output)


if __name__ == "__main__":
    main()
