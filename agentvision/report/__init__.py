"""What a run looks like to a person: one static page, and pictures for documents."""

from __future__ import annotations

from agentvision.report.charts import policy_picture, sweep_picture
from agentvision.report.page import write_report

__all__ = ["policy_picture", "sweep_picture", "write_report"]
