"""What HTTP costs: `python -m bench.http`.

64 streams of `/v1/completions` at once against the same 64 requests handed to the engine directly, on one model in one
run: direct, HTTP, direct again. The server is the one that `jaxserve serve` runs: event loop on one thread, engine on
another. The clients are one process of its own that reads sockets and counts events; it shares the machine's cores, and
its processor time is reported by itself.
"""

import argparse
import json
import multiprocessing
import selectors
import socket
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from bench.shared.flags import file_to_write
from bench.shared.machine import describe, in_words
from bench.shared.workload import LLAMA_32M, prompts
from jaxserve.assembly import EMBEDDED
from jaxserve.checkpoints import config_from_hf
from jaxserve.commands.results import write_text
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.server_sections import ServerConfig
from jaxserve.llm import LLM
from jaxserve.models.params import random_params
from jaxserve.server import log
from jaxserve.server.app import create_app
from jaxserve.server.serve import Server, service_of

STREAMS = 64


@dataclass(frozen=True)
class ClientRun:
    wall_s: float
    cpu_s: float
    events: int


def clients(port: int, pipe: Connection) -> None:
    """A process: for every list of bodies that comes in, run them all at once and tell how it went; None ends it."""
    while (bodies := pipe.recv()) is not None:
        pipe.send(run_clients(port, bodies))


def run_clients(port: int, bodies: list[bytes]) -> ClientRun:
    """Sends all bodies, reads until every stream has ended."""
    selector = selectors.DefaultSelector()
    began, cpu = time.perf_counter(), time.process_time()
    for body in bodies:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    events = 0
    while selector.get_map():
        for key, _ in selector.select():
            piece = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
            events += piece.count(b"data: {")
            if not piece or b"data: [DONE]" in piece:
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
    return ClientRun(time.perf_counter() - began, time.process_time() - cpu, events)


class Served:
    """The model behind a real server, on a thread; and how much processor time its two threads have used."""

    def __init__(self, llm: LLM) -> None:
        config = ServerConfig(log_level="warning")
        service = service_of(llm, config)
        self.client = service.client
        log.set_up("warning")
        self._server = Server(create_app(service), config)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=lambda: self._server.run(sockets=[self._socket]), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.05)

    def cpu_s(self) -> dict[str, float]:
        named = {thread.name: thread for thread in threading.enumerate()}
        return {"event loop": _cpu_of(self._thread), "engine thread": _cpu_of(named["jaxserve-engine"])}

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


def _cpu_of(thread: threading.Thread) -> float:
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def direct(llm: LLM, seed: int, outputs: int) -> float:
    """Output tokens a second of the engine alone."""
    params = SamplingParams(temperature=0.0, max_tokens=outputs, ignore_eos=True)
    batch = prompts(STREAMS, seed, llm.model_config.vocab_size)
    began = time.perf_counter()
    results = llm.generate(batch, params, use_tqdm=False)
    wall = time.perf_counter() - began
    tokens = sum(len(result.outputs[0].token_ids) for result in results)
    assert tokens == STREAMS * outputs
    return tokens / wall


def over_http(served: Served, pipe: Connection, llm: LLM, seed: int, outputs: int) -> dict[str, float]:
    bodies = [
        json.dumps(
            {"prompt": prompt, "max_tokens": outputs, "temperature": 0, "ignore_eos": True, "stream": True}
        ).encode()
        for prompt in prompts(STREAMS, seed, llm.model_config.vocab_size)
    ]
    before, steps = served.cpu_s(), served.client.num_steps
    pipe.send(bodies)
    run: ClientRun = pipe.recv()
    after = served.cpu_s()
    assert run.events == STREAMS * outputs, f"{run.events} events for {STREAMS * outputs} tokens"
    return {
        "tokens_per_s": run.events / run.wall_s,
        "steps": served.client.num_steps - steps,
        "wall_s": run.wall_s,
        "clients_s": run.cpu_s,
        **{name.replace(" ", "_") + "_s": after[name] - before[name] for name in after},
    }


def build(settings: dict[str, Any]) -> LLM:
    """The 32M Llama of `bench.throughput` with the embedded model's vocabulary, so that there is text to make."""
    config = config_from_hf(LLAMA_32M | {"vocab_size": 1536})
    params = random_params(config, seed=0, dtype=jnp.float32)
    return LLM(params=params, model_config=config, tokenizer=EMBEDDED, progress=False, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="runs of each kind, after one that is not counted")
    parser.add_argument("--outputs", type=int, default=64, help="output tokens a stream (default 64)")
    parser.add_argument("--switch-interval", type=float, help="sys.setswitchinterval, in seconds")
    parser.add_argument("--json", type=file_to_write, help="write the figures here as well")
    arguments = parser.parse_args()
    if arguments.switch_interval:
        sys.setswitchinterval(arguments.switch_interval)
    settings: dict[str, Any] = {
        "max_num_seqs": STREAMS, "max_num_batched_tokens": 1024, "max_model_len": 512, "decode_buckets": (16, 64),
        "mixed_decode_buckets": (64,), "prefill_buckets": (256, 1024), "enable_prefix_caching": False,
    }  # fmt: skip
    llm = build(settings)
    runs, outputs = range(1, arguments.runs + 1), arguments.outputs
    direct(llm, 0, outputs)
    alone = [direct(llm, seed, outputs) for seed in runs]
    served = Served(llm)
    here, there = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=clients, args=(served.port, there), daemon=True)
    child.start()
    over_http(served, here, llm, 0, outputs)
    http = [over_http(served, here, llm, seed, outputs) for seed in runs]
    here.send(None)
    child.join(10)
    served.stop()
    alone += [direct(llm, seed, outputs) for seed in runs]
    report(alone, http, outputs, arguments.json)


def report(alone: list[float], http: list[dict[str, float]], outputs: int, path: Path | None) -> None:
    median = {name: statistics.median(run[name] for run in http) for name in http[0]}
    own = statistics.median(alone)
    cost = 1.0 - median["tokens_per_s"] / own
    tokens = STREAMS * outputs
    machine = describe()
    lines = [
        ("machine", in_words(machine)),
        ("engine alone", f"{own:.0f} tokens/s ({min(alone):.0f} - {max(alone):.0f} in {len(alone)} runs)"),
        ("over HTTP", f"{median['tokens_per_s']:.0f} tokens/s, {STREAMS} streams"),
        ("cost", f"{100 * cost:.1f}% of the engine's own throughput"),
        ("a step", f"{1e3 * median['wall_s'] / median['steps']:.1f} ms ({median['steps']:.0f} steps)"),
        ("processor time a token", ", ".join(
            f"{name} {1e6 * median[key] / tokens:.0f} us"
            for name, key in (("event loop", "event_loop_s"), ("engine's thread", "engine_thread_s"),
                              ("the clients", "clients_s")))),
    ]  # fmt: skip
    for name, value in lines:
        print(f"{name:24s} {value}")
    if path is not None:
        figures = {"machine": machine, "engine": alone, "http": http, "cost": cost}
        write_text(path, json.dumps(figures, indent=1) + "\n")
