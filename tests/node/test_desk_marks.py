"""What an agent may still do about a part that bears marks of its own."""

import pytest

from qcnode.desk import WITHHELD
from qcnode.domain import Disposition, Finding
from tests.node.test_desk import PACK, Bench, Colleague, until

MARKED = "there are marks"


@pytest.fixture
async def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def test_a_marked_part_is_not_let_go_on_an_agent_s_word_and_its_words_are_not_kept(bench):
    pictures = []

    def suspect(picture):
        pictures.append(picture)
        return MARKED

    await bench.open(Colleague(Finding.GOOD), suspect=suspect)
    bench.inspect(1)

    await until(bench.rulings)

    (ruling,) = bench.rulings()
    assert (ruling.binding, ruling.code) == (False, "suspicion")
    assert ruling.reason == f"{MARKED}; {WITHHELD}"
    assert [picture[:2] for picture in pictures] == [b"\xff\xd8"]
    assert [one.escalation.part_id for one in bench.desk.waiting()] == ["part-1"]


async def test_a_marked_part_may_be_scrapped_and_an_unmarked_one_let_go(bench):
    marked = iter((MARKED, None))
    await bench.open(
        Colleague(Finding.DEFECTIVE, Finding.GOOD), suspect=lambda _: next(marked), pack=PACK
    )
    bench.inspect(1)
    await until(lambda: len(bench.line.told) == 1)
    bench.inspect(2)
    await until(lambda: len(bench.line.told) == 2)

    assert bench.line.told == [("part-1", Disposition.SCRAP), ("part-2", Disposition.RELEASE)]
    assert [ruling.reason for ruling in bench.rulings()] == [f"{MARKED}; {WITHHELD}", "seen"]
