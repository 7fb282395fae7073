"""The same work as a workflow of DBOS Transact, whose steps are the chunks. Importing this imports ``dbos``.

As its documentation has it for one server: a system database of its own, an executor id that stays, and a process that
is started again, whose ``launch`` continues what that executor had pending. What is not said here is its default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSClient, DBOSConfig, SetWorkflowID

from benchmarks import _talk
from benchmarks._talk import DONE, RECORDED, Json, timed
from dailies import failpoints
from dailies.failpoints import failpoint

DATABASE = "dbos.sqlite"
EXECUTOR = "worker-1"
LOOK_S = 0.01


def database(place: Path) -> str:
    return f"sqlite:///{place / DATABASE}"


@DBOS.step()
def plan_chunks(talk: str, out: str) -> Json:
    return _talk.plan(talk, out)


@DBOS.step()
def transcribe_chunk(chunk: Json) -> Json:
    heard = _talk.hear(chunk)
    failpoint(DONE)
    return heard


@DBOS.step()
def make_transcript(planned: Json, heard: list[Json]) -> str:
    return _talk.join(planned, heard)


@DBOS.workflow()
def transcribe(talk: str, out: str) -> str:
    planned = plan_chunks(talk, out)
    heard = []
    for chunk in planned["chunks"]:
        heard.append(transcribe_chunk(chunk))
        failpoint(RECORDED)  # a step that has returned is on record
    return make_transcript(planned, heard)


def worker(place: Path, name: str, talk: str, faults: str, log: Path, times: Path) -> None:
    """In a child. The second time the workflow is known, and what is called here waits for what ``launch`` resumed."""
    failpoints.arm(faults, log)
    with timed(times):
        config = DBOSConfig(
            name="recovery", system_database_url=database(place), executor_id=EXECUTOR, log_level="WARNING"
        )
        DBOS(config=config)
        DBOS.launch()
        if DBOS.get_workflow_status(name) is None:
            with SetWorkflowID(name):
                transcribe(talk, str(place / name))
        else:
            DBOS.retrieve_workflow(name).get_result(polling_interval_sec=LOOK_S)
    DBOS.destroy()


class Records:
    """What DBOS itself has on record of a workflow, read from outside."""

    def __init__(self, place: Path) -> None:
        self.client = DBOSClient(system_database_url=database(place))

    def finished(self, name: str) -> frozenset[str]:
        """The chunks on record, by the digest of their sound."""
        return frozenset(step["output"]["sha256"] for step in self.steps(name) if step["output"] is not None)

    def steps(self, name: str) -> list[Any]:
        found = self.client.list_workflow_steps(name)
        return [step for step in found if step["function_name"].endswith(transcribe_chunk.__name__)]

    def subtitles(self, name: str) -> str:
        (status,) = self.client.list_workflows(workflow_ids=[name])
        if status.status != "SUCCESS":
            raise RuntimeError(f"the workflow {name} is {status.status}")
        return str(status.output)

    def close(self) -> None:
        self.client.destroy()
