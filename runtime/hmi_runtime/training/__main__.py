"""``python -m hmi_runtime.training domain | adapter | export``."""

import os
import sys

# Before torch is loaded, which reads it once: threads that spin while they wait for one another cost as
# much as the work itself on cores that other processes share.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hmi_runtime.training.cli import main

sys.exit(main())
