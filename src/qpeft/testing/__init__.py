"""Contract suites for authors of new members: every adapter method passes `check_adapter`, every backend `check_backend`.

    from qpeft.testing import check_adapter, check_backend

    def test_contract():
        check_adapter(lambda **settings: MyConfig(r=4, **settings))
        check_backend(lambda: MyBackend("chip"))

PEFT's own methods can be held to it too, as a yardstick: `check_adapter(lambda **s: LoraConfig(r=4, **s))`. Models are tiny, random
and built from configurations; nothing is downloaded.
"""

from qpeft.testing.adapter import check_adapter
from qpeft.testing.adapter_rules import RULES, SLOW
from qpeft.testing.backend import check_backend
from qpeft.testing.backend_rules import BACKEND_RULES

__all__ = ["BACKEND_RULES", "RULES", "SLOW", "check_adapter", "check_backend"]
