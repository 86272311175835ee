"""Idle memory goes where a byte saves most seconds, whole numbers of layers first, and never beyond what is free."""

from dataclasses import replace
from itertools import product

import pytest

from finetune.budget.spending import (
    Keeps,
    LayerWork,
    Option,
    Spending,
    build_options,
    find_spendable,
    spend,
    take_back,
    to_spending,
)

# A layer of 10 bytes that saves 10 seconds; its MLP is worth more a byte, its attention less.
OPTIONS: dict[Keeps, Option] = {"all": Option(10, 10.0), "mlp": Option(5, 6.0), "attention": Option(4, 3.0)}
WHOLE: dict[Keeps, Option] = {"all": Option(10, 10.0)}


def seconds(spending: Spending) -> float:
    return 10.0 * spending.num_kept + 6.0 * spending.num_mlp_kept + 3.0 * spending.num_attention_kept


@pytest.mark.parametrize("free_bytes", [0, 3, 4, 5, 9, 10, 14, 15, 19, 25, 29, 39, 40, 1000])
def test_no_other_way_of_keeping_layers_saves_more(free_bytes: int) -> None:
    found = spend(free_bytes, 4, OPTIONS)
    assert found.layer_bytes == 10 * found.num_kept + 5 * found.num_mlp_kept + 4 * found.num_attention_kept
    assert found.layer_bytes <= free_bytes
    best = max(
        10 * whole + 6 * mlp + 3 * attention
        for whole, mlp, attention in product(range(5), repeat=3)
        if whole + mlp + attention <= 4 and 10 * whole + 5 * mlp + 4 * attention <= free_bytes
    )
    assert seconds(found) == best


def test_where_all_fits_every_layer_keeps_everything() -> None:
    assert spend(40, 4, OPTIONS) == Spending(4, num_kept=4, layer_bytes=40)


def test_what_whole_layers_leave_over_goes_to_a_part_of_one_more() -> None:
    options = WHOLE | {"attention": Option(4, 3.0)}
    found = spend(25, 4, options)
    assert (found.num_kept, found.num_attention_kept, found.num_recomputed) == (2, 1, 1)


def test_the_last_layers_are_kept_and_parts_before_them() -> None:
    spending = Spending(5, num_kept=2, num_mlp_kept=1, num_attention_kept=1)
    assert spending.layers == ("nothing", "attention", "mlp", "all", "all")


def test_copies_come_from_what_the_layers_leave_and_from_the_front() -> None:
    assert spend(26, 2, WHOLE, [3, 3, 3]) == Spending(2, 2, layer_bytes=20, num_resident=2, resident_bytes=6)
    assert spend(19, 2, WHOLE, [3, 3, 3]).num_resident == 3, "one layer, and nine bytes for copies"
    assert spend(5, 0, {}, [3, 3, 3]).num_resident == 1, "where nothing is recomputed there are the copies alone"


def test_five_per_cent_stay_free_beside_what_is_still_to_come() -> None:
    assert find_spendable(900, 1000, 100) == 750
    assert spend(find_spendable(900, 1000, 890), 4, WHOLE) == Spending(4)


def test_less_is_kept_where_memory_once_ran_out() -> None:
    assert spend(1000, 4, OPTIONS, max_layers=1).layers == ("nothing", "nothing", "nothing", "all")


def test_taking_back_begins_with_the_copies_and_ends_with_nothing_spent() -> None:
    spending: Spending | None = spend(1000, 5, WHOLE, [3, 3])
    taken = []
    while spending is not None:
        taken.append((spending.num_kept, spending.num_resident, spending.num_bytes))
        spending = take_back(spending)
    assert taken == [(5, 2, 56), (5, 0, 50), (2, 0, 20), (1, 0, 10), (0, 0, 0)]


def test_parts_that_cost_most_for_what_they_save_are_taken_back_first() -> None:
    half = take_back(Spending(4, num_kept=1, num_mlp_kept=1, num_attention_kept=2, layer_bytes=23))
    assert half is not None
    assert (half.num_kept, half.num_mlp_kept, half.num_attention_kept) == (0, 0, 2)


def test_measured_bytes_change_what_is_bought() -> None:
    work = LayerWork(whole_seconds=3.0, attention_seconds=1.0, mlp_seconds=2.0)
    as_estimated = build_options(work, kept_bytes=12, input_bytes=2)
    twice_as_long = build_options(work, kept_bytes=12, input_bytes=2, factor=2.0)
    assert spend(40, 4, as_estimated).num_kept == 4
    assert spend(40, 4, twice_as_long).num_kept == 2


def test_a_part_costs_and_saves_what_the_layer_does_without_the_other_part() -> None:
    work = LayerWork(whole_seconds=2.5, attention_seconds=1.0, mlp_seconds=2.0)
    options = build_options(work, kept_bytes=12, input_bytes=2, attention_bytes=3, mlp_bytes=6)
    assert options == {"all": Option(10, 2.5), "mlp": Option(7, 1.5), "attention": Option(4, 0.5)}


def test_a_decision_is_read_back_as_it_was_written_and_no_other_is() -> None:
    spending = Spending(4, 1, 1, 1, layer_bytes=19, num_resident=2, resident_bytes=6)
    assert to_spending(spending.to_json()) == spending
    for changed in (replace(spending, num_kept=9), replace(spending, num_resident=-1)):
        with pytest.raises(ValueError, match="not a decision on memory"):
            to_spending(changed.to_json())
