"""Where the runner runs: this machine for real; ssh and adb against scripts that stand in for the programs."""

import ast
import os
import signal
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from jobs import MODELS, endless, job, left_behind, write_models
from pocketzoo.errors import DeviceFailed, UnknownDevice
from pocketzoo.profiler import adb, receiver, runner
from pocketzoo.profiler.dispatch import answer, dispatch, start_python
from pocketzoo.profiler.hosts import Local, host
from pocketzoo.profiler.ssh import Ssh

Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of the host, which must be empty in the end."""
    folder = tmp_path / "there"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that the test writes, the first to be found."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def as_runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    """Send another program in the runner's place."""
    (tmp_path / "other.py").write_text(text)
    monkeypatch.setattr(runner, "__file__", str(tmp_path / "other.py"))


def through(shell: str, files: Files, **more: Any) -> dict[str, Any]:
    """A job by way of a shell, which runs "$@" when it is ready."""
    command = ["sh", "-c", shell, "sh", *start_python([sys.executable])]
    return answer("board", job(), "python3", dispatch("board", command, job(), files, **more))


class TestThisMachine:
    def test_measures(self, files: Files, there: Path) -> None:
        rounds: list[int] = []
        result = host("cpu").run(job(), files, lambda done, seconds: rounds.append(done))
        assert set(result["models"]) == set(MODELS)
        assert rounds == list(range(1, len(result["samples_ms"]["wide"]) + 1))
        assert result["models"]["narrow"]["ratio"] == 1
        assert result["models"]["wide"]["reference_ms"] == result["models"]["narrow"]["median_ms"]
        assert result["stamp"]["cores"] == os.cpu_count()
        assert not left_behind(there)

    def test_threads_are_pinned(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: Files) -> None:
        as_runner(monkeypatch, tmp_path, "import json, os; print(json.dumps({'models': dict(os.environ)}))")
        seen = host("cpu").run(job(threads=3), files)["models"]
        assert [seen[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")] == ["3", "3"]

    def test_missing_runtime(self, tmp_path: Path, files: Files, there: Path) -> None:
        venv.create(tmp_path / "bare", symlinks=True)
        python = str(tmp_path / "bare" / "bin" / "python")
        with pytest.raises(DeviceFailed, match=f"(onnxruntime|numpy).*{python} -m pip install onnxruntime"):
            Local(python=python).run(job(), files)
        assert not left_behind(there)

    @pytest.mark.parametrize("damage", ["file", "shape"])
    def test_unusable_model_is_named(self, tmp_path: Path, files: Files, there: Path, damage: str) -> None:
        order = job()
        if damage == "file":
            (tmp_path / "broken.onnx").write_bytes(b"not a model")
            files = {**files, "wide.onnx": tmp_path / "broken.onnx"}
        else:
            order["models"]["wide"]["shape"] = [1, 5, 8, 8]
        with pytest.raises(DeviceFailed, match="onnxruntime cannot run the model there: wide: "):
            host("cpu").run(order, files)
        assert not left_behind(there)

    def test_timeout_ends_the_run(self, files: Files, there: Path) -> None:
        with pytest.raises(DeviceFailed, match="cpu: no result within 1 s"):
            host("cpu").run(endless(), files, timeout_s=1)
        assert not left_behind(there)

    def test_interruption_ends_the_run(self, files: Files, there: Path) -> None:
        def interrupt(done: int, seconds: float) -> None:
            assert list(there.iterdir())
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            host("cpu").run(endless(), files, interrupt)
        assert not left_behind(there, within_s=0)

    def test_killed_sender_ends_the_run(self, tmp_path: Path, files: Files, there: Path) -> None:
        (tmp_path / "send.py").write_text(
            "import sys; from pathlib import Path; from pocketzoo.profiler.hosts import host\n"
            f"sys.path.insert(0, {str(Path(__file__).parent)!r}); from jobs import endless\n"
            f"files = { {name: str(path) for name, path in files.items()} }\n"
            "files = {name: Path(path) for name, path in files.items()}\n"
            "host('cpu').run(endless(), files, lambda done, seconds: print(done, flush=True))\n"
        )
        with subprocess.Popen([sys.executable, tmp_path / "send.py"], stdout=subprocess.PIPE) as sender:
            assert sender.stdout is not None
            assert sender.stdout.readline() == b"1\n"
            sender.kill()
        assert not left_behind(there)

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
    def test_crash_names_the_signal(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: Files, there: Path, number: signal.Signals
    ) -> None:
        as_runner(monkeypatch, tmp_path, f"import os; os.kill(os.getpid(), {int(number)})")
        with pytest.raises(DeviceFailed, match=f"ended by signal {int(number)}"):
            host("cpu").run(job(), files)
        assert not left_behind(there)

    def test_a_traceback_ends_in_its_last_line(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: Files
    ) -> None:
        as_runner(monkeypatch, tmp_path, "raise RuntimeError('what happened')")
        with pytest.raises(DeviceFailed, match=r"code 1: RuntimeError: what happened$"):
            host("cpu").run(job(), files)


class TestAnyHost:
    def test_login_messages_do_not_disturb(self, files: Files, there: Path) -> None:
        assert set(through('echo Welcome; echo "to the board" >&2; exec "$@"', files)["models"]) == set(MODELS)

    def test_full_disk(self, tmp_path: Path, files: Files, there: Path) -> None:
        (tmp_path / "large").write_bytes(bytes(1 << 20))
        with pytest.raises(DeviceFailed, match="cannot be stored there: File too large"):
            through('ulimit -f 64; exec "$@"', {**files, "large": tmp_path / "large"})
        assert not left_behind(there)

    def test_missing_python(self, files: Files) -> None:
        with pytest.raises(DeviceFailed, match=r"cannot start python3 there \(.*not found.*\?python=PATH"):
            through("exec nosuchpython", files)

    def test_old_python(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: Files) -> None:
        source = Path(receiver.__file__).read_text()
        (tmp_path / "receiver.py").write_text(source.replace("OLDEST = (3, 8)", "OLDEST = (99, 0)"))
        monkeypatch.setattr(receiver, "__file__", str(tmp_path / "receiver.py"))
        with pytest.raises(DeviceFailed, match=r"needs Python 3.8 or newer, and python3 is Python 3\.\d+"):
            through('exec "$@"', files)

    def test_connection_lost_while_files_travel(self, tmp_path: Path, files: Files, there: Path) -> None:
        (tmp_path / "large").write_bytes(bytes(8 << 20))
        with pytest.raises(DeviceFailed, match="the connection broke"):
            through('head -c 4000000 | "$@"', {**files, "large": tmp_path / "large"})
        assert not left_behind(there)

    def test_the_other_side_has_a_clock_of_its_own(
        self, monkeypatch: pytest.MonkeyPatch, files: Files, there: Path
    ) -> None:
        monkeypatch.setattr("pocketzoo.profiler.dispatch.LINGER_S", -99.5)
        with pytest.raises(DeviceFailed, match="took too long and was stopped there"):
            host("cpu").run(endless(), files, timeout_s=100)
        assert not left_behind(there)

    def test_connection_stuck_while_files_travel(self, tmp_path: Path, files: Files) -> None:
        (tmp_path / "large").write_bytes(bytes(8 << 20))
        with pytest.raises(DeviceFailed, match=r"no result within 0\.5 s"):
            through("exec sleep 60", {**files, "large": tmp_path / "large"}, timeout_s=0.5)

    @pytest.mark.parametrize("module", [receiver, runner])
    def test_travelling_programs_are_old_python(self, module: Any) -> None:
        ast.parse(Path(module.__file__).read_text(), feature_version=(3, 8))


class TestNames:
    @pytest.mark.parametrize(
        ("device", "expected"),
        [
            ("ssh://board", Ssh("ssh://board", "board")),
            ("ssh://pi@Board-2.local:2222/", Ssh("ssh://pi@Board-2.local:2222/", "Board-2.local", "pi", 2222)),
            ("ssh://[fe80::1%eth0]:22", Ssh("ssh://[fe80::1%eth0]:22", "fe80::1%eth0", None, 22)),
            ("ssh://b?python=/opt/c++/python3", Ssh("ssh://b?python=/opt/c++/python3", "b", python="/opt/c++/python3")),
            ("adb", adb.Adb("adb")),
            ("adb://10.0.0.7:5555", adb.Adb("adb://10.0.0.7:5555", "10.0.0.7:5555")),
            ("adb?python=run-as app python3", adb.Adb("adb?python=run-as app python3", python="run-as app python3")),
        ],
    )
    def test_read(self, device: str, expected: Any) -> None:
        assert host(device) == expected

    @pytest.mark.parametrize(
        "device",
        ["", "cpu2", "ssh://", "ssh:board", "ssh://board/folder", "ssh://board:0", "ssh://board:65536",
         "ssh://board:x", "ssh://-oProxyCommand=reboot", "ssh://-l@board", "ssh://a:secret@board", "ssh://two words",
         "adb://-d", "adb:x", "ssh://board?pyton=x", "ssh://board?python=", "ssh://board?python='",
         "cpu?python=python3"],
    )  # fmt: skip
    def test_refused(self, device: str) -> None:
        with pytest.raises(UnknownDevice, match="expected"):
            host(device)

    def test_refusal_suggests(self) -> None:
        with pytest.raises(UnknownDevice, match="did you mean cpu"):
            host("cpu0")


class TestSsh:
    """Against a script; test_system_ssh.py has a real server."""

    @pytest.mark.parametrize(
        ("line", "meaning"),
        [
            ("ssh: Could not resolve hostname board: Name or service not known", "no machine of that name"),
            ("ssh: connect to host board port 22: Connection refused", "no SSH server listens there"),
            ("ssh: connect to host board port 22: No route to host", "cannot be reached"),
            ("ssh: connect to host board port 22: Connection timed out", "cannot be reached"),
            ("pi@board: Permission denied (publickey,password).", "the key was refused"),
            ("No ED25519 host key is known for board.\nHost key verification failed.", "host key is not known here"),
            (
                "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
                "another than",
            ),
            ("Connection to board closed by remote host.", "the connection broke"),
            ("client_loop: send disconnect: Broken pipe", "the connection broke"),
            ("Timeout, server board not responding.", "the connection broke"),
            ("/etc/ssh/ssh_config: line 1: Bad configuration option: x", "ssh failed: .*Bad configuration option"),
            ("", "killed"),
        ],
    )
    def test_what_ssh_says_is_explained(self, programs: Path, files: Files, line: str, meaning: str) -> None:
        write_program(programs / "ssh", f"#!/bin/sh\ncat >&2 <<'END'\n{line}\nEND\nexit 255\n")
        with pytest.raises(DeviceFailed, match=f"^ssh://board: .*{meaning}") as caught:
            host("ssh://board").run(job(), files)
        assert "\n" not in str(caught.value)

    def test_runs_what_the_other_side_is_told(self, programs: Path, files: Files, there: Path) -> None:
        write_program(programs / "ssh", '#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
        assert set(host(f"ssh://board?python={sys.executable}").run(job(), files)["models"]) == set(MODELS)
        assert not left_behind(there)

    def test_no_ssh_program(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: Files) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(DeviceFailed, match=r"cannot start ssh.*installed"):
            host("ssh://board").run(job(), files)

    def test_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POCKETZOO_SSH_CONFIG", "my config")
        command = Ssh("x", "board", "pi", 2222, "~/my/python3").command()
        assert command[:4] == ["ssh", "-T", "-F", "my config"]
        assert "BatchMode=yes" in command
        assert command[-7:-1] == ["-l", "pi", "-p", "2222", "--", "board"]
        assert command[-1].startswith("exec my/python3 -I -c ")


ADB = """#!/bin/sh
# Stands in for adb: the "device" is this machine's shell, with a folder in the place of /data/local/tmp.
echo "$@" > {folder}/called
[ -n "$ADB_SAYS" ] && {{ echo "$ADB_SAYS" >&2; exit 1; }}
for last; do :; done
last=$(printf %s "$last" | sed "s|/data/local/tmp|{there}|")
[ -z "$ADB_CUT" ] && exec sh -c "$last"
exec 3<&0
sh -c "$last" <&3 >/dev/null 2>&1 &
until ls {there}/pocketzoo-*/runner.py; do sleep 0.05; done >/dev/null 2>&1
kill -HUP $!
"""


class TestAdb:
    """Against a script: no device and no emulator is at hand."""

    @pytest.fixture(autouse=True)
    def program(self, programs: Path, there: Path) -> None:
        write_program(programs / "adb", ADB.format(folder=programs, there=there))

    def test_measures_and_leaves_nothing(self, programs: Path, files: Files, there: Path) -> None:
        rounds: list[int] = []
        result = host(f"adb://R58M?python={sys.executable}").run(job(), files, lambda done, _: rounds.append(done))
        assert set(result["models"]) == set(MODELS)
        assert rounds[0] == 1
        assert (programs / "called").read_text().startswith("-s R58M shell -e none -T TMPDIR=/data/local/tmp exec ")
        assert not left_behind(there)

    @pytest.mark.parametrize(
        ("line", "meaning"),
        [
            ("adb: no devices/emulators found", "no device is connected"),
            ("error: device 'R58M' not found", "no device of that serial"),
            ("error: more than one device/emulator", "adb://SERIAL"),
            ("adb: device unauthorized.", "accept its key"),
            ("error: device still authorizing", "accept its key"),
            ("adb: device offline", "plug it in again"),
            ("error: target doesn't support PTY args -Tt", "older than 7"),
            ("error: protocol fault", "adb failed: protocol fault"),
        ],
    )
    def test_what_adb_says_is_explained(
        self, monkeypatch: pytest.MonkeyPatch, files: Files, line: str, meaning: str
    ) -> None:
        monkeypatch.setenv("ADB_SAYS", line)
        with pytest.raises(DeviceFailed, match=f"^adb: .*{meaning}"):
            host("adb").run(job(), files)

    def test_no_python_there(self, files: Files) -> None:
        with pytest.raises(DeviceFailed, match=r"cannot start /data/data/com.termux/.*\?python=PATH"):
            host("adb").run(job(), files)

    def test_pulled_cable(self, monkeypatch: pytest.MonkeyPatch, files: Files, there: Path) -> None:
        monkeypatch.setenv("ADB_CUT", "1")
        with pytest.raises(DeviceFailed, match="the connection broke"):
            host(f"adb?python={sys.executable}").run(endless(), files)
        assert not left_behind(there)

    def test_no_adb_program(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: Files) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(DeviceFailed, match=r"cannot start adb.*installed"):
            host("adb").run(job(), files)
