"""nginx with the configurations of docs/deploy, each in a folder of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from broker_data import certificate, free_port
from system_programs import needs

DEPLOY = Path(__file__).parents[1] / "docs" / "deploy"
_FRAME = """
worker_processes {workers};
daemon off;
pid {folder}/nginx.pid;
error_log stderr notice;
{user}
events {{ worker_connections 2048; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


@contextmanager
def nginx(
    folder: Path,
    name: str,
    store: Path,
    upstream_port: int = 0,
    *,
    workers: int = 1,
    changes: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Run nginx with a configuration of docs/deploy and yield its port, with TLS for 127.0.0.1.

    Args:
        folder: new, for its files; the certificate is `cert.pem`.
        name: of the configuration.
        store: that it hands out.
        upstream_port: of rankcast serve.
        workers: processes.
        changes: further text of the configuration to replace.
    """
    program, port = needs("nginx"), free_port()
    folder.mkdir()
    public, private = certificate(folder)
    text = (DEPLOY / name).read_text("utf-8")
    replaced = {
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/ssl/rankcast/fullchain.pem": str(public),
        "/etc/ssl/rankcast/key.pem": str(private),
        "/srv/rankcast/store": str(store),
        "/var/cache/nginx/rankcast": str(folder / "cache"),
        "127.0.0.1:8080": f"127.0.0.1:{upstream_port}",
        **(changes or {}),
    }
    for old, new in replaced.items():
        text = text.replace(old, new)
    (folder / "site.conf").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(_FRAME.format(folder=folder, user=user, workers=workers))
    process = subprocess.Popen(  # noqa: S603 - our own words, no shell
        [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "start worker process " in line:
                break
        else:
            raise AssertionError("".join(said))
        yield port
    finally:
        process.terminate()
        process.communicate()
