"""What users do about their own account: rotate keys, keep webhooks, look at reservations."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from qpeft.service.api.auth import Principal
from qpeft.service.api.routes import Context, Route, answer
from qpeft.service.ids import new_id, new_key
from qpeft.service.messages import KeyRotation, WebhookRequest
from qpeft.service.store import admin, webhooks
from qpeft.service.store.directory import stamp
from qpeft.service.webhooks import check_url, new_secret, shown

_ROTATION = msgspec.json.Decoder(KeyRotation)
_WEBHOOK = msgspec.json.Decoder(WebhookRequest)


def _sees_all(principal: Principal) -> bool:
    return "admin" in principal.scopes


async def rotate_key(context: Context) -> Response:
    """A new key of the same user and scopes; the old one still works for `grace_s` seconds.

    Your own key, or any for administrators. The key itself is in this answer and nowhere else ever after.
    """
    request, _ = await context.json(_ROTATION)
    key, prefix, digest = new_key()
    owner = None if _sees_all(context.principal) else context.owner
    change = admin.Rotate(context.principal.prefix, context.path("prefix"), prefix, digest, request.grace_s, owner)
    row = await context.service.writer.call(admin.rotate_key, change)
    context.auth.forget()
    told = {"key": key, "prefix": prefix, "scopes": row.scopes.split(), "expires_at": stamp(row.expires_at)}
    return answer({**told, "replaces": change.prefix, "old_key_works_s": request.grace_s}, 201)


async def my_keys(context: Context) -> Response:
    """Your own keys in use, by prefix."""
    rows = await context.service.ask(context.service.queries.keys_of, context.owner)
    keys = [
        {
            "prefix": row.prefix,
            "scopes": row.scopes.split(),
            "created_at": stamp(row.created_at),
            "expires_at": stamp(row.expires_at),
            "current": row.prefix == context.principal.prefix,
        }
        for row in rows
    ]
    return answer({"keys": keys})


async def list_reservations(context: Context) -> Response:
    """Reservations that run or are to come. Who has one is told to administrators and to that user; others see that it is taken."""
    service = context.service
    rows = await service.ask(service.queries.reservations, context.query("device"), service.writer.now)
    found = []
    for row in rows:
        known = _sees_all(context.principal) or row.owner == context.owner
        told = {"id": row.id, "user": row.name, "note": row.note} if known else {"id": None, "user": None, "note": ""}
        found.append({**told, "device": row.device, "starts_at": stamp(row.starts_at), "ends_at": stamp(row.ends_at)})
    return answer({"reservations": found})


async def create_webhook(context: Context) -> Response:
    """Your jobs' ends are posted there, signed (standardwebhooks.com) with the secret, which is in this answer alone.

    A delivery is repeated until it is answered with 2xx, for three days at most.
    """
    request, _ = await context.json(_WEBHOOK)
    check_url(request.url, context.service.settings.webhook_hosts)
    secret = new_secret()
    new = webhooks.NewWebhook(context.principal.prefix, new_id("h"), context.owner, request.url, secret)
    await context.service.writer.call(webhooks.add, new)
    return answer({"id": new.id, "url": new.url, "secret": shown(secret)}, 201)


async def list_webhooks(context: Context) -> Response:
    """Your webhooks, with what went wrong last."""
    rows = await context.service.ask(context.service.queries.webhooks, context.owner)
    found = [
        {
            "id": row.id,
            "url": row.url,
            "created_at": stamp(row.created_at),
            "failures": row.failures,
            "error": row.error,
            "disabled_at": stamp(row.disabled_at),
        }
        for row in rows
    ]
    return answer({"webhooks": found})


async def delete_webhook(context: Context) -> Response:
    """Nothing is posted there any more."""
    change = webhooks.RemoveWebhook(context.principal.prefix, context.path("id"), context.owner)
    await context.service.writer.call(webhooks.remove, change)
    return Response(status_code=204)


ROUTES = [
    Route("GET", "/v1/my/keys", "read", my_keys, "Your keys"),
    Route("POST", "/v1/keys/{prefix}/rotate", "read", rotate_key, "Replace a key", KeyRotation, status=201),
    Route("GET", "/v1/reservations", "read", list_reservations, "Reservations of devices", query=("device",)),
    Route("POST", "/v1/webhooks", "submit", create_webhook, "Be told when your jobs end", WebhookRequest, status=201),
    Route("GET", "/v1/webhooks", "read", list_webhooks, "Your webhooks"),
    Route("DELETE", "/v1/webhooks/{id}", "submit", delete_webhook, "Forget a webhook", status=204),
]
