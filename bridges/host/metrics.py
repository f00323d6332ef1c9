"""A page for Prometheus about a host: its engines, its sessions and its latencies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worldsim.bridges.host.service import Service
from worldsim.bridges.host.stats import host_stats
from worldsim.errors import ConfigError, MissingDependency


def serve_metrics(service: Service, port: int) -> Callable[[], None]:
    """Serve the page at http://127.0.0.1:PORT/metrics; return a function that stops it.

    Raises:
        MissingDependency: prometheus_client is not installed.
        ConfigError: the port is taken.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        install = 'pip install "worldsim-engine[serve]"'
        raise MissingDependency("prometheus_client", "a Prometheus page", install) from error
    registry = CollectorRegistry()
    registry.register(HostCollector(service))  # type: ignore[arg-type]  -- a collector is any object with `collect`
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        raise ConfigError(f"metrics_port is {port}, which cannot be bound: {error}; give another one.") from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


class HostCollector:
    """The metrics that Prometheus collects, from `host_stats`."""

    def __init__(self, service: Service) -> None:
        """Collect from a service."""
        self.service = service

    def collect(self) -> Any:
        """Collect the metrics of now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        from worldsim.engine.stats import metrics

        stats = host_stats(self.service)
        for name, about in (("sessions", "open"), ("clients", "connected")):
            yield GaugeMetricFamily(f"worldsim_host_{name}", about, stats[name])
        for name, label in (("requests", "verb"), ("errors", "code")):
            family = CounterMetricFamily(f"worldsim_host_{name}", f"{name} by {label}", labels=[label])
            for value, count in stats[name].items():
                family.add_metric([value], count)
            yield family
        latency = GaugeMetricFamily("worldsim_host_step_ms", "from a step's coming to its reply", labels=["quantile"])
        for name, value in stats["step_ms"].items():
            latency.add_metric([f"0.{name[1:]}"], value)
        yield latency
        yield from metrics(stats["worlds"])
