"""What the contenders for a lease do: functions that run in processes of their own."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dailies.canonical import canonical_json
from dailies.errors import DailiesError, Fenced, Held, TimedOut
from dailies.ledger.holding import acquire, holding, keeping
from dailies.ledger.interface import Ledger
from dailies.ledger.records import Caps, Job, JobRequest, Lease
from dailies.scenarios.exclusion import EffectLog

PATIENCE_S = 60.0


def race(ledger: Ledger, log: Path, who: str, resource: str, rounds: int, ttl: float, seed: int) -> None:
    """Ask for the same lease again and again, and write down when it is inside."""
    rng = random.Random(f"{seed}/{who}")
    with EffectLog(log) as effects:
        for _ in range(rounds):
            effects.append(who, "asked")
            lease = acquire(ledger, resource, who, ttl, PATIENCE_S)
            effects.append(who, "enter", lease.fence)
            time.sleep(rng.uniform(0, 0.004))
            effects.append(who, "exit", lease.fence)
            ledger.leases.release(lease)


def hold_for_ever(ledger: Ledger, log: Path, who: str, resource: str, ttl: float) -> None:
    """A healthy holder that only death can part from its lease."""
    with EffectLog(log) as effects:
        lease = acquire(ledger, resource, who, ttl, PATIENCE_S)
        with keeping(ledger, ttl) as keeper:
            keeper.add(lease)
            effects.append(who, "enter", lease.fence)
            keeper.stopped.wait()


def take_over(ledger: Ledger, log: Path, who: str, resource: str, ttl: float) -> None:
    """A rival that waits for its chance without pause."""
    with EffectLog(log) as effects:
        effects.append(who, "asked")
        while True:
            try:
                lease = ledger.leases.acquire(resource, who, ttl)
                break
            except Held:
                time.sleep(0.02)
        effects.append(who, "enter", lease.fence)
        effects.append(who, "exit", lease.fence)
        ledger.leases.release(lease)


def keep_busy(ledger: Ledger, who: str, resource: str, ttl: float, ttls: int, how: str, out: Path) -> None:
    """Work for many ttls in a way that starves a careless renewal; say what became of the lease."""
    with holding(ledger, resource, who, ttl) as keeper:
        WORK[how](ttl * ttls)
        lease = ledger.leases.holder(resource)
        kept = not keeper.stopped.is_set() and lease is not None and lease.holder == who
        out.write_bytes(canonical_json({"kept": kept, "fence": lease.fence if lease else 0}))


def idle(seconds: float) -> None:
    time.sleep(seconds)


def block_the_event_loop(seconds: float) -> None:
    async def careless() -> None:
        time.sleep(seconds)  # the blocked loop is what is being tested

    asyncio.run(careless())


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


WORK: dict[str, Callable[[float], None]] = {"idle": idle, "blocked loop": block_the_event_loop, "busy thread": spin}


def freeze_and_write(ledger: Ledger, out: Path, who: str, trials: int, ttl: float) -> None:
    """Freeze in the gap between claiming and writing, then, revived, try every write the ledger has."""
    for trial in range(trials):
        job, lease, video = claim(ledger, f"{who}-{trial}", ttl)
        tell(out.with_suffix(".claims"), {"job": job.id, "video": video.resource})
        os.kill(os.getpid(), signal.SIGSTOP)
        tell(
            out, {"job": job.id, "landed": [name for name, write in stale_writes(ledger, lease, video) if lands(write)]}
        )


def claim(ledger: Ledger, name: str, ttl: float) -> tuple[Job, Lease, Lease]:
    """A job of its own, begun, with the lease on its video: everything a flow holds when its worker freezes."""
    submitted = ledger.jobs.submit(JobRequest("scenario", "freeze", name), key=name, run_id=name)
    video = ledger.leases.acquire(f"video:{name}", name, ttl)
    job, lease = ledger.jobs.start(submitted.id, submitted.attempt, name, ttl)
    return job, lease, video


def stale_writes(ledger: Ledger, lease: Lease, video: Lease) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("renew", lambda: ledger.leases.renew(lease, 60)),
        ("begin unit", lambda: ledger.units.begin(lease, "unit", "step")),
        ("complete unit", lambda: ledger.units.complete(lease, "unit", "step", "stale", "stale")),
        ("intend call", lambda: ledger.calls.intend(lease, "unit")),
        ("emit event", lambda: ledger.outbox.emit(lease, "dailies.stale", "stale", {})),
        ("publish", lambda: ledger.generations.publish(video, "stale")),
        ("end job", lambda: ledger.jobs.done(lease, "stale")),
        ("release", lambda: ledger.leases.release(video)),
    ]


def lands(write: Callable[[], object]) -> bool:
    try:
        write()
    except Fenced:
        return False
    return True


def check_then_write(ledger: Ledger, out: Path, who: str, trials: int, ttl: float) -> None:
    """The defect that fences exist for: ask whether the lease is still ours, then write, with a gap in between.

    It writes under whatever fence is current by then: to the ledger that is the same as a write without one.
    """
    for trial in range(trials):
        resource = f"careless:{who}-{trial}"
        lease = ledger.leases.acquire(resource, who, ttl)
        holder = ledger.leases.holder(resource)
        if holder is not None and holder.fence == lease.fence:
            tell(out.with_suffix(".claims"), {"video": resource})
            os.kill(os.getpid(), signal.SIGSTOP)
            if (current := ledger.leases.holder(resource)) is not None:
                ledger.generations.publish(current, "stale")
        tell(out, {"video": resource})


def tell(path: Path, what: object) -> None:
    """One whole line, so that a reader never sees half of one."""
    line = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(line, canonical_json(what) + b"\n")
    os.close(line)


def succeed(ledger: Ledger, job_id: str, video: str, give_up_s: float) -> Lease:
    """Take over what a frozen holder left: by the supervisor's own sweep, then as the next attempt."""
    until(lambda: recovered(ledger, job_id), give_up_s, f"job {job_id} was not recovered")
    while ledger.dispatch.next(Caps(10_000, 10_000)):
        pass  # claims what waits, this job among it
    rival = f"rival-{job_id}"
    _, lease = ledger.jobs.start(job_id, 2, rival, 60)
    ledger.units.complete(lease, "unit", "step", "fresh", "fresh")
    publish(ledger, video, rival, give_up_s)
    return lease


