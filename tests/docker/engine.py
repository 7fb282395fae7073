"""An engine of our own in a temporary folder, and the project's image in it: no registry, no bridge, nothing left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

from dailies.scenarios.processes import Child, Nursery

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "dailies"
BASE = "dailies-base"
SETTINGS = Path("/etc/docker")  # where dockerd keeps a key that it makes for itself, whatever its flags say
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FIGURES: dict[str, str] = {}  # what was measured, for the summary
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "node_modules", "__pycache__")


class NoEngine(Exception):
    """Why there is none here."""


class Engine:
    """Whatever becomes of the tests, the nursery's undertaker ends the daemon and all that runs under it."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise NoEngine("a container engine needs root")
        for program in ("dockerd", "docker", "mmdebstrap"):
            if shutil.which(program) is None:
                raise NoEngine(f"no {program} on this machine: tests/docker/install.sh could not install it")
        self._had_settings = SETTINGS.exists()
        # Not pytest's folder: a path over 108 characters is none for a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="dailies-docker-"))
        self.host = f"unix://{self.folder}/docker.sock"
        self.nursery = Nursery()
        try:
            self._daemon = self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def env(self) -> dict[str, str]:
        """For whoever talks to this engine. The client that came with the daemon goes first: it fits."""
        return {"DOCKER_HOST": self.host, "PATH": f"/usr/bin:{os.environ['PATH']}"}

    def _start(self) -> Child:
        log = self.folder / "dockerd.log"
        daemon = self.nursery.popen(
            ["dockerd", "--host", self.host, "--data-root", self.folder / "data", "--exec-root", self.folder / "exec",
             "--pidfile", self.folder / "docker.pid", "--iptables=false", "--ip6tables=false", "--bridge=none"],
            log=log,
        )  # fmt: skip
        end = time.monotonic() + 30
        while self.docker("version", check=False).returncode != 0:
            if not daemon.alive or time.monotonic() > end:
                said = log.read_text().strip().splitlines()
                raise NoEngine(f"dockerd does not start here: {said[-1] if said else 'it says nothing'}")
            time.sleep(0.1)
        return daemon

    def docker(self, *words: str | Path, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return run("docker", *words, env=self.env, check=check, timeout=timeout)

    def run(self, *words: str | Path, user: str = "", options: tuple[str, ...] = ()) -> str:
        """What a program in a fresh container of the image says."""
        as_user = ("--user", user) if user else ()
        return self.docker("run", "--rm", "--network", "none", *as_user, *options, IMAGE, *words).stdout

    def containers(self, run_id: UUID, *options: str) -> list[str]:
        """The containers of one flow run, ended ones too unless ``options`` say otherwise."""
        label = f"label=io.prefect.flow-run-id={run_id}"
        return self.docker("ps", "--all", "--quiet", "--no-trunc", "--filter", label, *options).stdout.split()

    def inspect(self, container: str, what: str) -> str:
        return self.docker("inspect", "--format", f"{{{{{what}}}}}", container).stdout.strip()

    def make_image(self) -> None:
        """From the real Dockerfile. What it needs is fetched here, because a build in this engine has no network."""
        context = self.folder / "context"
        shutil.copytree(ROOT, context, ignore=LEFT_OUT)
        (context / ".env").write_text("TOKEN=not-for-images\n")
        (context / "flows" / ".secret").write_text("not-for-images\n")
        with ThreadPoolExecutor() as pool:
            for each in (pool.submit(self._make_base), pool.submit(download, context)):
                each.result()
        start = time.monotonic()
        self._build(context)
        FIGURES["image built from base and wheels"] = f"{time.monotonic() - start:.1f} s"
        FIGURES["size of the image"] = f"{int(self.inspect(IMAGE, '.Size')) / 1e6:.0f} MB"
        shutil.rmtree(context)

    def _build(self, context: Path) -> None:
        file = context / "deployments" / "docker" / "Dockerfile"
        words = ["docker", "build", "--network", "none", "--file", file, "--build-arg", f"BASE={BASE}", "--tag", IMAGE]
        built = run(*words, context, env={**self.env, "DOCKER_BUILDKIT": "1"}, check=False, timeout=240)
        if built.returncode != 0 and "buildx" in built.stderr:  # a new client without its plug-in has the old builder
            run(*words, context, env={**self.env, "DOCKER_BUILDKIT": "0"}, timeout=240)
        else:
            assert built.returncode == 0, built.stderr[-3000:]

    def _make_base(self) -> None:
        """A Debian with the Python of python:3.11-slim's minor version; debootstrap takes three times as long."""
        tar = self.folder / "base.tar"
        packages = "--include=python3-venv,ca-certificates"
        made = run("mmdebstrap", "--variant=apt", packages, "bookworm", tar, check=False, timeout=240)
        if made.returncode != 0:
            raise NoEngine(f"no base image can be made here: {made.stderr.strip().splitlines()[-1]}")
        self.docker("import", "--change", f"ENV PATH={PATH}", tar, BASE)
        tar.unlink()

    def stop(self) -> None:
        """In order: the containers, the daemon, what is left of both, the folder."""
        if self.docker("version", check=False).returncode == 0:
            for container in self.docker("ps", "--all", "--quiet").stdout.split():
                self.docker("rm", "--force", container)
            self._daemon.terminate(grace=30)
        killed = self.nursery.cleanup()
        for mounted in sorted(mounts(self.folder), reverse=True):
            run("umount", "--lazy", mounted, check=False)
        shutil.rmtree(self.folder)
        if not self._had_settings:
            shutil.rmtree(SETTINGS, ignore_errors=True)
        assert killed == [], "the daemon left processes, which had to be killed"


def download(context: Path) -> None:
    """The wheels, as the Dockerfile's head says. redis wants async-timeout before Python 3.11.3, which Debian's is."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", "wheelhouse"]
    wanted = ["setuptools>=77", "async-timeout>=4.0.3", "."]
    run(*pip, "--constraint", "constraints.txt", *wanted, cwd=context, timeout=240)


def run(
    *words: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*map(str, words)],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    said = f"{' '.join(map(str, words))}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert not check or done.returncode == 0, said
    return done


def mounts(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [where for where in (line.split()[1] for line in lines) if where.startswith(f"{folder}/")]
