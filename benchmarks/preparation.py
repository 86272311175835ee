"""Prepares Alpaca-like rows with ours and with plain TRL, beside the speed of the tokenizer alone on the same texts.

    python -m benchmarks.preparation [DATA_DIR] [--rows N] [--rounds N] [--tokenizers NAME ...] [--without-trl]

DATA_DIR holds `instructions/alpaca_cleaned_first5000.json` and `tokenizers/`; `../shared/data` by default. Further rows
are made of these: sentences in another order, other names and numbers. A round measures each way once, in a process of
its own with empty caches; every second round goes through them backwards. Ratios are taken within a round. Half the
rows are prepared as well, to tell memory that grows with them. Writes `results/preparation_<machine>.json`.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.recording import DATA_DIR, ROOT, write_result

DATA = Path("instructions") / "alpaca_cleaned_first5000.json"
TINY = ROOT / "data" / "tiny_base"
TOKENIZERS = {
    "llama2": Path("tokenizers") / "llama2_tokenizer.model",
    "mistral": Path("tokenizers") / "mistral_tokenizer.model.v1",
    "tiny": TINY,
}
WAYS = ("tokenizer", "ours", "trl", "trl_2_processes")
MAX_LENGTH = 2048  # tokens, as in recipes/mistral_alpaca.yaml
BATCH_ROWS = 1000
SAMPLED_SECONDS = 0.02

_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}")
_NUMBER = re.compile(r"[0-9]+")
_SYLLABLES = ("ba", "ler", "mo", "shi", "tan", "ve", "rok", "ulin", "da", "qua", "fen", "zo", "pri", "gel", "ost", "hy")


# ---------------------------------------------------------------- rows


def build_rows(real: list[dict[str, str]], num_rows: int) -> Iterator[dict[str, str]]:
    """Build as many rows as wanted: the real ones, then variations of them; the same ones every time."""
    draw = random.Random(0)
    for number in range(num_rows):
        row = real[number % len(real)]
        yield {name: _vary(text, draw) for name, text in row.items()} if number >= len(real) else row


def _vary(text: str, draw: random.Random) -> str:
    """Reorder the sentences of each line; put other names and numbers in, so that few words were seen before."""
    lines = []
    for line in text.split("\n"):
        sentences = re.split(r"(?<=[.!?]) ", line)
        lines.append(" ".join(draw.sample(sentences, len(sentences))))
    text = _NAME.sub(lambda _: "".join(draw.choices(_SYLLABLES, k=3)).capitalize(), "\n".join(lines))
    return _NUMBER.sub(lambda found: "".join(draw.choices("123456789", k=len(found[0]))), text)


def write_rows(data: Path, folder: Path, num_rows: int) -> Path:
    """Write the rows as a JSON list, as Alpaca-cleaned comes."""
    path = folder / f"rows_{num_rows}.json"
    real = json.loads(data.read_text(encoding="utf-8"))
    path.write_text(json.dumps(list(build_rows(real, num_rows)), ensure_ascii=False, indent=1), encoding="utf-8")
    return path


# ---------------------------------------------------------------- the ways, each in a process of its own


class PeakMemory:
    """The most memory of its own (not of mapped files) that this process held within the block."""

    def __enter__(self) -> "PeakMemory":
        self._done = threading.Event()
        self.before_bytes = self.peak_bytes = _read_own_memory()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLED_SECONDS):
            self.peak_bytes = max(self.peak_bytes, _read_own_memory())


def _read_own_memory() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"RssAnon:\s+([0-9]+) kB", status)[0]) * 1024


def _read_cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(way: str, tokenizer_path: str, rows: Path) -> dict[str, Any]:
    """Prepare the rows one way and return seconds, rows, tokens and memory."""
    from finetune.model.tokenizer import load_tokenizer
    from finetune.recipe.schema import ModelSettings

    tokenizer = load_tokenizer(ModelSettings(tokenizer_name_or_path=tokenizer_path))
    run = {"tokenizer": build_tokenizer_run, "ours": build_ours, "trl": build_trl, "trl_2_processes": build_trl}[way]
    prepare = run(tokenizer, rows, *([2] if way == "trl_2_processes" else []))
    with PeakMemory() as memory:
        start, cpu_start = time.perf_counter(), _read_cpu_seconds()
        num_rows, num_tokens, further = prepare()
        seconds, cpu_seconds = time.perf_counter() - start, _read_cpu_seconds() - cpu_start
    if way == "ours":
        again = time.perf_counter()
        prepare()
        further["seconds_from_cache"] = round(time.perf_counter() - again, 3)
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 2),
        "rows_per_second": round(num_rows / seconds, 1),
        "tokens_per_second": round(num_tokens / seconds),
        "rows": num_rows,
        "tokens": num_tokens,
        "own_memory_before_bytes": memory.before_bytes,
        "own_memory_peak_bytes": memory.peak_bytes,
        **further,
    }


def build_tokenizer_run(tokenizer: Any, rows: Path) -> Any:
    """Build the tokenizer's own: whole rendered texts in batches, on all cores, everything else done before."""
    from finetune.data.templates import load_template

    template = load_template("alpaca", tokenizer)
    texts = []
    for row in json.loads(rows.read_text(encoding="utf-8")):
        user = {"role": "user", "content": row["instruction"], "input": row["input"]}
        answer = {"role": "assistant", "content": row["output"]}
        texts.append(template.render([user, answer]).text)

    def prepare() -> tuple[int, int, dict[str, Any]]:
        num_tokens, waiting = 0, iter(texts)
        while batch := list(islice(waiting, BATCH_ROWS)):
            num_tokens += sum(map(len, tokenizer(batch, add_special_tokens=False)["input_ids"]))
        return len(texts), num_tokens, {}

    return prepare


