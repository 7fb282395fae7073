"""Videos: known by their upload, changed only under the lease on them."""

from __future__ import annotations

import pytest

from dailies.errors import BadInput, Fenced, IllegalTransition, Missing, Unreadable
from dailies.ledger.interface import Ledger
from dailies.ledger.records import VIDEO_ARROWS, Lease, VideoState, video_resource
from tests.unit.ledger.contract.world import TTL, Sound, at_once, running

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
