"""What a model still knows of text that it is not trained on: the measure of forgetting.

In go the model and rows of a fixed text, out comes its mean loss per token, taken in the same way before the first
step and after the last.

Shape suffixes: B rows, T tokens, V pieces.
"""

from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional as F

from finetune.data.batches import IGNORE_INDEX, Collator

__all__ = ["measure_text_loss"]


def measure_text_loss(model: Any, rows: Dataset, *, pad_token_id: int, batch_size: int, device: torch.device) -> float:
    """Measure the mean loss of plain text; to be called where nothing takes gradients and dropout is off.

    Args:
        model: a causal model, with an adapter or without.
        rows: of `input_ids` and `labels`, a document or a piece of one each.
        pad_token_id: the id that fills a row.
        batch_size: rows at once; those of like length share a batch.
        device: of the model.

    Returns:
        Nats per token, over all tokens of all rows but each row's first, which nothing predicts.
    """
    collator = Collator("padded", pad_token_id)
    order = torch.argsort(torch.tensor(rows["length"][:]), descending=True, stable=True).tolist()
    total, num_tokens = 0.0, 0
    for start in range(0, len(order), batch_size):
        batch = collator([rows[place] for place in order[start : start + batch_size]])
        ids_BT, mask_BT, labels_BT = (
            value.to(device)
            for name in ("input_ids", "attention_mask", "labels")
            if isinstance(value := batch[name], torch.Tensor)
        )
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        logits_BTV = logits_BTV[:, -ids_BT.shape[1] :]  # behind the learned vectors of a prompt method
        for logits_TV, labels_T in zip(logits_BTV, labels_BT, strict=True):  # a row at a time: float32 logits are large
            total += float(
                F.cross_entropy(logits_TV[:-1].float(), labels_T[1:], ignore_index=IGNORE_INDEX, reduction="sum")
            )
        num_tokens += int((labels_BT[:, 1:] != IGNORE_INDEX).sum())
    return total / num_tokens
