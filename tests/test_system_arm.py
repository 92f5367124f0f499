"""The runner on an ARM processor that QEMU imitates: that it works there, never how fast.

An arm64 root is unpacked from Debian packages into a temporary folder; the machine's own package lists stay as they
are. ONNX Runtime asks the system what processor this is and crashes on the answer of another architecture, which the
emulation hands through, so the root has a /proc/cpuinfo that describes the processor that is imitated.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import MODELS, job, write_models
from pocketzoo.profiler import runner

pytestmark = pytest.mark.system

LIMIT_S = 180  # of one emulated step; each takes seconds
CPU, CPU_PART = "cortex-a72", "0xd08"
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")  # and what they depend on
WHEELS = ("numpy", "onnxruntime")
APT = """
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Sandbox::User "root";
Dir::State "{state}";
Dir::State::status "{state}/status";
Dir::Cache "{state}/cache";
"""
PROCESSOR = f"""processor\t: {{}}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {CPU_PART}
CPU revision\t: 3

"""


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an arm64 system in which Python starts."""
    folder = tmp_path_factory.mktemp("arm64")
    state, system = folder / "apt", folder / "root"
    for needed in (state / "lists" / "partial", state / "cache" / "archives" / "partial", system / "proc"):
        needed.mkdir(parents=True)
    (state / "status").touch()  # nothing is installed, so that every dependency is fetched
    (state / "apt.conf").write_text(APT.format(state=state))
    environment = {**os.environ, "APT_CONFIG": str(state / "apt.conf")}
    for step in (["update"], ["install", "--download-only", "--yes", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", "-qq", *step], env=environment, check=True, timeout=LIMIT_S)
    for package in (state / "cache" / "archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, system], check=True)
    (system / "proc" / "cpuinfo").write_text("".join(map(PROCESSOR.format, range(os.cpu_count() or 1))))
    yield system
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def libraries(root: Path) -> Path:
    """A folder with the wheels for ARM that Python finds when it is told to look there."""
    version = (root / "usr" / "bin" / "python3").readlink().name.removeprefix("python")
    folder = root.parent / "libraries"
    kept = Path(__file__).parents[1] / "constraints.txt"
    platforms = [f"--platform={name}_aarch64" for name in ("manylinux_2_28", "manylinux_2_27", "manylinux2014")]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    more = [f"--python-version={version}", "-c", str(kept), "-d", str(folder)]
    subprocess.run([*pip, *more, *WHEELS], check=True, timeout=LIMIT_S)
    for wheel in folder.glob("*.whl"):
        subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, folder], check=True)
    return folder


def emulated(root: Path, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in the root."""
    settings = [word for name, value in environment.items() for word in ("-E", f"{name}={value}")]
    command = ["qemu-aarch64", "-cpu", CPU, "-L", root, *settings, root / "usr" / "bin" / "python3", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the runner finds on the machine."""
    write_models(tmp_path)
    (tmp_path / "runner.py").write_bytes(Path(runner.__file__).read_bytes())
    (tmp_path / "job.json").write_text(json.dumps(job()))
    return tmp_path


def run(folder: Path, root: Path, **environment: str) -> tuple[int, dict[str, Any], list[str]]:
    """The runner's exit code, what it printed, and its progress."""
    ended = emulated(root, [str(folder / "runner.py"), str(folder / "job.json")], **environment)
    return ended.returncode, json.loads(ended.stdout), ended.stderr.splitlines()


def test_measures_with_onnxruntime(root: Path, libraries: Path, folder: Path) -> None:
    code, result, progress = run(folder, root, PYTHONPATH=str(libraries))
    assert code == 0
    assert set(result["models"]) == set(MODELS)
    assert len(progress) == len(result["samples_ms"]["wide"])
    assert all(line.startswith("round ") for line in progress)
    assert result["models"]["narrow"]["ratio"] == 1
    assert (result["stamp"]["machine"], result["stamp"]["processor"]) == ("aarch64", CPU_PART)


def test_missing_runtime(root: Path, folder: Path) -> None:
    code, result, _ = run(folder, root)
    assert code == runner.MISSING_RUNTIME
    assert "onnxruntime" in result["error"]


def test_unusable_model(root: Path, libraries: Path, folder: Path) -> None:
    (folder / "wide.onnx").write_bytes(b"not a model")
    code, result, _ = run(folder, root, PYTHONPATH=str(libraries))
    assert code == runner.UNUSABLE_MODEL
    assert result["error"].startswith("wide: ")
