"""Hosts of one network on one machine: Linux network namespaces on a bridge, each of which can be cut off and brought back."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid


def missing() -> str | None:
    """Why namespaces cannot be made here; None when they can."""
    if shutil.which("ip") is None:
        return "ip is not installed (Debian: apt-get install iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"qpeft-{uuid.uuid4().hex[:6]}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip()


class Network:
    """A bridge with the address `gateway` of this machine, and a namespace for each name.

    Args:
        names: the hosts.
        number: third byte of the network's addresses, 10.203.`number`.0/24.
    """

    def __init__(self, names: list[str], number: int = 77) -> None:
        self.tag = uuid.uuid4().hex[:4]
        self.bridge, self.gateway = f"qb{self.tag}", f"10.203.{number}.1"
        self.address = {name: f"10.203.{number}.{k + 10}" for k, name in enumerate(names)}
        self._run("link", "add", self.bridge, "type", "bridge")
        self._run("address", "add", f"{self.gateway}/24", "dev", self.bridge)
        self._run("link", "set", self.bridge, "up")
        for name in names:
            space, outside = self._space(name), self._outside(name)
            self._run("netns", "add", space)
            self._run("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
            self._run("link", "set", outside, "master", self.bridge, "up")
            self._run("-n", space, "address", "add", f"{self.address[name]}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                self._run("-n", space, "link", "set", device, "up")

    @staticmethod
    def _run(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    def _space(self, name: str) -> str:
        return f"qpeft-{self.tag}-{name}"

    def _outside(self, name: str) -> str:
        return f"q{self.tag}{list(self.address).index(name)}"

    def on(self, name: str) -> list[str]:
        """What a command begins with that runs on this host."""
        return ["ip", "netns", "exec", self._space(name)]

    def cut(self, name: str) -> None:
        """Nothing goes to or from the host any more; nobody is told."""
        self._run("link", "set", self._outside(name), "down")

    def join(self, name: str) -> None:
        """Bring the host back."""
        self._run("link", "set", self._outside(name), "up")

    def close(self) -> None:
        """Remove it all. Its processes have to be gone."""
        for name in self.address:
            subprocess.run(["ip", "netns", "delete", self._space(name)], capture_output=True, check=False)
            subprocess.run(["ip", "link", "delete", self._outside(name)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False)
