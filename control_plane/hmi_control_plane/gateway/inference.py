"""Inference for a tenant: check, route, dispatch and meter a request."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter

from hmi_api.errors import NotReady
from hmi_api.internal.inference import InferRow, RowResult, TokenLabel, Truncation
from hmi_api.names import AdapterKey, adapter_key
from hmi_api.resources.task_adapter import TaskType
from hmi_api.tag_schemes import entities, scheme_or_plain
from hmi_control_plane.auth.authenticator import Identity
from hmi_control_plane.catalog.database import utc_now
from hmi_control_plane.gateway.dispatch import Dispatcher, RoutedRow
from hmi_control_plane.gateway.failures import InferenceFailed, not_loaded, unknown_model
from hmi_control_plane.gateway.routes import CatalogUnavailableError, Route, RoutingTable
from hmi_control_plane.metering.events import UsageEvent, request_events
from hmi_control_plane.metering.spool import Spool
from hmi_control_plane.settings import GatewaySettings


class GatewayMetrics:
    """Counters of rows and tokens."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tokens = Counter(
            "hmi_tokens_total", "Tokens of answered rows.", ["direction"], registry=registry
        )
        self.rows = Counter("hmi_rows_total", "Rows by outcome.", ["result"], registry=registry)


def merge_entities(text: str | Sequence[str], result: RowResult) -> list[TokenLabel]:
    """Return the entities in ``text``: tokens merged by the adapter's tag scheme (``hmi_api.tag_schemes``).

    Offsets refer to ``text``, or to its words joined by one space. Spans that do not follow the scheme are
    left out. An entity's score is the mean of its tokens' scores.
    """
    joined = text if isinstance(text, str) else " ".join(text)
    scheme = result.tag_scheme or scheme_or_plain(result.labels)
    found = entities([token.label for token in result.tokens], scheme)
    return [_merge(joined, result.tokens[start:end], kind) for start, end, kind in found]


def _merge(text: str, tokens: Sequence[TokenLabel], kind: str) -> TokenLabel:
    start, end = tokens[0].start, tokens[-1].end
    return TokenLabel(
        text=text[start:end],
        start=start,
        end=end,
        label=kind,
        score=sum(token.score for token in tokens) / len(tokens),
    )


Text = str | list[str]
"""One text, or one text already split into words."""


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One model's results, one per text, or its failure."""

    model: str
    task_type: TaskType | None = None
    results: tuple[RowResult, ...] = ()
    failure: InferenceFailed | None = None

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of all texts, by the model's tokenizer."""
        return sum(result.prompt_tokens for result in self.results)


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """The results of all requested models, in the order of the request; ``request_id`` is the gateway's."""

    request_id: str
    created: datetime
    models: tuple[ModelResult, ...]

    def raise_if_all_failed(self) -> None:
        """Raise the first model's InferenceFailed if every model failed."""
        failures = [result.failure for result in self.models if result.failure is not None]
        if len(failures) == len(self.models):
            raise failures[0]


def best_label(result: RowResult) -> str:
    """Return the most probable label of a sequence task."""
    return result.labels[max(range(len(result.scores)), key=result.scores.__getitem__)]


