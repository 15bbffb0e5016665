"""Commands of the quantum task service: run it, work for it, use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qpeft.cli.common import AsJson, HelpPanel, app, examples, print_table
from qpeft.errors import ServiceError

keys_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make, list and revoke the service's keys.")
app.add_typer(keys_app, name="keys", rich_help_panel=HelpPanel.SERVICE)

service_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Operate the service: users, migration, backup.")
app.add_typer(service_app, name="service", rich_help_panel=HelpPanel.SERVICE)

vendor_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List and resolve the tasks sent to vendors.")
service_app.add_typer(vendor_app, name="vendor-tasks")

Url = Annotated[str | None, typer.Option(envvar="QPEFT_SERVICE_URL", help="The service's address.")]
Key = Annotated[str | None, typer.Option(envvar="QPEFT_SERVICE_KEY", help="Your key; better in the environment than here.")]
DataDir = Annotated[Path, typer.Option(help="Where the service keeps its database.")]
Database = Annotated[str | None, typer.Option(help="postgresql+psycopg://...; default SQLite in --data-dir.")]


@app.command(
    rich_help_panel=HelpPanel.SERVICE, epilog=examples("qpeft serve --device emulator:wukong-72 --admin-key-file admin.key")
)
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; default 8642; 0 takes a free one and prints it.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the service keeps its database; default qpeft-service.")] = None,
    admin_key_file: Annotated[Path | None, typer.Option(help="Write the first key here (mode 600) instead of printing it.")] = None,
    database: Database = None,
    workers: Annotated[int | None, typer.Option(help="API processes; default 1; more need PostgreSQL.")] = None,
    executors: Annotated[int | None, typer.Option(help="Worker processes started with the server; default 1.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="A device to offer, the built-in ones if none is given.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    behind_proxy: Annotated[bool, typer.Option("--behind-proxy", help="A proxy in front of the service speaks TLS.")] = False,
) -> None:
    """Run the quantum task service. Linux and macOS only.

    Every setting is also an environment variable QPEFT_SERVICE_*, and there are more of them
    (docs/reference/service-settings.md). An option has priority.
    """
    from qpeft.platforms import require_posix

    require_posix("qpeft serve")
    from qpeft.service.logs import configure
    from qpeft.service.server import serve as run
    from qpeft.service.settings import Settings

    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "workers": workers,
        "executors": executors,
        "behind_proxy": behind_proxy or None,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "database": database,
        "devices": tuple(device) if device else None,
    }
    if database is not None:
        from qpeft.service.store.database import has_password, parse_url

        if has_password(parse_url(database)):
            raise ServiceError(
                "a password on the command line is shown to every user of this machine",
                status=0,
                hint="set QPEFT_SERVICE_DATABASE, or leave the password to PostgreSQL's password file (~/.pgpass)",
            )
    configure()
    run(Settings.load(**{name: value for name, value in given.items() if value is not None}), admin_key_file)


@app.command(
    rich_help_panel=HelpPanel.SERVICE,
    epilog=examples("QPEFT_SERVICE_KEY=... qpeft worker --url http://127.0.0.1:8642 --device emulator:wukong-72"),
)
def worker(
    url: Url = None,
    key: Key = None,
    device: Annotated[list[str] | None, typer.Option(help="A device to run; may be repeated. Default simulator.")] = None,
    max_jobs: Annotated[int, typer.Option(min=1, help="Jobs taken at once.")] = 256,
    name: Annotated[
        str | None, typer.Option(help="Its name, of no other worker: it takes over from the one that had it before.")
    ] = None,
) -> None:
    """Run circuits for a service, on this machine. Linux and macOS only.

    The key needs the scope `worker`.
    """
    from qpeft.platforms import require_posix

    require_posix("qpeft worker")
    from qpeft.service.worker import run_worker

    run_worker(url, key, device or ["simulator"], max_jobs, name=name)


@app.command(rich_help_panel=HelpPanel.SERVICE, epilog=examples("qpeft jobs --state queued", "qpeft jobs --watch"))
def jobs(
    url: Url = None,
    key: Key = None,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    batches: Annotated[bool, typer.Option("--batches", help="Batches and sweeps instead of jobs.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep the list up to date on the screen; in a pipe, a line per change.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List your jobs, or batches, newest first."""
    from qpeft.service.client import Client

    if watch and batches:
        raise typer.BadParameter("--watch shows jobs")
    with Client(url, key) as client:
        if watch:
            from qpeft.cli.watch import watch_jobs

            watch_jobs(client, state, limit, as_json=as_json)
            return
        found = client.batches(limit=limit) if batches else client.jobs(state=state, limit=limit)
    if as_json:
        print(json.dumps(found))
        return
    columns: tuple[str, ...] = ("id", "state", "device", "circuits", "shots", "queue_position", "created_at", "reason")
    if batches:
        columns = ("id", "kind", "state", "device", "jobs", "circuits", "finished_circuits", "created_at", "name")
    print_table(columns, [tuple("" if job[c] is None else str(job[c]) for c in columns) for job in found])


