"""``python -m hmi_runtime.server``: one runtime process, configured by ``HMI_`` environment variables."""

import logging
import os
import sys

from hmi_api.errors import InvalidInput
from hmi_api.security.ca_certificates import trust_ca_certificates
from hmi_api.settings import load_settings, trim_environment
from hmi_runtime.server.process import serve
from hmi_runtime.server.settings import RuntimeSettings


def main() -> None:
    """Read the settings and serve."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        trim_environment(os.environ)
        settings = load_settings(RuntimeSettings)
        serve(settings)
    except InvalidInput as error:
        sys.exit("The runtime cannot start:\n  " + error.message.replace("\n", "\n  "))


if __name__ == "__main__":
    trust_ca_certificates()
    main()
