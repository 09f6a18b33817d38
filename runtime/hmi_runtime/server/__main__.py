"""``python -m hmi_runtime.server``: one runtime process, told by ``HMI_`` environment variables."""

import logging
import sys

from pydantic import ValidationError

from hmi_api.ca_certificates import trust_ca_certificates
from hmi_runtime.server.process import serve
from hmi_runtime.server.settings import RuntimeSettings


def main() -> None:
    """Read the settings and serve."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = RuntimeSettings()
    except ValidationError as error:
        lines = [
            f"HMI_{'__'.join(map(str, e['loc'])).upper()}: {e['msg']}" if e["loc"] else e["msg"]
            for e in error.errors(include_input=False, include_url=False)
        ]
        sys.exit("The runtime cannot start:\n  " + "\n  ".join(lines))
    serve(settings)


if __name__ == "__main__":
    trust_ca_certificates()
    main()
