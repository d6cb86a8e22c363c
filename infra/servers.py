"""`factory up` and `factory down`: a Prefect server, an MLflow server and a worker on this machine.

They listen on the loopback address only. What the settings place elsewhere (FACTORY_PREFECT_API_URL, an http
FACTORY_MLFLOW_URI) is used and not started.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from infra import running
from infra.deployments import deploy, prefect_file
from infra.environment import environment_of
from infra.errors import AlreadyRunning, Problem, ServerDown
from infra.ports import holder, is_free
from infra.processes import STOP_SECONDS, Group, Program, Say, Stop, end, healthy, stopped_by_signals, until
from infra.redaction import redacted
from infra.settings import LOOPBACK, Settings

PORT_TAKEN = "E-ENV-010"
IS_UP = "E-ENV-013"

# Over the quiet console of a command: a server's log file holds what went wrong, not a line for every request.
LOGGED = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO", "PREFECT_SERVER_LOGGING_LEVEL": "WARNING"}


def prefect_server(port: int) -> Program:
    """The port is a variable on purpose: with `--port` the page in the browser still calls port 4200."""
    url = f"http://{LOOPBACK}:{port}"
    environment = {
        "PREFECT_SERVER_API_HOST": LOOPBACK,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"{url},http://localhost:{port}",  # no page of another site calls it
        "PREFECT_API_URL": f"{url}/api",
    }
    command = ("prefect", "server", "start")
    return Program("prefect", "Prefect server", command, environment, url, f"{url}/api/health")


def mlflow_server(port: int, store: str, artifacts: str) -> Program:
    """One process; the clients of this machine read and write the files where `artifacts` says.

    So a run is the same whether it was logged to the server or, with none up, straight to the database. Store and
    folder go in as variables: the URL may hold a password, and arguments are for everybody on the machine to see.
    """
    url = f"http://{LOOPBACK}:{port}"
    command = ("mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1", "--no-serve-artifacts")
    environment = {
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifacts,
        "MLFLOW_UVICORN_OPTS": "--log-level warning",
    }
    return Program("mlflow", "MLflow server", command, environment, url, f"{url}/health")


def worker(name: str, runs: int) -> Program:
    """Takes deployed runs from the pool. PYTHONSAFEPATH: a folder called tasks/ where it runs is not our package."""
    from infra.pools import POOL

    command = ("prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name)
    environment = {"PREFECT_WORKER_QUERY_SECONDS": "5", "PYTHONSAFEPATH": "1"}
    return Program("worker", "worker", (*command, "--limit", str(runs), "--install-policy", "never"), environment)


def up(settings: Settings, *, say: Say = print, detach: bool = False) -> dict[str, str]:
    """Start what this home needs, deploy prefect.yaml, and stay until Ctrl-C or SIGTERM; with `detach`, return.

    Args:
        settings: as asked for (`asked_settings`), so that servers of this home are started rather than found.

    Returns:
        The URLs of `prefect` and `mlflow`, without secrets.

    Raises:
        AlreadyRunning: servers of this home are up.
        ServerDown: a port is taken, or a server ends or stays silent. What was started by then is stopped.
        SettingsRefused: there is no prefect.yaml.
    """
    _refuse_a_second(settings.home)
    programs = _programs(settings)
    _refuse_taken_ports(programs)
    file = prefect_file(settings.workdir)
    for folder in _folders(settings):
        folder.mkdir(parents=True, exist_ok=True)
    there = _with_urls(settings, {program.name: program.url for program in programs})
    urls = {"prefect": str(there.prefect_api_url).removesuffix("/api"), "mlflow": there.mlflow_uri}
    urls = {name: redacted(url) for name, url in urls.items()}

    group = Group(settings.home, settings.workdir, supervised=not detach)
    try:
        with stopped_by_signals():
            for program in programs:
                begun = group.start(program, environment_of(settings) | LOGGED)
                say(f"{program.title:14} starting on {program.url}, log in {begun.log}")
            for begun in tuple(group.started):
                begun.wait(lambda url=begun.program.health: healthy(url), settings.start_seconds, say)  # type: ignore[misc]
                say(f"{begun.program.title:14} answers")
            _prepare(there, file, say, ours=settings.owns_prefect)
            _start_worker(group, there, say)
            say(f"{'open':14} Prefect {urls['prefect']}   MLflow {urls['mlflow']}")
            say("running; `factory down` stops it" if detach else "running; Ctrl-C stops it")
            if detach:
                return urls
            group.watch()
    except Stop:
        say("stopping")
    except BaseException:  # whatever it was, nothing that we started stays behind
        group.stop(say)
        raise
    group.stop(say)
    return urls


def down(settings: Settings, *, say: Say = print) -> tuple[str, ...]:
    """Stop what `factory up` of this home started, the worker first. Returns the names; nothing to stop is no error."""
    found = {name: process for name, process in running.recorded(settings.home).items() if running.lives(process)}
    supervisor = found.get("supervisor")
    if supervisor is not None and supervisor.pid != os.getpid():
        os.kill(supervisor.pid, signal.SIGTERM)  # it stops its own programs, in order, and says so on its terminal
        until(lambda: not running.lives(supervisor), STOP_SECONDS * 4)
    names = tuple(name for name in ("worker", "mlflow", "prefect") if name in found)
    for name in names:
        if running.lives(found[name]):
            end(found[name].pid, lambda process=found[name]: not running.lives(process))  # type: ignore[misc]
        say(f"{name} stopped")
    running.forget(settings.home)
    return names


def _refuse_a_second(home: Path) -> None:
    found = running.alive(home)
    if found:
        what = ", ".join(f"{name} {process.url or f'(process {process.pid})'}" for name, process in found.items())
        raise AlreadyRunning(Problem(IS_UP, str(home), f"is served already: {what}", "use it, or run `factory down`"))


def _programs(settings: Settings) -> list[Program]:
    """The servers that are ours to start."""
    programs = []
    if settings.owns_prefect:
        programs.append(prefect_server(settings.prefect_port))
    if settings.owns_mlflow:
        artifacts = str(settings.mlflow_artifacts)
        programs.append(mlflow_server(settings.mlflow_port, settings.mlflow_uri, artifacts))
    return programs


def _refuse_taken_ports(programs: list[Program]) -> None:
    problems = []
    for program in programs:
        port = urlsplit(program.url).port or 0
        if not is_free(LOOPBACK, port):
            wrong = f"the {program.title} cannot listen there, {holder(port)} does"
            remedy = f"end that process, or choose another port: FACTORY_{program.name.upper()}_PORT={port + 1}"
            problems.append(Problem(PORT_TAKEN, f"port {port}", wrong, remedy))
    if problems:
        raise ServerDown(*problems)


def _folders(settings: Settings) -> Iterator[Path]:
    yield from (settings.home, settings.prefect_home)
    if "://" not in settings.store:
        yield Path(settings.store)
    if settings.mlflow_uri.startswith("sqlite:///"):
        yield Path(settings.mlflow_uri.removeprefix("sqlite:///")).parent
    if settings.mlflow_artifacts and settings.mlflow_artifacts.startswith("file://"):
        yield Path(unquote(urlsplit(settings.mlflow_artifacts).path))


def _with_urls(settings: Settings, urls: dict[str, str]) -> Settings:
    """The settings as the worker and its runs need them: pointing at the servers instead of at their databases."""
    found = {}
    if "prefect" in urls:
        found["prefect_api_url"] = f"{urls['prefect']}/api"
    if "mlflow" in urls:
        found["mlflow_uri"] = urls["mlflow"]
    return settings.model_copy(update=found)


def _prepare(settings: Settings, file: Path, say: Say, *, ours: bool) -> None:
    from prefect.client.orchestration import SyncPrefectClient

    from infra.automations import ensure_automations
    from infra.pools import GPU_LIMIT, POOL, ensure_gpu_slots, ensure_pool

    with SyncPrefectClient(str(settings.prefect_api_url)) as client:
        ensure_pool(client)
        slots = ensure_gpu_slots(client, settings.gpu_slots, ours=ours)
        ensure_automations(client)
    say(f"{'work pool':14} {POOL}; at most {slots} run(s) at once hold the limit {GPU_LIMIT}")
    say(f"{'deployments':14} {', '.join(deploy(file, environment_of(settings)))}")


def _start_worker(group: Group, settings: Settings, say: Say) -> None:
    """Until the server has heard it; a worker of the same name that was stopped a moment ago still counts as online."""
    from prefect.client.orchestration import SyncPrefectClient

    from infra.pools import POOL

    name = f"factory-{socket.gethostname()}"
    with SyncPrefectClient(str(settings.prefect_api_url)) as client:

        def heard() -> list[object]:
            return [row.last_heartbeat_time for row in client.read_workers_for_work_pool(POOL) if row.name == name]

        before = heard()
        begun = group.start(worker(name, settings.worker_runs), environment_of(settings) | LOGGED)
        begun.wait(lambda: heard() != before, settings.start_seconds, say)
    say(f"{'worker':14} {name} takes runs, log in {begun.log}")