def build_ours(tokenizer: Any, rows: Path) -> Any:
    """Build ours, whole: file, examples, texts, tokens, labels, census and packed rows, as `prepare` does it."""
    from finetune.data.rendering import Renderer
    from finetune.data.sources import load_examples
    from finetune.data.templates import load_template
    from finetune.objectives.supervised import build_conversation_rows
    from finetune.recipe.schema import DataSettings

    source = {"path": str(rows), "format": "alpaca"}
    data = DataSettings.model_validate({"train": source, "packing": True, "max_length": MAX_LENGTH})
    renderer = Renderer(load_template("alpaca", tokenizer), tokenizer)

    def prepare() -> tuple[int, int, dict[str, Any]]:
        start = time.perf_counter()
        loaded = load_examples(data.train, kind="conversation", seed=0, on_bad_rows="skip")
        seconds_of_examples = time.perf_counter() - start
        built = build_conversation_rows(loaded, renderer, data)
        further = {"packed_rows": len(built.dataset), "seconds_of_examples": round(seconds_of_examples, 3)}
        return built.report["rows_read"], built.report["census"]["tokens"], further

    return prepare


def build_trl(tokenizer: Any, rows: Path, num_processes: int | None = None) -> Any:
    """Build TRL's own: `load_dataset`, messages, and what SFTTrainer does with them before it trains."""
    import datasets
    from transformers import MistralConfig, MistralForCausalLM
    from trl import SFTConfig, SFTTrainer

    from finetune.data.templates import load_template

    tokenizer.chat_template = load_template("alpaca", tokenizer).source
    shape = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1,
    )  # fmt: skip
    folder = tempfile.TemporaryDirectory()
    arguments = SFTConfig(
        output_dir=folder.name, packing=True, max_length=MAX_LENGTH, assistant_only_loss=True, report_to="none",
        dataset_num_proc=num_processes, use_cpu=True, bf16=False,
    )  # fmt: skip
    few = datasets.Dataset.from_list([_to_messages({"instruction": "a", "input": "", "output": "b"})])
    trainer = SFTTrainer(MistralForCausalLM(shape), arguments, train_dataset=few, processing_class=tokenizer)

    def prepare() -> tuple[int, int, dict[str, Any]]:
        dataset = datasets.load_dataset("json", data_files=str(rows), split="train")
        num_rows = len(dataset)
        dataset = dataset.map(_to_messages, remove_columns=dataset.column_names, num_proc=num_processes)
        dataset = trainer._prepare_dataset(dataset, tokenizer, arguments, True, None, "train")
        num_tokens = sum(map(sum, dataset["seq_lengths"]))
        folder.cleanup()
        return num_rows, num_tokens, {"packed_rows": len(dataset)}

    return prepare


