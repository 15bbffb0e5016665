"""Records -> tables, plots, Markdown and one HTML page. Reads records alone; never trains. Needs the extra `report`."""

from qpeft.report.page import Built, build
from qpeft.report.tables import ArmSummary, console_table, summarise

__all__ = ["ArmSummary", "Built", "build", "console_table", "summarise"]
