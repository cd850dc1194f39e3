"""Loading ahead keeps the order, goes ahead by so many and no more, and stops when its reader does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flexip_model.common.prefetch import load_batches, prefetch


def test_results_come_in_order_whatever_takes_long() -> None:
    def load(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    with ThreadPoolExecutor(4) as pool:
        assert list(prefetch(pool, load, range(20), 5)) == [(i, i * i) for i in range(20)]
    assert list(load_batches(load, range(7), 3, 2)) == [[0, 1, 4], [9, 16, 25], [36]]
    assert list(load_batches(load, [], 3, 2)) == []


def test_the_next_batch_loads_while_the_caller_is_at_this_one_and_no_more() -> None:
    asked: list[int] = []
    batches = load_batches(asked.append, range(12), 3, 2)
    next(batches)
    end = time.monotonic() + 10
    while len(asked) < 6 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    assert sorted(asked) == list(range(6))
    assert len(list(batches)) == 3 and len(asked) == 12


def test_an_error_comes_with_its_item_and_what_waits_is_dropped() -> None:
    begun, gate = [], threading.Event()

    def load(number: int) -> int:
        begun.append(number)
        if number:
            gate.wait(10)
        if number == 0:
            raise OSError("it is damaged")
        return number

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(OSError, match="damaged"):
            list(prefetch(pool, load, range(50), 10))
        gate.set()
    assert len(begun) <= 2
