"""Videos: known by their upload, changed only under the lease on them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dailies.errors import BadInput, Fenced, IllegalTransition, Injected, Missing, Unreadable
from dailies.ledger.interface import Ledger
from dailies.ledger.records import VIDEO_ARROWS, Event, Job, Lease, Video, VideoState, video_resource
from tests.unit.ledger.contract.world import TTL, Clock, Sound, at_once, request, running, start_again

KEY = "acme/client/videos/v1/clip.mp4"
# The shortest way to each state.
WAYS = {
    VideoState.UPLOADED: [],
    VideoState.PROCESSING: [VideoState.PROCESSING],
    VideoState.AWAITING_LAYOUT: [VideoState.PROCESSING, VideoState.AWAITING_LAYOUT],
    VideoState.INFERRING: [VideoState.PROCESSING, VideoState.AWAITING_LAYOUT, VideoState.INFERRING],
    VideoState.READY: [VideoState.PROCESSING, VideoState.READY],
    VideoState.ERROR: [VideoState.ERROR],
}


def working_on(ledger: Ledger, video: str = "v1", run: str = "run-1") -> Lease:
    """A job's run that holds the lease on a registered video."""
    ledger.videos.register("acme", video, KEY)
    running(ledger, run, subject=f"acme/{video}")
    return ledger.leases.acquire(video_resource("acme", video), run, TTL)


def move(ledger: Ledger, lease: Lease, state: VideoState):
    error = Unreadable("not media") if state is VideoState.ERROR else None
    return ledger.videos.update(lease, state=state, error=error)


