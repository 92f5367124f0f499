"""Several workers on one study: who trains a network, who is taken for dead, and the proxy between them."""

import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, cast

import click
import optuna
import pytest
import yaml
from click.testing import CliRunner
from optuna.trial import TrialState
from sqlalchemy import make_url

from pocketzoo import Budget, InvalidRun, MissingExtra, cli
from pocketzoo.search import storage, studies
from pocketzoo.search.explore import explore
from pocketzoo.search.objective import Objective
from pocketzoo.search.plan import Plan
from pocketzoo.search.relay import look_after, main
from pocketzoo.search.run import run_search
from pocketzoo.search.studies import (
    DUPLICATE_OF,
    KEY,
    TRAINS,
    WORKER,
    SeededSampler,
    claim,
    enqueue_again,
    open_study,
    take_up_lost_trials,
    worker,
)

CLUSTERS = Path(__file__).parents[1] / "docs" / "clusters"

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")  # they ask for trials one by one


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return opened(f"sqlite:///{tmp_path / 'study.db'}")


def opened(url: str) -> optuna.Study:
    return open_study("pocketzoo-test", url, SeededSampler(0), optuna.pruners.NopPruner())


def dead_worker() -> str:
    """Of this process's number, before it was this process's."""
    return worker().rpartition(":")[0] + ":00000000"


def begun(study: optuna.Study) -> optuna.Trial:
    trial = study.ask()
    trial.set_user_attr(WORKER, worker())
    return trial


# -- the claim -----------------------------------------------------------------------------------------------------


def test_the_later_trial_yields_to_one_that_has_not_decided(study: optuna.Study) -> None:
    first, second = begun(study), begun(study)
    first.set_user_attr(KEY, "a")
    twin = claim(second, "a")
    assert twin is not None
    assert twin.number == first.number
    assert study.trials[1].user_attrs[DUPLICATE_OF] == 0
    assert claim(first, "a") is None
    assert study.trials[0].user_attrs[TRAINS] is True


@pytest.mark.parametrize("decision", [TRAINS, DUPLICATE_OF])
def test_the_earlier_trial_waits_for_the_later_ones_decision(study: optuna.Study, decision: str) -> None:
    """The later one looked before the earlier one said its key, and has not said yet what it saw."""
    first, second = begun(study), begun(study)
    second.set_user_attr(KEY, "a")
    with ThreadPoolExecutor(1) as pool:
        claimed = pool.submit(claim, first, "a")
        time.sleep(3 * studies.CLAIM_SECONDS)
        assert not claimed.done()
        second.set_user_attr(decision, first.number if decision == DUPLICATE_OF else True)
        twin = claimed.result(timeout=10)
    assert (twin is None) == (decision == DUPLICATE_OF)
    assert (TRAINS in study.trials[0].user_attrs) == (decision == DUPLICATE_OF)


def test_a_rival_that_dies_undecided_holds_nobody_up(study: optuna.Study) -> None:
    first, second = begun(study), begun(study)
    second.set_user_attr(WORKER, dead_worker())
    second.set_user_attr(KEY, "a")
    assert claim(first, "a") is None
    assert study.trials[1].state == TrialState.FAIL


def test_other_networks_and_lost_trials_are_no_rivals(study: optuna.Study) -> None:
    other, lost, mine = begun(study), begun(study), begun(study)
    claim(other, "b")
    claim(lost, "a")
    study.tell(lost, state=TrialState.FAIL)
    assert claim(mine, "a") is None


