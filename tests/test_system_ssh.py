"""Measuring over SSH on a real OpenSSH server: this machine, on a high port, with keys and settings of its own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs import MODELS, endless, job, left_behind, write_models
from pocketzoo.errors import DeviceFailed
from pocketzoo.profiler.hosts import host
from pocketzoo.profiler.ssh import CONFIG

pytestmark = pytest.mark.system

SERVER = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
SetEnv TMPDIR={there}
"""
CLIENT = """
Host *
    IdentityFile {folder}/key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile none
"""


@dataclass
class Board:
    """A running server."""

    port: int
    folder: Path  # its keys and ours
    there: Path  # its temporary folder, which must be empty in the end
    process: subprocess.Popen[bytes]

    def device(self, python: str = sys.executable) -> str:
        return f"ssh://127.0.0.1:{self.port}?python={python}"

    def cut(self) -> None:
        """Break the connections."""
        end_connections(self.process.pid)


def end_connections(server: int) -> None:
    """Kill the processes that a server has started, theirs first, but none that they run for the user."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # ended meanwhile
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            if fields["Name"].startswith("sshd") and int(fields["PPid"]) == server:
                end_connections(int(fields["Pid"]))
                os.kill(int(fields["Pid"]), signal.SIGKILL)


def make_key(path: Path) -> None:
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def serving(folder: Path, there: Path) -> Iterator[Board]:
    """A server whose host key and whose only user's key are made for it."""
    Path("/run/sshd").mkdir(exist_ok=True)  # where it keeps the process that it gives no rights
    for name in ("host_key", "key"):
        make_key(folder / name)
    port = free_port()
    (folder / "sshd_config").write_text(SERVER.format(folder=folder, there=there, port=port))
    (folder / "ssh_config").write_text(CLIENT.format(folder=folder))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    assert sshd
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sshd, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        wait_for(lambda: b"listening" in (folder / "log").read_bytes(), process)
        yield Board(port, folder, there, process)
    finally:
        end_connections(process.pid)
        process.kill()
        process.wait()


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while not ready():
        assert process.poll() is None, "sshd ended"
        assert time.monotonic() < deadline, "sshd does not start"
        time.sleep(0.05)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


@pytest.fixture
def board(tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    with serving(tmp_path, there) as running:
        monkeypatch.setenv(CONFIG, str(tmp_path / "ssh_config"))
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


def test_measures_and_leaves_nothing(board: Board, files: dict[str, Path]) -> None:
    rounds: list[int] = []
    result = host(board.device()).run(job(), files, lambda done, seconds: rounds.append(done))
    assert set(result["models"]) == set(MODELS)
    assert rounds == list(range(1, len(result["samples_ms"]["wide"]) + 1))
    assert not left_behind(board.there)


def test_bad_port(files: dict[str, Path]) -> None:
    with pytest.raises(DeviceFailed, match="no SSH server listens there"):
        host(f"ssh://127.0.0.1:{free_port()}").run(job(), files)


def test_bad_name(files: dict[str, Path]) -> None:
    with pytest.raises(DeviceFailed, match="no machine of that name is known"):
        host("ssh://no-such-board.invalid").run(job(), files)


def test_refused_key(board: Board, files: dict[str, Path]) -> None:
    authorised = (board.folder / "key.pub").read_text()
    make_key(board.folder / "key")
    (board.folder / "key.pub").write_text(authorised)
    with pytest.raises(DeviceFailed, match="the key was refused"):
        host(board.device()).run(job(), files)
    assert not left_behind(board.there)


def test_changed_host_key(board: Board, files: dict[str, Path]) -> None:
    other = (board.folder / "key.pub").read_text()
    (board.folder / "known_hosts").write_text(f"[127.0.0.1]:{board.port} {other}")
    with pytest.raises(DeviceFailed, match="host key is another than before"):
        host(board.device()).run(job(), files)


def test_unknown_host_key(board: Board, files: dict[str, Path]) -> None:
    (board.folder / "known_hosts").write_text("")
    with pytest.raises(DeviceFailed, match="host key is not known here"):
        host(board.device()).run(job(), files)


def test_missing_python(board: Board, files: dict[str, Path]) -> None:
    with pytest.raises(DeviceFailed, match="cannot start /nowhere/python3 there"):
        host(board.device("/nowhere/python3")).run(job(), files)


def test_missing_runtime(board: Board, files: dict[str, Path]) -> None:
    venv.create(board.folder / "bare", symlinks=True)
    python = board.folder / "bare" / "bin" / "python"
    with pytest.raises(DeviceFailed, match=f"the runtime is missing.*{python} -m pip install onnxruntime"):
        host(board.device(str(python))).run(job(), files)
    assert not left_behind(board.there)


def test_unusable_model(board: Board, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(DeviceFailed, match="onnxruntime cannot run the model there: wide: "):
        host(board.device()).run(job(), {**files, "wide.onnx": tmp_path / "broken.onnx"})
    assert not left_behind(board.there)


def test_timeout(board: Board, files: dict[str, Path]) -> None:
    with pytest.raises(DeviceFailed, match="no result within 3 s"):
        host(board.device()).run(endless(), files, timeout_s=3)
    assert not left_behind(board.there)


def test_interruption(board: Board, files: dict[str, Path]) -> None:
    def interrupt(done: int, seconds: float) -> None:
        assert list(board.there.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        host(board.device()).run(endless(), files, interrupt)
    assert not left_behind(board.there)


def test_connection_cut_while_measuring(board: Board, files: dict[str, Path]) -> None:
    def cut(done: int, seconds: float) -> None:
        if done == 3:
            assert list(board.there.iterdir())
            board.cut()

    with pytest.raises(DeviceFailed, match="the connection broke"):
        host(board.device()).run(endless(), files, cut)
    assert not left_behind(board.there)


def test_connection_cut_while_files_travel(board: Board, files: dict[str, Path], tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(256 << 20))

    def cut_once_there() -> None:
        while not list(board.there.glob("pocketzoo-*/large")):
            time.sleep(0.005)
        board.cut()

    cutting = threading.Thread(target=cut_once_there)
    cutting.start()
    with pytest.raises(DeviceFailed, match="the connection broke"):
        host(board.device()).run(endless(), {"large": large, **files})
    cutting.join()
    assert not left_behind(board.there)


@pytest.fixture
def disk(there: Path) -> Iterator[Path]:
    """The server's temporary folder on a file system of 2 MB; conftest leaves this out where nothing may be mounted."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", there], check=True)
    try:
        yield there
    finally:
        subprocess.run(["umount", "--lazy", there], check=True)


def test_full_disk(disk: Path, board: Board, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "large.onnx").write_bytes(bytes(8 << 20))
    with pytest.raises(DeviceFailed, match="cannot be stored there: No space left on device"):
        host(board.device()).run(job(), {**files, "large.onnx": tmp_path / "large.onnx"})
    assert not left_behind(disk)
