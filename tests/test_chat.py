"""The verb chat: one answer or a conversation, at a terminal or through a pipe."""

import io
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from finetune import chat
from tests.model.saved_runs import write_base, write_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("chat")
    return write_run(place / "outputs" / "run", write_base(place / "base"), template="chatml")


@pytest.fixture
def talk(run, capfd, monkeypatch):
    """Run the verb on the run with what a person types; gives exit code, standard output and standard error."""

    def talk(*arguments: str, typed: str | Iterable[str] = "", target: Path = run) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed) if isinstance(typed, str) else typed)
        with pytest.raises(SystemExit) as left:
            chat.main([str(target), "--max-new-tokens", "6", *arguments])
        return left.value.code, *capfd.readouterr()

    return talk


def test_a_prompt_gives_one_answer_and_leaves(talk):
    code, out, err = talk("--prompt", "What colour is a lemon?")
    assert code == 0
    assert out.strip()
    assert "lora on" in err
    assert talk("--prompt", "What colour is a lemon?")[1] == out


def test_json_is_one_object_and_nothing_else_with_the_same_answer(talk):
    _, streamed, _ = talk("--prompt", "What colour is a lemon?")
    code, out, _ = talk("--prompt", "What colour is a lemon?", "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed["answer"] == streamed.removesuffix("\n")
    assert printed["prompt"] == "What colour is a lemon?"
    assert "nf4" in printed["model"]


def test_each_line_of_a_pipe_is_a_turn_of_one_conversation(talk):
    question = "What colour is a lemon?"
    _, alone, _ = talk("--prompt", question)
    code, out, _ = talk(typed=f"{question}\n\nWhere is the car?\n")
    assert code == 0
    assert out.startswith(alone)
    assert len(out) > len(alone)
    _, second_alone, _ = talk("--prompt", "Where is the car?")
    assert out != alone + second_alone  # it answers in the light of what was said


def test_reset_forgets_and_exit_leaves(talk):
    question = "What colour is a lemon?"
    _, alone, _ = talk("--prompt", question)
    code, out, err = talk(typed=f"{question}\n/reset\n{question}\n/exit\n{question}\n")
    assert code == 0
    assert out == alone * 2
    assert "(forgotten)" in err


@pytest.fixture(scope="module")
def second(run) -> Path:
    """Another run on the same base, asked in another template."""
    return write_run(run.with_name("second"), run.parents[1] / "base", adapter={"method": "ia3"}, template="alpaca")


def test_use_switches_between_adapters_and_the_base_within_one_conversation(talk, second):
    question = "What colour is a lemon?"
    alone = {
        "run": talk("--prompt", question)[1],
        "second": talk("--prompt", question, target=second)[1],
        "base": talk("--prompt", question, "--base")[1],
    }
    assert len(set(alone.values())) == 3
    turns = ["/adapters", question]
    for name in ("second", "base", "law", "run"):
        turns += ["/reset", f"/use {name}", *([question] if name != "law" else [])]
    code, out, err = talk("--adapter", f"two={second}", typed="\n".join(turns).replace("/use second", "/use two"))
    assert code == 0
    assert out == alone["run"] + alone["second"] + alone["base"] + alone["run"]
    assert "  base\n* run\n  two\n" in err
    assert "There are: base, run, two." in err  # and the conversation went on


def test_a_prompt_to_one_of_several_says_which_answered(talk, second):
    asked = ("--adapter", f"two={second}", "--prompt", "What colour is a lemon?", "--json")
    printed = {name: json.loads(talk(*asked, *option)[1]) for name, option in
               {"run": (), "two": ("--use", "two"), "base": ("--use", "base")}.items()}  # fmt: skip
    assert {name: one["adapter"] for name, one in printed.items()} == {"run": "run", "two": "two", "base": "base"}
    assert len({one["answer"] for one in printed.values()}) == 3
    assert "ia3 on" in printed["two"]["model"]
    alone = json.loads(talk("--prompt", "What colour is a lemon?", "--json", "--base")[1])
    assert (alone["adapter"], alone["answer"]) == ("base", printed["base"]["answer"])


def test_a_conversation_with_one_adapter_says_how_to_hold_others(talk):
    code, out, err = talk(typed="/use law\n/adapters\n")
    assert (code, out) == (0, "")
    assert "--adapter NAME=RUN" in err
    assert "run answers alone" in err
    assert "* run\n" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--use", "two"], "--use goes with --adapter"),
        (["--adapter", "second"], "--adapter wants NAME=RUN"),
        (["--adapter", "a=x", "--adapter", "a=y"], "a is named twice"),
        (["--adapter", "a=x", "--base"], "--base and --adapter exclude each other"),
        (["--adapter", "a=x", "--backend", "unsloth"], "--backend unsloth and --adapter exclude each other"),
    ],
)
def test_what_several_adapters_exclude_is_refused_at_once(talk, arguments, told):
    code, out, err = talk(*arguments)
    assert (code, out) == (2, "")
    assert told in err


