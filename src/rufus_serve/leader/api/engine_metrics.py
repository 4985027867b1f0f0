"""Adds engines to vLLM's metrics, whose loggers know their engines when they are made.

An engine that they do not know would end AsyncLLM with a KeyError at its first output. Stands in
for what vLLM 0.33's StatLoggerManager lacks; what it takes from its loggers is all here.
"""

from collections.abc import Iterable
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase
from vllm.v1.metrics.loggers import (
    LoggingStatLogger,
    PerEngineStatLoggerAdapter,
    PrometheusStatLogger,
    StatLoggerManager,
)


def add_engine(manager: StatLoggerManager | None, engine: int) -> None:
    """Count what `engine` brings under a label of its own; nothing happens if it is known."""
    if manager is None or engine in manager.engine_indexes:
        return
    for logger in manager.stat_loggers:
        if isinstance(logger, PrometheusStatLogger):
            known = next(iter(logger.per_engine_labelvalues))
            logger.per_engine_labelvalues[engine] = [
                str(engine) if value == str(known) else value
                for value in logger.per_engine_labelvalues[known]
            ]
            _add_to(vars(logger).values(), known, engine)
        elif isinstance(logger, PerEngineStatLoggerAdapter):
            logger.per_engine_stat_loggers[engine] = LoggingStatLogger(logger.vllm_config, engine)
    # The loggers hold this very list.
    manager.engine_indexes.append(engine)


def _add_to(values: Iterable[Any], known: int, engine: int) -> None:
    """Wherever metrics are kept by engine, however deep, make those of `engine`."""
    for value in list(values):
        if isinstance(value, dict) and _is_metric(value.get(known)):
            value[engine] = _alike(value[known], engine)
        elif isinstance(value, dict):
            _add_to(value.values(), known, engine)
        elif type(value).__name__.endswith("Prom"):
            _add_to(vars(value).values(), known, engine)


def _is_metric(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and _is_metric(value[0])
    return isinstance(value, MetricWrapperBase)


def _alike(metric: Any, engine: int) -> Any:
    """The same metric, or list of metrics, with another value of the label `engine`."""
    if isinstance(metric, list):
        return [_alike(each, engine) for each in metric]
    labels = dict(zip(metric._labelnames, metric._labelvalues, strict=True))  # noqa: SLF001
    # A metric with label values does not know the one that they belong to.
    family: Any = REGISTRY._names_to_collectors[metric._name]  # noqa: SLF001
    return family.labels(**labels | {"engine": str(engine)})
