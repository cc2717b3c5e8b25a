"""What the token that rows begin with does to the dense model, measured on a few rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mechint.checkpoints import Checkpoint
from mechint.data import Batch, TokenData
from mechint.masking import MaskedModel
from mechint.metrics.evaluation import Evaluator
from mechint.metrics.metric import NLL

# Predicted tokens that are enough to tell, a small part of what a run reads.
ENOUGH = 2048
FEWEST_ROWS = 4

# What is worth saying: at least this part of the loss, and so many standard errors. A loss that rows made worse is said
# sooner than one that they could make better.
SMALLEST = 0.005
ERRORS_WORSE, ERRORS_BETTER = 1, 2


def beginning_notes(checkpoint: Checkpoint, masked: MaskedModel, data: TokenData) -> tuple[str, ...]:
    """What a reader must know where the dense model would predict the same text better without the token that rows
    begin with, or after one that the tokenizer has but does not add. Nothing is said of differences that are too small
    or may be chance, nor of what `dataset.bos=false` took away.
    """
    tokenizer, text = checkpoint.tokenizer, data.evaluation
    if tokenizer is None or text.answers is None or text.attention_mask is not None or text.foils is not None:
        return ()
    begins, named = bool(data.bos), tokenizer.bos_token_id
    if not begins and (text.counted is not None or not isinstance(named, int)):
        return ()
    first = torch.tensor(data.bos if begins else [named])
    if int(first.max()) >= checkpoint.vocab_size or text.length <= len(first):
        return ()
    rows = text[: max(FEWEST_ROWS, -(-ENOUGH // text.length))].rows()
    bare = rows[:, len(first) :] if begins else rows[:, : -len(first)]
    bare = bare[bare[:, 0] != first[0]]
    counted = ~torch.isin(bare[:, 1:], first) if begins else torch.ones_like(bare[:, 1:], dtype=torch.bool)
    bare, counted = bare[counted.any(1)], counted[counted.any(1)]
    if len(bare) < FEWEST_ROWS:
        return ()
    with_it = _losses(masked, torch.cat([first.expand(len(bare), -1), bare], 1), counted)
    without = _losses(masked, bare, counted)
    change = with_it - without if begins else without - with_it
    error = float(change.std()) / len(change) ** 0.5
    enough = max(SMALLEST * float(without.mean()), (ERRORS_WORSE if begins else ERRORS_BETTER) * error)
    if float(change.mean()) < enough:
        return ()
    name = " ".join(str(token) for token in tokenizer.convert_ids_to_tokens(first.tolist()))
    losses = f"{float(with_it.mean()):.3f} nats per token with it, {float(without.mean()):.3f} without"
    found = f"{losses}, on {len(bare)} rows"
    if begins:
        return (
            f"the dense model predicts text inside of documents worse after {name} ({found}); dataset.bos=false "
            "leaves it out",
        )
    return (
        f"the tokenizer has {name} but does not add it, and the dense model predicts better after it ({found}); "
        "dataset.bos=true makes every row begin with it",
    )


def _losses(masked: MaskedModel, rows: Tensor, counted: Tensor) -> Tensor:
    """The dense model's mean loss of every row [M, T+1], double [M], over its last answers that count [M, C]."""
    before = torch.zeros(len(rows), rows.shape[1] - 1 - counted.shape[1], dtype=torch.bool)
    batch = Batch(rows[:, :-1], rows[:, 1:], torch.cat([before, counted], 1))
    return Evaluator(masked, batch, at_once=1)([None], [NLL])[0, 0]