# ── ways to leave a video behind, each with what it must say then ─────────────────────────────────────────────────────
def it_is_canceled(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> tuple[str, str]:
    ledger.jobs.cancel(job.id)
    return "canceled", "Its job was canceled"


def it_is_canceled_after_a_failure(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> tuple[str, str]:
    ledger.jobs.failed(lease, Injected("the first attempt"), retry_in=0)
    ledger.jobs.cancel(job.id)
    return "canceled", "Its job was canceled"


def it_fails(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> tuple[str, str]:
    ledger.jobs.failed(lease, Unreadable("not media: 'ü'"))
    return "unreadable", "not media: 'ü'"


def its_attempts_are_spent(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> tuple[str, str]:
    for run in ("run-2", "run-3", "none"):
        clock.advance(TTL)
        ledger.jobs.recover()
        if run != "none":
            start_again(ledger, job.id, run)
    return "died", "its worker died in each of 3 attempts"


def it_is_done(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> tuple[str, str]:
    ledger.jobs.done(lease, {"answer": 42})
    return "abandoned", "Its job ended without saying what became of it"


ENDINGS: list[Callable[[Ledger, Clock, Job, Lease], tuple[str, str]]] = [
    it_is_canceled,
    it_is_canceled_after_a_failure,
    it_fails,
    its_attempts_are_spent,
    it_is_done,
]
# What a job may have that makes it none of acme's v1.
OTHERS = [{"tenant": "globex"}, {"subject": "acme/v11"}, {"subject": "v1"}, {"subject": "globex/v1"}]
WORKED_ON = [VideoState.PROCESSING, VideoState.INFERRING]


def left_behind(
    ledger: Ledger, state: VideoState = VideoState.PROCESSING, video: str = "v1", tenant: str = "acme"
) -> tuple[Job, Lease, Lease]:
    """A running job of a video in this state, its lease, and the one on the video, which is given back."""
    ledger.videos.register(tenant, video, KEY)
    run = f"run-{tenant}-{video}"
    job, lease = running(ledger, run, tenant=tenant, subject=f"{tenant}/{video}")
    held = ledger.leases.acquire(video_resource(tenant, video), run, TTL)
    for step in WAYS[state]:
        move(ledger, held, step)
    ledger.leases.release(held)
    return job, lease, held


def told(ledger: Ledger) -> list[Event]:
    return [event for event in ledger.outbox.pending(limit=1000) if event.type.startswith("dailies.video.")]


def names(videos: list[Video]) -> list[str]:
    return [f"{video.tenant}/{video.video}" for video in videos]


class VideoContract(Sound):
    def test_an_upload_becomes_a_video_once(self, ledger, clock):
        first = ledger.videos.register("acme", "v1", KEY)
        assert (first.tenant, first.video, first.media_key) == ("acme", "v1", KEY)
        assert (first.state, first.version, first.error_code, first.error) == (VideoState.UPLOADED, 0, "", "")
        assert (first.metadata, first.created_at, first.updated_at) == ({}, clock.now, clock.now)
        clock.advance(1)
        assert ledger.videos.register("acme", "v1", "another/key") == first
        assert ledger.videos.get("acme", "v1") == first

    def test_of_many_who_register_at_once_all_get_the_same(self, ledger, another):
        def register(number):
            own = another()
            try:
                return own.videos.register("acme", "v1", f"key-{number}")
            finally:
                own.close()

        assert len({video.media_key for video in at_once(6, register)}) == 1

    @pytest.mark.parametrize("values", [("", "v1", KEY), ("acme", "", KEY), ("acme", "v1", "")])
    def test_a_video_needs_a_tenant_an_id_and_a_key(self, ledger, values):
        with pytest.raises(BadInput):
            ledger.videos.register(*values)

    def test_the_same_id_of_another_tenant_is_another_video(self, ledger):
        ledger.videos.register("acme", "v1", KEY)
        with pytest.raises(Missing):
            ledger.videos.get("globex", "v1")
        other = ledger.videos.register("globex", "v1", "globex/key")
        assert [video.media_key for video in ledger.videos.all("acme")] == [KEY]
        assert list(ledger.videos.all("globex")) == [other]

    def test_videos_are_listed_newest_first_and_by_state(self, ledger, clock):
        for video in ("v1", "v2", "v3"):
            ledger.videos.register("acme", video, KEY)
            clock.advance(1)
        lease = working_on(ledger, "v2")
        move(ledger, lease, VideoState.PROCESSING)
        assert [video.video for video in ledger.videos.all("acme")] == ["v3", "v2", "v1"]
        assert [video.video for video in ledger.videos.all("acme", limit=1)] == ["v3"]
        assert [video.video for video in ledger.videos.all("acme", VideoState.UPLOADED)] == ["v3", "v1"]

    def test_one_field_is_changed_and_the_others_stay(self, ledger, clock):
        lease = working_on(ledger)
        ledger.videos.update(lease, metadata={"width": 1280})
        clock.advance(1)
        changed = ledger.videos.update(lease, state=VideoState.PROCESSING)
        assert (changed.state, changed.metadata, changed.version) == (VideoState.PROCESSING, {"width": 1280}, 1)
        assert changed.updated_at == clock.now
        assert ledger.videos.get("acme", "v1") == changed

    def test_several_fields_are_changed_at_once(self, ledger):
        lease = working_on(ledger)
        changed = ledger.videos.update(
            lease, state=VideoState.ERROR, error=Unreadable("not media: 'ü'"), metadata={"size": 7}
        )
        assert (changed.state, changed.error_code, changed.error) == (VideoState.ERROR, "unreadable", "not media: 'ü'")
        assert changed.metadata == {"size": 7}

    def test_metadata_is_merged_name_by_name(self, ledger):
        lease = working_on(ledger)
        ledger.videos.update(lease, metadata={"width": 1280, "tags": ["a", "ü"], "nested": {"x": 1}})
        changed = ledger.videos.update(lease, metadata={"width": 1920, "nested": {"y": None}})
        assert changed.metadata == {"width": 1920, "tags": ["a", "ü"], "nested": {"y": None}}

    def test_another_state_clears_the_error(self, ledger):
        lease = working_on(ledger)
        move(ledger, lease, VideoState.ERROR)
        ledger.videos.update(lease, metadata={"size": 7})
        assert ledger.videos.get("acme", "v1").error_code == "unreadable"
        changed = move(ledger, lease, VideoState.PROCESSING)
        assert (changed.error_code, changed.error) == ("", "")

    def test_an_error_and_the_state_error_go_together(self, ledger):
        lease = working_on(ledger)
        for wrong in ({"state": VideoState.ERROR}, {"error": Unreadable("x")}):
            with pytest.raises(BadInput):
                ledger.videos.update(lease, **wrong)

    @pytest.mark.parametrize("origin", VideoState)
    @pytest.mark.parametrize("target", VideoState)
    def test_a_video_moves_along_the_arrows_only(self, ledger, origin, target):
        lease = working_on(ledger)
        for state in WAYS[origin]:
            move(ledger, lease, state)
        before = ledger.videos.get("acme", "v1")
        if target is origin:
            assert move(ledger, lease, target).version == before.version
        elif target in VIDEO_ARROWS[origin]:
            assert move(ledger, lease, target).state is target
        else:
            with pytest.raises(IllegalTransition, match=f"{origin}.*{target}"):
                move(ledger, lease, target)
            assert ledger.videos.get("acme", "v1") == before

    def test_every_change_of_state_leaves_its_event_and_nothing_else_does(self, ledger):
        lease = working_on(ledger)
        for state in ("processing", "ready", "ready", "processing", "ready"):
            move(ledger, lease, VideoState(state))
        ledger.videos.update(lease, metadata={"width": 1})
        events = [event for event in ledger.outbox.pending() if event.type.startswith("dailies.video.")]
        assert [event.type for event in events] == [
            f"dailies.video.{state}" for state in ("processing", "ready", "processing", "ready")
        ]
        assert [event.data["version"] for event in events] == [1, 2, 3, 4]
        assert {(event.subject, event.data["tenant"], event.data["video"]) for event in events} == {
            ("acme/v1", "acme", "v1")
        }
        [job] = ledger.jobs.all()
        assert {event.job for event in events} == {event.data["job"] for event in events} == {job.id}

    def test_who_lost_the_lease_changes_nothing(self, ledger, clock):
        lease = working_on(ledger)
        clock.advance(TTL)
        ledger.leases.acquire(lease.resource, "run-2", TTL)
        ledger.leases.sweep()
        ledger.jobs.recover()
        before = ledger.videos.get("acme", "v1")
        with pytest.raises(Fenced):
            move(ledger, lease, VideoState.PROCESSING)
        with pytest.raises(Fenced):
            ledger.videos.update(lease, metadata={"late": True})
        assert ledger.videos.get("acme", "v1") == before

    def test_the_lease_on_one_video_changes_no_other(self, ledger):
        lease = working_on(ledger)
        ledger.videos.register("acme", "v2", KEY)
        move(ledger, lease, VideoState.PROCESSING)
        assert ledger.videos.get("acme", "v2").state is VideoState.UPLOADED

    def test_a_video_that_nobody_registered_is_missing_and_the_lease_is_not_blamed(self, ledger):
        running(ledger)
        lease = ledger.leases.acquire(video_resource("acme", "nowhere"), "run-1", TTL)
        with pytest.raises(Missing, match="register"):
            move(ledger, lease, VideoState.PROCESSING)

    def test_a_change_of_state_is_a_jobs(self, ledger):
        ledger.videos.register("acme", "v1", KEY)
        lease = ledger.leases.acquire(video_resource("acme", "v1"), "somebody", TTL)
        with pytest.raises(Missing, match="no job"):
            move(ledger, lease, VideoState.PROCESSING)
        assert ledger.videos.get("acme", "v1").state is VideoState.UPLOADED

    # ── a video never says that it is worked on when nobody does ──────────────────────────────────────────────────────

    @pytest.mark.parametrize("state", WORKED_ON)
    @pytest.mark.parametrize("end", ENDINGS)
    def test_a_video_whose_job_is_over_says_what_that_ended_with(self, ledger, clock, state, end):
        job, lease, _ = left_behind(ledger, state)
        before = ledger.videos.get("acme", "v1")
        code, error = end(ledger, clock, job, lease)
        clock.advance(1)
        [settled] = ledger.videos.settle()
        assert (settled.state, settled.error_code, settled.error) == (VideoState.ERROR, code, error)
        assert (settled.version, settled.updated_at) == (before.version + 1, clock.now)
        assert (settled.media_key, settled.metadata, settled.created_at) == (KEY, {}, before.created_at)
        assert ledger.videos.get("acme", "v1") == settled

    def test_the_event_is_that_jobs_and_like_that_of_any_change_of_state(self, ledger, clock):
        job, _, _ = left_behind(ledger)
        ledger.jobs.cancel(job.id)
        ledger.videos.settle()
        *_, canceled, settled = ledger.outbox.of(job.id)
        assert [canceled.type, settled.type] == ["dailies.job.canceled", "dailies.video.error"]
        assert (settled.subject, settled.source, settled.time) == ("acme/v1", canceled.source, clock.now)
        assert settled.data == {
            "job": job.id,
            "tenant": "acme",
            "video": "v1",
            "state": "error",
            "error_code": "canceled",
            "version": 2,
        }

    def test_settling_again_changes_nothing(self, ledger, clock):
        job, _, _ = left_behind(ledger)
        ledger.jobs.cancel(job.id)
        [settled] = ledger.videos.settle()
        events = list(ledger.outbox.of(job.id))
        clock.advance(TTL)
        assert list(ledger.videos.settle()) == []
        assert ledger.videos.get("acme", "v1") == settled
        assert list(ledger.outbox.of(job.id)) == events

    def test_of_many_who_settle_at_once_one_does(self, ledger, another):
        for video in ("v1", "v2", "v3"):
            ledger.jobs.cancel(left_behind(ledger, video=video)[0].id)

        def settle(number):
            own = another()
            try:
                return own.videos.settle()
            finally:
                own.close()

        assert sorted(names([video for videos in at_once(6, settle) for video in videos])) == [
            "acme/v1",
            "acme/v2",
            "acme/v3",
        ]
        assert [event.type for event in told(ledger)].count("dailies.video.error") == 3

    @pytest.mark.parametrize("way", ["running", "tried again", "paused", "handed back", "lost"])
    def test_a_video_whose_job_goes_on_is_left_alone(self, ledger, clock, way):
        _, lease, _ = left_behind(ledger)
        match way:
            case "tried again":
                ledger.jobs.failed(lease, Injected("again"), retry_in=60)
            case "paused":
                ledger.jobs.paused(lease)
            case "handed back":
                ledger.jobs.hand_back(lease, "told to stop")
            case "lost":
                clock.advance(TTL)
                ledger.jobs.recover()
        before = ledger.videos.get("acme", "v1")
        clock.advance(TTL)
        assert list(ledger.videos.settle()) == []
        assert ledger.videos.get("acme", "v1") == before

    def test_a_video_that_another_job_is_to_work_on_is_left_alone_until_that_is_over_too(self, ledger, clock):
        job, lease, _ = left_behind(ledger)
        waiting = ledger.jobs.submit(request(kind="crop-and-infer", subject="acme/v1"))
        ledger.jobs.failed(lease, Unreadable("not media"))
        assert list(ledger.videos.settle()) == []
        clock.advance(1)
        ledger.jobs.cancel(waiting.id)
        [settled] = ledger.videos.settle()
        assert settled.error_code == "canceled"
        assert [event.type for event in ledger.outbox.of(waiting.id)][-1] == "dailies.video.error"
        assert ledger.outbox.of(job.id)[-1].type == "dailies.job.failed"

    def test_of_several_jobs_the_one_that_ended_last_is_told_of(self, ledger, clock):
        """Not the one that was asked for last: it was called off before the other came to its end."""
        job, lease, _ = left_behind(ledger)
        clock.advance(1)
        later = ledger.jobs.submit(request(subject="acme/v1"))
        clock.advance(1)
        ledger.jobs.cancel(later.id)
        clock.advance(1)
        ledger.jobs.failed(lease, Unreadable("not media"))
        [settled] = ledger.videos.settle()
        assert (settled.error_code, settled.error) == ("unreadable", "not media")
        assert told(ledger)[-1].job == job.id

    @pytest.mark.parametrize("other", OTHERS, ids=str)
    def test_a_job_of_another_video_is_none_of_its_own(self, ledger, other):
        job, _, _ = left_behind(ledger)
        ledger.jobs.submit(request(**{"subject": "acme/v1", **other}))
        ledger.jobs.cancel(job.id)
        assert names(ledger.videos.settle()) == ["acme/v1"]

    @pytest.mark.parametrize("other", OTHERS, ids=str)
    def test_how_a_job_of_another_video_ended_is_not_told_of_it(self, ledger, clock, other):
        job, _, _ = left_behind(ledger)
        _, theirs = running(ledger, "run-other", **{"subject": "acme/v1", **other})
        ledger.jobs.cancel(job.id)
        clock.advance(1)
        ledger.jobs.failed(theirs, Unreadable("theirs"))
        assert [(video.tenant, video.error_code) for video in ledger.videos.settle()] == [("acme", "canceled")]
        assert told(ledger)[-1].job == job.id

    def test_the_same_id_of_another_tenant_is_settled_by_its_own_job(self, ledger):
        ledger.jobs.failed(left_behind(ledger, tenant="globex")[1], Unreadable("theirs"))
        ledger.jobs.cancel(left_behind(ledger)[0].id)
        assert [(video.tenant, video.error_code) for video in ledger.videos.settle()] == [
            ("acme", "canceled"),
            ("globex", "unreadable"),
        ]

    @pytest.mark.parametrize("state", [state for state in VideoState if state not in WORKED_ON])
    def test_a_video_that_says_nothing_of_work_is_left_alone(self, ledger, state):
        job, _, _ = left_behind(ledger, state)
        before, events = ledger.videos.get("acme", "v1"), told(ledger)
        ledger.jobs.cancel(job.id)
        assert list(ledger.videos.settle()) == []
        assert (ledger.videos.get("acme", "v1"), told(ledger)) == (before, events)

    def test_of_several_videos_only_those_left_behind_are_settled_each_with_its_own_reason(self, ledger):
        left_behind(ledger, video="goes-on")
        left_behind(ledger, VideoState.READY, "ready")
        ledger.jobs.cancel(left_behind(ledger, video="b")[0].id)
        ledger.jobs.failed(left_behind(ledger, VideoState.INFERRING, "a")[1], Unreadable("not media"))
        assert [(video.video, video.error_code) for video in ledger.videos.settle()] == [
            ("a", "unreadable"),
            ("b", "canceled"),
        ]
        assert ledger.videos.get("acme", "goes-on").state is VideoState.PROCESSING
        assert ledger.videos.get("acme", "ready").state is VideoState.READY

    def test_while_somebody_holds_the_video_it_is_left_for_the_next_time(self, ledger, clock):
        _, lease, _ = left_behind(ledger)
        held = ledger.leases.acquire(video_resource("acme", "v1"), lease.holder, TTL)
        ledger.jobs.failed(lease, Unreadable("not media"))
        clock.advance(TTL / 2)
        assert list(ledger.videos.settle()) == []
        assert ledger.leases.holder(held.resource) == held
        clock.advance(TTL / 2)
        assert names(ledger.videos.settle()) == ["acme/v1"]

    def test_who_held_it_past_its_time_can_change_it_no_more(self, ledger, clock):
        """An expired lease is good for writing as long as nobody took over: here somebody did."""
        _, lease, _ = left_behind(ledger)
        held = ledger.leases.acquire(video_resource("acme", "v1"), lease.holder, TTL)
        ledger.jobs.failed(lease, Unreadable("not media"))
        clock.advance(TTL)
        [settled] = ledger.videos.settle()
        with pytest.raises(Fenced):
            move(ledger, held, VideoState.PROCESSING)
        with pytest.raises(Fenced):
            ledger.videos.update(held, metadata={"late": True})
        assert ledger.videos.get("acme", "v1") == settled

    def test_the_work_begins_again_and_a_second_end_is_told_again(self, ledger, clock):
        for number in (1, 2):
            clock.advance(1)
            run = f"run-{number}"
            job, _ = running(ledger, run, subject="acme/v1")
            ledger.videos.register("acme", "v1", KEY)
            held = ledger.leases.acquire(video_resource("acme", "v1"), run, TTL)
            assert move(ledger, held, VideoState.PROCESSING).error_code == ""
            ledger.jobs.cancel(job.id)
            assert names(ledger.videos.settle()) == ["acme/v1"]
            assert ledger.outbox.of(job.id)[-1].data["version"] == 2 * number
        assert [event.data["version"] for event in told(ledger)] == [1, 2, 3, 4]

    def test_where_there_is_nothing_to_settle_nothing_is(self, ledger):
        assert list(ledger.videos.settle()) == []
