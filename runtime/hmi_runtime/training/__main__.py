"""``python -m hmi_runtime.training domain | adapter | export``."""

import os
import signal
import sys

# Before torch is loaded, which reads it once: threads that spin while they wait for one another cost as
# much as the work itself on cores that other processes share.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hmi_api.security.ca_certificates import trust_ca_certificates
from hmi_runtime.training.cli import main
from hmi_runtime.training.memory import give_back_large_blocks


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


# As process 1 of a container it would not hear of this signal unless it asked to.
signal.signal(signal.SIGTERM, _end)
trust_ca_certificates()
give_back_large_blocks()
sys.exit(main())
