"""Work of a step that runs elsewhere: submitted once, found again by whoever continues the job.

    intend ── compute.intended ── submit ── compute.submitted ── write down its id ── compute.recorded ── wait ── ended

Who dies before the id is written down submits the same unit again, and compute finds the call or its result; who dies
later finds the id. Either way the work is paid for once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from prefect import get_run_logger

from blocks.site import OpenSite
from dailies.canonical import digest
from dailies.compute.interface import Busy, Canceled, StillRunning, UnknownCall, Unreachable
from dailies.errors import DailiesError, Fenced, NotConfigured, Stopped, TimedOut, Transient
from dailies.failpoints import failpoint
from dailies.ledger.records import Call, JobState
from dailies.remote import TELL_S, told
from dailies.store.interface import Artifact
from tasks._job import Working
from tasks._step import Output, Step

log = logging.getLogger("dailies.supervisor")
SLICE_S = 0.5
AGAIN_S = 0.5
# Each look at a unit that another call works on starts a machine: the longer that call takes, the rarer the looks.
LONGEST_REST_S = 60.0
# Calls that vanish without a word one after another are a fault that more of them, each paid for, will not mend.
MOST_GONE = 3
# A call that goes on is worth more than the run that waits for it: an outage of minutes must not fail the job.
OUTAGE_S = 300.0


def on_compute(job: Working, step: Step[...], function: str, payload: Mapping[str, Any]) -> Output:
    """What ``function`` of dailies.remote makes of ``payload``, under this job's lease.

    ``payload`` must name all that goes into the result: with the step it is the unit's key. A cancel ends the call; a
    pause or a lost lease leaves it to the attempt that follows.
    """
    elsewhere = Elsewhere(job, step, function, payload)
    output = Output.from_json(elsewhere.answer(elsewhere.known() or elsewhere.submit()))
    if elsewhere.lost(output):  # a call that had ended well, and then a file went
        output = Output.from_json(elsewhere.answer(elsewhere.submit()))
    if missing := elsewhere.lost(output):
        raise NotConfigured(
            f"{function} left {missing[0]} in another store than this site's: give compute the site's store"
        )
    job.site.ledger.calls.ended(job.lease, elsewhere.unit, "DONE")
    elsewhere.progress(1.0)
    return output


class Elsewhere:
    """One unit on its way."""

    def __init__(self, job: Working, step: Step[...], function: str, payload: Mapping[str, Any]) -> None:
        self.job = job
        self.function = function
        self.payload = {**payload, "tenant": job.job.tenant}
        asked = [job.site.name, job.job.tenant, job.job.subject, step.name, step.version, function, self.payload]
        self.unit = digest(asked)
        self.compute = job.site.compute
        self.calls = job.site.ledger.calls
        self.gone = 0
        self.limit = step.timeout
        self.deadline = time.monotonic() + step.timeout
        self.progress = job.progress(step.name)
        self.next_progress = time.monotonic() + TELL_S

    def known(self) -> str:
        """The id of a call that an earlier attempt has submitted; empty where none is known.

        One that is written down as done is submitted again: that looks whether its files are still whole.
        """
        call = self.calls.intend(self.job.lease, self.unit)
        failpoint("compute.intended")
        if call.state != "SUBMITTED":
            return ""
        get_run_logger().info("action=attach call=%s function=%s", call.call_id, self.function)
        return call.call_id

    def submit(self) -> str:
        call_id = self.compute.submit(self.function, self.payload, self.unit)
        failpoint("compute.submitted")
        self.calls.submitted(self.job.lease, self.unit, call_id)
        failpoint("compute.recorded")
        get_run_logger().info("action=submit call=%s function=%s", call_id, self.function)
        return call_id

    def answer(self, call_id: str) -> dict[str, Any]:
        """What the unit comes to, submitting it again as long as a call of it came to nothing."""
        rest = AGAIN_S
        while True:
            try:
                return self.wait(call_id)
            except Busy as busy:
                get_run_logger().info("action=resubmit call=%s reason=%s", call_id, busy)
            except (Canceled, UnknownCall) as gone:
                get_run_logger().warning("action=resubmit call=%s reason=%s", call_id, gone)
                self.gone += 1
                if self.gone > MOST_GONE:
                    self.calls.ended(self.job.lease, self.unit, "FAILED")
                    raise Transient(f"{self.gone} calls came to nothing, the last because {gone}") from gone
            self.rest(call_id, rest)
            rest = min(2 * rest, LONGEST_REST_S)
            call_id = self.submit()

    def wait(self, call_id: str) -> dict[str, Any]:
        """The answer of one call, looking up between the slices."""
        heard = time.monotonic()
        while True:
            try:
                answer: dict[str, Any] = self.compute.result(call_id, SLICE_S)
                return answer
            except StillRunning:
                heard = time.monotonic()
            except Unreachable:
                if time.monotonic() - heard > OUTAGE_S:
                    raise
                self.job.keeper.stopped.wait(AGAIN_S)
            except (Busy, Canceled, UnknownCall, NotConfigured):
                raise  # none is the word of the function, and what is not set right yet may well go on
            except DailiesError:
                self.calls.ended(self.job.lease, self.unit, "FAILED")
                raise
            self.look(call_id)

    def rest(self, call_id: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.look(call_id)
            self.job.keeper.stopped.wait(min(left, SLICE_S))
        self.look(call_id)

    def look(self, call_id: str) -> None:
        """Whether there is anything that keeps us from waiting on."""
        try:
            self.job.check()
        except (Stopped, Fenced):
            if self.job.site.ledger.jobs.get(self.job.job.id).state is JobState.CANCELED:
                self.end(call_id)
            raise
        self.tell()
        if time.monotonic() > self.deadline:
            self.end(call_id)
            self.calls.ended(self.job.lease, self.unit, "CANCELED")
            raise TimedOut(f"{self.function} did not end within {self.limit:g} s and was cancelled")

    def tell(self) -> None:
        if time.monotonic() < self.next_progress:
            return
        self.next_progress = time.monotonic() + TELL_S
        if (part := told(self.job.site.store, self.payload, self.unit)) is not None:
            self.progress(part)

    def end(self, call_id: str) -> None:
        """What cannot be cancelled now is an orphan, which the next sweep tries again."""
        try:
            self.compute.cancel(call_id)
        except DailiesError as error:
            get_run_logger().warning("action=later call=%s error=%s", call_id, error)

    def lost(self, output: Output) -> list[str]:
        """The files that are not in this site's store, by a look at each."""
        return [artifact.key for artifact in output.artifacts if not self.is_here(artifact)]

    def is_here(self, artifact: Artifact) -> bool:
        found = self.job.site.store.stat(artifact.key)
        return found is not None and found.size == artifact.size


def reap_orphans(site: OpenSite) -> int:
    """Cancel the calls whose job is final, and write that down; returns how many. One bad call keeps no other."""
    return sum(reaped(site, call) for call in site.ledger.calls.orphans())


def reaped(site: OpenSite, call: Call) -> bool:
    try:
        # Without an id its submitter died before the reply, or before it submitted at all.
        call_id = call.call_id or site.compute.find(call.unit)
        if call_id:
            cancel(site, call_id)
        site.ledger.calls.reap(call)
    except DailiesError as error:
        log.warning("action=later call=%s job=%s error=%s", call.call_id, call.job, error)
        return False
    log.info("action=reap call=%s job=%s", call.call_id, call.job)
    return True


def cancel(site: OpenSite, call_id: str) -> None:
    try:
        site.compute.cancel(call_id)
    except UnknownCall:
        return  # gone already
