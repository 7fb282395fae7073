"""The ledger on Supabase keeps the contract that the embedded one keeps."""

from __future__ import annotations

import pytest

from tests.unit.ledger.contract import dispatch, jobs, leases, messages, recoveries, units, videos, whole

pytestmark = pytest.mark.supabase


class TestFences(leases.FenceContract):
    pass


class TestLostRuns(leases.LostRunContract):
    pass


class TestLeases(leases.LeaseContract):
    pass


class TestSubmit(jobs.SubmitContract):
    pass


class TestStates(jobs.StateContract):
    pass


class TestHandBack(jobs.HandBackContract):
    pass


class TestRecovery(jobs.RecoveryContract):
    pass


class TestRecoveryEvents(recoveries.RecoveryEventContract):
    pass


class TestUnits(units.UnitContract):
    pass


class TestCalls(units.CallContract):
    pass


class TestGenerations(units.GenerationContract):
    pass


class TestDispatch(dispatch.DispatchContract):
    pass


class TestOutbox(messages.OutboxContract):
    pass


class TestInbox(messages.InboxContract):
    pass


class TestTenants(messages.TenantContract):
    pass


class TestVideos(videos.VideoContract):
    pass


class TestAudit(whole.AuditContract):
    pass


class TestClose(whole.CloseContract):
    pass
