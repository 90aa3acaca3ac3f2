"""A vLLM server on this machine's processor, for development, the tests and the bench: `make vllm`.

vLLM pins what it needs, so it lives in an environment of its own: `.venv-vllm` in the project, or the folder that
CONCORD_VLLM_VENV names. For a GPU use vLLM's own container (compose.yaml) instead.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import httpx
from rich.console import Console

from service.engine import TOP
from service.errors import EngineError
from service.settings import PROJECT, Settings

NAME = "concord"  # what the server calls the model, whatever folder it comes from
PATIENCE = 600.0  # seconds until it must answer; 50 on two idle cores, several minutes on busy ones
FEW_CORES = 4


def python() -> Path | None:
    """The interpreter of the environment that has vLLM; None where there is none."""
    venv = Path(os.environ.get("CONCORD_VLLM_VENV") or PROJECT / ".venv-vllm")
    return venv / "bin" / "python" if any(venv.glob("lib/python3*/site-packages/vllm/__init__.py")) else None


@contextlib.contextmanager
def running(
    model: Path | str, port: int = 0, console: Console | None = None, adapters: Mapping[str, Path] | None = None
) -> Iterator[str]:
    """Start a server for the model, wait until it answers, yield its URL, and stop all of it.

    port: 0 takes a free one. adapters: folders of adapters that it serves beside the model, by the names that requests
    use; on a CPU they are many times slower than one that is merged. Raises EngineError when vLLM is not installed or
    the server does not come up.
    """
    interpreter = python()
    if interpreter is None:
        raise EngineError("vLLM is not installed", retryable=False, hint="make vllm, or set CONCORD_VLLM_VENV")
    port = port or _free_port()
    log = Path(tempfile.gettempdir()) / f"concord-vllm-{port}.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*_dies_with_us(), *command(interpreter, model, port, adapters or {})],
            env=os.environ | environment(model),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: the server starts processes that outlive a lost parent
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(server, url, log, console or Console(stderr=True))
        yield url
    finally:
        _stop(server)


def command(interpreter: Path, model: Path | str, port: int, adapters: Mapping[str, Path]) -> list[str]:
    flags = {
        "--model": str(model),
        "--served-model-name": NAME,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "bfloat16" if computes_bfloat16() else "float32",
        "--max-model-len": "4096",
        "--max-logprobs": str(TOP),
        "--structured-outputs-config": '{"backend":"guidance","disable_any_whitespace":true}',
        # Only whole blocks are shared between prompts; with the default of 128 tokens short instructions never are.
        "--block-size": "32",
    }
    # Compiling the model takes one to two minutes at every start and gained nothing for a small model on a CPU.
    switches = ["--enable-prefix-caching", "--enforce-eager", "--no-enable-log-requests"]
    # The console command `vllm` of the CPU package fails: it looks up a distribution of another name.
    module = "vllm.entrypoints.openai.api_server"
    started = [str(interpreter), "-m", module, *(word for flag in flags.items() for word in flag), *switches]
    if adapters:
        started += ["--enable-lora", "--max-lora-rank", str(_rank(adapters.values())), "--lora-modules"]
        started += [f"{name}={folder}" for name, folder in adapters.items()]
    return started


def _rank(adapters: Iterable[Path]) -> int:
    """The largest rank among adapters, as vLLM takes it: a power of two of at least 8."""
    largest = max(int(json.loads((folder / "adapter_config.json").read_text())["r"]) for folder in adapters)
    return max(8, 1 << (largest - 1).bit_length())


def environment(model: Path | str) -> dict[str, str]:
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),  # GiB
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "INFO"),
    }
    if Path(model).is_dir():
        variables["HF_HUB_OFFLINE"] = "1"
    if "VLLM_CPU_OMP_THREADS_BIND" not in os.environ and hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) <= FEW_CORES:  # vLLM keeps one core free of computing, which is half of a small machine
            variables["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    return variables


def computes_bfloat16() -> bool:
    """Whether the processor has bfloat16 instructions; where it is emulated, float32 is several times faster."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return bool(re.search(r"^(flags|Features)\s*:.*\b(avx512_bf16|amx_bf16|bf16)\b", flags, re.MULTILINE))


def _dies_with_us() -> list[str]:
    """The prefix that ends the server when we are killed without a chance to stop it (Linux only)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], url: str, log: Path, console: Console) -> None:
    begun = time.monotonic()
    with console.status(f"vLLM is starting on {url}, about a minute; log: {log}"):
        while time.monotonic() < begun + PATIENCE:
            if server.poll() is not None:
                raise EngineError(f"vLLM stopped at its start:\n{_tail(log)}", retryable=False, hint=f"read {log}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health", timeout=5).is_success:
                    console.print(f"vLLM answers on {url} after {time.monotonic() - begun:.0f} s; log: {log}")
                    return
            time.sleep(0.5)
    raise EngineError(f"vLLM did not answer within {PATIENCE:.0f} s", retryable=True, hint=f"read {log}")


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _stop(server: subprocess.Popen[bytes], patience: float = 15.0) -> None:
    """Stop the whole group: its leader politely, then whatever is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def main() -> None:
    from service.engine.embedded import model_folder

    parser = argparse.ArgumentParser(prog="python -m service.engine.vllm_server", description=__doc__)
    parser.add_argument("--port", type=int, default=8301, help="port on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--model", help="a folder or a name of the hub (default: what CONCORD_MODEL says)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as an exception, so that the server is stopped too
    console = Console(stderr=True)
    try:
        with running(options.model or model_folder(Settings()), options.port, console) as url:
            console.print(f"CONCORD_ENGINE=vllm CONCORD_VLLM_URLS={url}   (Ctrl+C stops it)")
            signal.pause()
    except EngineError as error:
        console.print(f"{error}\n{error.hint}", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
