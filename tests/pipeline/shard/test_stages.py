"""Shards of one worker in different stages at once, in real threads: what overlaps, what never does, who is blamed."""

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
from persres.pipeline.shard.stages import ShardStages, WorkerSpoilt

PATIENCE_S = 20.0


class Thing:
    """Something large that a stage hands to the next."""


def nothing(*_: object) -> Thing:
    return Thing()


class Line:
    """Shards going through one worker's stages, each in a thread of its own, with doors that the test opens."""

    def __init__(self) -> None:
        self.stages = ShardStages()
        self.threads = ThreadPoolExecutor(8)
        self.begun: dict[str, threading.Event] = {}
        self.doors: dict[str, threading.Event] = {}

    def send(self, name: str, **stages: Callable[..., object]) -> Future[object]:
        """Shut the door inside every stage of the shard, unless the test says what the stage does."""

        def behind_a_door(stage: str) -> Callable[..., object]:
            begun, door = threading.Event(), threading.Event()
            self.begun[f"{name} {stage}"], self.doors[f"{name} {stage}"] = begun, door

            def work(*_: object) -> str:
                begun.set()
                assert door.wait(PATIENCE_S)
                return f"{name} {stage}"

            return work

        load, device, commit = (stages.get(stage) or behind_a_door(stage) for stage in ("load", "device", "commit"))
        return self.threads.submit(self.stages.pass_through, load, device, commit)

    def let(self, stage: str) -> None:
        """Wait until a stage has begun and let it end."""
        assert self.begun[stage].wait(PATIENCE_S), f"{stage} has not begun"
        self.doors[stage].set()

    def waits(self, stage: str) -> bool:
        return not self.begun[stage].wait(0.05)


def test_the_next_shard_is_loaded_and_the_last_committed_while_one_is_on_the_device():
    line = Line()
    first = line.send("a")
    line.let("a load")
    assert line.begun["a device"].wait(PATIENCE_S)
    second, third = line.send("b"), line.send("c")
    ahead = next(name for name in ("b", "c") if not line.waits(f"{name} load"))
    other = "c" if ahead == "b" else "b"
    line.let(f"{ahead} load")
    assert line.waits(f"{ahead} device"), "the device has one shard at a time"
    assert line.waits(f"{other} load"), "one shard is loaded ahead, not two"
    line.let("a device")
    assert line.begun["a commit"].wait(PATIENCE_S)
    assert line.begun[f"{ahead} device"].wait(PATIENCE_S), "it does not wait for the commit"
    assert line.begun[f"{other} load"].wait(PATIENCE_S)
    for stage in ("a commit", f"{ahead} device", f"{ahead} commit", f"{other} load", f"{other} device"):
        line.let(stage)
    line.let(f"{other} commit")
    assert {one.result(PATIENCE_S) for one in (first, second, third)} == {"a commit", "b commit", "c commit"}


@given(st.lists(st.sampled_from(["", "load", "device", "commit"]), min_size=1, max_size=8))
def test_never_more_than_one_shard_in_a_stage_whatever_the_store_does(failing):
    stages, now, most = ShardStages(), Counter[str](), Counter[str]()
    lock = threading.Lock()

    def busy(stage: str, fails: bool) -> Callable[..., Thing]:
        def work(*_: object) -> Thing:
            with lock:
                now[stage] += 1
                most[stage] = max(most[stage], now[stage])
            time.sleep(0.001)
            with lock:
                now[stage] -= 1
            if fails:
                raise StoreError("SlowDown")
            return Thing()

        return work

    def one(fails: str) -> bool:
        try:
            stages.pass_through(*(busy(stage, fails == stage) for stage in ("load", "device", "commit")))
        except StoreError:
            return False
        return True

    with ThreadPoolExecutor(len(failing)) as threads:
        assert list(threads.map(one, failing)) == [not fails for fails in failing]
    assert set(most.values()) == {1}


def test_all_device_work_is_done_in_one_thread_with_torch_as_it_was_set_up():
    def state() -> tuple[object, ...]:
        return (
            threading.get_ident(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        )

    line = Line()
    line.stages.run_on_device(lambda: torch.set_num_threads(1))
    at_first = line.stages.run_on_device(state)
    seen = [line.send(str(number), load=nothing, device=lambda _: state(), commit=lambda it: it) for number in range(4)]
    assert {one.result(PATIENCE_S) for one in seen} == {at_first}
    assert at_first[1:] == (1, True, False, False)


def test_what_a_stage_leaves_is_let_go_when_the_next_has_ended():
    line = Line()
    alive: list[weakref.ref[Thing]] = []

    def new(*_: object) -> Thing:
        alive.append(weakref.ref(thing := Thing()))
        return thing

    def loaded_is_gone(_: object) -> bool:
        gc.collect()
        return alive[0]() is None

    assert line.send("a", load=new, device=new, commit=loaded_is_gone).result(PATIENCE_S) is True
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def fail(*_: object) -> Thing:
    raise ValueError("mat1 and mat2 shapes cannot be multiplied")


def test_after_an_error_no_other_shard_is_tried_but_what_is_past_the_device_is_committed():
    line, door, entered = Line(), threading.Event(), threading.Event()

    def fail_later(_: object) -> Thing:
        entered.set()
        assert door.wait(PATIENCE_S)
        return fail()

    done = line.send("done", load=nothing, device=nothing)
    assert line.begun["done commit"].wait(PATIENCE_S)
    bad = line.send("bad", load=nothing, device=fail_later)
    assert entered.wait(PATIENCE_S)
    loaded = line.send("loaded")
    line.let("loaded load")
    door.set()
    with pytest.raises(ValueError, match="mat1"):
        bad.result(PATIENCE_S)
    for late in (loaded, line.send("late")):
        with pytest.raises(WorkerSpoilt, match="another shard"):
            late.result(PATIENCE_S)
    assert line.waits("loaded device") and line.waits("late load")
    line.let("done commit")
    assert done.result(PATIENCE_S) == "done commit"


@pytest.mark.parametrize("stage", ["load", "device", "commit"])
def test_an_error_belongs_to_its_own_shard(stage):
    line = Line()
    work = {"load": nothing, "device": nothing, "commit": nothing} | {stage: fail}
    with pytest.raises(ValueError, match="mat1"):
        line.send("bad", **work).result(PATIENCE_S)
    with pytest.raises(WorkerSpoilt):
        line.send("next", load=nothing, device=nothing, commit=nothing).result(PATIENCE_S)


@pytest.mark.parametrize("stage", ["load", "device", "commit"])
def test_a_store_that_fails_spoils_nothing(stage):
    def down(*_: object) -> Thing:
        raise StoreError("SlowDown")

    line = Line()
    work = {"load": nothing, "device": nothing, "commit": nothing} | {stage: down}
    with pytest.raises(StoreError):
        line.send("unlucky", **work).result(PATIENCE_S)
    line.send("next", load=nothing, device=nothing, commit=nothing).result(PATIENCE_S)
