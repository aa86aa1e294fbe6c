"""What Prometheus may ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from vlmbatch.replicas.replica import ReplicaStatus

CHAT_PATH, COMPLETIONS_PATH, MODELS_PATH = "/v1/chat/completions", "/v1/completions", "/v1/models"
HEALTH_PATH, METRICS_PATH = "/health", "/metrics"
_PATHS = {CHAT_PATH, COMPLETIONS_PATH, MODELS_PATH, HEALTH_PATH, METRICS_PATH}

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)

# Name, help, and the field of ``ReplicaStatus``. Of several engines they are sums, and there is one
# more of each with the engine's name as a label.
_GAUGES = (
    ("requests_running", "Requests that take part in the engine's steps.", "running"),
    ("requests_waiting", "Requests that wait to take part.", "waiting"),
    ("kv_cache_used_tokens", "Tokens held in the KV pool.", "kv_used_tokens"),
    ("kv_cache_tokens", "Tokens that the KV pool can hold.", "kv_total_tokens"),
)
_COUNTERS = (
    ("prompt_tokens", "Prompt tokens, image tokens included.", "prompt_tokens"),
    ("cached_tokens", "Prompt tokens from the prefix cache.", "cached_tokens"),
    ("generation_tokens", "Tokens generated.", "generation_tokens"),
    ("preemptions", "Requests put back for want of KV pool.", "preemptions"),
    ("answered", "Requests that the engine has answered.", "answered"),
)


class ServerMetrics:
    """Counters of one server; ``engine_status`` is asked for the engine's at each scrape."""

    def __init__(self, engine_status: Callable[[], ReplicaStatus]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine_status))
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "vlmbatch_requests",
            "Requests answered, by path and status; 499: the client left before.",
            ("path", "status"),
            registry=self._registry,
        )
        self._duration = Histogram(
            "vlmbatch_request_duration_seconds",
            "Time from a request's head to the end of its response.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first_token = Histogram(
            "vlmbatch_time_to_first_token_seconds",
            "Time from a request's body to the first token of its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that is over."""
        if path not in _PATHS:  # clients may ask for any number of others
            path = f"{MODELS_PATH}/MODEL" if path.startswith(f"{MODELS_PATH}/") else "other"
        self._requests.labels(path, str(status)).inc()
        self._duration.labels(path).observe(seconds)

    def observe_first_token(self, seconds: float) -> None:
        """Take in how long a request's first token took."""
        self._first_token.observe(seconds)

    def render(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, status: Callable[[], ReplicaStatus]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        status = self._status()
        for name, help_text, field in _GAUGES:
            yield GaugeMetricFamily(f"vlmbatch_{name}", help_text, getattr(status, field))
        for name, help_text, field in _COUNTERS:
            yield CounterMetricFamily(f"vlmbatch_{name}", help_text, getattr(status, field))
        if not status.parts:
            return
        for kind, metrics in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, help_text, field in metrics:
                shares = kind(f"vlmbatch_engine_{name}", help_text, labels=("engine",))
                for engine, part in status.parts:
                    shares.add_metric((engine,), getattr(part, field))
                yield shares
