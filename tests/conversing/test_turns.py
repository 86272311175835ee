"""A person's turns: how they are read, and what becomes of each."""

import io
import sys

import pytest

from finetune.conversing.turns import follow, read_turns
from finetune.errors import DataError, RecipeError


class Terminal(io.StringIO):
    """Standard input at which a person sits."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def asked() -> list[str]:
    return []


def test_each_line_of_a_pipe_is_a_turn_and_keeps_its_spaces(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("  one \n\ntwo"))
    assert list(read_turns()) == ["  one ", "", "two"]
    assert capsys.readouterr() == ("", "")


def test_at_a_terminal_each_turn_is_asked_for_until_the_input_ends(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal("one\ntwo\n"))
    assert list(read_turns()) == ["one", "two"]
    out, err = capsys.readouterr()
    assert out == "> > > "
    assert "/exit or Ctrl-D leaves" in err


def test_turns_are_replied_to_up_to_the_exit_and_empty_ones_are_passed_over(asked):
    follow(["one", "", "  ", " two", "/exit", "three"], asked.append, {})
    assert asked == ["one", " two"]


def test_a_command_takes_the_rest_of_its_turn_and_an_unknown_one_is_a_turn(asked):
    used: list[str] = []
    follow(["/use  law ", "/use", "/users of law", "hello /use"], asked.append, {"/use": used.append})
    assert used == ["law", ""]
    assert asked == ["/users of law", "hello /use"]


@pytest.mark.parametrize("error", [DataError("too long"), RecipeError("no such adapter")])
def test_a_turn_that_cannot_be_asked_is_told_and_the_next_one_follows(asked, capsys, error):
    def reply(turn: str) -> None:
        if turn == "one":
            raise error
        asked.append(turn)

    follow(["one", "two"], reply, {})
    assert asked == ["two"]
    assert capsys.readouterr() == ("", f"{error}\n")


def test_a_fault_of_the_program_is_no_turn_to_pass_over(asked):
    def reply(turn: str) -> None:
        raise KeyError(turn)

    with pytest.raises(KeyError):
        follow(["one"], reply, {})
