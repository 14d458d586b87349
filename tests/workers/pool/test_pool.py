"""The pool over real worker processes with the echo engine: faults, admission, routing, drain."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from shared.errors import InvalidRequest, NotReady, QueueFull, Unsupported
from shared.messages import Embedded, Failed, Finished, LoadFailed, Ready, Steps, Token
from shared.prompt import Prompt
from shared.sampling import SamplingParams
from shared.settings import CacheSettings, RestartPolicy
from shared.values import Counts, ModelInfo
from shared.wire import PROTOCOL
from tests.helpers.support import (
    QUICK_RESTART,
    collect,
    echo_options,
    end_of,
    first_tokens,
    model_settings,
    pool_settings,
    run,
    text_of,
    until,
    until_ready,
    with_pool,
)
from workers.pool.handle import WorkerHandle
from workers.pool.pool import WorkerPool
from workers.pool.status import WorkerCounters
from workers.pool.stream import RequestStream
from workers.pool.supervisor import Supervisor, back_off_s
from workers.prompts.restore import process_and_save

LONG = SamplingParams(num_predict=10_000, ignore_eos=True)
FULL = SamplingParams(num_predict=1_000)
INFO = ModelInfo("echo", "echo", 256, 257, 4, 64, ())


def slow_echo(folder: Path, **options: object) -> object:
    """An echo model whose steps take 10 ms, with room for long streams."""
    return model_settings(path=echo_options(folder, step_s=0.01, **options), context=20_000)


def children() -> list[psutil.Process]:
    """Worker processes of this test process."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]


def worker_pids(pool: WorkerPool) -> list[int]:
    return [worker.pid for worker in pool.status().workers if worker.pid is not None]


