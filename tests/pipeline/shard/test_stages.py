"""The stages of a worker, in real threads: which overlap, which never do, and for which shard an error is raised."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import StoreError
from persres.pipeline.shard.stages import ShardStages, WorkerCorrupted

TIMEOUT_S = 20.0


class Output:
    """What a stage returns."""


def do_nothing(*_: object) -> Output:
    return Output()


class Worker:
    """A worker whose shards, each in a thread of its own, stay in each stage until the test ends it."""

    def __init__(self) -> None:
        self.stages = ShardStages()
        self.threads = ThreadPoolExecutor(8)
        self.begun: dict[str, threading.Event] = {}
        self.may_end: dict[str, threading.Event] = {}

    def send(self, name: str, **stages: Callable[..., object]) -> Future[object]:
        """Start a shard. Each of its stages waits for `finish`, unless the test gives a function for it."""

        def wait_for_finish(stage: str) -> Callable[..., object]:
            begun, may_end = threading.Event(), threading.Event()
            self.begun[f"{name} {stage}"], self.may_end[f"{name} {stage}"] = begun, may_end

            def work(*_: object) -> str:
                begun.set()
                assert may_end.wait(TIMEOUT_S)
                return f"{name} {stage}"

            return work

        load, device, commit = (stages.get(stage) or wait_for_finish(stage) for stage in ("load", "device", "commit"))
        return self.threads.submit(self.stages.run_shard, load, device, commit)

    def finish(self, stage: str) -> None:
        """Wait until a stage has begun, and end it."""
        assert self.begun[stage].wait(TIMEOUT_S), f"{stage} has not begun"
        self.may_end[stage].set()

    def is_waiting(self, stage: str) -> bool:
        return not self.begun[stage].wait(0.05)


def test_stages_of_different_shards_overlap():
    worker = Worker()
    first = worker.send("a")
    worker.finish("a load")
    assert worker.begun["a device"].wait(TIMEOUT_S)
    second, third = worker.send("b"), worker.send("c")
    ahead = next(name for name in ("b", "c") if not worker.is_waiting(f"{name} load"))
    other = "c" if ahead == "b" else "b"
    worker.finish(f"{ahead} load")
    assert worker.is_waiting(f"{ahead} device"), "the device has one shard at a time"
    assert worker.is_waiting(f"{other} load"), "one shard is loaded ahead, not two"
    worker.finish("a device")
    assert worker.begun["a commit"].wait(TIMEOUT_S)
    assert worker.begun[f"{ahead} device"].wait(TIMEOUT_S), "the device does not wait for the commit"
    assert worker.begun[f"{other} load"].wait(TIMEOUT_S)
    for stage in ("a commit", f"{ahead} device", f"{ahead} commit", f"{other} load", f"{other} device"):
        worker.finish(stage)
    worker.finish(f"{other} commit")
    assert {one.result(TIMEOUT_S) for one in (first, second, third)} == {"a commit", "b commit", "c commit"}


@given(st.lists(st.sampled_from(["", "load", "device", "commit"]), min_size=1, max_size=8))
def test_stages_hold_one_shard_each_in_spite_of_store_errors(failing):
    stages, now, most = ShardStages(), Counter[str](), Counter[str]()
    lock = threading.Lock()

    def busy(stage: str, fails: bool) -> Callable[..., Output]:
        def work(*_: object) -> Output:
            with lock:
                now[stage] += 1
                most[stage] = max(most[stage], now[stage])
            time.sleep(0.001)
            with lock:
                now[stage] -= 1
            if fails:
                raise StoreError("SlowDown")
            return Output()

        return work

    def one(fails: str) -> bool:
        try:
            stages.run_shard(*(busy(stage, fails == stage) for stage in ("load", "device", "commit")))
        except StoreError:
            return False
        return True

    with ThreadPoolExecutor(len(failing)) as threads:
        assert list(threads.map(one, failing)) == [not fails for fails in failing]
    assert set(most.values()) == {1}


def test_device_work_is_done_in_one_thread_with_its_torch_state():
    def state() -> tuple[object, ...]:
        return (
            threading.get_ident(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        )

    worker = Worker()
    worker.stages.run_on_device(lambda: torch.set_num_threads(1))
    at_first = worker.stages.run_on_device(state)
    seen = [
        worker.send(str(number), load=do_nothing, device=lambda _: state(), commit=lambda it: it) for number in range(4)
    ]
    assert {one.result(TIMEOUT_S) for one in seen} == {at_first}
    assert at_first[1:] == (1, True, False, False)


def test_results_of_a_stage_are_released_when_the_next_has_ended():
    worker = Worker()
    outputs: list[weakref.ref[Output]] = []

    def new(*_: object) -> Output:
        outputs.append(weakref.ref(output := Output()))
        return output

    def loaded_is_released(_: object) -> bool:
        gc.collect()
        return outputs[0]() is None

    assert worker.send("a", load=new, device=new, commit=loaded_is_released).result(TIMEOUT_S) is True
    gc.collect()
    assert [ref() for ref in outputs] == [None, None]


def fail(*_: object) -> Output:
    raise ValueError("mat1 and mat2 shapes cannot be multiplied")


def test_shards_after_an_error_are_not_executed_but_computed_ones_are_committed():
    worker, may_fail, entered = Worker(), threading.Event(), threading.Event()

    def fail_later(_: object) -> Output:
        entered.set()
        assert may_fail.wait(TIMEOUT_S)
        return fail()

    done = worker.send("done", load=do_nothing, device=do_nothing)
    assert worker.begun["done commit"].wait(TIMEOUT_S)
    bad = worker.send("bad", load=do_nothing, device=fail_later)
    assert entered.wait(TIMEOUT_S)
    loaded = worker.send("loaded")
    worker.finish("loaded load")
    may_fail.set()
    with pytest.raises(ValueError, match="mat1"):
        bad.result(TIMEOUT_S)
    for late in (loaded, worker.send("late")):
        with pytest.raises(WorkerCorrupted, match="another shard"):
            late.result(TIMEOUT_S)
    assert worker.is_waiting("loaded device") and worker.is_waiting("late load")
    worker.finish("done commit")
    assert done.result(TIMEOUT_S) == "done commit"


@pytest.mark.parametrize("stage", ["load", "device", "commit"])
def test_error_is_raised_for_its_own_shard(stage):
    worker = Worker()
    work = {"load": do_nothing, "device": do_nothing, "commit": do_nothing} | {stage: fail}
    with pytest.raises(ValueError, match="mat1"):
        worker.send("bad", **work).result(TIMEOUT_S)
    with pytest.raises(WorkerCorrupted):
        worker.send("next", load=do_nothing, device=do_nothing, commit=do_nothing).result(TIMEOUT_S)


@pytest.mark.parametrize("stage", ["load", "device", "commit"])
def test_store_error_does_not_corrupt_the_worker(stage):
    def down(*_: object) -> Output:
        raise StoreError("SlowDown")

    worker = Worker()
    work = {"load": do_nothing, "device": do_nothing, "commit": do_nothing} | {stage: down}
    with pytest.raises(StoreError):
        worker.send("failing", **work).result(TIMEOUT_S)
    worker.send("next", load=do_nothing, device=do_nothing, commit=do_nothing).result(TIMEOUT_S)
