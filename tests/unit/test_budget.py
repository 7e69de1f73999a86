"""The byte budget: bounded, fair within an account, never dead-locked."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from sluiceway.worker.budget import ByteBudget


async def begun(waiting: Coroutine[object, object, None]) -> asyncio.Task[None]:
    """A task that has run until it waits or ended."""
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_a_block_that_does_not_fit_waits_for_a_release() -> None:
    budget = ByteBudget(100)
    await budget.reserve(60)
    second = await begun(budget.reserve(60))
    assert (second.done(), budget.starved, budget.free) == (False, True, 40)
    budget.release(20)
    await second
    assert (budget.held, budget.starved, budget.free) == (100, False, 0)


async def test_a_block_larger_than_the_limit_is_granted_alone() -> None:
    budget = ByteBudget(100)
    await budget.reserve(500)
    second = await begun(budget.reserve(1))
    assert not second.done()
    budget.release(500)
    await second
    assert budget.used == 1


async def test_what_was_fetched_can_be_decoded_however_much_it_is() -> None:
    budget = ByteBudget(100)
    budget.take_fetched(1000)
    await budget.reserve(30)
    assert (await begun(budget.reserve(20))).done()
    third = await begun(budget.reserve(1))
    assert not third.done()
    budget.release_fetched(1000)
    await third


async def test_fetching_leaves_half_to_blocks() -> None:
    budget = ByteBudget(100)
    await budget.reserve_fetch(50)
    fetch = await begun(budget.reserve_fetch(1))
    assert not fetch.done()
    await budget.reserve(50)
    budget.release_fetched(50)
    await asyncio.sleep(0)
    assert not fetch.done()
    budget.release(1)
    await fetch
    assert (budget.fetched, budget.held, budget.peak) == (1, 49, 100)


async def test_waiters_are_served_in_order_and_large_ones_are_not_overtaken() -> None:
    budget = ByteBudget(100)
    await budget.reserve(90)
    large, small = await begun(budget.reserve(50)), await begun(budget.reserve(5))
    budget.release(1)
    await asyncio.sleep(0)
    assert (large.done(), small.done()) == (False, False)
    budget.release(60)
    await asyncio.gather(large, small)
    assert budget.held == 84


async def test_a_cancelled_waiter_leaves_no_trace() -> None:
    budget = ByteBudget(100)
    await budget.reserve(90)
    first, second = await begun(budget.reserve(50)), await begun(budget.reserve(10))
    first.cancel()
    await second
    assert (budget.held, budget.starved) == (100, False)


async def test_a_grant_that_nobody_takes_any_more_is_given_back() -> None:
    budget = ByteBudget(100)
    await budget.reserve(90)
    waiting = await begun(budget.reserve(50))
    budget.release(90)  # grants
    waiting.cancel()  # before it runs
    await asyncio.wait([waiting])
    assert (waiting.cancelled(), budget.held) == (True, 0)
