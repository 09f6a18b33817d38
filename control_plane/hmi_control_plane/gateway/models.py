"""``GET /v1/models``: a tenant's models in OpenAI's format."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from hmi_api.resources.task_adapter import TaskType
from hmi_control_plane.auth.authenticator import Identity
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import AdapterRow, LoadReport, LoadState, Runtime, Tenant
from hmi_control_plane.gateway.failures import unknown_model


class Model(BaseModel):
    """One model: OpenAI's fields, and its task, version and readiness."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = Field(description="The tenant.")
    task: TaskType
    version: int | None = Field(description="Its newest published version; null before the first.")
    ready: bool = Field(description="Whether a runtime has it loaded.")


class ModelList(BaseModel):
    """All models of a tenant."""

    object: Literal["list"] = "list"
    data: list[Model]


def add_models(
    router: APIRouter, database: Database, tenant_from_key: Callable[[Request], Awaitable[Identity]]
) -> None:
    """Add the endpoints."""

    @router.get("/v1/models", summary="Your models")
    def list_models(identity: Annotated[Identity, Depends(tenant_from_key)]) -> ModelList:
        with database.read() as session:
            return ModelList(data=list_models_of_tenant(session, identity))

    @router.get("/v1/models/{model:path}", summary="One of your models")
    def get_model(model: str, identity: Annotated[Identity, Depends(tenant_from_key)]) -> Model:
        owner, slash, name = model.rpartition("/")
        found: list[Model] = []
        if (not slash or owner == identity.tenant) and "\0" not in name:
            with database.read() as session:
                found = list_models_of_tenant(session, identity, name)
        if not found:
            raise unknown_model(model)
        return found[0]


def list_models_of_tenant(session: Session, owner: Identity, name: str | None = None) -> list[Model]:
    """Return a tenant's models, or the one called ``name``, ordered by name.

    The tenant is matched by id: its name may belong to another tenant by now.
    """
    loaded = (
        select(LoadReport.adapter_id)
        .join(Runtime, Runtime.id == LoadReport.runtime_id)
        .where(
            LoadReport.adapter_id == AdapterRow.id,
            LoadReport.state == LoadState.READY,
            Runtime.lost.is_(False),
        )
        .exists()
    )
    statement = (
        select(AdapterRow, loaded)
        .join(Tenant, Tenant.name == AdapterRow.tenant)
        .where(Tenant.id == owner.tenant_id)
        .order_by(AdapterRow.name)
    )
    if name is not None:
        statement = statement.where(AdapterRow.name == name)
    return [
        Model(
            id=adapter.name,
            created=int(adapter.created_at.timestamp()),
            owned_by=owner.tenant,
            task=TaskType(adapter.task_type),
            version=adapter.current_version,
            ready=ready,
        )
        for adapter, ready in session.execute(statement)
    ]
