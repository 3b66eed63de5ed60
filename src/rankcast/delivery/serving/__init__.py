"""The parts of the server: what it takes, who may ask, files, plans, events, and its process."""

from rankcast.errors import ConfigError

try:
    import fastapi as _fastapi
    import prometheus_client as _prometheus_client
    import uvicorn as _uvicorn
except ImportError as error:  # pragma: no cover - every environment of the tests has them
    raise ConfigError(
        "Serving needs FastAPI, uvicorn and prometheus-client: pip install 'rankcast[serve]'."
    ) from error

del _fastapi, _prometheus_client, _uvicorn
