"""A study on a real PostgreSQL server, shared by processes; and an output folder on a disk that is really full."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest
import sqlalchemy
import torch
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, make_url, text

import pocketzoo as pz
from pocketzoo.search.studies import WORKER, spent
from pocketzoo.training.recipe import Recipe

pytestmark = pytest.mark.system

NET = """
from torch import nn

def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 20, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, num_classes))
"""
WORK = """
import sys, torch
import pocketzoo as pz
from pocketzoo.training.recipe import Recipe

torch.set_num_threads(1)
out, storage, trials, epochs = sys.argv[1:]
recipes = {"recipe": Recipe(epochs=1), "trial_recipe": Recipe(epochs=int(epochs))}
pz.run_search("systemnets:net", "digits", pz.Budget(macs="40k"), int(trials), out, storage=storage, **recipes)
"""
TRIALS = 8
LONG = 40  # epochs of a trial that is to be killed in its middle
OVER = (TrialState.COMPLETE, TrialState.PRUNED)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "systemnets.py").write_text(NET)
    (tmp_path / "work.py").write_text(WORK)
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
    assert list(more["value"][: len(trials)]) == [trial.value for trial in trials]
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
