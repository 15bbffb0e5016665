"""What works on Windows and macOS is said by import, --help and doctor, and by the error of a part that does not run there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import qpeft
from qpeft.errors import UnsupportedPlatformError
from qpeft.platforms import SUPPORT, require_posix, support

# A Python without POSIX modules, as on Windows: importing fcntl or resource fails. Libraries come first: they read sys.platform too
LIBRARIES = "import asyncio, ssl, multiprocessing.connection, subprocess, typer, sqlalchemy, httpx, structlog\n"
MODELS = "import peft, transformers\n"
WINDOWS = LIBRARIES + "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None; sys.platform = 'win32'\n"


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)


def test_posix_is_required_on_windows_alone() -> None:
    require_posix("a part", "linux")
    require_posix("a part", "darwin")
    with pytest.raises(UnsupportedPlatformError, match=r"qpeft serve does not run on Windows.*WSL"):
        require_posix("qpeft serve", "win32")


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32", "plan9"])
def test_every_platform_has_a_sentence(platform: str) -> None:
    assert support(platform) == SUPPORT.get(platform, "never tried on plan9")


def test_import_and_help_say_it() -> None:
    assert qpeft.__doc__ is not None
    told = run("from qpeft.cli import main; import sys; sys.argv = ['qpeft', '--help']; main()").stdout
    for text in (qpeft.__doc__, told):
        assert "Windows" in text
        assert "macOS" in text


def test_the_server_says_it_when_it_is_imported() -> None:
    done = run(WINDOWS + "import qpeft.service.server")
    assert "UnsupportedPlatformError: the task service does not run on Windows" in done.stderr


@pytest.mark.parametrize("command", ["serve", pytest.param("worker", marks=pytest.mark.slow)])
def test_the_command_says_it(command: str) -> None:
    done = run(WINDOWS + f"from qpeft.cli import main; sys.argv = ['qpeft', '{command}']; main()")
    assert done.returncode == 2
    assert f"error: qpeft {command} does not run on Windows" in done.stderr


def test_adapters_circuits_and_the_client_import_without_posix() -> None:
    done = run(
        MODELS + WINDOWS + "import qpeft.adapters.peft, qpeft.training.recipe.config, qpeft.backends.registry, qpeft.service.client"
    )
    assert done.returncode == 0, done.stderr


def test_every_module_imports_without_posix_or_says_so() -> None:
    """All modules of the package, in one process; those that need a package which is not installed name it."""
    script = (
        MODELS + LIBRARIES + "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\nimport importlib, pkgutil, qpeft\n"
        "from qpeft.errors import MissingDependencyError, PluginError, UnsupportedPlatformError\n"
        "modules = pkgutil.walk_packages(qpeft.__path__, 'qpeft.', lambda name: None)\n"
        "names = [module.name for module in modules if not ('__main__' in module.name or '.migrations' in module.name)]\n"
        "said = []\n"
        "for name in names:\n"
        "    try: importlib.import_module(name)\n"
        "    except (MissingDependencyError, PluginError): pass\n"
        "    except (UnsupportedPlatformError, ImportError) as error:\n"
        "        if any(word in str(error) for word in ('fcntl', 'resource', 'POSIX')): said.append(name)\n"
        "print(len(names), sorted(said))"
    )
    done = run(script)
    assert done.returncode == 0, done.stderr[-2000:]
    count, _, said = done.stdout.strip().splitlines()[-1].partition(" ")
    assert int(count) > 300
    assert all("qpeft.service" in name for name in said.strip("[]").split(", ") if name), said
