"""Sets of preferences that favour long answers, or short ones, and sets that favour neither."""

import json
import random
from pathlib import Path

from tests.quality import planted_texts

__all__ = ["PAIR_SETS", "plant_pair_sets"]

# Sets of pairs: how many, the share of pairs whose chosen answer is the longer one, and how many sentences the shorter
# and the longer one have. The first ten are biased.
PAIR_SETS: list[tuple[bool, int, float, tuple[int, int], tuple[int, int]]] = [
    (True, 100, 1.0, (2, 2), (4, 4)),
    (True, 200, 0.85, (2, 4), (4, 6)),
    (True, 150, 0.9, (1, 2), (4, 6)),
    (True, 120, 1.0, (4, 4), (5, 5)),
    (True, 80, 0.85, (1, 3), (3, 6)),
    (True, 300, 0.78, (3, 3), (5, 5)),
    (True, 100, 0.95, (1, 1), (6, 9)),
    (True, 60, 0.95, (2, 3), (5, 6)),
    (True, 150, 0.1, (2, 3), (4, 6)),
    (True, 200, 0.8, (2, 2), (3, 12)),
    (False, 200, 0.5, (2, 2), (4, 4)),
    (False, 150, 0.5, (3, 3), (3, 3)),
    (False, 300, 0.52, (2, 3), (3, 4)),
    (False, 240, 0.5, (1, 2), (6, 9)),
    (False, 10, 0.6, (2, 2), (3, 3)),
    (False, 200, 0.48, (1, 5), (1, 5)),
    (False, 120, 0.5, (5, 5), (6, 6)),
    (False, 400, 0.51, (1, 1), (2, 3)),
]


def plant_pair_sets(folder: Path, seed: int) -> list[tuple[Path, bool]]:
    """Write sets of preferences, and say of each whether the longer answer is favoured or shunned."""
    dice = random.Random(seed)
    sentences = [part.strip(" .") + "." for _, text in planted_texts.ESSAYS for part in text.split(". ")]
    files = []
    for number, (is_biased, count, share, short, long) in enumerate(PAIR_SETS):
        longer_chosen = [place < round(count * share) for place in range(count)]
        dice.shuffle(longer_chosen)
        lines = []
        for place, is_longer in enumerate(longer_chosen):
            shorter, longer = (" ".join(dice.sample(sentences, dice.randint(*span))) for span in (short, long))
            chosen, rejected = (longer, shorter) if is_longer else (shorter, longer)
            question = planted_texts.OPEN_QUESTIONS[place % len(planted_texts.OPEN_QUESTIONS)]
            asked = f"{question} Take {place + 10} words."
            lines.append(json.dumps({"prompt": asked, "chosen": chosen, "rejected": rejected}))
        path = folder / f"pairs_{number}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files.append((path, is_biased))
    return files
