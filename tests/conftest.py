"""What every test may ask for, and an environment that is the same for everybody."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Protein sets too large for the repository: PROTPERF_TEST_DATA, else `shared/data` next to the checkout."""
    named = os.environ.get("PROTPERF_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no protein sets at {folder}; PROTPERF_TEST_DATA names another folder")
    return folder


@pytest.fixture(scope="session")
def gpu_device() -> None:
    """Skips where no GPU would be used; with PROTPERF_REQUIRE_GPU=1 that is a failure.

    The driver that computes on the processor has to be named in PROTPERF_GPU.
    """
    from protperf import gpu

    why = gpu.fault()
    if why is not None:
        assert "PROTPERF_REQUIRE_GPU" not in os.environ, why
        pytest.skip(why)


@pytest.fixture(autouse=True)
def unchanged_environment() -> Iterator[None]:
    """Commands that run in this process set numbers of threads for what they load: the next test must not see them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


# No test may depend on how its user likes programs to talk, to compute or to be measured.
_SETTINGS = {"LANG", "LANGUAGE", "COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "PAGER", "BROWSER"}
_SETTINGS |= {"PROTPERF_NUM_THREADS"}
for _name in [*os.environ]:
    if _name in _SETTINGS or _name.startswith(("LC_", "PYTHON", "SLURM_", "XDG_", "OMP_NUM", "MKL_NUM", "KMP_")):
        del os.environ[_name]

# Checkpoints and tables are synced, and a disk takes 20 ms for that: files of tests lie in memory where it is large
# enough, and where those that are programs may run.
_MEMORY = "/dev/shm"
if (
    os.path.isdir(_MEMORY)
    and shutil.disk_usage(_MEMORY).free > 2 << 30
    and not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC
):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", _MEMORY)

# A job in the background of a script ignores Ctrl-C, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
