"""Tenants, keys, prices, usage and bills over HTTP: what an administrator asks of the control plane."""

from typing import Any

from hmi_cli.client import Client, path_part
from hmi_cli.errors import CliError

BASE = "/admin/v1"
Answer = dict[str, Any]
Query = dict[str, str | list[str]]


class AdminApi:
    """The control plane's administrative interface."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def tenants(self) -> list[Answer]:
        """Return the tenants."""
        return pages(self._client, f"{BASE}/tenants", {})

    def deleted_tenants(self) -> list[Answer]:
        """Return the deleted tenants, whose usage and bills can be read by their ids."""
        return pages(self._client, f"{BASE}/deleted-tenants", {})

    def create_tenant(self, name: str) -> None:
        """Create a tenant."""
        self._client.ask("POST", f"{BASE}/tenants", json={"name": name})

    def delete_tenant(self, name: str) -> None:
        """Delete a tenant and its keys; refused when there is none, or while it has resources."""
        path = f"{BASE}/tenants/{path_part(name)}"
        self._client.ask("GET", path)  # deleting a tenant that is not there would succeed
        self._client.ask("DELETE", path)

    def keys(self, tenant: str) -> list[Answer]:
        """Return a tenant's keys, without their secrets."""
        return pages(self._client, f"{BASE}/tenants/{path_part(tenant)}/keys", {})

    def create_key(self, tenant: str, name: str) -> Answer:
        """Create a key; its secret is in this answer and never again."""
        answer: Answer = self._client.ask(
            "POST", f"{BASE}/tenants/{path_part(tenant)}/keys", json={"name": name}
        )
        return answer

    def revoke_key(self, tenant: str, key_id: str) -> None:
        """Revoke a key."""
        self._client.ask("DELETE", f"{BASE}/tenants/{path_part(tenant)}/keys/{path_part(key_id)}")

    def runtimes(self) -> list[Answer]:
        """Return the runtimes, with what each of them holds."""
        return pages(self._client, f"{BASE}/runtimes", {})

    def prices(self) -> list[Answer]:
        """Return the price list."""
        return pages(self._client, f"{BASE}/prices", {})

    def set_price(self, meter: str, unit_price: str, currency: str | None = None) -> Answer:
        """Set a price from now on, in the installation's currency where none is named; return the price."""
        body = {"meter": meter, "unitPrice": unit_price, "currency": currency}
        price: Answer = self._client.ask("PUT", f"{BASE}/prices", json=body)
        return price

    def usage(self, query: Query) -> list[Answer]:
        """Return the lines of a usage report."""
        return pages(self._client, f"{BASE}/usage", query)

    def bill(self, tenant: str, query: Query) -> Answer:
        """Return a tenant's bill from the price list."""
        answer: Answer = self._client.ask("GET", f"{BASE}/bills/{path_part(tenant)}", params=query)
        return answer


def pages(client: Client, path: str, query: Query) -> list[Answer]:
    """Return the items of all pages of a list."""
    items: list[Answer] = []
    cursor: str | None = None
    while True:
        answer = client.ask("GET", path, params={**query, **({"cursor": cursor} if cursor else {})})
        if not isinstance(answer, dict) or not isinstance(answer.get("items"), list):
            raise CliError(f"{client.server}{path} did not answer with a list", hint="is this an HMI server?")
        items += answer["items"]
        before, cursor = cursor, answer.get("nextCursor")
        if not cursor:
            return items
        if cursor == before:
            raise CliError(
                f"{client.server}{path} gives the same page for ever", hint="is this an HMI server?"
            )