def test_system_base_input_and_temperature_each_change_the_answer(talk):
    asked = ("--prompt", "What colour is a lemon?")
    _, plain, _ = talk(*asked)
    for option in (["--system", "Answer in capital letters."], ["--base"], ["--input", "It is ripe."]):
        assert talk(*asked, *option)[1] != plain, option
    assert len({talk(*asked, "--temperature", "2")[1] for _ in range(3)}) > 1


def test_base_says_that_no_adapter_is_on_and_quantization_is_as_asked(talk):
    _, _, err = talk("--prompt", "Hi", "--base", "--quantization", "none")
    assert "not quantized" in err
    assert "lora" not in err


def test_a_conversation_beyond_the_models_positions_drops_its_oldest_turns_and_says_so(talk):
    turn = "one two three four five six seven eight nine ten"
    code, out, err = talk(typed=f"{turn}\n" * 12)
    assert code == 0
    assert len(out.splitlines()) >= 12
    assert "oldest" in err
    assert "left out" in err


def test_a_turn_longer_than_the_model_is_told_and_the_conversation_goes_on(talk):
    code, out, err = talk(typed="word " * 500 + "\nHi\n")
    assert code == 0
    assert out.strip()
    assert "before the answer there is room for 250" in err


def test_an_answer_as_long_as_the_model_is_refused(talk):
    code, _, err = talk("--prompt", "Hi", "--max-new-tokens", "256")
    assert code == 2
    assert "positions for 256 tokens" in err


def test_options_of_one_prompt_without_a_prompt_are_refused_at_once(talk):
    for option in (["--json"], ["--input", "x"]):
        code, out, err = talk(*option)
        assert (code, out) == (2, "")
        assert f"{option[0]} goes with --prompt" in err


def test_ctrl_c_leaves_with_130_and_without_a_traceback(talk):
    class Interrupting(io.StringIO):
        def __iter__(self) -> Iterator[str]:
            yield "Hi\n"
            raise KeyboardInterrupt

    code, out, err = talk(typed=Interrupting())
    assert code == 130
    assert out.strip()
    assert err.endswith("Stopped by Ctrl-C.\n")
    assert "Traceback" not in err


def test_a_base_without_a_template_is_asked_in_alpacas_form_and_that_is_said(talk, run):
    code, out, err = talk("--prompt", "Hi", target=run.parents[1] / "base")
    assert code == 0
    assert out.strip()
    assert "No chat template was saved" in err


def test_a_target_that_is_not_there_is_exit_4(talk, tmp_path):
    code, out, err = talk("--prompt", "Hi", target=tmp_path / "nothing")
    assert (code, out) == (4, "")
    assert "there is no such folder" in err


HELP = """
import sys, time
start = time.perf_counter()
import finetune.chat, finetune.export
for verb in (finetune.chat, finetune.export):
    try:
        verb.main(["--help"])
    except SystemExit as left:
        assert left.code == 0
assert not {"torch", "transformers", "peft"} & set(sys.modules)
print("seconds", time.perf_counter() - start)
"""


def test_help_of_chat_and_export_answers_in_under_a_second_without_torch():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout.rsplit("seconds ", 1)[1]) < 1
    assert "python -m finetune.chat outputs/quickstart" in done.stdout
