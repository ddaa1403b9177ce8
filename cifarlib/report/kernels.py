"""Kernels that share their imports: each is forked from one process that has made them.

Chapters import the same libraries, which takes a kernel longer than most chapters do. Run as a
file, ``kernels.py SOCKET FILE`` is what Jupyter starts in place of a kernel: it asks for one with
that connection file and lives as long as it. On macOS each kernel makes the imports itself.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FORKS = sys.platform != "darwin"
"""macOS ends a forked process that calls Objective-C, as ipykernel does there when a kernel starts
(appnope); and its matrix products (Accelerate) may crash after a fork."""


@contextlib.contextmanager
def serve_kernels(modules: Iterable[str]) -> Iterator[type]:
    """A kernel manager class, whose kernels have imported ``modules`` and end with the context.

    They run this environment's Python, whatever kernels are installed for the user.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    with tempfile.TemporaryDirectory(prefix="cifarlib-", ignore_cleanup_errors=True) as home:
        address = f"{home}/server"

        class Manager(AsyncKernelManager):
            def __init__(self, **settings: Any) -> None:
                folder = tempfile.mkdtemp(dir=home)
                # Sockets in that folder: no port that another process may take.
                super().__init__(
                    **settings, connection_file=f"{folder}/kernel.json", transport="ipc"
                )

            @property
            def kernel_spec(self) -> KernelSpec:
                file = "{connection_file}"
                forked = [sys.executable, "-SE", __file__, address, file]
                return KernelSpec(
                    argv=forked if FORKS else [*_call("serve_one"), file, *modules],
                    env={"IPYTHONDIR": f"{home}/ipython"},
                    display_name="Python 3 (ipykernel)",
                    language="python",
                )

        if not FORKS:
            yield Manager
            return
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(address)
            listening.listen()
            server = subprocess.Popen(
                [*_call("serve"), str(listening.fileno()), *modules],
                stdin=subprocess.PIPE,  # its end is the server's
                pass_fds=[listening.fileno()],
                start_new_session=True,  # Ctrl-C is for this process alone
            )
        with server:
            yield Manager


def _call(name: str) -> list[str]:
    """The command that calls a function of this module with what follows."""
    code = f"import sys; from cifarlib.report import kernels; kernels.{name}(*sys.argv[1:])"
    return [sys.executable, "-P", "-c", code]


def serve(listening: str, *modules: str) -> None:
    """Import modules, then fork a kernel for each client, until standard input ends."""
    _import(modules)
    server = socket.socket(fileno=int(listening))
    kernels = []
    while select.select([server, sys.stdin], [], [])[0] == [server]:
        client, _ = server.accept()
        if (kernel := os.fork()) == 0:
            server.close()
            run_kernel(client)
        kernels.append(kernel)
        client.close()
    for kernel in kernels:  # all have ended, except after Ctrl-C
        os.kill(kernel, signal.SIGKILL)
        os.waitpid(kernel, 0)


def serve_one(file: str, *modules: str) -> None:
    """Import modules, then be the kernel with a connection file, until its parent has ended."""
    _import(modules)
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(["-f", file])


def _import(modules: Iterable[str]) -> None:
    import importlib
    import io

    importlib.import_module("ipykernel.kernelapp")
    with contextlib.redirect_stderr(io.StringIO()):  # of a missing home, and a list of fonts
        for name in modules:
            with contextlib.suppress(Exception):  # the notebook that imports it will say why
                importlib.import_module(name)


def run_kernel(client: socket.socket) -> None:
    """Be the kernel that a client asks for, until it or the server has ended."""
    file, folder, environment = json.loads(client.makefile().readline())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=lambda: os._exit(len(client.recv(1))), daemon=True).start()
    try:
        from ipykernel.kernelapp import IPKernelApp

        IPKernelApp.launch_instance(["-f", file], parent_handle=os.getppid())
    finally:
        os._exit(1)


if __name__ == "__main__":
    with contextlib.suppress(OSError, KeyboardInterrupt), socket.socket(socket.AF_UNIX) as server:
        server.connect(sys.argv[1])
        asked = [sys.argv[2], str(Path.cwd()), dict(os.environ)]
        server.sendall(json.dumps(asked).encode() + b"\n")
        server.recv(1)
