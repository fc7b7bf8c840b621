"""How far a quantized model is from its checkpoint: mean KL divergence on held-out text, in nats.

    KL = sum over the vocabulary of p (log p - log q),  p: the checkpoint, q: the quantized model

both run in float32 by transformers, q with the weights that the stored bytes stand for. The
standard error is over sequences, because tokens of one text are not independent.
"""

import lzma
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import names
import numpy as np
import torch
import transformers
import unpack

END = "\n<|endoftext|>\n"
BATCH = 8


@dataclass(frozen=True)
class Text:
    """Where the tokens come from."""

    path: Path
    sequences: int = 64
    length: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """One model's distance from its checkpoint."""

    bytes: int
    kl: float
    se: float
    """standard error of `kl`, over sequences"""
    p99: float
    """99th percentile of the tokens' KL"""
    top1: float
    """share of tokens where both models think the same token the most likely"""
    perplexity: float

    def row(self) -> dict[str, float]:
        return asdict(self)


def tokens(checkpoint: Path, text: Text) -> torch.Tensor:
    """Token numbers [sequences, length]: documents in random order, cut after 6,000 characters."""
    from tokenizers import Tokenizer

    opened = lzma.open if text.path.suffix == ".xz" else open
    with opened(text.path, "rt") as file:
        documents = file.read().split(END)
    np.random.default_rng(text.seed).shuffle(documents)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    wanted, found = text.sequences * text.length, []
    for document in documents:
        found += [*tokenizer.encode(document[:6000]).ids, 0]
        if len(found) > wanted:
            break
    if len(found) < wanted:
        raise SystemExit(f"{text.path} has {len(found)} tokens, {wanted} are needed")
    return torch.tensor(found[:wanted]).view(text.sequences, text.length)


class Judge:
    """Holds a checkpoint's predictions and compares models with them."""

    def __init__(self, checkpoint: Path, text: Text) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
        self.tokens = tokens(checkpoint, text)
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(str(checkpoint), dtype=torch.float32).eval()
        self.reference = list(self.predictions())
        self.perplexity = math.exp(self.nll(self.reference))

    @torch.no_grad()
    def predictions(self) -> Iterator[torch.Tensor]:
        """Log-probabilities of every next token, a batch at a time."""
        for batch in self.tokens.split(BATCH):
            logits = self.model(input_ids=batch, use_cache=False).logits[:, :-1]
            yield torch.log_softmax(logits.float(), -1)

    def nll(self, predicted: list[torch.Tensor]) -> float:
        """Mean negative log-likelihood of the text."""
        batches = zip(self.tokens.split(BATCH), predicted, strict=True)
        of = [-p.gather(-1, batch[:, 1:, None]).flatten() for batch, p in batches]
        return torch.cat(of).mean().item()

    def score(self, mlx: Path) -> Score:
        """Compare one MLX model."""
        names.fill(self.model, unpack.load(mlx))
        kl, same, nll = [], [], []
        batches = self.tokens.split(BATCH)
        for batch, p, q in zip(batches, self.reference, self.predictions(), strict=True):
            kl.append((p.exp() * (p - q)).sum(-1))
            same.append((p.argmax(-1) == q.argmax(-1)).float())
            nll.append(-q.gather(-1, batch[:, 1:, None]))
        each = torch.cat(kl)
        by_sequence = each.mean(1)
        return Score(
            bytes=unpack.size(mlx),
            kl=each.mean().item(),
            se=(by_sequence.std() / len(by_sequence) ** 0.5).item(),
            p99=np.quantile(each.numpy(), 0.99).item(),
            top1=torch.cat(same).mean().item(),
            perplexity=math.exp(torch.cat(nll).mean().item()),
        )