def test_of_many_trials_that_meet_one_trains(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    workers = 6
    together = threading.Barrier(workers)

    def one(_: int) -> list[bool]:
        study = opened(url)
        trained = []
        for key in "abc":
            trial = begun(study)
            together.wait(30)
            trained.append(claim(trial, key) is None)
        return trained

    with ThreadPoolExecutor(workers) as pool:
        trained = list(pool.map(one, range(workers)))
    assert [sum(each) for each in zip(*trained, strict=True)] == [1, 1, 1]


# -- who is lost -------------------------------------------------------------------------------------------------------


def test_a_container_of_the_same_host_name_is_not_looked_up_by_process_number(study: optuna.Study) -> None:
    host, process, _ = worker().rsplit(":", 2)
    name, _, namespace = host.partition("/")
    trial = study.ask()
    trial.set_user_attr(WORKER, f"{name}/{int(namespace or 1) + 1}:{process}:00000000")
    take_up_lost_trials(study)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    trial.set_user_attr(WORKER, dead_worker())
    take_up_lost_trials(study)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]


# -- a worker that was taken for dead and lives -----------------------------------------------------------------------


def test_a_worker_that_was_taken_for_dead_drops_its_trial_and_goes_on(study: optuna.Study) -> None:
    study.enqueue_trial({"width": 0.5})
    seen = []

    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr(WORKER, worker())
        width = trial.suggest_float("width", 0, 1)
        seen.append(width)
        if len(seen) == 1:  # what another machine does after a silence of this one
            study.tell(trial.number, state=TrialState.FAIL)
            enqueue_again(study, trial.number, trial.params)
            trial.report(0.1, 1)
        return width

    plan = Plan("lenet5", "digits", Budget(macs="1M"), trials=1)
    assert explore(plan, study, cast(Objective, objective))
    assert seen == [0.5, 0.5]
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[1].user_attrs["retry_of"] == 0


def test_an_error_of_ones_own_is_not_dropped(study: optuna.Study) -> None:
    def objective(trial: optuna.Trial) -> float:
        raise ValueError("a shape that cannot be")

    study.enqueue_trial({})
    plan = Plan("lenet5", "digits", Budget(macs="1M"), trials=1)
    with pytest.raises(ValueError, match="a shape that cannot be"):
        explore(plan, study, cast(Objective, objective))


# -- the proxy ---------------------------------------------------------------------------------------------------------


class Proxy(NamedTuple):
    """One that runs, and the SQLite file that it serves."""

    url: str
    database: Path
    process: subprocess.Popen[bytes]


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with socket.create_server(("localhost", 0)) as probe:
        port = str(probe.getsockname()[1])
    database = tmp_path / "proxied.db"
    command = [sys.executable, "-m", "pocketzoo.search.relay", "--storage", f"sqlite:///{database}", "--port", port]
    with subprocess.Popen(command) as process:
        try:
            yield Proxy(f"grpc://localhost:{port}", database, process)
        finally:
            process.kill()


def test_through_the_proxy_heartbeats_reach_the_database(proxy: Proxy) -> None:
    study = opened(proxy.url)
    beats = []

    def objective(trial: optuna.Trial) -> float:
        time.sleep(0.5)
        with sqlite3.connect(proxy.database) as connection:
            beats.extend(connection.execute("SELECT trial_id FROM trial_heartbeats").fetchall())
        return trial.suggest_float("width", 0, 1)

    study.optimize(objective, n_trials=1)
    assert beats == [(study.trials[0]._trial_id,)]
    assert not study.trials[0].system_attrs
    direct = opened(f"sqlite:///{proxy.database}")
    assert direct.trials[0].value == study.trials[0].value


def test_a_proxy_that_goes_away_ends_a_search_in_a_line(proxy: Proxy, capfd: pytest.CaptureFixture[str]) -> None:
    study = opened(proxy.url)
    study.enqueue_trial({})

    def objective(trial: optuna.Trial) -> float:
        proxy.process.kill()
        proxy.process.wait()
        trial.report(0.5, 1)
        raise AssertionError("the proxy is not there")

    plan = Plan("lenet5", "digits", Budget(macs="1M"), trials=1)
    with pytest.raises(InvalidRun, match=r"the study can no longer be kept .*connect"):
        explore(plan, study, cast(Objective, objective))
    assert "Traceback" not in capfd.readouterr().err


