"""The whole server on one screen: loads the model, listens, and stops gracefully."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from vlmbatch.errors import ConfigError, UsageError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.images.buckets import AllowedBuckets
from vlmbatch.images.loading.shared_loader import SharedLoader
from vlmbatch.images.urls import AllowedDomains, ImageUrls
from vlmbatch.log import logger
from vlmbatch.replicas.pool import ReplicaPool
from vlmbatch.serve.app import make_app
from vlmbatch.serve.config import ServeConfig
from vlmbatch.serve.engine_thread import EngineThread
from vlmbatch.serve.hosts import is_loopback
from vlmbatch.serve.metrics import ServerMetrics
from vlmbatch.serve.preparation import Preparation
from vlmbatch.serve.service import RequestSlots, Service
from vlmbatch.session.engines import EnginePlace, engine_places
from vlmbatch.session.load import SWITCH_INTERVAL_S, image_workers
from vlmbatch.session.open import ModelInputs, open_images, open_model
from vlmbatch.session.replica import loaded_replica
from vlmbatch.session.signals import ending_signals

if TYPE_CHECKING:
    from vlmbatch.replicas.messages import EngineLimits
    from vlmbatch.session.replica import LoadedReplica

_KEEP_ALIVE_S = 75  # beyond what clients keep idle connections for, so that they close them
_LAST_WORDS_S = 2.0  # for responses that say that the grace time is over


def serve(config: ServeConfig) -> int:
    """Answer requests until SIGINT, SIGTERM or SIGHUP; the exit status.

    0 when all requests under way were answered within the time of grace, 130 or 143 when some had
    to be given up.

    Raises:
        UsageError: the address, the model or an option cannot be used.
    """
    loading = config.session.image_loading
    domains = AllowedDomains.of(loading.allowed_domains)
    urls = ImageUrls(domains, buckets=AllowedBuckets.of(loading.allowed_buckets))
    with bind(config.host, config.port) as listener:
        inputs = open_model(config.session)
        _ = inputs.processor.chat_template  # one that is missing or bad is an error now
        places = engine_places(config.session.engine, "one")
        with loaded_replica(config.session, inputs, places) as replica:
            check_context(replica.limits)
            # On a CPU too: the engine's thread gives up the interpreter with each operation, and
            # those that read and prepare requests would keep it for 5 ms.
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            return asyncio.run(_serve(config, inputs, replica, urls, listener, places))


def check_context(limits: EngineLimits) -> None:
    """See that every prompt that fits the context also fits the KV cache.

    Raises:
        ConfigError: it does not, with both numbers.
    """
    if limits.kv_cache_tokens < limits.max_model_len:
        raise ConfigError(
            f"the KV cache holds {limits.kv_cache_tokens} tokens, fewer than the context length of "
            f"{limits.max_model_len}: raise --kv-cache-tokens or lower --max-model-len"
        )


def make_service(
    config: ServeConfig,
    inputs: ModelInputs,
    replica: LoadedReplica,
    urls: ImageUrls,
    places: Sequence[EnginePlace] = (),
) -> Service:
    """Start what answers requests: threads and worker processes. On the event loop.

    ``places``: of several engines.
    """
    session = config.session
    num_workers = image_workers(session, len(places) or 1)
    images = open_images(session, inputs, num_workers, places[0].first_gpu if places else None)
    if isinstance(replica, ReplicaPool) and not isinstance(inputs.model, HfConfig):
        images = SharedLoader(images, replica.memory)
    engine_thread = EngineThread(replica)
    return Service(
        config=config,
        tokenizer=inputs.processor.tokenizer,
        max_model_len=replica.limits.max_model_len,
        preparation=Preparation(
            inputs.processor,
            images,
            urls,
            config.model_name,
            _image_limit(config, inputs),
            threads=max(2, 2 * num_workers),
        ),
        engine=engine_thread,
        slots=RequestSlots(config.max_concurrent_requests),
        metrics=ServerMetrics(lambda: engine_thread.status),
    )


def _image_limit(config: ServeConfig, inputs: ModelInputs) -> int | None:
    """Images of one request; None: as many as the context holds."""
    if config.limit_images_per_prompt is not None:
        return config.limit_images_per_prompt
    if isinstance(inputs.model, HfConfig) or inputs.model.image_feature_size is None:
        return None
    return 1


async def _serve(
    config: ServeConfig,
    inputs: ModelInputs,
    replica: LoadedReplica,
    urls: ImageUrls,
    listener: socket.socket,
    places: Sequence[EnginePlace],
) -> int:
    service = make_service(config, inputs, replica, urls, places)
    try:
        app = make_app(service, listener.getsockname()[0])
        server = _Server(app, config.grace_s, lambda: _announce(config, listener))
        stop = GracefulStop(server, service, config.grace_s)
        listen(listener)
        with stop.on_signals():
            await server.serve(sockets=[listener])
        return stop.exit_status
    finally:
        await service.engine.close()
        await asyncio.to_thread(service.preparation.close)


class _Server(uvicorn.Server):
    """Uvicorn, with signals left to us. ``on_started`` is called when connections are accepted."""

    def __init__(self, app: ASGIApp, grace_s: float, on_started: Callable[[], None]) -> None:
        self._on_started = on_started
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                # Only if all else fails: GracefulStop ends requests before.
                timeout_graceful_shutdown=math.ceil(grace_s + 2 * _LAST_WORDS_S),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class GracefulStop:
    """On a first signal no connection is accepted any more, and requests have the time of grace.

    When it is over, or on a second signal, those that are left end with an error.
    """

    def __init__(self, server: uvicorn.Server, service: Service, grace_s: float) -> None:
        self._server = server
        self._service = service
        self._grace_s = grace_s
        self._loop = asyncio.get_running_loop()
        self.exit_status = 0

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within, SIGINT, SIGTERM and SIGHUP stop the server. Main thread only."""
        numbers = ending_signals()
        for number in numbers:
            self._loop.add_signal_handler(number, self.stop, number)
        try:
            yield
        finally:
            for number in numbers:
                self._loop.remove_signal_handler(number)

    def stop(self, number: int) -> None:
        """What a signal does."""
        if self._server.should_exit:
            if number != signal.SIGHUP:  # of which a closed terminal sends several
                self._give_up(number)
            return
        self._server.should_exit = True
        if self._service.slots.in_use:
            logger.info(
                "stopping: finishing %d requests, for at most %g s; another signal ends at once",
                self._service.slots.in_use,
                self._grace_s,
            )
        self._loop.call_later(self._grace_s, self._give_up, number)

    def _give_up(self, number: int) -> None:
        if self._service.slots.in_use:
            logger.warning("giving up %d requests under way", self._service.slots.in_use)
            self.exit_status = 128 + number
        self._service.engine.stop("the server is shutting down")
        self._loop.call_later(_LAST_WORDS_S, setattr, self._server, "force_exit", True)


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet: before the model is loaded the address is
    known to be free of servers, and nobody can connect.

    Raises:
        UsageError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host}: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


def listen(listener: socket.socket) -> None:
    """Let clients connect.

    Raises:
        UsageError: another server had bound the address too, and listens first.
    """
    try:
        listener.listen()
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _cannot_listen(host, port, error) from error


def _cannot_listen(host: str, port: int, error: OSError) -> UsageError:
    return UsageError(
        f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port"
    )


def _announce(config: ServeConfig, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    logger.info("serving %s on http://%s:%d", config.model_name, shown, port)
    if config.api_key is None and not is_loopback(host):
        logger.warning("anybody who can reach %s may use the server: see --api-key", config.host)
