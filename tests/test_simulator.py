"""The simulator of remote experts: against closed forms, the planner's times and the core's replay."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import placements
from remoe_edge import _core
from remoe_edge.placement.bill import Meter
from remoe_edge.placement.planner import Options, Placement, place
from remoe_edge.placement.price import load
from remoe_edge.placement.request import Workload
from remoe_edge.predict.store import activation
from remoe_edge.routing.trace import from_routed
from remote_experiments.simulator import arrivals
from remote_experiments.simulator.memory import Cached, Placed
from remote_experiments.simulator.pool import Pool
from remote_experiments.simulator.routing import Topics, pieces
from remote_experiments.simulator.run import simulate
from remote_experiments.simulator.sharing import Sharing
from remote_experiments.simulator.world import STORAGE, Arrival, Outcome, Starts, World

MIB, GIB = 1 << 20, 1 << 30


def placed(n_local: int = 8, table: str = "paper", shares: Any = None, **asked: Any) -> Placement:
    prices = placements.table(table)
    request = placements.request(tpot_ms=1000, ttft_ms=60_000, **asked)
    shape = request.shape
    if shares is None:
        shares = placements.skewed(shape.n_layers, shape.n_experts)
    return place(request, prices, placements.measured(prices), shares, Options(n_local=n_local))


def local_mask(placement: Placement) -> Any:
    mask = np.zeros((placement.request.shape.n_layers, placement.request.shape.n_experts), bool)
    for layer, experts in enumerate(placement.local):
        mask[layer, list(experts)] = True
    return mask


def world(placement: Placement, **changed: Any) -> World:
    mask = local_mask(placement)
    made = World(placement, lambda: Placed(mask), always_on=True)
    return replace(made, **changed)


def requests(n: int = 3, seed: int = 0, n_prompt: int = 16, n_tokens: int = 24) -> list[Arrival]:
    rng = np.random.default_rng(seed)
    topics = Topics(4, 16, 2)
    return [Arrival(1000.0 * i, topics.draw(i % 8, n_tokens, rng), n_prompt) for i in range(n)]


# --- closed forms ---


@pytest.mark.parametrize("load_factor", [0.3, 0.7])
def test_a_replica_is_an_m_d_1_queue(load_factor: float) -> None:
    """Poisson arrivals and constant service: waiting is ρ·s ÷ (2·(1 − ρ)) on the average."""
    rng = np.random.default_rng(1)
    pool = Pool(GIB, 1, lambda: 0.0, math.inf, Meter(load("paper")))
    pool.warm(0.0)
    service = 10.0
    sent = arrivals.poisson(60_000, 1000 * load_factor / service, rng)
    for at in sent:
        pool.call(float(at), service)
    expected = load_factor * service / (2 * (1 - load_factor))
    assert pool.waited_ms / pool.calls == pytest.approx(expected, rel=0.05)


def test_a_main_host_is_an_m_d_1_queue() -> None:
    """With everything local every request takes the same time, and requests queue for the host."""
    placement = placed(n_local=16, n_layers=1)
    routed = np.tile(np.asarray([[[0, 1]]]), (1, 6, 1))
    alone = simulate(world(placement), [Arrival(0.0, routed, 4)]).served[0]
    service = alone.done_ms
    per_s = 0.6 * 1000 / service
    sent = arrivals.poisson(20_000, per_s, np.random.default_rng(3))
    found = simulate(world(placement), [Arrival(float(at), routed, 4) for at in sent])
    waited = np.mean([each.waited_ms for each in found.served])
    assert waited == pytest.approx(0.6 * service / (2 * 0.4), rel=0.06)
    assert found.calls == 0


def test_latency_without_contention_by_hand() -> None:
    placement = placed(n_local=1, n_layers=1, n_experts=4, row_bytes=10**6)
    speed = placement.request.speed
    (here,) = placement.local[0]
    there = [expert for expert in range(4) if expert != here]
    row_ms = placement.functions[0].row_ms
    routed = np.asarray(
        [[[here, there[0]], [here, there[1]], [there[0], there[1]], [here, there[2]]]]
    )
    found = simulate(world(placement), [Arrival(5.0, routed, 2)])
    (served,) = found.served
    # Prompt: two local rows; two remote, half a MB each way at 100 MB/s.
    prompt = speed.prefill_base_ms + 2 * speed.prefill_dense_each_ms
    prompt += max(2 * speed.prefill_row_ms, 0.6 + 20 + 2 * row_ms)
    first = speed.decode_dense_ms + 0.6 + 20 + 2 * row_ms
    second = speed.decode_dense_ms + max(speed.decode_row_ms, 0.6 + 10 + row_ms)
    assert served.ttft_ms == pytest.approx(prompt)
    assert served.tpot_ms == pytest.approx((first + second) / 2)
    assert served.done_ms == pytest.approx(5 + prompt + first + second)
    assert (found.calls, found.missing, found.function_waits_ms) == (3, 5, 0)
    gb_s = placement.functions[0].memory_bytes / GIB * 5 * row_ms / 1000
    assert found.bill.functions == pytest.approx(gb_s)
    main = placement.main_bytes + 2 * 64 * MIB  # the GPU's part costs three times as much
    assert found.bill.main_cpu + found.bill.main_gpu == pytest.approx(
        main / GIB * (served.done_ms - 5) / 1000
    )


def test_the_plan_expects_what_is_simulated() -> None:
    """Routing drawn from the shares that the plan was made from: times and bill come out alike."""
    topics = Topics(4, 16, 2, n_topics=1, repeat=0.0, power=0.8)
    rng = np.random.default_rng(4)
    drawn = [topics.draw(0, 64 + 31, rng) for _ in range(12)]
    shares = activation(np.concatenate(drawn, axis=1), 16)
    placement = placed(6, shares=shares, n_prompt=64, n_answer=32)
    found = simulate(world(placement), [Arrival(1e5 * i, r, 64) for i, r in enumerate(drawn)])
    assert np.mean([s.tpot_ms for s in found.served]) == pytest.approx(
        placement.times.tpot_ms, rel=0.05
    )
    assert np.mean([s.ttft_ms for s in found.served]) == pytest.approx(
        placement.times.ttft_ms, rel=0.05
    )
    assert found.bill.total / len(drawn) == pytest.approx(placement.bill.total, rel=0.05)


# --- determinism, starts, hedging, memory ---


def outcome(**changed: Any) -> Outcome:
    return simulate(world(placed(), **changed), requests())


def test_the_same_seed_gives_the_same_outcome() -> None:
    changed = {"jitter": 0.5, "starts": Starts(50, 0.5, 100, 1e9, 500), "always_on": False}
    assert outcome(seed=3, **changed) == outcome(seed=3, **changed)
    assert outcome(seed=3, **changed) != outcome(seed=4, **changed)


def test_starts_come_from_zero_and_go_back_to_it() -> None:
    placement = placed()
    starts = Starts(function_ms=2000, main_boot_ms=500, load_bytes_per_s=1e9, keep_ms=10_000)
    cold = world(placement, starts=starts, always_on=False, lease=False)
    routed = requests(1)[0].routed
    warm = simulate(world(placement), [Arrival(0, routed, 16)])
    boot = 500 + 1000 * placement.main_bytes / 1e9
    first = simulate(cold, [Arrival(0, routed, 16)])
    assert first.main_starts == 1
    assert 0 < first.function_starts <= sum(each.replicas for each in placement.functions)
    assert first.served[0].waited_ms == pytest.approx(boot)
    assert first.served[0].ttft_ms >= warm.served[0].ttft_ms + boot + 2000
    assert first.bill.cold_starts > 0
    soon = simulate(cold, [Arrival(0, routed, 16), Arrival(20_000, routed, 16)])
    late = simulate(cold, [Arrival(0, routed, 16), Arrival(200_000, routed, 16)])
    assert soon.main_starts == 1
    assert late.main_starts == 2
    assert late.function_starts == 2 * first.function_starts


def test_a_lease_starts_functions_side_by_side_and_keeps_them() -> None:
    """Started one by one, the first function has stopped again when the last one is there."""
    starts = Starts(function_ms=2000, keep_ms=1500)
    routed = requests(1)[0].routed
    leased, one_by_one = (
        simulate(
            world(placed(), starts=starts, always_on=False, lease=lease), [Arrival(0, routed, 16)]
        )
        for lease in (True, False)
    )
    warm = simulate(world(placed()), [Arrival(0, routed, 16)]).served[0]
    assert leased.served[0].ttft_ms <= warm.ttft_ms + 2000
    assert leased.served[0].tpot_ms == pytest.approx(warm.tpot_ms)
    assert one_by_one.served[0].ttft_ms >= warm.ttft_ms + 4 * 2000 - 1
    assert one_by_one.function_starts > leased.function_starts
    assert one_by_one.served[0].tpot_ms > 2000


def test_lives_are_billed_to_the_end_of_the_wait() -> None:
    pool = Pool(GIB, 2, lambda: 100.0, 1000.0, Meter(load("lifetime")))
    assert pool.call(0.0, 50.0) == 150.0
    assert pool.call(200.0, 50.0) == 250.0  # the same replica
    assert pool.call(5000.0, 50.0) == 5150.0  # another one: that stopped at 1250
    pool.close(5150.0)
    assert pool.cold_starts == 2
    assert pool.meter.bill().functions == pytest.approx(1.25 + 1.15)


def test_a_busy_pool_starts_another_replica_and_takes_the_first_that_is_free() -> None:
    pool = Pool(GIB, 2, lambda: 500.0, 1e9, Meter(load("paper")))
    assert pool.call(0.0, 100.0) == 600.0
    assert pool.call(10.0, 100.0) == 610.0  # the second is ready at 510, the first free at 600
    assert pool.call(20.0, 100.0) == 700.0
    assert pool.waited_ms == pytest.approx(500 + 500 + 580)


def test_hedging_bounds_the_delay_of_slow_functions() -> None:
    placement = placed()
    slow = tuple(1e6 for _ in placement.functions)
    never = simulate(world(placement, row_ms=slow), requests(1))
    hedged = simulate(
        world(placement, row_ms=slow, hedge_ms=5.0, storage_bytes_per_s=1e9), requests(1)
    )
    assert never.hedged == 0
    assert hedged.hedged == hedged.missing == never.missing
    read = 1000 * placement.request.shape.expert_bytes / 1e9
    steps = 4 * 9  # layers, of the prompt and of eight tokens
    alone = simulate(world(placement), requests(1)).served[0]
    # What storage and the host do instead: read, and compute where functions would have.
    most = alone.done_ms + 5 * steps + (read + 1.0) * hedged.missing + steps
    assert hedged.served[0].done_ms <= most
    assert never.served[0].done_ms > 1e6


def test_no_hedge_is_sent_where_functions_answer_in_time() -> None:
    assert outcome(hedge_ms=1e6, storage_bytes_per_s=1.0) == outcome()


def test_a_cache_in_the_place_of_functions_misses_what_the_replay_misses() -> None:
    asked = requests(2)
    everything = np.concatenate([each.routed for each in asked], axis=1)
    found = simulate(
        world(
            placed(), memory=lambda: Cached(4, 16, 20, "lru"), missing=STORAGE,
            storage_bytes_per_s=1e9,
        ),
        [replace(each, n_prompt=1) for each in asked],
    )  # fmt: skip
    trace = from_routed(everything.astype(np.int16), 16)
    counts = _core.simulate(trace.columns(), 4, 16, 20, "lru", 0, None)
    assert found.missing == counts["misses"]
    assert found.calls == 0


def test_a_small_cache_takes_a_prompt_in_waves() -> None:
    small = Cached(1, 16, 4, "lru")
    assert small.missing(0, list(range(16)), 0, 32) == list(range(16))
    assert small.missing(0, [12, 13, 14, 15], 1, 1) == []


def test_payloads_are_cut_into_calls() -> None:
    whole, cut = placed(), placed()
    prices = cut.table.as_dict()
    prices["function"]["payload_bytes"] = 8192  # two rows one way
    cut = replace(cut, table=load("paper").__class__(
        **{**cut.table.__dict__, "function": replace(cut.table.function, payload_bytes=8192)}
    ))  # fmt: skip
    one, many = (simulate(world(p), requests(1)) for p in (whole, cut))
    assert many.calls > one.calls
    assert many.served[0].ttft_ms > one.served[0].ttft_ms
    assert many.bill.functions == pytest.approx(one.bill.functions)


# --- arrivals and routing ---


@pytest.mark.parametrize("kind", arrivals.KINDS)
def test_arrivals_come_in_order_and_at_the_rate(kind: str) -> None:
    draw = arrivals.KINDS[kind]
    changed = {"daily": {"day_ms": 1e6}, "bursty": {"burst_s": 1.0}}.get(kind, {})
    found = draw(20_000, 5.0, np.random.default_rng(0), **changed)
    assert (np.diff(found) >= 0).all()
    assert 1000 * len(found) / found[-1] == pytest.approx(5.0, rel=0.1)
    counts = np.histogram(found, bins=np.arange(0, found[-1], 2000.0))[0]
    spread = counts.var() / counts.mean()
    assert (spread == pytest.approx(1, abs=0.1)) if kind == "poisson" else (spread > 2)


def test_days_have_a_quiet_and_a_busy_half() -> None:
    found = arrivals.daily(5000, 10.0, np.random.default_rng(0), day_ms=100_000.0)
    hour = found % 100_000 / 100_000
    assert ((hour > 0.25) & (hour < 0.75)).mean() == pytest.approx(0.5 + 0.9 / math.pi, abs=0.03)


def test_topics_are_drawn_as_they_say() -> None:
    topics = Topics(2, 12, 3, n_topics=2, repeat=0.5, power=1.0)
    routed = topics.draw(0, 4000, np.random.default_rng(0))
    assert routed.shape == (2, 4000, 3)
    assert all(len(set(token)) == 3 for token in routed[0, :50].tolist())
    same = (np.sort(routed[:, 1:]) == np.sort(routed[:, :-1])).all((0, 2)).mean()
    assert same == pytest.approx(0.5, abs=0.05)
    used = activation(routed, 12)
    assert np.corrcoef(used[0], topics.shares[0, 0])[0, 1] > 0.9
    assert [each.shape for each in pieces(routed, 1500)] == [(2, 1500, 3)] * 2


def test_a_workload_of_one_token_has_no_answer() -> None:
    placement = placed(n_answer=1)
    assert placement.request.workload == Workload(64, 1)
    found = simulate(world(placement), requests(1, n_prompt=24))
    assert found.served[0].tpot_ms == 0


# --- hosts that share a machine ---


def test_shared_processors_are_dealt_evenly() -> None:
    two = Sharing(2)
    assert two.ends([(0.0, 3.0), (0.0, 1.0)]) == [3.0, 1.0]  # one each
    assert two.ends([(0.0, 1.0), (0.0, 1.0), (0.0, 1.0)]) == pytest.approx([1.5, 1.5, 1.5])
    # The second comes at 1, when a third of the first is done; from then on both are twice as slow.
    assert Sharing(1).ends([(0.0, 3.0), (1.0, 1.0)]) == pytest.approx([4.0, 3.0])
    # Side by side each takes half as long again: 2 / 1.5 of the longer one are left after 2 is 3.
    assert Sharing(2, 1.5).ends([(0.0, 4.0), (0.0, 2.0)]) == pytest.approx([5.0, 3.0])
    late = 1e7 + 2.212871725
    ends = Sharing(2, 1.2).ends([(late, 0.0), (late + 5.2, 20.31664435408195), (late, 3.3)])
    assert ends == pytest.approx([late, late + 25.51664435408195, late + 3.3], abs=1e-6)
    assert two.ends([(5.0, 0.0), (1.0, 0.0)]) == [5.0, 1.0]
    assert two.ends([]) == []


def test_functions_beside_the_host_take_its_processors() -> None:
    """A host and a function that both compute share one processor, or have one each."""
    half = placed(n_local=8)
    asked = requests(1)

    def tpot(sharing: Sharing | None) -> float:
        return simulate(world(half, sharing=sharing, round_trip_ms=0.0), asked).served[0].tpot_ms

    assert tpot(Sharing(1)) == pytest.approx(tpot(Sharing(2, 2.0)))
    assert tpot(None) <= tpot(Sharing(2, 1.5)) <= tpot(Sharing(1))
    assert tpot(None) < tpot(Sharing(1))