@app.command(rich_help_panel=HelpPanel.SERVICE, epilog=examples("qpeft usage", "qpeft usage --days 7 --json"))
def usage(
    url: Url = None,
    key: Key = None,
    days: Annotated[int, typer.Option(min=1, max=366, help="So many days back.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Show your use by day and device, and your quotas."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        found = client.usage(days)
    if as_json:
        print(json.dumps(found))
        return
    columns = ("day", "device", "jobs", "circuits", "shots", "device_s")
    rows = [tuple(f"{one[c]:,.6g}" if c == "device_s" else str(one[c]) for c in columns) for one in found["usage"]]
    print_table(("day (UTC)", "device", "jobs", "circuits", "shots", "device seconds"), rows)
    quotas = [name.removeprefix("max_") for name in found if name.startswith("max_")]
    bounds = [(name, found[name], found[f"max_{name}"]) for name in quotas]
    table = [(name.replace("_", " "), f"{used:,}", "no bound" if most is None else f"{most:,}") for name, used, most in bounds]
    print_table(("quota", "used", "at most"), table)


@app.command(rich_help_panel=HelpPanel.SERVICE, epilog=examples("qpeft submit bell.qasm --device emulator:wukong-72 --shots 1000"))
def submit(
    file: Annotated[Path, typer.Argument(help="OpenQASM (.qasm), OriginIR (.ir, .originir) or qpeft's circuit JSON (.json).")],
    url: Url = None,
    key: Key = None,
    device: Annotated[str, typer.Option(help="A device of the service.")] = "simulator",
    shots: Annotated[int | None, typer.Option(min=1, help="Repetitions; default exact, where the device can.")] = None,
    output: Annotated[str | None, typer.Option(help="counts, probabilities or expectations.")] = None,
    param: Annotated[list[float] | None, typer.Option(help="A parameter of the circuit, in order; may be repeated.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the result.")] = 300.0,
) -> None:
    """Submit one circuit and print its result as JSON."""
    from qpeft.service.client import Client

    form = {".qasm": "qasm", ".json": "circuit"}.get(file.suffix.lower(), "originir")
    text = file.read_text(encoding="utf-8")
    with Client(url, key) as client:
        job = client.submit(
            json.loads(text) if form == "circuit" else text,
            form=form,
            device=device,
            shots=shots,
            output=output or ("counts" if shots else "probabilities"),
            params=param or [],
            name=file.name,
        )
        print(json.dumps(client.result(job["id"], timeout_s=wait)))


@keys_app.command(
    "create",
    epilog=examples(
        "qpeft keys create alice --scope submit --scope read", "qpeft keys create admin --scope admin --data-dir qpeft-service"
    ),
)
def keys_create(
    user: Annotated[str, typer.Argument(help="The user's name; made when there is none of it.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="submit, read, admin, worker; may be repeated. Default submit and read.")
    ] = None,
    url: Url = None,
    key: Key = None,
    data_dir: Annotated[Path | None, typer.Option(help="Write into this folder's database instead of asking a server.")] = None,
    local: Annotated[bool, typer.Option("--local", help="As --data-dir, for the database of QPEFT_SERVICE_DATABASE.")] = False,
    weight: Annotated[float | None, typer.Option(help="The user's share of a device; default 1.")] = None,
    expires_days: Annotated[
        float | None, typer.Option(min=0.001, help="Days after which the key is refused; default never.")
    ] = None,
) -> None:
    """Make a key and print it, once.

    With --data-dir or --local no key is needed: whoever may write the database may make one.
    """
    scopes = scope or ["submit", "read"]
    if data_dir is not None or local:
        from qpeft.service.maintenance import create_key

        print(create_key(data_dir, user, scopes))
        return
    from qpeft.service.client import Client

    with Client(url, key) as client:
        expires_s = None if expires_days is None else expires_days * 86400
        print(client.create_key(user, scopes, expires_s=expires_s, weight=weight)["key"])


@service_app.command("users", epilog=examples("qpeft service users"))
def service_users(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List users, their bounds and what they use of them."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        answer = client.users_and_defaults()
    found, defaults = answer["users"], answer["defaults"]
    if as_json:
        print(json.dumps(found))
        return
    columns = (
        "user",
        "disabled",
        "weight",
        "open_circuits",
        "max_open_circuits",
        "stored_bytes",
        "vendor_shots",
        "max_vendor_shots",
    )
    for one in found:
        one.update((name, "no bound" if bound is None else bound) for name, bound in defaults.items() if one[name] is None)
    print_table(columns, [tuple(str(one[c]) for c in columns) for one in found])


@service_app.command(
    "set-user",
    epilog=examples("qpeft service set-user alice --weight 2 --vendor-shots 100000", "qpeft service set-user bob --disable"),
)
def service_set_user(
    user: Annotated[str, typer.Argument(help="The user's name.")],
    url: Url = None,
    key: Key = None,
    disable: Annotated[bool | None, typer.Option("--disable/--enable", help="Refuse the user's keys, or take them again.")] = None,
    weight: Annotated[float | None, typer.Option(help="Share of a device; default 1.")] = None,
    open_circuits: Annotated[int | None, typer.Option(min=0, help="Circuits queued or running at most.")] = None,
    stored_bytes: Annotated[int | None, typer.Option(min=0, help="Bytes of parameters and results kept at most.")] = None,
    vendor_shots: Annotated[int | None, typer.Option(min=0, help="Shots on devices that cost money, ever.")] = None,
) -> None:
    """Change a user's bounds, or disable the user."""
    from qpeft.service.client import Client

    bounds: dict[str, float | None] = {
        "weight": weight,
        "max_open_circuits": open_circuits,
        "max_stored_bytes": stored_bytes,
        "max_vendor_shots": vendor_shots,
    }
    with Client(url, key) as client:
        client.set_user(user, disabled=disable, reset=(), **bounds)


@service_app.command("migrate", epilog=examples("qpeft service migrate", "qpeft service migrate --to 0005"))
def service_migrate(
    data_dir: Annotated[Path | None, typer.Option(help="Folder of a SQLite database; default QPEFT_SERVICE_DATABASE.")] = None,
    to: Annotated[str, typer.Option(help="A revision, forward or back; stop every server before going back.")] = "head",
) -> None:
    """Bring the schema to a revision and print it."""
    from qpeft.service.maintenance import migrate

    print(migrate(data_dir, to))


@service_app.command("verify", epilog=examples("qpeft service verify --data-dir qpeft-service"))
def service_verify(
    data_dir: Annotated[Path | None, typer.Option(help="Folder of a SQLite database; default QPEFT_SERVICE_DATABASE.")] = None,
) -> None:
    """Check that jobs, results, quotas and queues agree.

    The server may be running. Exits with 1 when something is wrong.
    """
    from qpeft.service.maintenance import verify

    wrong = verify(data_dir)
    print("\n".join(wrong) or "everything agrees")
    if wrong:
        raise typer.Exit(1)


@keys_app.command("list", epilog=examples("qpeft keys list"))
def keys_list(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List keys by prefix; the keys themselves are not stored."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        found = client.keys()
    if as_json:
        print(json.dumps(found))
        return
    rows = [(k["prefix"], k["user"], " ".join(k["scopes"]), k["created_at"], k["revoked_at"] or "") for k in found]
    print_table(("prefix", "user", "scopes", "created", "revoked"), rows)


@keys_app.command("revoke", epilog=examples("qpeft keys revoke qp_1a2b3c"))
def keys_revoke(
    prefix: Annotated[str, typer.Argument(help="As `qpeft keys list` shows it.")], url: Url = None, key: Key = None
) -> None:
    """Revoke a key.

    It is refused from now on, and streams that it opened end.
    """
    from qpeft.service.client import Client

    with Client(url, key) as client:
        client.revoke_key(prefix)


@vendor_app.command("list", epilog=examples("qpeft service vendor-tasks list --state intent"))
def vendor_list(
    url: Url = None,
    key: Key = None,
    state: Annotated[str | None, typer.Option(help="intent (nobody knows whether it arrived), sent, refused or absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """List tasks at vendors, newest first."""
    from qpeft.service.client import Client

    with Client(url, key) as client:
        found = client.vendor_tasks(state)
    if as_json:
        print(json.dumps(found))
        return
    columns = ("id", "device", "state", "vendor_job", "circuits", "shots", "created_at", "reason")
    print_table(columns, [tuple(str(task[c]) for c in columns) for task in found])


@vendor_app.command(
    "resolve",
    epilog=examples("qpeft service vendor-tasks resolve 41 --vendor-job 8F3A", "qpeft service vendor-tasks resolve 41 --absent"),
)
def vendor_resolve(
    task: Annotated[str, typer.Argument(help="A task in state intent; its id is the vendor's batch number.")],
    vendor_job: Annotated[str | None, typer.Option(help="The vendor's id of it.")] = None,
    absent: Annotated[bool, typer.Option("--absent", help="It never arrived: send it again.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Record what became of a task whose sending was cut off.

    Look for it at the vendor's first.
    """
    from qpeft.service.client import Client

    if (vendor_job is None) != absent:
        raise typer.BadParameter("either --vendor-job ID or --absent")
    with Client(url, key) as client:
        print(client.resolve_vendor_task(task, vendor_job)["state"])


@app.command("backup", hidden=True, epilog=examples("qpeft backup backup.sqlite --data-dir qpeft-service"))
@service_app.command("backup", epilog=examples("qpeft service backup backup.sqlite --data-dir qpeft-service"))
def backup(
    target: Annotated[Path, typer.Argument(help="A file that does not exist yet.")],
    data_dir: DataDir = Path("qpeft-service"),
) -> None:
    """Copy a service's SQLite database and check the copy.

    The service may be running. For PostgreSQL use pg_dump.
    """
    from qpeft.service.store.database import backup_sqlite

    backup_sqlite(data_dir / "service.sqlite", target)
    print(target)
