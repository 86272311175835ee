"""In a terminal or a pipe it is plain what is trained, with colour and without."""

import io

from rich.console import Console

from finetune.data.examples import Origin
from finetune.inspection.console import build_console, print_census, print_rows
from finetune.inspection.pieces import PieceReader
from finetune.inspection.rows import Part, Row
from tests.inspection.small_pages import CENSUS, FINDING, HARM
from tests.inspection.small_tokenizers import END, build_byte_level


def build_row(text: str, trained_from: int) -> Row:
    """A row of one token for each byte, trained from a place on to the end token."""
    ids = build_byte_level().backend_tokenizer.encode(text, add_special_tokens=False).ids
    part = Part("", ids, [place >= trained_from for place in range(len(ids))])
    return Row(4, Origin("a.json", 7), "whole", (part,), len(ids), 0, {})


def draw(row: Row, *, shows_ids: bool = False, note: str = "", **console) -> str:
    file = io.StringIO()
    console = Console(file=file, width=60, highlight=False, markup=False, emoji=False, **console)
    print_rows(console, [row], PieceReader(build_byte_level()), max_length=100, note=note, shows_ids=shows_ids)
    return file.getvalue()


def test_what_is_trained_stands_in_brackets_on_each_of_its_lines():
    drawn = draw(build_row(f"Q:A\nB{END}", trained_from=2))
    assert f"\nQ:⟦A↵⟧\n⟦B❮{END}❯⟧\n" in drawn
    assert "── row 4 · a.json:7 · whole\n   6 tokens, 4 trained\n" in drawn


def test_without_colour_no_escape_is_written_and_with_colour_trained_text_has_its_own(monkeypatch):
    row = build_row("QA", trained_from=1)
    assert "\x1b" not in draw(row)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;32mA" in draw(row, force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "32m" not in draw(row, force_terminal=True, color_system="standard")


def test_a_control_token_is_told_from_text_that_looks_like_one():
    ids = build_row("<|end|>", 0).parts[0].ids
    spelled = build_byte_level().backend_tokenizer.encode("<", add_special_tokens=False).ids
    part = Part("", [*spelled, *ids], [False] * (len(spelled) + len(ids)))
    drawn = draw(Row(4, Origin("a.json", 1), "whole", (part,), len(part.ids), 0, {}))
    assert f"\n<❮{END}❯\n" in drawn


def test_brackets_that_the_text_uses_itself_are_not_used():
    assert "\n⟦x⟧⦗yes⦘\n" in draw(build_row("⟦x⟧yes", trained_from=7))


def test_a_text_that_writes_a_control_tokens_signs_gets_others_for_it():
    drawn = draw(build_row(f"❮x❯y{END}", trained_from=99))
    assert f"\n❮x❯y❰{END}❱\n" in drawn
    assert "❰control token❱" in drawn


def test_where_every_sign_is_used_it_is_said():
    notice = "The text uses each pair of signs that there is for this"
    assert notice in draw(build_row("❮❰❬⟪⦉⦑⧘⧚⸤", trained_from=99))
    assert notice in draw(build_row("⟦⦗⦅⧼⟬⦃⦇⦋⸢", trained_from=99))
    assert notice not in draw(build_row("❮❰❬⟪⦉⦑⧘⧚", trained_from=99))


def test_a_text_cannot_steer_the_terminal_nor_the_layout():
    drawn = draw(build_row("\x1b[2J[bold]:smile:\r", trained_from=99))
    assert "␛[2J[bold]:smile:␍" in drawn
    assert "\x1b" not in drawn
    assert "\r" not in drawn


def test_ids_are_listed_with_their_text_and_long_lists_are_wrapped():
    row = build_row(f"aé\n{END}", trained_from=1)
    ids = row.parts[0].ids
    listed = draw(row, shows_ids=True).splitlines()[-1]
    assert listed == f'    {ids[0]} "a"  ⟦{ids[1]}+{ids[2]} "é"⟧  ⟦{ids[3]} "↵"⟧  ⟦0 ❮{END}❯⟧'
    assert max(map(len, draw(build_row("word " * 30, 0), shows_ids=True).splitlines()[5:])) <= 60 * 3


def test_long_lines_are_never_broken_so_that_they_can_be_copied():
    assert f"\n{'word ' * 40}\n" in draw(build_row("word " * 40, trained_from=999))


def test_a_dropped_row_has_its_reason_and_no_tokens():
    drawn = draw(Row(4, Origin("a.json", 7), "too_long", (Part("", [], []),), 120, 0, {}))
    assert drawn.endswith("── row 4 · a.json:7 · dropped: it has 120 tokens and `data.max_length` is 100\n")


def test_a_pipe_of_another_encoding_gets_escapes_and_no_fault(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", stream)
    build_console().print("naïve ⟦日⟧")
    stream.flush()
    assert stream.buffer.getvalue() == "naïve \\u27e6\\u65e5\\u27e7\n".encode("latin-1")


def test_where_no_token_is_marked_it_is_said_why_and_nothing_else_is_said_of_it():
    drawn = draw(build_row("x", 99), note="The label carries loss.")
    assert "\nThe label carries loss.\n" in drawn
    assert "   1 tokens\n" in drawn
    assert "trained" not in drawn


def draw_census(findings: list | None = None, **census) -> str:
    file = io.StringIO()
    report = {
        "rows_read": 4,
        "sources": [{"path": "a", "rows": 4, "bad_rows": 0, "bad_reasons": {}}],
        "census": CENSUS | census,
    }
    console = Console(file=file, width=120, highlight=False, markup=False, emoji=False)
    print_census(console, report, findings, objective="sft")
    return file.getvalue()


def test_no_line_of_the_census_ends_with_spaces_nor_folds_a_place():
    path = "a_folder/of_some_length/rows_that_were_written_in_march.jsonl"
    places = [f"{path}:{row}" for row in (942, 957, 1201, 1333, 1414)]
    drawn = draw_census(first_places={"too_long": places}, dropped={"too_long": 5}, rows=-1)
    assert f"{path}: 942, 957, 1201, 1333, 1414\n" in drawn
    assert [line for line in drawn.splitlines() if line != line.rstrip()] == []


def test_findings_are_told_with_policy_and_figures_and_none_from_not_looked_for():
    drawn = draw_census([FINDING])
    assert f"\nwarning: duplicates: 2 (policy: report)\n  favours {HARM} · share 0.75\n  Drop them.\n" in drawn
    assert draw_census([]).endswith("\nfindings: none\n")
    assert draw_census(None).endswith("\nfindings: not looked for (data.findings is null)\n")
