"""Contract suites for authors of new members: every adapter method passes `check_adapter`.

    from qpeft.testing import check_adapter

    def test_contract():
        check_adapter(lambda **settings: MyConfig(r=4, **settings))

PEFT's own methods can be held to it too, as a yardstick: `check_adapter(lambda **s: LoraConfig(r=4, **s))`. Models are tiny, random
and built from configurations; nothing is downloaded.
"""

from qpeft.testing.adapter import check_adapter
from qpeft.testing.adapter_rules import RULES, SLOW

__all__ = ["RULES", "SLOW", "check_adapter"]
