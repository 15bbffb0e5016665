"""Commands for operators of the task service: quotas, budgets, access, reservations, key rotation, webhooks, the audit log."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qpeft.cli.common import AsJson, examples, print_table
from qpeft.cli.service import Key, Url, keys_app, service_app

webhooks_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Addresses that are told when your jobs end.")
service_app.add_typer(webhooks_app, name="webhooks")

reservations_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Reserve devices for users.")
service_app.add_typer(reservations_app, name="reservations")

User = Annotated[str, typer.Argument(help="The user's name.")]
Device = Annotated[str, typer.Argument(help="A device of the service.")]


def _rows(found: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
    else:
        print_table(columns, [tuple("" if one[c] is None else str(one[c]) for c in columns) for one in found])


def _show_bounds(user: str, url: str | None, key: str | None, quotas: tuple[str, ...], as_json: bool) -> None:
    """A user's quotas: what is used, the bound, and whether it is the user's or the service's own."""
    from qpeft.errors import ServiceError
    from qpeft.service.client import Client

    with Client(url, key) as client:
        answer = client.users_and_defaults()
    found, defaults = [one for one in answer["users"] if one["user"] == user], answer["defaults"]
    if not found:
        raise ServiceError("no such user", status=404, code="not_found", value=user, hint="qpeft service users lists them")
    if as_json:
        print(json.dumps(found))
        return
    rows = [("weight", "", f"{found[0]['weight']:g}", "")] if len(quotas) > 1 else []
    for name in quotas:
        own, default = found[0][f"max_{name}"], defaults[f"max_{name}"]
        bound = default if own is None else own
        shown = "no bound" if bound is None else f"{bound:,}"
        rows.append((name.replace("_", " "), f"{found[0][name]:,}", shown, "service" if own is None else "user"))
    print_table((user, "used", "at most", "set for the"), rows)


class QuotaName(enum.StrEnum):
    """Quotas as options name them."""

    OPEN_CIRCUITS = "open-circuits"
    DAY_CIRCUITS = "day-circuits"
    DAY_SHOTS = "day-shots"
    STORED_BYTES = "stored-bytes"


