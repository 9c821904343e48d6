from hypothesis import given
from hypothesis import strategies as st

from qcnode.ids import IdMaker


@given(st.lists(st.integers(min_value=0, max_value=2**47), min_size=2))
def test_ids_sort_in_the_order_of_making_whatever_the_clock_does(clock):
    ticks = iter(clock)
    make = IdMaker(lambda: next(ticks), chance=lambda _: 0)

    made = [make() for _ in clock]

    assert made == sorted(set(made))


def test_two_makers_do_not_make_the_same_id():
    assert IdMaker(lambda: 1)() != IdMaker(lambda: 1)()
