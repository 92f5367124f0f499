"""A study on a real PostgreSQL server, shared by processes that die; and an output folder on a disk that is full."""

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import optuna
import pandas as pd
import pytest
import sqlalchemy
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, make_url, text

import pocketzoo as pz
from pocketzoo import InvalidRun
from pocketzoo.search.explore import explore
from pocketzoo.search.objective import Objective
from pocketzoo.search.plan import Plan
from pocketzoo.search.studies import WORKER, SeededSampler, open_study, spent
from pocketzoo.training.recipe import Recipe

pytestmark = pytest.mark.system

GRACE = 15  # seconds of silence
NET = """
from torch import nn

def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 20, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, num_classes))
"""
IMPATIENT = f"""
import socket, sys
from pocketzoo.search import storage, studies

storage.HEARTBEAT_SECONDS, storage.GRACE_SECONDS, studies.GRACE_SECONDS = 1, {GRACE}, {GRACE}
"""
WORKER_ELSEWHERE = (
    IMPATIENT
    + """
host, *sys.argv = sys.argv[1:]
socket.gethostname = lambda: host
exec(open("work.py").read())
"""
)
PROXY = (
    IMPATIENT
    + """
from pocketzoo.search import relay

relay.HEARTBEAT_SECONDS = 1
relay.serve(sys.argv[1], "localhost", int(sys.argv[2]))
"""
)
WORK = """
import sys, torch
import pocketzoo as pz
from pocketzoo.training.recipe import Recipe

torch.set_num_threads(1)
out, storage, trials, epochs = sys.argv[-4:]
recipes = {"recipe": Recipe(epochs=1), "trial_recipe": Recipe(epochs=int(epochs))}
pz.run_search("systemnets:net", "digits", pz.Budget(macs="40k"), int(trials), out, storage=storage, **recipes)
"""
TRIALS = 8
LONG = 40  # epochs of a trial that is to be killed in its middle
HOSTS = ("ant", "bee", "cat", "doe")
OVER = (TrialState.COMPLETE, TrialState.PRUNED)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "systemnets.py").write_text(NET)
    for name, script in (("work", WORK), ("elsewhere", WORKER_ELSEWHERE), ("proxy", PROXY)):
        (tmp_path / f"{name}.py").write_text(script)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    return tmp_path


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


def programs() -> Path:
    """Where Debian keeps the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    assert found, "no PostgreSQL server is installed; .ci/packages names the package"
    return found[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of the database of a server that lives as long as these tests."""
    password, port = secrets.token_hex(16), free_port()
    # pytest's own folders are closed to other users, and the server refuses to run as root.
    with tempfile.TemporaryDirectory(prefix="pocketzoo-postgres-") as home:
        (Path(home) / "password").write_text(password)
        user = []
        if os.getuid() == 0:
            user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
            for path in (home, f"{home}/password"):
                shutil.chown(path, "postgres", "postgres")
        # Should this process be killed, the server receives SIGINT, which ends it at once and in order.
        alone = ["setpriv", *user, "--pdeathsig=INT"]
        data = f"{home}/data"
        initdb = ["--username=zoo", "--auth=scram-sha-256", f"--pwfile={home}/password", "--no-sync", "--encoding=UTF8"]
        subprocess.run([*alone, programs() / "initdb", *initdb, data], check=True, capture_output=True, cwd=home)
        settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (Path(home) / "log").open("w+") as log:
            process = subprocess.Popen([*alone, programs() / "postgres", "-D", data, *options], cwd=home, stderr=log)
            try:
                wait_for(port, process, Path(log.name))
                yield f"postgresql+psycopg2://zoo:{password}@127.0.0.1:{port}/postgres"
            finally:
                stop(process)


