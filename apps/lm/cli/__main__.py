"""`python -m protperf.lm.cli` is `protperf`."""

import sys

from protperf.lm.cli import main

sys.exit(main())
