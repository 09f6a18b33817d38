"""``python -m hmi_control_plane``: serve the control plane with settings from the environment."""

import uvicorn

from hmi_control_plane.app import create_app
from hmi_control_plane.settings import Settings


def main() -> None:
    """Serve until stopped."""
    settings = Settings()
    uvicorn.run(create_app(settings), host=settings.host, port=settings.port, server_header=False)


if __name__ == "__main__":
    main()