@pytest.fixture
def storage(server: str) -> str:
    """URL of an empty database."""
    name = f"zoo_{secrets.token_hex(4)}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server.removesuffix('/postgres')}/{name}"


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    ready = [programs() / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={port}"]
    while subprocess.run(ready, check=False).returncode != 0:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()


def work(folder: Path, out: str, storage: str, trials: int, epochs: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "work.py", out, storage, str(trials), str(epochs)]
    return subprocess.Popen(command, cwd=folder)


def search(out: Path, storage: str, trials: int, epochs: int) -> pd.DataFrame:
    recipes = {"recipe": Recipe(epochs=1), "trial_recipe": Recipe(epochs=epochs)}
    study = pz.run_search("systemnets:net", "digits", pz.Budget(macs="40k"), trials, out, storage=storage, **recipes)
    return study.trials


def trials_in(storage: str) -> list[FrozenTrial]:
    """The trials so far of the one study there; none before it has begun."""
    try:
        studies = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=studies[0], storage=storage).get_trials() if studies else []
    except sqlalchemy.exc.DatabaseError:  # the first process is just making the tables
        return []


def test_two_processes_share_a_study_on_postgresql(folder: Path, storage: str) -> None:
    both = [work(folder, out, storage, TRIALS, 2) for out in ("first", "second")]
    try:
        assert [process.wait(timeout=240) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    trials = trials_in(storage)
    assert {trial.state for trial in trials} <= set(OVER), [trial.state for trial in trials]
    assert TRIALS <= len(spent(trials)) <= TRIALS + 1  # both may begin the last one in the same instant
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len({trial.user_attrs[WORKER] for trial in trials}) == 2
    trained = [trial.user_attrs["key"] for trial in trials if "duplicate_of" not in trial.user_attrs]
    assert len(set(trained)) == len(trained)
    for out in ("first", "second"):  # each process leaves a whole run
        assert (folder / out / "best.onnx").stat().st_size > 0
        assert set(pd.read_csv(folder / out / "trials.csv")["trial"]) == set(range(len(trials)))

    more = search(folder / "third", storage, TRIALS + 3, 2)  # as on a machine that joins later
    assert len(more) == TRIALS + 3
    before = [np.nan if trial.value is None else trial.value for trial in trials]  # None: of a network being trained
    assert np.array_equal(more["value"][: len(trials)], before, equal_nan=True)
    assert len(optuna.get_all_study_names(storage)) == 1


def test_a_process_killed_beside_postgresql_loses_no_finished_trial(folder: Path, storage: str) -> None:
    process = work(folder, "run", storage, 50, LONG)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if sum(trial.state in OVER for trial in trials_in(storage)) >= 2:
                break
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    finished = {trial.number: trial.value for trial in trials_in(storage) if trial.state in OVER}
    assert len(finished) >= 2

    table = search(folder / "run", storage, len(finished) + 1, LONG).set_index("trial")
    assert dict(table["value"][list(finished)]) == finished
    assert sum(table["state"].isin(["complete", "pruned"])) == len(finished) + 1
    assert not table["state"].isin(["running", "failed"]).any()


def without_password(storage: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL as a cluster's file may hold it; the password comes by the environment."""
    password = str(make_url(storage).password)
    monkeypatch.setenv("PGPASSWORD", password)
    return storage.replace(f":{password}@", "@").replace("postgresql+psycopg2:", "postgresql:")


@contextmanager
def serving(folder: Path, storage: str) -> Iterator[str]:
    """URL of a proxy of that database."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "proxy.py", storage, str(port)], cwd=folder)
    try:
        yield f"grpc://localhost:{port}"
        assert process.poll() is None, "the proxy has ended"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("proxy", [False, True], ids=["postgresql", "grpc"])
def test_of_four_workers_one_dies(folder: Path, storage: str, proxy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each believes itself on a machine of its own, so that only silence tells of a death."""
    url = without_password(storage, monkeypatch)
    with serving(folder, url) if proxy else nullcontext(url) as place:
        program = [sys.executable, "elsewhere.py"]
        workers = {
            host: subprocess.Popen([*program, host, host, place, str(TRIALS), str(LONG)], cwd=folder) for host in HOSTS
        }
        try:
            dead, before = kill_one_in_mid_trial(workers, storage)
            codes = [process.wait(timeout=600) for host, process in workers.items() if host != host_of(dead)]
            if not taken_up(dead, storage):  # the survivors had reached the number before the silence was long enough
                time.sleep(GRACE)
                more = str(len(spent(trials_in(storage))) + 1)
                workers["eel"] = subprocess.Popen([*program, "eel", "eel", place, more, str(LONG)], cwd=folder)
                codes.append(workers["eel"].wait(timeout=600))
        finally:
            for process in workers.values():
                process.kill()
                process.wait()
    assert set(codes) == {0}
    trials = trials_in(storage)
    assert {trial.number: trial.value for trial in trials if trial.number in before} == before
    assert TRIALS <= len(spent(trials)) <= TRIALS + 3  # survivors may begin the last one in the same instant

    assert trials[dead.number].state == TrialState.FAIL
    (again,) = [trial for trial in trials if "retry_of" in trial.user_attrs]
    assert again.user_attrs["retry_of"] == dead.number
    assert (again.params, again.user_attrs["key"]) == (dead.params, dead.user_attrs["key"])
    assert again.state in OVER
    assert host_of(again) != host_of(dead)

    kept = [trial for trial in trials if trial.number != dead.number]
    assert all(trial.state in OVER for trial in kept), [trial.state for trial in kept]
    trained = [trial.user_attrs["key"] for trial in kept if trial.user_attrs.get("trains")]
    assert len(set(trained)) == len(trained)
    assert {trial.user_attrs["key"] for trial in kept} == set(trained)
    assert all(trial.user_attrs.get("trains") or "duplicate_of" in trial.user_attrs for trial in kept)


def kill_one_in_mid_trial(
    workers: dict[str, subprocess.Popen[bytes]], storage: str
) -> tuple[FrozenTrial, dict[int, float | None]]:
    """The trial that dies, once a few have finished; and those that had, with their values."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert all(process.poll() is None for process in workers.values())
        trials = trials_in(storage)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        under_way = [trial for trial in running if 0 < trial.user_attrs.get("epochs", 0) < LONG // 2]
        before = {trial.number: trial.value for trial in trials if trial.state in OVER}
        if len(before) >= 2 and len({host_of(trial) for trial in trials if WORKER in trial.user_attrs}) == 4:
            for dead in under_way:
                workers[host_of(dead)].kill()
                workers[host_of(dead)].wait()
                if (now := trials_in(storage)[dead.number]).state == TrialState.RUNNING:
                    return now, before
                pytest.fail("the trial ended just before its worker was killed")
        time.sleep(0.1)
    raise AssertionError("no trial was under way in time")


def taken_up(dead: FrozenTrial, storage: str) -> bool:
    """Whether another worker has run the trial again."""
    trials = trials_in(storage)
    return any(trial.user_attrs.get("retry_of") == dead.number and trial.state in OVER for trial in trials)


def host_of(trial: FrozenTrial) -> str:
    return str(trial.user_attrs[WORKER]).partition("/")[0]


def test_workers_by_the_example_files_share_a_search(
    folder: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks of the SLURM array, with a folder in common, and a pod of the Kubernetes job."""
    url = without_password(storage, monkeypatch)
    clusters = Path(__file__).parents[1] / "docs" / "clusters"
    documents = yaml.safe_load_all((clusters / "kubernetes.yaml").read_text())
    (pod,) = [each["spec"]["template"]["spec"]["containers"][0] for each in documents if each["kind"] == "Job"]
    options = ["--trials=3", "--epochs=2"]
    (folder / "pocketzoo").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pocketzoo "$@"\n')
    (folder / "pocketzoo").chmod(0o755)
    commands = [["bash", str(clusters / "slurm.sh"), *options]] * 2
    commands += [[*pod["command"], *options, f"--storage={url}", "--out=runs/pod"]]
    place = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "STORAGE": url, "SLURM_CPUS_PER_TASK": "1"}
    workers = [subprocess.Popen(command, cwd=folder, env=place) for command in commands]
    try:
        assert [process.wait(timeout=600) for process in workers] == [0, 0, 0]
    finally:
        for process in workers:
            process.kill()
            process.wait()
    trials = trials_in(storage)
    assert len({trial.user_attrs[WORKER] for trial in trials}) >= 2
    assert 3 <= len(spent(trials)) <= 3 + 2
    for out in ("digits", "pod"):
        assert len(pd.read_csv(folder / "runs" / out / "trials.csv")) == len(trials)
        assert (folder / "runs" / out / "best.onnx").exists()


def test_a_server_that_goes_away_ends_a_search_in_a_line(storage: str, capfd: pytest.CaptureFixture[str]) -> None:
    study = open_study("pocketzoo-test", storage, SeededSampler(0), optuna.pruners.NopPruner())
    study.enqueue_trial({})
    name = make_url(storage).database

    def objective(trial: optuna.Trial) -> float:
        administrator = create_engine(make_url(storage).set(database="postgres"), isolation_level="AUTOCOMMIT")
        with administrator.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
            connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
        administrator.dispose()
        trial.report(0.5, 1)
        raise AssertionError("the server is not there")

    with pytest.raises(InvalidRun, match=r"the study can no longer be kept .*not currently accepting connections"):
        explore(Plan("lenet5", "digits", pz.Budget(macs="1M"), trials=1), study, cast(Objective, objective))
    assert "Traceback" not in capfd.readouterr().err


def test_the_password_is_neither_kept_nor_printed(folder: Path, storage: str) -> None:
    password = make_url(storage).password
    assert password
    found = command(folder, folder / "run", 1, "--storage", storage)
    assert found.returncode == 0, found.stderr
    assert not [
        path for path in (folder / "run").rglob("*") if path.is_file() and password.encode() in path.read_bytes()
    ]
    refused = command(folder, folder / "other", 1, "--storage", f"{storage}_nowhere")
    assert refused.returncode == 2
    assert password not in found.stdout + found.stderr + refused.stderr


# -- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB; conftest leaves these tests out where nothing may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path, room: int) -> None:
    """Leave `room` KiB."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - room * 1024))


def command(folder: Path, out: Path, trials: int, *more: str) -> subprocess.CompletedProcess[str]:
    options = ["--data", "digits", "--macs", "40k", "--epochs", "2", "--trials", str(trials), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    program = [sys.executable, "-m", "pocketzoo", "search", "systemnets:net", *options, *more]
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def finished_in(database: Path, copy: Path) -> dict[int, float | None]:
    """The trials in a study's file, read from a copy."""
    shutil.copy(database, copy)
    return {trial.number: trial.value for trial in trials_in(f"sqlite:///{copy}") if trial.state in OVER}


def test_a_disk_that_is_really_full(folder: Path, disk: Path) -> None:
    out = disk / "run"
    first = command(folder, out, 2)
    assert first.returncode == 0, first.stderr
    finished = finished_in(out / "study.db", folder / "copy.db")
    assert len(finished) == 2
    for room in (0, 8, 16, 32, 512):  # it fills up at another moment each time
        fill(disk, room)
        stopped = command(folder, out, 8)
        assert stopped.returncode == 2, (room, stopped.stderr)
        assert stopped.stderr.startswith("pocketzoo: "), (room, stopped.stderr)
        assert stopped.stderr.count("\n") == 1, (room, stopped.stderr)
        assert "full" in stopped.stderr or "No space left" in stopped.stderr
        before, finished = finished, finished_in(out / "study.db", folder / "copy.db")
        assert finished.items() >= before.items()
        pz.load(out, trust=["systemnets:net"])
        assert {path.name for path in out.iterdir()} >= {"best.onnx", "result.json", "trials.csv", "index.html"}
    (disk / "ballast").unlink()
    last = command(folder, out, 8)
    assert last.returncode == 0, last.stderr
    assert finished_in(out / "study.db", folder / "copy.db").items() >= finished.items()
