"""Administrators: keys and users."""

from __future__ import annotations

from starlette.responses import Response

from qpeft.errors import ServiceError
from qpeft.service.dashboard.site import PAGE_ROWS, Page, PageContext, see
from qpeft.service.ids import new_key
from qpeft.service.store import admin
from qpeft.service.store.directory import stamp
from qpeft.service.store.quotas import QUOTAS, day_of, used_of


async def keys(context: PageContext, new: str = "") -> Response:
    """A page of keys, newest first, and users with what they use; `new` is a key that was just made, shown this once."""
    text, offset = context.query("q"), context.number("offset") or 0
    found = await context.ask(context.listings.key_page, text, offset, PAGE_ROWS + 1)
    now, settings = context.service.clock.now(), context.service.settings
    today = await context.ask(context.listings.submitted, None, day_of(now))
    users = (await context.ask(context.listings.users))[:200]
    shown = [
        {
            "prefix": row.prefix,
            "user": row.name,
            "scopes": row.scopes,
            "created": stamp(row.created_at),
            "revoked": stamp(row.revoked_at),
            "expires": stamp(row.expires_at),
            "ended": row.expires_at is not None and row.expires_at <= now,
        }
        for row in found[:PAGE_ROWS]
    ]
    return context.render(
        "keys",
        keys=shown,
        users=[(row, used_of(row, today), {one.used: one.of(row, settings) for one in QUOTAS}) for row in users],
        quotas=QUOTAS,
        scopes=admin.SCOPES,
        new=new,
        text=text,
        newer=max(offset - PAGE_ROWS, 0) if offset else None,
        older=offset + PAGE_ROWS if len(found) > PAGE_ROWS else None,
    )


async def make_key(context: PageContext) -> Response:
    """The new key is on the page that answers, and nowhere else ever after."""
    user = context.form.get("user", "").strip()
    scopes = tuple(scope for scope in admin.SCOPES if context.form.get(f"scope_{scope}"))
    if not 0 < len(user) <= 128 or not user.isprintable() or not scopes:
        raise ServiceError("a key has a user's name and at least one scope", status=422, code="key", value=user[:128])
    key, prefix, digest = new_key()
    await context.service.writer.call(admin.create_key, admin.NewKey(context.principal.prefix, prefix, digest, user, scopes))
    return await keys(context, key)


async def revoke(context: PageContext) -> Response:
    """Revoke a key."""
    change = admin.Revoke(context.principal.prefix, context.path("prefix"))
    await context.service.writer.call(admin.revoke_key, change)
    context.auth.forget()
    return see("/admin/keys")


PAGES = [
    Page("/admin/keys", keys, scope="admin", nav="Keys"),
    Page("/admin/keys", make_key, scope="admin", method="POST"),
    Page("/admin/keys/{prefix}/revoke", revoke, scope="admin", method="POST"),
]