def test_the_proxy_leaves_other_peoples_studies_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    ours, theirs = (optuna.create_study(storage=url, study_name=name) for name in ("pocketzoo-test", "theirs"))
    for study in (ours, theirs):
        study.ask().set_user_attr(WORKER, dead_worker())
    look_after(optuna.storages.get_storage(url))
    assert (ours.trials[0].state, theirs.trials[0].state) == (TrialState.FAIL, TrialState.RUNNING)


def test_a_port_that_is_taken_is_refused_in_a_line(tmp_path: Path) -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = str(taken.getsockname()[1])
        found = CliRunner().invoke(main, ["--storage", f"sqlite:///{tmp_path / 'study.db'}", "--port", port])
    assert found.exit_code == 2
    assert f"cannot listen on localhost:{port}: Address already in use; give another --port" in found.stderr


def test_without_grpcio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pocketzoo\[grpc\]"):
        opened("grpc://localhost:1")


@pytest.mark.parametrize("url", ["grpc://localhost", "grpc://localhost:1"])
def test_a_proxy_that_is_not_there_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PROXY_SECONDS", 0.2)
    with pytest.raises(InvalidRun, match=f"the storage {url} cannot be opened"):
        opened(url)


def test_accelerate_does_not_start_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidRun, match="start the same command several times"):
        run_search("lenet5", "digits", Budget(macs="100k"), 1, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- the example files of docs/clusters.md -----------------------------------------------------------------------------


def understood(command: list[str]) -> None:
    """Click reads the whole line, and refuses unknown words, options and values; nothing runs."""
    program, name, *rest = command
    assert program == "pocketzoo"
    cli.main.commands[name].make_context(name, rest, parent=click.Context(cli.main))


def test_the_slurm_script_starts_a_worker(tmp_path: Path) -> None:
    (tmp_path / "pocketzoo").write_text("#!/bin/sh\nprintf '%s\\n' pocketzoo \"$@\"\n")
    (tmp_path / "pocketzoo").chmod(0o755)
    place = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "1", "SLURM_CPUS_PER_TASK": "2"}
    script = ["bash", str(CLUSTERS / "slurm.sh"), "--trials", "200"]
    refused = subprocess.run(script, env=place, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "STORAGE: is not set" in refused.stderr
    place["STORAGE"] = "postgresql://zoo@db/zoo"
    said = subprocess.run(script, env=place, capture_output=True, text=True, check=True).stdout.splitlines()
    understood(said)
    assert said[-2:] == ["--trials", "200"]
    assert said[said.index("--storage") + 1] == place["STORAGE"]


def test_the_kubernetes_file_is_one_whole() -> None:
    documents = list(yaml.safe_load_all((CLUSTERS / "kubernetes.yaml").read_text()))
    found = {(each["kind"], each["metadata"]["name"]): each["spec"] for each in documents}
    job = found["Job", "pocketzoo-search"]
    assert job["parallelism"] == job["completions"] == 4
    server = found["Deployment", "pocketzoo-database"]["template"]
    (worker_container,), (server_container,) = job["template"]["spec"]["containers"], server["spec"]["containers"]
    understood(worker_container["command"])

    (url,) = [make_url(word.removeprefix("--storage=")) for word in worker_container["command"] if "--storage=" in word]
    service = found["Service", str(url.host)]
    assert service["selector"].items() <= server["metadata"]["labels"].items()
    assert [port["port"] for port in service["ports"]] == [5432]
    variables = {each["name"]: each for each in server_container["env"]}
    assert (variables["POSTGRES_USER"]["value"], variables["POSTGRES_DB"]["value"]) == (url.username, url.database)
    password = {each["name"]: each for each in worker_container["env"]}["PGPASSWORD"]
    assert password["valueFrom"] == variables["POSTGRES_PASSWORD"]["valueFrom"]
    for pod, container in ((job["template"], worker_container), (server, server_container)):
        for volume in pod["spec"]["volumes"]:
            assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in found
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["spec"]["volumes"]}
    assert f"/{worker_container['volumeMounts'][0]['mountPath'].strip('/')}/" in worker_container["command"][-1]