def _to_messages(row: dict[str, str]) -> dict[str, Any]:
    user = {"role": "user", "content": row["instruction"], "input": row["input"]}
    return {"messages": [user, {"role": "assistant", "content": row["output"], "input": ""}]}


# ---------------------------------------------------------------- rounds


def run_way(way: str, tokenizer_path: Path, rows: Path) -> dict[str, Any]:
    """Measure one way in a process of its own, with caches of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        environment = os.environ | {"HF_DATASETS_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        environment |= {
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "TQDM_DISABLE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        # Of the tokenizers library: True lets it use all cores, as a process that was not forked does anyhow.
        environment.pop("TOKENIZERS_PARALLELISM", None)
        command = [sys.executable, "-m", "benchmarks.preparation", "--measure", way, str(tokenizer_path), str(rows)]
        subprocess.run([*command, str(result)], check=True, cwd=ROOT, env=environment)
        figures: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    print(
        f"  {way:16} {figures['rows']:6} rows {figures['seconds']:7.2f} s  {figures['rows_per_second']:7.0f} rows/s  "
        f"{figures['tokens_per_second']:9,} tokens/s  {figures['cpu_seconds']:6.1f} CPU s  memory "
        f"{figures['own_memory_before_bytes'] / 2**20:.0f} -> {figures['own_memory_peak_bytes'] / 2**20:.0f} MiB",
        flush=True,
    )
    return figures


def compare(tokenizer_path: Path, rows: Path, few_rows: Path, ways: tuple[str, ...], num_rounds: int) -> dict[str, Any]:
    """Run the rounds with one tokenizer and take the ratios within each."""
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(num_rounds):
        order = ways if number % 2 == 0 else ways[::-1]
        rounds.append({way: run_way(way, tokenizer_path, rows) for way in order})
    speeds = [{way: figures["rows_per_second"] for way, figures in one.items()} for one in rounds]
    ratios = {way: [round(one[way] / one["tokenizer"], 3) for one in speeds] for way in ways if way != "tokenizer"}
    few = run_way("ours", tokenizer_path, few_rows)
    peaks = [figures["own_memory_peak_bytes"] for figures in (few, rounds[0]["ours"])]
    print(f"  of the tokenizer's own speed: {ratios}; memory {peaks[0] / 2**20:.0f} and {peaks[1] / 2**20:.0f} MiB")
    return {
        "share_of_tokenizer_speed": ratios,
        "median_share_of_tokenizer_speed": {way: median(values) for way, values in ratios.items()},
        "ours_with_half_the_rows": few,
        "rounds": rounds,
    }


def main() -> None:
    """Measure every tokenizer and write the results of this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", nargs="?", type=Path, default=DATA_DIR)
    parser.add_argument("--rows", type=int, default=52_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizers", nargs="+", default=list(TOKENIZERS), choices=TOKENIZERS)
    parser.add_argument("--without-trl", action="store_true")
    parser.add_argument("--measure", nargs=4, metavar=("WAY", "TOKENIZER", "ROWS", "RESULT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        way, tokenizer_path, rows_path, result_path = given.measure
        Path(result_path).write_text(json.dumps(measure(way, tokenizer_path, Path(rows_path))), encoding="utf-8")
        return
    data_dir = given.data_dir.resolve()
    if not (data_dir / DATA).exists():
        raise SystemExit(f"{data_dir / DATA} is not there.\n  Name the folder that holds it: DATA_DIR")
    ways = WAYS[:2] if given.without_trl else WAYS
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows, few_rows = (write_rows(data_dir / DATA, Path(folder), num) for num in (given.rows, given.rows // 2))
        for name in given.tokenizers:
            print(name, flush=True)
            results[name] = compare(data_dir / TOKENIZERS[name], rows, few_rows, ways, given.rounds)
    write_result("preparation", {"rows": given.rows, "max_length": MAX_LENGTH, "data": DATA.name, "results": results})


if __name__ == "__main__":
    main()
