"""For each test a home of its own, and what it needs to run flows there."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.callables import parameter_schema

from blocks.site import OpenSite, open_site
from dailies import failpoints
from dailies.media.sample import make_clip
from tests.media_files import Track, video

CLIP = "acme/client/videos/v1/clip.mp4"
PATIENCE_S = 20.0
OUTSIDE = os.environ.get("DAILIES_HOME")


@pytest.fixture
def client(fast_api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for each test, except where its module has already made one for a server of its own."""
    if os.environ.get("DAILIES_HOME") == OUTSIDE:
        monkeypatch.setenv("DAILIES_HOME", str(tmp_path / "home"))
    return Path(os.environ["DAILIES_HOME"])


@pytest.fixture
def site(home: Path) -> Iterator[OpenSite]:
    site = open_site()
    yield site
    site.ledger.close()


@pytest.fixture(scope="session")
def clip_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=2).read_bytes()


@pytest.fixture(scope="session")
def truncated_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The first half of a file that promises two seconds in its first bytes."""
    path = video(tmp_path_factory.mktemp("film") / "film.mp4", seconds=2, tracks=[Track()], faststart=True)
    return path.read_bytes()[: path.stat().st_size // 2]


@pytest.fixture
def clip(site: OpenSite, clip_bytes: bytes) -> str:
    """The key of an upload of tenant acme."""
    site.store.put(CLIP, clip_bytes)
    return CLIP


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Arms failpoints of this process; gives the file that proves what fired."""
    log = tmp_path / "faults.jsonl"

    def arming(spec: str) -> Path:
        failpoints.arm(spec, log)
        return log

    yield arming
    failpoints.arm("", Path())


@pytest.fixture
def beside() -> Iterator[Callable[..., Future[Any]]]:
    """Runs a call in a thread beside the test, with the test's Prefect settings."""
    threads = []

    def start(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        context = contextvars.copy_context()

        def body() -> None:
            try:
                future.set_result(context.run(function, *args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - it is the test's to judge
                future.set_exception(error)

        threads.append(threading.Thread(target=body, daemon=True))
        threads[-1].start()
        return future

    yield start
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Polls until what is asked for is true, and gives it."""

    def poll(true: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.02)
        return found

    return poll


@pytest.fixture
def deploy(client: SyncPrefectClient) -> Iterator[Callable[[Flow[..., Any]], UUID]]:
    """Gives a flow its deployment ``cpu``, in a process pool that no worker looks at."""
    pool = f"cpu-{uuid4().hex[:8]}"
    client.create_work_pool(WorkPoolCreate(name=pool, type="process"))

    def create(flow: Flow[..., Any]) -> UUID:
        schema = parameter_schema(flow).model_dump_for_openapi()
        return client.create_deployment(
            client.create_flow_from_name(flow.name),
            "cpu",
            work_pool_name=pool,
            parameter_openapi_schema=schema,
            enforce_parameter_schema=True,
        )

    yield create
    client.delete_work_pool(pool)
