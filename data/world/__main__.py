"""`python -m data.world`: write every generated file again, or with `--check` say which file differs.

Order matters: data sets first, the tokenizer from their text, the cards last, because they count and hash the rest.
"""

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.world.cards import BASE_CARD, ENCODER_CARD, INDEX_CARD, MADE_BY, WORLD_CARD, build_file_table, read_content
from data.world.chats import build_chats, build_preferences
from data.world.instructions import build_rows, drop_given_away
from data.world.split import build_relations, find_held_out_keys, split_facts
from data.world.text import ROUNDS, build_documents

DATA_DIR = Path(__file__).resolve().parents[1]
PARTS = ("sets", "tokenizer", "cards")


def to_json(rows: Sequence[Mapping[str, object]]) -> bytes:
    """A JSON list with a row a line, so that a change of one row is a change of one line."""
    return ("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n").encode()


def to_json_lines(rows: Sequence[Mapping[str, object]]) -> bytes:
    """JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def build_sets() -> dict[str, bytes]:
    """The content of each file of tiny_world by its name; text.jsonl.gz stands unpacked."""
    relations = build_relations()
    held_out = find_held_out_keys(relations)

    def keep(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        return drop_given_away(relations, rows)

    return {
        "train.json": to_json(keep(build_rows(relations, held_out, held_out=False))),
        "test.json": to_json(keep(build_rows(relations, held_out, held_out=True))),
        "chat.jsonl": to_json_lines(build_chats(relations, held_out)),
        "preferences.jsonl": to_json_lines(keep(build_preferences(relations, held_out, held_out=False))),
        "preferences_test.jsonl": to_json_lines(keep(build_preferences(relations, held_out, held_out=True))),
        "text.jsonl.gz": to_json_lines(build_documents(relations)),
    }


def write_sets(data_dir: Path) -> None:
    """Write the files of tiny_world."""
    folder = data_dir / "tiny_world"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in build_sets().items():
        packed = gzip.compress(content, 9, mtime=0) if name.endswith(".gz") else content
        (folder / name).write_bytes(packed)


def write_tokenizer_files(data_dir: Path) -> None:
    """Train the tokenizer on the text and on the words of the training instructions, and write it."""
    from data.world.tokenizer import write_tokenizer

    sets = data_dir / "tiny_world"
    texts = [json.loads(line)["text"] for line in read_content(sets / "text.jsonl.gz").splitlines()]
    relations = build_relations()
    # Drawn anew, so that which rows are kept for training does not change the tokenizer, and with it the base.
    rows = build_rows(relations, find_held_out_keys(relations), held_out=False)
    texts += [row[column] for row in rows for column in ("instruction", "input", "output")]
    folder = data_dir / "tiny_base"
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(texts, folder)


def build_cards(data_dir: Path) -> dict[str, bytes]:
    """The content of each card by its path under the data folder."""
    relations = build_relations()
    held_out = find_held_out_keys(relations)
    lines = ["| task | facts | held out | for example |", "|---|---:|---:|---|"]
    for relation in relations:
        example = f"{relation.train_questions[0].format(x=relation.facts[0].subject)} {relation.facts[0].answer}"
        lines.append(
            f"| `{relation.name}` | {len(relation.facts)} | {len(split_facts(relation, held_out)[1])} | {example} |"
        )
    world = WORLD_CARD.format(
        num_relations=len(relations),
        num_facts=sum(len(relation.facts) for relation in relations),
        num_held_out=sum(len(split_facts(relation, held_out)[1]) for relation in relations),
        num_rounds=ROUNDS,
        tasks="\n".join(lines),
        table=build_file_table(data_dir / "tiny_world"),
        command=MADE_BY,
    )
    cards = {"README.md": INDEX_CARD.format(command=MADE_BY), "tiny_world/README.md": world}
    if (data_dir / "tiny_base" / "model.safetensors").exists():
        cards["tiny_base/README.md"] = _build_model_card(BASE_CARD, data_dir / "tiny_base")
    if (data_dir / "tiny_encoder" / "model.safetensors").exists():
        cards["tiny_encoder/README.md"] = _build_model_card(ENCODER_CARD, data_dir / "tiny_encoder")
    return {name: card.encode() for name, card in cards.items()}


def _build_model_card(card: str, folder: Path) -> str:
    """A model's card, its shape read from config.json and its parameters counted from the weights' header."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    sizes = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    return card.format(
        num_parameters=sum(end - start for start, end in sizes) // 2,  # bfloat16: two bytes each
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads"),  # an encoder's heads share none
        vocab_size=config["vocab_size"],
        max_length=config["max_position_embeddings"],
        table=build_file_table(folder),
        command=MADE_BY,
    )


def find_differences(data_dir: Path, parts: tuple[str, ...]) -> list[str]:
    """The files, as paths under the data folder, that are missing or differ from what the generator makes now."""
    expected: dict[str, bytes] = {}
    if "sets" in parts:
        expected |= {f"tiny_world/{name}": content for name, content in build_sets().items()}
    if "tokenizer" in parts:
        with tempfile.TemporaryDirectory() as scratch:
            write_sets(Path(scratch))
            write_tokenizer_files(Path(scratch))
            made = sorted((Path(scratch) / "tiny_base").iterdir())
            expected |= {f"tiny_base/{path.name}": path.read_bytes() for path in made}
    if "cards" in parts:
        expected |= build_cards(data_dir)
    return [
        name
        for name, content in expected.items()
        if not (data_dir / name).exists() or read_content(data_dir / name) != content
    ]


def main(arguments: list[str] | None = None) -> int:
    """Write or check the chosen parts; 0 when all is as it should be, 1 when a checked file differs."""
    parser = argparse.ArgumentParser(prog=MADE_BY, description="Write the tiny world's data sets, tokenizer and cards.")
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)}; all of them if none is given"
    )
    parser.add_argument("--check", action="store_true", help="write nothing, name the files that differ")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    parts = tuple(options.parts) or PARTS
    if options.check:
        differing = find_differences(DATA_DIR, parts)
        for name in differing:
            print(f"data/{name} differs from what `{MADE_BY}` makes.")
        return 1 if differing else 0
    if "sets" in parts:
        write_sets(DATA_DIR)
    if "tokenizer" in parts:
        write_tokenizer_files(DATA_DIR)
    if "cards" in parts:
        for name, card in build_cards(DATA_DIR).items():
            (DATA_DIR / name).write_bytes(card)
    return 0


if __name__ == "__main__":
    sys.exit(main())