def publish(ledger: Ledger, video: str, rival: str, give_up_s: float) -> None:
    lease = acquire(ledger, video, rival, ttl=60, wait=give_up_s)
    ledger.generations.publish(lease, "fresh")


def recovered(ledger: Ledger, job_id: str) -> bool:
    ledger.jobs.recover()
    return ledger.jobs.get(job_id).attempt == 2


def until(true: Callable[[], bool], seconds: float, otherwise: str, over: threading.Event | None = None) -> None:
    """Wait for something to become true, at most so long, and not when it is ``over``."""
    over = over or threading.Event()
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimedOut(otherwise)
        if over.wait(0.02):
            raise TimedOut("another part of the scenario failed")


def misuses(ledger: Ledger, prefix: str = "") -> dict[str, str]:
    """Each wrong use of a lease, and the code of the error that it got."""
    misused, never, free = f"{prefix}misused", f"{prefix}never leased", f"{prefix}free"
    lease = ledger.leases.acquire(misused, "owner", 60)
    stranger = Lease(misused, "stranger", lease.fence, lease.expires_at)
    gone = ledger.leases.acquire(f"{prefix}gone", "owner", 0.01)
    time.sleep(0.05)
    released = ledger.leases.acquire(f"{prefix}released", "owner", 60)
    ledger.leases.release(released)
    found = {
        "release by a non-owner": lambda: ledger.leases.release(stranger),
        "renewal by a non-owner": lambda: ledger.leases.renew(stranger, 60),
        "a second release": lambda: ledger.leases.release(released),
        "renewal after expiry": lambda: ledger.leases.renew(gone, 60),
        "an unknown resource": lambda: ledger.leases.release(Lease(never, "owner", 1, 0.0)),
        "a ttl of zero": lambda: ledger.leases.acquire(free, "owner", 0),
        "a negative ttl": lambda: ledger.leases.acquire(free, "owner", -1),
        "a held lease": lambda: ledger.leases.acquire(misused, "stranger", 60),
    }
    codes = {name: code_of(misuse) for name, misuse in found.items()}
    ledger.leases.release(lease)
    return codes


MISUSE_CODES = {
    "release by a non-owner": "fenced",
    "renewal by a non-owner": "fenced",
    "a second release": "fenced",
    "renewal after expiry": "fenced",
    "an unknown resource": "missing",
    "a ttl of zero": "bad_input",
    "a negative ttl": "bad_input",
    "a held lease": "held",
}


def code_of(misuse: Callable[[], object]) -> str:
    try:
        misuse()
    except DailiesError as error:
        return error.code
    return "no error"
