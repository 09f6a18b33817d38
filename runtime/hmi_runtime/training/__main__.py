"""``python -m hmi_runtime.training domain | adapter | export``."""

import os
import signal
import sys

# Set before torch is imported, which reads it once. Threads that busy-wait for one another cost as much CPU
# as the work itself where other processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hmi_api.security.ca_certificates import trust_ca_certificates
from hmi_runtime.training.cli import main
from hmi_runtime.training.run import return_large_blocks_to_os


def _exit_on_signal(number: int, _: object) -> None:
    sys.exit(128 + number)


# Process 1 of a container ignores SIGTERM unless it has a handler.
signal.signal(signal.SIGTERM, _exit_on_signal)
trust_ca_certificates()
return_large_blocks_to_os()
sys.exit(main())
