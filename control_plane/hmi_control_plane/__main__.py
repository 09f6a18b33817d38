"""``python -m hmi_control_plane``: serve the control plane with settings from the environment."""

import sys

import uvicorn
from pydantic import ValidationError

from hmi_control_plane.app import create_app
from hmi_control_plane.settings import Settings


def main() -> None:
    """Serve until stopped; exits with 2 and the names of settings that are missing or wrong."""
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            name = "__".join(str(part) for part in problem["loc"]).upper()
            print(f"HMI_{name}: {problem['msg']}", file=sys.stderr)
        sys.exit(2)
    uvicorn.run(create_app(settings), host=settings.host, port=settings.port, server_header=False)


if __name__ == "__main__":
    main()