def test_a_request_is_streamed_in_order_and_ends_with_its_counts() -> None:
    async def step(pool: WorkerPool) -> None:
        events = await collect(pool, pool.submit(Prompt("Grüße, 世界 🙂"), FULL))

        assert text_of(events) == "Grüße, 世界 🙂"
        tokens = [event for event in events if isinstance(event, Token)]
        assert [token.position for token in tokens] == list(range(len("Grüße, 世界 🙂".encode())))
        end = end_of(events)
        assert isinstance(end, Finished)
        assert (end.reason, end.usage.completion_tokens) == ("stop", len(tokens))

    with_pool(pool_settings(), step)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("segfault", "SIGSEGV"),
        ("abort", "SIGABRT"),
        ("exit", "status 1"),
        ("hang", "no progress"),
        ("hang-gil", "no progress"),
        ("stop", "no progress"),
    ],
)
def test_a_worker_that_dies_cuts_only_its_own_streams_and_is_replaced(
    fault: str, cause: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Stuck workers, with or without the GIL, and stopped ones make no progress."""
    settings = pool_settings(slow_echo(tmp_path), workers=2, progress_timeout_s=1.5)

    async def step(pool: WorkerPool) -> None:
        neighbour = pool.submit(Prompt("neighbour "), replace(LONG, num_predict=200))
        await first_tokens(neighbour)
        victim = pool.submit(Prompt(f"abc[[{fault}]]"), FULL)

        events = await collect(pool, victim)

        assert text_of(events).startswith("abc")
        assert end_of(events) == Failed(
            victim.request.id, "worker_died", "the worker of this request has died"
        )
        rest = await collect(pool, neighbour)
        assert isinstance(end_of(rest), Finished)
        await until_ready(pool, 2)
        assert text_of(await collect(pool, pool.submit(Prompt("again"), FULL))) == "again"

    with_pool(settings, step)
    assert any(cause in record.message for record in caplog.records)


def test_a_worker_that_counts_in_other_buckets_is_broken_and_replaced() -> None:
    async def step(pool: WorkerPool) -> None:
        (worker,) = pool._supervisor.workers
        assert worker.handle is not None
        worker.handle._on_messages([Steps("decode", Counts((1,), 1.0), Counts((1,), 1.0))])
        await until(lambda: worker.counters.deaths["broken_frames"] == 1)
        await until_ready(pool)
        assert worker.counters.deaths.total() == 1

    with_pool(pool_settings(), step)


def test_kill_9_in_mid_stream_cuts_the_stream_within_a_second() -> None:
    async def step(pool: WorkerPool) -> None:
        stream = pool.submit(Prompt("x"), replace(LONG, num_predict=200_000))
        await first_tokens(stream)
        (pid,) = worker_pids(pool)
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)

        events = await collect(pool, stream)

        assert time.monotonic() - killed_at < 1.0
        assert isinstance(end_of(events), Failed)

    settings = pool_settings(model_settings(context=300_000))
    with_pool(settings, step)


def test_a_prompt_that_kills_its_worker_is_not_given_to_another() -> None:
    async def step(pool: WorkerPool) -> None:
        before = set(worker_pids(pool))

        events = await collect(pool, pool.submit(Prompt("x[[prefill abort]]"), FULL))

        assert isinstance(end_of(events), Failed)
        await until_ready(pool, 2)
        assert len(before - set(worker_pids(pool))) == 1

    with_pool(pool_settings(workers=2), step)


def test_a_waiting_request_survives_the_death_of_the_worker_it_waits_for(tmp_path: Path) -> None:
    async def step(pool: WorkerPool) -> None:
        poison = pool.submit(Prompt("x[[sleep 0.2]][[abort]]"), FULL)
        waiting = pool.submit(Prompt("patience"), FULL)
        assert pool.status().waiting == 1

        assert isinstance(end_of(await collect(pool, poison)), Failed)
        assert text_of(await collect(pool, waiting)) == "patience"

    with_pool(pool_settings(model_settings(path=echo_options(tmp_path, slots=1))), step)


def test_an_error_of_the_engine_costs_its_request_and_no_worker() -> None:
    async def step(pool: WorkerPool) -> None:
        before = worker_pids(pool)
        neighbour = pool.submit(Prompt("neighbour"), replace(LONG, num_predict=50))

        events = await collect(pool, pool.submit(Prompt("a[[fail]]"), FULL))

        assert end_of(events).code == "engine_failed"  # type: ignore[union-attr]
        assert isinstance(end_of(await collect(pool, neighbour)), Finished)
        assert worker_pids(pool) == before

    with_pool(pool_settings(), step)


def test_a_full_queue_refuses_and_takes_again_when_there_is_room(tmp_path: Path) -> None:
    settings = pool_settings(slow_echo(tmp_path, slots=1), queue=1)

    async def step(pool: WorkerPool) -> None:
        running = pool.submit(Prompt("run "), LONG)
        waiting = pool.submit(Prompt("wait"), FULL)
        with pytest.raises(QueueFull, match="1 requests wait"):
            pool.submit(Prompt("too many"), FULL)

        pool.release(running)

        assert text_of(await collect(pool, waiting)) == "wait"
        assert text_of(await collect(pool, pool.submit(Prompt("now"), FULL))) == "now"

    with_pool(settings, step)


def test_a_queue_of_zero_still_lets_free_slots_be_used(tmp_path: Path) -> None:
    settings = pool_settings(slow_echo(tmp_path, slots=1), queue=0)

    async def step(pool: WorkerPool) -> None:
        assert text_of(await collect(pool, pool.submit(Prompt("only"), FULL))) == "only"
        pool.submit(Prompt("run "), LONG)
        with pytest.raises(QueueFull):
            pool.submit(Prompt("no"), FULL)

    with_pool(settings, step)


def test_a_request_whose_client_leaves_while_it_waits_never_reaches_a_worker(
    tmp_path: Path,
) -> None:
    """The prompt would kill the worker if it ran."""

    async def step(pool: WorkerPool) -> None:
        before = worker_pids(pool)
        running = pool.submit(Prompt("run "), replace(LONG, num_predict=30))
        left = pool.submit(Prompt("[[prefill abort]]"), FULL)
        after = pool.submit(Prompt("after"), FULL)
        pool.release(left)

        await collect(pool, running)

        assert text_of(await collect(pool, after)) == "after"
        assert worker_pids(pool) == before

    with_pool(pool_settings(slow_echo(tmp_path, slots=1)), step)


def test_cancelling_frees_the_slot_and_leaves_the_neighbour_alone(tmp_path: Path) -> None:
    async def step(pool: WorkerPool) -> None:
        neighbour = pool.submit(Prompt("The neighbour's text is whole."), FULL)
        cancelled = pool.submit(Prompt("x"), LONG)
        await first_tokens(cancelled)
        assert pool.status().active == 2

        pool.release(cancelled)

        assert text_of(await collect(pool, neighbour)) == "The neighbour's text is whole."
        await until(lambda: pool.status().active == 0)
        assert await cancelled.take() == []

    with_pool(pool_settings(slow_echo(tmp_path)), step)


def test_cancelling_stops_prompt_processing_within_a_chunk(tmp_path: Path) -> None:
    """2,000 chunks of 10 ms: the next request would wait 20 s for the only slot."""

    async def step(pool: WorkerPool) -> None:
        long_prompt = pool.submit(Prompt("p" * 16_000), replace(FULL, n_batch=8))
        await until(lambda: pool.status().active == 1)
        pool.release(long_prompt)
        started = time.monotonic()

        assert text_of(await collect(pool, pool.submit(Prompt("next"), FULL))) == "next"
        assert time.monotonic() - started < 5

    with_pool(pool_settings(slow_echo(tmp_path, slots=1)), step)


def test_tokens_after_a_cancel_are_dropped_and_counted(tmp_path: Path) -> None:
    async def step(pool: WorkerPool) -> None:
        (worker,) = pool._supervisor.workers
        stream = pool.submit(Prompt("x"), LONG)
        await first_tokens(stream)
        time.sleep(0.05)  # the loop stands still, and tokens pile up in the queue
        pool.release(stream)
        await until(lambda: pool.status().active == 0)
        assert worker.handle is not None
        assert worker.handle.late_messages > 0

    with_pool(pool_settings(model_settings(context=100_000)), step)


def test_requests_go_to_the_least_loaded_worker(tmp_path: Path) -> None:
    async def step(pool: WorkerPool) -> None:
        for _ in range(6):
            pool.submit(Prompt("x"), LONG)
        handles = [worker.handle for worker in pool._supervisor.workers]
        assert [handle.in_flight for handle in handles if handle] == [2, 2, 2]

    with_pool(pool_settings(slow_echo(tmp_path), workers=3), step)


def test_without_a_ready_worker_requests_are_refused(tmp_path: Path) -> None:
    async def go() -> None:
        model = model_settings(path=echo_options(tmp_path, load_s=0.3))
        async with WorkerPool(pool_settings(model)) as pool:
            assert pool.status().why_not_ready == "no worker is ready yet"
            with pytest.raises(NotReady):
                pool.submit(Prompt("x"), FULL)
            await until_ready(pool)
            assert pool.status().why_not_ready is None

    run(go())


def test_a_model_that_cannot_be_loaded_is_told_and_not_tried_again(tmp_path: Path) -> None:
    async def go() -> None:
        model = model_settings(path=echo_options(tmp_path, load_error="no such tensor"))
        async with WorkerPool(pool_settings(model)) as pool:
            assert str(await pool.load_failure()) == "no such tensor"
            await until(lambda: "no worker is left" in (pool.status().why_not_ready or ""))
            await until(lambda: worker_pids(pool) == [])

    run(go())


def test_a_worker_that_takes_too_long_to_load_is_killed_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        model = model_settings(path=echo_options(tmp_path, load_s=60))
        async with WorkerPool(pool_settings(model, load_timeout_s=0.3)) as pool:
            await until(lambda: "not ready after" in caplog.text)
            (first,) = worker_pids(pool) or [0]
            await until(lambda: worker_pids(pool) not in ([], [first]))

    run(go())


def test_a_crash_loop_ends_with_the_worker_given_up_and_everyone_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        model = model_settings(path=echo_options(tmp_path, dies_after_s=0.1, slots=1))
        async with WorkerPool(pool_settings(model)) as pool:
            await until(lambda: "no worker is left" in (pool.status().why_not_ready or ""))
            with pytest.raises(NotReady, match="no worker is left"):
                pool.submit(Prompt("x"), FULL)

    run(go())
    assert (
        "worker 0 is given up: 4 processes died in a row without completing a request"
        in caplog.text
    )


def test_a_crash_loop_ends_however_long_loading_takes(tmp_path: Path) -> None:
    """Deaths used to be counted within a minute. A model that takes 15 s to load never died five
    times in one, and was restarted forever."""

    async def go() -> None:
        model = model_settings(path=echo_options(tmp_path, load_s=0.3, dies_after_s=0.05))
        policy = replace(QUICK_RESTART, max_deaths=3, longest_wait_s=0.5, first_wait_s=0.5)
        async with WorkerPool(pool_settings(model, restart=policy)) as pool:
            await until(lambda: pool.status().is_lost)
            assert pool.status().workers[0].counters.deaths.total() == 3

    run(go())


def test_a_worker_that_completes_requests_between_its_deaths_is_never_given_up() -> None:
    async def step(pool: WorkerPool) -> None:
        for _ in range(5):
            assert text_of(await collect(pool, pool.submit(Prompt("fine"), FULL))) == "fine"
            (pid,) = worker_pids(pool)
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: worker_pids(pool) not in ([], [pid]))  # type: ignore[misc]
            await until_ready(pool)
        assert pool.status().workers[0].counters.deaths["sigkill"] == 5

    with_pool(pool_settings(restart=replace(QUICK_RESTART, max_deaths=2)), step)


def test_a_worker_that_served_long_enough_without_a_request_was_healthy(tmp_path: Path) -> None:
    """An idle worker that the OOM killer ends once a month must not be given up after five."""

    async def go() -> None:
        model = model_settings(path=echo_options(tmp_path, dies_after_s=0.3))
        policy = replace(QUICK_RESTART, max_deaths=2, healthy_s=0.1)
        async with WorkerPool(pool_settings(model, restart=policy)) as pool:
            (worker,) = pool.status().workers
            await until(lambda: worker.counters.deaths.total() == 4)
            assert not pool.status().is_lost

    run(go())


@pytest.mark.parametrize("message", [Ready(PROTOCOL, INFO, 0.1), LoadFailed("no such tensor")])
def test_a_worker_that_ends_loading_twice_is_broken_and_replaced(
    message: Ready | LoadFailed, caplog: pytest.LogCaptureFixture
) -> None:
    """The `ready` future used to be set twice: InvalidStateError inside the asyncio protocol."""

    async def step(pool: WorkerPool) -> None:
        (worker,) = pool._supervisor.workers
        assert worker.handle is not None
        worker.handle._on_messages([message])
        await until(lambda: worker.counters.deaths["broken_frames"] == 1)
        await until_ready(pool)

    with_pool(pool_settings(), step)
    kind = type(message).__name__
    assert f"worker 0 sent a {kind} after loading had ended" in caplog.text


def test_an_error_in_supervising_a_worker_is_logged_and_costs_one_process_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The task used to die silently: the worker was never watched or replaced again."""

    async def go() -> None:
        changes = 0

        def fail_once() -> None:
            nonlocal changes
            changes += 1
            if changes == 1:
                raise RuntimeError("a bug")

        supervisor = Supervisor(pool_settings(), fail_once)
        supervisor.start()
        (worker,) = supervisor.workers
        await until(lambda: worker.status.state == "ready")
        assert worker.counters.deaths["internal_error"] == 1
        assert len(children()) == 1
        await supervisor.stop(2.0)

    run(go())
    assert "supervising worker 0 failed" in caplog.text
    assert "RuntimeError: a bug" in caplog.text
    assert children() == []


def test_a_worker_that_can_never_be_supervised_is_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The target cannot be pickled, so every attempt fails by an error that is no OSError."""

    async def go() -> None:
        async with WorkerPool(pool_settings(), target=lambda *_: None) as pool:
            assert await pool.until_ready() == "no worker is left; the server's log says why"

    run(go())
    assert caplog.text.count("supervising worker 0 failed") == QUICK_RESTART.max_deaths
    assert "worker 0 is given up" in caplog.text


def test_requests_that_wait_when_the_last_worker_is_given_up_fail(tmp_path: Path) -> None:
    async def go() -> None:
        options = echo_options(tmp_path, slots=1)
        once = replace(QUICK_RESTART, max_deaths=1)
        async with WorkerPool(pool_settings(model_settings(path=options), restart=once)) as pool:
            await until_ready(pool)
            poison = pool.submit(Prompt("x[[sleep 0.1]][[abort]]"), FULL)
            waiting = pool.submit(Prompt("never"), FULL)
            assert isinstance(end_of(await collect(pool, poison)), Failed)
            assert end_of(await collect(pool, waiting)).code == "not_ready"  # type: ignore[union-attr]

    run(go())


def test_the_wait_before_a_replacement_doubles_and_is_bounded() -> None:
    policy = RestartPolicy(first_wait_s=0.5, longest_wait_s=3.0)
    assert [back_off_s(policy, deaths) for deaths in range(1, 7)] == [0, 0.5, 1, 2, 3, 3]


def test_draining_lets_streams_end_and_takes_no_more(tmp_path: Path) -> None:
    async def step(pool: WorkerPool) -> None:
        stream = pool.submit(Prompt("the whole text"), FULL)
        draining = asyncio.create_task(pool.drain(20))
        await until(lambda: pool.status().why_not_ready == "the server is shutting down")
        with pytest.raises(NotReady, match="shutting down"):
            pool.submit(Prompt("x"), FULL)

        assert text_of(await collect(pool, stream)) == "the whole text"
        await draining

    with_pool(pool_settings(slow_echo(tmp_path)), step)


def test_draining_cuts_what_runs_longer_than_its_timeout(tmp_path: Path) -> None:
    async def step(pool: WorkerPool) -> None:
        stream = pool.submit(Prompt("x"), LONG)
        waiting = [pool.submit(Prompt("x"), LONG) for _ in range(2)]
        draining = asyncio.create_task(pool.drain(0.2))

        for cut in (stream, *waiting):
            assert end_of(await collect(pool, cut)).code == "not_ready"  # type: ignore[union-attr]
        await draining

    with_pool(pool_settings(slow_echo(tmp_path, slots=1)), step)


def test_no_process_is_left_behind_whatever_the_workers_do() -> None:
    async def go() -> None:
        async with WorkerPool(pool_settings(workers=3)) as pool:
            await until_ready(pool, 3)
            pool.submit(Prompt("[[hang-gil]]"), FULL)
            pool.submit(Prompt("[[stop]]"), FULL)
            pool.submit(Prompt("x"), LONG)
            assert len(children()) == 3

    run(go())
    assert children() == []


def test_ending_the_pool_while_workers_start_leaves_no_process(tmp_path: Path) -> None:
    async def go() -> None:
        model = model_settings(path=echo_options(tmp_path, load_s=60))
        async with WorkerPool(pool_settings(model, workers=2)):
            await asyncio.sleep(0)

    run(go())
    assert children() == []


def test_killing_and_replacing_workers_leaks_no_descriptors() -> None:
    async def step(pool: WorkerPool) -> None:
        async def kill_one() -> None:
            (pid,) = worker_pids(pool)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: worker_pids(pool) not in ([], [pid]))
            await until_ready(pool)

        await kill_one()
        before = psutil.Process().num_fds()
        for _ in range(5):
            await kill_one()
        assert psutil.Process().num_fds() <= before

    patient = replace(QUICK_RESTART, max_deaths=100, longest_wait_s=0.05)
    with_pool(pool_settings(restart=patient), step)


def test_a_worker_is_replaced_once_there_are_descriptors_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def step(pool: WorkerPool) -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        (pid,) = worker_pids(pool)
        resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds(), limits[1]))
        try:
            os.kill(pid, signal.SIGKILL)
            await until(lambda: "worker 0 cannot be started" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await until_ready(pool)
        assert text_of(await collect(pool, pool.submit(Prompt("back"), FULL))) == "back"

    with_pool(pool_settings(restart=replace(QUICK_RESTART, max_deaths=2)), step)


def test_the_loop_does_not_go_on_to_watch_a_worker_that_was_gone_before_it_knew() -> None:
    """A race, made certain: the exit code is known before the loop has reported the sentinel. A
    later pipe with the same descriptor number could then not be watched."""

    async def go() -> None:
        (settings,) = pool_settings().workers
        handle = await WorkerHandle.start(settings, lambda: None, WorkerCounters())
        await handle.ready
        loop, sentinel = asyncio.get_running_loop(), handle.process._process.sentinel

        def kill_and_wait() -> None:
            process = psutil.Process(handle.process.pid)
            process.kill()
            while process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.001)  # the loop is to stay where it is

        loop.call_soon(kill_and_wait)
        handle.process._receiver.close()  # its end is told right behind
        await handle.process.until_ended()
        reader, writer = os.pipe()
        os.dup2(reader, sentinel)
        pipe = os.fdopen(sentinel, "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(asyncio.Protocol, pipe)
        transport.close()
        os.close(reader)
        os.close(writer)

    run(go())


def test_a_field_that_the_engine_cannot_honour_is_refused_by_name() -> None:
    async def step(pool: WorkerPool) -> None:
        with pytest.raises(Unsupported, match="the echo engine cannot honour logprobs"):
            pool.submit(Prompt("x"), replace(FULL, logprobs=1))
        assert (
            text_of(await collect(pool, pool.submit(Prompt("x"), replace(FULL, min_p=0.5)))) == "x"
        )

    with_pool(pool_settings(), step)


def test_the_refusal_names_every_field_that_the_engine_cannot_honour(llama_gguf: Path) -> None:
    settings = pool_settings(model_settings("ctransformers", llama_gguf))

    async def step(pool: WorkerPool) -> None:
        with pytest.raises(Unsupported) as refused:
            pool.submit(Prompt("x"), replace(FULL, dry_multiplier=0.8, min_p=0.1, seed=3, temp=0.5))

        assert refused.value.message == (
            "the ctransformers engine cannot honour min_p, dry_multiplier"
        )
        assert (pool.status().active, pool.status().waiting) == (0, 0)

    with_pool(settings, step)


def test_a_field_that_no_slot_would_ever_honour_is_not_told_to_come_back_later(
    tmp_path: Path,
) -> None:
    async def step(pool: WorkerPool) -> None:
        pool.submit(Prompt("run "), LONG)
        with pytest.raises(QueueFull):
            pool.submit(Prompt("x"), FULL)
        with pytest.raises(Unsupported):
            pool.submit(Prompt("x"), replace(FULL, logprobs=0))

    with_pool(pool_settings(slow_echo(tmp_path, slots=1), queue=0), step)


# ---------------------------------------------------------------- where prompts have been processed


def test_a_chat_stays_where_its_history_is() -> None:
    """Three chats on two workers: each turn finds the chat's earlier turns cached."""
    start = "A long beginning, which is worth something. "

    async def step(pool: WorkerPool) -> None:
        chats = [f"{number} {start}" for number in range(3)]
        for turn in range(4):
            for number, chat in enumerate(chats):
                end = end_of(await collect(pool, pool.submit(Prompt(chat), FULL)))
                assert isinstance(end, Finished)
                assert (end.usage.cached_tokens >= len(start)) == (turn > 0)
                chats[number] = f"{chat}More {turn}. "

    with_pool(pool_settings(workers=2), step)


def test_an_id_goes_to_the_worker_that_has_it() -> None:
    async def step(pool: WorkerPool) -> None:
        for prompt_id in range(1, 5):
            await collect(
                pool, pool.submit(Prompt(f"{prompt_id} is a prompt of its own"), FULL, prompt_id)
            )
        for prompt_id in range(1, 5):
            prompt = f"{prompt_id} is a prompt of its own"
            end = end_of(await collect(pool, pool.submit(Prompt(prompt), FULL, prompt_id)))
            assert isinstance(end, Finished)
            assert end.usage.cached_tokens == len(prompt) - 1
        assert [saved.id for saved in await pool.saved_prompts()] == [1, 2, 3, 4]
        assert await pool.drop_prompt(2)
        assert not await pool.drop_prompt(2)
        assert [saved.id for saved in await pool.saved_prompts()] == [1, 3, 4]

    cache = CacheSettings(memory=10**6)
    settings = pool_settings(workers=2)
    workers = tuple(replace(worker, cache=cache) for worker in settings.workers)
    with_pool(replace(settings, workers=workers), step)


def test_clients_that_wait_are_served_in_turn() -> None:
    """A client with many requests does not delay another client's single one."""

    async def step(pool: WorkerPool) -> None:
        held = pool.submit(Prompt("run "), LONG)
        await first_tokens(held)
        greedy = [pool.submit(Prompt("greedy"), FULL, client="a") for _ in range(4)]
        modest = pool.submit(Prompt("modest"), FULL, client="b")
        async with asyncio.TaskGroup() as group:
            for stream in (*greedy, modest):
                group.create_task(collect(pool, stream))
            pool.release(held)

        def got_its_slot(stream: RequestStream) -> float:
            return stream._submitted_at + stream.queued_s

        in_turn = [greedy[0], modest, *greedy[1:]]
        assert sorted((*greedy, modest), key=got_its_slot) == in_turn

    with_pool(pool_settings(model_settings(slots=1)), step)


def test_waiting_prompts_are_bounded_in_tokens_too() -> None:
    async def step(pool: WorkerPool) -> None:
        held = pool.submit(Prompt("run "), LONG)
        await first_tokens(held)
        first = pool.submit(Prompt("x" * 3000), FULL)  # a single one is never too much
        with pytest.raises(QueueFull, match=r"would have about \d+ tokens, more than 500"):
            pool.submit(Prompt("x" * 3000), FULL)
        pool.release(first)
        pool.release(pool.submit(Prompt("x" * 100), FULL))
        pool.release(held)

    with_pool(pool_settings(model_settings(slots=1, context=20_000), queue_tokens=500), step)


def test_the_tokens_of_a_restored_prompt_are_not_those_of_the_prompts_that_wait(
    tmp_path: Path,
) -> None:
    """They used to be counted as tokens of the short prompts, so waiting prompts got early 429s.

    The echo engine has a token for each byte.
    """
    path = tmp_path / "long.prompt"
    settings = pool_settings(model_settings(slots=1, context=20_000), queue_tokens=500)
    (worker,) = settings.workers
    process_and_save(worker, "x" * 2000, path)
    restoring = replace(worker, cache=CacheSettings(memory=10**6, restore=path))

    async def step(pool: WorkerPool) -> None:
        for _ in range(3):
            end = end_of(await collect(pool, pool.submit(Prompt("short one!"), FULL)))
            assert isinstance(end, Finished)
            assert end.usage.prompt_tokens == 2010
        held = pool.submit(Prompt("run "), LONG)
        await first_tokens(held)
        waiting = [pool.submit(Prompt("y" * 100), FULL) for _ in range(4)]
        for stream in (held, *waiting):
            pool.release(stream)

    with_pool(replace(settings, workers=(restoring,)), step)


def test_a_full_queue_says_when_to_come_back_by_what_requests_took() -> None:
    async def step(pool: WorkerPool) -> None:
        await collect(pool, pool.submit(Prompt("x[[sleep 0.7]]"), FULL))
        held = pool.submit(Prompt("run "), LONG)
        await first_tokens(held)
        waiting = [pool.submit(Prompt("x"), FULL) for _ in range(4)]
        with pytest.raises(QueueFull) as caught:
            pool.submit(Prompt("x"), FULL)
        retry_after_s = caught.value.retry_after_s
        assert retry_after_s is not None
        assert 4 <= retry_after_s <= 10  # five times 0.7 s, and the tokens, on a busy machine too
        for stream in (held, *waiting):
            pool.release(stream)

    with_pool(pool_settings(model_settings(slots=1), queue=4), step)


# ---------------------------------------------------------------- vectors, tokens, loading


def test_a_prompt_is_embedded_by_a_worker(tmp_path: Path, llama_gguf: Path) -> None:
    async def step(pool: WorkerPool) -> None:
        info = pool.status().model
        assert info is not None
        events = await embedded(pool, pool.embed(Prompt("The Wolf")))
        vector, end = events
        assert isinstance(vector, Embedded)
        assert len(vector.vector) == 4 * info.embedding
        assert isinstance(end, Finished)
        assert end.usage.prompt_tokens == len(
            (await pool.tokenize(Prompt("The Wolf"), is_start=True)).tokens
        )
        again = await embedded(pool, pool.embed(Prompt("The Wolf")))
        assert again[0] == Embedded(again[0].id, vector.vector)

    with_pool(pool_settings(), step)
    with_pool(pool_settings(model_settings("llama_cpp", llama_gguf, slots=2)), step)


async def embedded(pool: WorkerPool, stream: RequestStream) -> list[Any]:
    events: list[Any] = []
    try:
        while not events or isinstance(events[-1], Embedded):
            events += await stream.take()
    finally:
        pool.release(stream)
    return events


def test_an_engine_without_vectors_refuses_to_embed(llama_ggjt: Path) -> None:
    async def step(pool: WorkerPool) -> None:
        with pytest.raises(Unsupported, match="no embeddings"):
            pool.embed(Prompt("x"))

    settings = model_settings("ctransformers", llama_ggjt, model_type="llama")
    with_pool(pool_settings(settings), step)


def test_an_embedding_that_nobody_waits_for_is_cancelled(tmp_path: Path) -> None:
    async def step(pool: WorkerPool) -> None:
        first = pool.embed(Prompt("[[prefill sleep 0.05]]" * 200))
        pool.release(first)
        await embedded(pool, pool.embed(Prompt("b")))

    with_pool(pool_settings(slow_echo(tmp_path)), step)


def test_tokens_are_told_while_all_slots_are_taken(tmp_path: Path) -> None:
    async def step(pool: WorkerPool) -> None:
        stream = pool.submit(Prompt("abc " * 20), LONG)
        await first_tokens(stream)
        assert pool.status().active == 1
        answer = await pool.tokenize(Prompt("é<|eot|>"), is_start=True)
        assert (answer.tokens, answer.pieces[-1]) == ((0xC3, 0xA9, 257), b"<|eot|>")
        with pytest.raises(InvalidRequest, match="not in the vocabulary"):
            await pool.tokenize(Prompt(tokens=(999,)), is_start=True)
        assert pool.status().active == 1
        pool.release(stream)

    with_pool(pool_settings(slow_echo(tmp_path, slots=1)), step)


def test_control_tokens_are_in_the_text_of_those_who_ask_for_them() -> None:
    async def step(pool: WorkerPool) -> None:
        prompt = Prompt("a<|eot|>b")
        assert text_of(await collect(pool, pool.submit(prompt, FULL))) == "ab"
        shown = pool.submit(prompt, FULL, shows_control=True)
        assert text_of(await collect(pool, shown)) == "a<|eot|>b"

    with_pool(pool_settings(), step)


def test_a_worker_tells_how_far_loading_is(tmp_path: Path) -> None:
    async def go() -> None:
        model = model_settings(path=echo_options(tmp_path, load_s=0.4))
        async with WorkerPool(pool_settings(model)) as pool:
            told = set()

            def is_ready() -> bool:
                told.update(worker.loaded for worker in pool.status().workers)
                return pool.status().ready_workers == 1

            await until(is_ready)
        assert len(told) > 2
        assert max(told) <= 1

    run(go())