@service_app.command(
    "quota",
    epilog=examples(
        "qpeft service quota alice",
        "qpeft service quota alice --day-circuits 10000 --day-shots 5000000",
        "qpeft service quota alice --reset day-shots",
    ),
)
def quota(
    user: User,
    url: Url = None,
    key: Key = None,
    weight: Annotated[float | None, typer.Option(help="Share of a device; default 1.")] = None,
    open_circuits: Annotated[int | None, typer.Option(min=0, help="Circuits queued or running at most.")] = None,
    stored_bytes: Annotated[int | None, typer.Option(min=0, help="Bytes of parameters and results kept at most.")] = None,
    day_circuits: Annotated[int | None, typer.Option(min=0, help="Circuits submitted on one day (UTC) at most.")] = None,
    day_shots: Annotated[int | None, typer.Option(min=0, help="Shots submitted on one day (UTC) at most.")] = None,
    reset: Annotated[
        list[QuotaName] | None, typer.Option(help="Back to the service's own (repeatable).", show_choices=True)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set a user's quotas, and show them with what is used.

    The service's own are QPEFT_SERVICE_MAX_OPEN_CIRCUITS, QPEFT_SERVICE_MAX_STORED_BYTES, QPEFT_SERVICE_USER_DAY_CIRCUITS and
    QPEFT_SERVICE_USER_DAY_SHOTS.
    """
    from qpeft.service.client import Client

    bounds: dict[str, float | None] = {
        "weight": weight,
        "max_open_circuits": open_circuits,
        "max_stored_bytes": stored_bytes,
        "max_day_circuits": day_circuits,
        "max_day_shots": day_shots,
    }
    if reset or any(bound is not None for bound in bounds.values()):
        with Client(url, key) as client:
            client.set_user(user, disabled=None, reset=[f"max_{name.replace('-', '_')}" for name in reset or ()], **bounds)
    _show_bounds(user, url, key, ("open_circuits", "day_circuits", "day_shots", "stored_bytes"), as_json)


@service_app.command("budget", epilog=examples("qpeft service budget alice", "qpeft service budget alice --vendor-shots 100000"))
def budget(
    user: User,
    url: Url = None,
    key: Key = None,
    vendor_shots: Annotated[int | None, typer.Option(min=0, help="Shots on devices that cost money, ever.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set what a user may spend on devices that cost money, and show it with what is spent."""
    from qpeft.service.client import Client

    if vendor_shots is not None:
        with Client(url, key) as client:
            client.set_user(user, max_vendor_shots=vendor_shots)
    _show_bounds(user, url, key, ("vendor_shots",), as_json)


@service_app.command("link-user", epilog=examples("qpeft service link-user alice --issuer https://id.example.org --subject 4711"))
def link_user(
    user: User,
    issuer: Annotated[str, typer.Option(help="The provider's claim `iss`.")],
    subject: Annotated[str, typer.Option(help="The user's claim `sub` there.")],
    url: Url = None,
    key: Key = None,
) -> None:
    """Let somebody of an OpenID provider sign in to the dashboard as a user who is here already."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        client.link_user(user, issuer, subject)


@service_app.command(
    "access",
    epilog=examples(
        "qpeft service access pyqpanda:WK_C180 --user alice --user bob", "qpeft service access pyqpanda:WK_C180 --open"
    ),
)
def access(
    device: Device,
    user: Annotated[list[str] | None, typer.Option(help="May use it; may be repeated. Nobody else may.")] = None,
    everybody: Annotated[bool, typer.Option("--open", help="Everybody may use it.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Say who may submit to a device."""
    from qpeft.service.client import Client

    if everybody == bool(user):
        raise typer.BadParameter("either --user NAME, repeated, or --open")
    with Client(url, key) as client:
        client.set_access(device, None if everybody else user)


@reservations_app.command("list", epilog=examples("qpeft service reservations list"))
def reservations_list(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List reservations that run or are to come."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        found = client.reservations()
    _rows(found, ("id", "device", "user", "starts_at", "ends_at", "note"), as_json)


@reservations_app.command(
    "create", epilog=examples("qpeft service reservations create simulator alice --minutes 90 --in-minutes 30")
)
def reservations_create(
    device: Device,
    user: User,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long.")],
    in_minutes: Annotated[float, typer.Option(min=0, help="Minutes from now to its start.")] = 0.0,
    note: Annotated[str, typer.Option(help="Shown to the user and to administrators.")] = "",
    url: Url = None,
    key: Key = None,
) -> None:
    """Reserve a device for a user and print the reservation's id; others' jobs wait meanwhile."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        print(client.reserve(device, user, minutes * 60, starts_in_s=in_minutes * 60, note=note)["id"])


@reservations_app.command("cancel", epilog=examples("qpeft service reservations cancel r06h2qdjsp2qa5brd4nj8ebeet8"))
def reservations_cancel(reservation: Annotated[str, typer.Argument(help="Its id.")], url: Url = None, key: Key = None) -> None:
    """End a reservation, or take one of the future back."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        client.cancel_reservation(reservation)


@keys_app.command("rotate", epilog=examples("qpeft keys rotate", "qpeft keys rotate qk0123456789 --grace-hours 0"))
def keys_rotate(
    prefix: Annotated[str | None, typer.Argument(help="Of the key to replace; default the key that asks.")] = None,
    grace_hours: Annotated[float, typer.Option(min=0, max=2160, help="Hours that the old key still works.")] = 24.0,
    url: Url = None,
    key: Key = None,
) -> None:
    """Replace a key by a new one of the same user and scopes and print it, once."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        chosen = prefix or next(one["prefix"] for one in client.my_keys() if one["current"])
        print(client.rotate_key(chosen, grace_hours * 3600)["key"])


@webhooks_app.command("create", epilog=examples("qpeft service webhooks create https://hooks.example.org/qpeft"))
def webhooks_create(
    address: Annotated[str, typer.Argument(help="At a host that an administrator listed.")], url: Url = None, key: Key = None
) -> None:
    """Have your jobs' ends posted to an address; prints the secret that signs them, once."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        made = client.create_webhook(address)
    print(f"{made['id']} {made['secret']}")


@webhooks_app.command("list", epilog=examples("qpeft service webhooks list"))
def webhooks_list(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List your webhooks, with what went wrong last."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        found = client.webhooks()
    _rows(found, ("id", "url", "failures", "error", "disabled_at"), as_json)


@webhooks_app.command("delete", epilog=examples("qpeft service webhooks delete h06h2qdjsp2qa5brd4nj8ebeet8"))
def webhooks_delete(webhook: Annotated[str, typer.Argument(help="Its id.")], url: Url = None, key: Key = None) -> None:
    """Forget a webhook."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        client.delete_webhook(webhook)


@service_app.command("audit", epilog=examples("qpeft service audit", "qpeft service audit --after 4711"))
def audit(
    after: Annotated[int, typer.Option(min=0, help="Only entries after this number (`seq`).")] = 0,
    url: Url = None,
    key: Key = None,
) -> None:
    """Print the audit log, one JSON object a line, the oldest first."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        for line in client.audit(after):
            print(json.dumps(line))


@service_app.command("rollback", epilog=examples("qpeft service rollback 0006 --data-dir qpeft-service"))
def rollback(
    revision: Annotated[str, typer.Argument(help="An older revision, as `qpeft service migrate` prints them.")],
    data_dir: Annotated[Path | None, typer.Option(help="Folder of a SQLite database; default QPEFT_SERVICE_DATABASE.")] = None,
) -> None:
    """Take the schema back to an older revision and print it.

    Stop every server first. It is refused when the older version would lose or open something.
    """
    from qpeft.service.maintenance import rollback as run

    print(run(data_dir, revision))
