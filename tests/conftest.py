"""What every test may ask for."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Protein sets too large for the repository: PROTPERF_TEST_DATA, else `shared/data` beside the checkout."""
    named = os.environ.get("PROTPERF_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no protein sets at {folder}; PROTPERF_TEST_DATA names another folder")
    return folder


# A job in the background of a script is born deaf to Ctrl-C, and so would be every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