class Inference:
    """Runs a tenant's inference requests. Usage events are durable before a result is returned."""

    def __init__(
        self,
        table: RoutingTable,
        dispatcher: Dispatcher,
        spool: Spool,
        metrics: GatewayMetrics,
        settings: GatewaySettings,
    ) -> None:
        self._table = table
        self._dispatcher = dispatcher
        self._spool = spool
        self._metrics = metrics
        self._settings = settings

    async def infer(
        self,
        caller: Identity,
        models: Sequence[str],
        texts: Sequence[Text],
        *,
        truncate: Truncation | None = None,
        version: int | None = None,
    ) -> InferenceResult:
        """Run every text through every model, all rows together.

        ``truncate`` says how to cut long texts. With ``version``, results of other versions are failures. A
        model's failure is part of its result. Raise InferenceFailed for invalid input, and NotReady while the
        catalog or the usage spool is unavailable.
        """
        self._check(models, texts)
        tenant = caller.tenant
        # A model that is named twice, with and without its tenant, runs and is billed once.
        names = list({(_adapter_key(tenant, name) or name): name for name in reversed(models)}.values())[::-1]
        keys = [_adapter_key(tenant, name) for name in names]
        routes = await self._routes(caller, keys)
        request_id = secrets.token_hex(16)
        created = utc_now()
        found = {key: route for key in keys if key is not None and (route := routes.get(key)) is not None}
        results = await self._infer(request_id, caller, list(found.values()), texts, truncate)
        model_results = tuple(
            self._model_result(name, found.get(key) if key is not None else None, results, version)
            for name, key in zip(names, keys, strict=True)
        )
        await self._meter(request_id, created, caller, model_results)
        return InferenceResult(request_id, created, model_results)

    async def route(self, caller: Identity, model: str) -> Route:
        """Return a model's route. Raise InferenceFailed (404) if the tenant has no such model."""
        key = _adapter_key(caller.tenant, model)
        routes = await self._routes(caller, [key])
        if key is None or key not in routes:
            raise unknown_model(model)
        return routes[key]

    async def _routes(self, caller: Identity, keys: Sequence[AdapterKey | None]) -> dict[AdapterKey, Route]:
        """Return the routes to the caller's models.

        Keys and routes are cached, so they may outlive a tenant whose name was given to another. If the
        tenant ids differ, one of them is outdated: the route is read again, and left out if they still
        differ.
        """
        wanted = [key for key in keys if key is not None]
        try:
            routes = await self._table.routes(wanted)
            others = [key for key, route in routes.items() if route.tenant_id != caller.tenant_id]
            if others:
                self._table.invalidate(others)
                routes |= await self._table.routes(others)
            return {key: route for key, route in routes.items() if route.tenant_id == caller.tenant_id}
        except CatalogUnavailableError as error:
            raise NotReady(
                "CatalogUnavailable", "Models cannot be looked up at the moment; try again."
            ) from error

    def _check(self, models: Sequence[str], texts: Sequence[Text]) -> None:
        limits = self._settings
        if not models:
            raise InferenceFailed(400, "MissingModel", "Name a model, or several in models.", param="model")
        if len(models) > limits.max_models:
            raise _too_many("models", len(models), limits.max_models, "TooManyModels", "models")
        if not texts:
            raise InferenceFailed(400, "EmptyInput", "input has no text.", param="input")
        if len(texts) > limits.max_texts:
            raise _too_many("texts", len(texts), limits.max_texts, "TooManyTexts", "input")
        if len(texts) * len(models) > limits.max_rows:
            rows = len(texts) * len(models)
            raise _too_many("rows (texts times models)", rows, limits.max_rows, "TooManyRows", "input")
        for index, text in enumerate(texts):
            self._check_text(text, f"input.{index}")

    def _check_text(self, text: Text, param: str) -> None:
        limits = self._settings
        is_split = not isinstance(text, str)
        parts = [text] if isinstance(text, str) else text
        characters = sum(map(len, parts))
        if characters > limits.max_characters:
            raise _too_many("characters", characters, limits.max_characters, "TextTooLong", param)
        if is_split and len(parts) > limits.max_words:
            raise _too_many("words", len(parts), limits.max_words, "TextTooLong", param)
        if not parts or not all(part.strip() for part in parts):
            what = "has no words, or an empty one" if is_split else "is empty or only whitespace"
            raise InferenceFailed(400, "EmptyInput", f"{param} {what}.", param=param)

    async def _infer(
        self,
        request_id: str,
        caller: Identity,
        routes: Sequence[Route],
        texts: Sequence[Text],
        truncate: Truncation | None,
    ) -> dict[AdapterKey, list[RowResult]]:
        """Return the results by model. Rows of one text are adjacent, so that it is tokenized once."""
        serving = [route for route in routes if route.runtimes]
        rows = [RoutedRow(_row(route.key, text, truncate), route) for text in texts for route in serving]
        results = await self._dispatcher.infer(request_id, rows, tenant_id=caller.tenant_id) if rows else []
        return {route.key: results[first :: len(serving)] for first, route in enumerate(serving)}

    def _model_result(
        self,
        name: str,
        route: Route | None,
        results: dict[AdapterKey, list[RowResult]],
        version: int | None,
    ) -> ModelResult:
        if route is None:
            return ModelResult(name, failure=unknown_model(name))
        if route.key not in results:
            return ModelResult(name, failure=not_loaded(name, route))
        rows = results[route.key]
        for index, row in enumerate(rows):
            if row.error is not None:
                self._metrics.rows.labels("failed").inc(len(rows))
                param = f"input.{index}" if row.error.status == 400 else None
                return ModelResult(name, failure=InferenceFailed.of_row(row.error, param))
            if version is not None and row.version != version:
                message = f'Version {version} of the model "{name}" is being loaded; try again shortly.'
                return ModelResult(name, failure=InferenceFailed(503, "ModelNotLoaded", message))
        return ModelResult(name, route.task_type, tuple(rows))

    async def _meter(
        self, request_id: str, created: datetime, caller: Identity, results: Sequence[ModelResult]
    ) -> None:
        """Write the usage events of the models that answered to the spool. Raise NotReady if that fails."""
        events: list[UsageEvent] = []
        for ordinal, result in enumerate(results):
            if result.failure is None:
                events += request_events(
                    request_id,
                    created,
                    caller.tenant,
                    result.model.rpartition("/")[2],
                    tenant_id=caller.tenant_id,
                    ordinal=ordinal,
                    rows=len(result.results),
                    prompt_tokens=result.prompt_tokens,
                    version=result.results[0].version,
                )
        try:
            await self._spool.append(events)
        except OSError as error:
            raise NotReady("UsageNotRecorded", "The request could not be recorded; try again.") from error
        for result in results:
            if result.failure is None:
                self._metrics.rows.labels("answered").inc(len(result.results))
                self._metrics.tokens.labels("prompt").inc(result.prompt_tokens)


def _adapter_key(tenant: str, model: str) -> AdapterKey | None:
    """Return the key of the tenant's model ``model``; None for another tenant's model or an invalid name."""
    owner, slash, name = model.rpartition("/")
    if (slash and owner != tenant) or not name or "\0" in name:
        return None
    return adapter_key(tenant, name)


def _row(key: AdapterKey, text: Text, truncate: Truncation | None) -> InferRow:
    if isinstance(text, str):
        return InferRow(adapter=key, text=text, truncate=truncate)
    return InferRow(adapter=key, words=text, truncate=truncate)


def _too_many(what: str, given: int, limit: int, reason: str, param: str) -> InferenceFailed:
    message = f"{param} has {given} {what}; the limit is {limit}. Send less, or in several requests."
    return InferenceFailed(400, reason, message, param=param)
