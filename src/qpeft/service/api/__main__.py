"""`python -m qpeft.service.api > docs/openapi.json` writes the description of the API."""

from __future__ import annotations

import sys

from qpeft.service.api.app import ROUTES
from qpeft.service.api.openapi import document

sys.stdout.buffer.write(document(ROUTES))
