import io
import json
import sys

import pytest
import structlog

from qcnode.logs import configure_logs


@pytest.fixture(autouse=True)
def _afterwards_as_before():
    yield
    structlog.reset_defaults()


def test_a_log_line_is_one_json_object(monkeypatch):
    configure_logs()
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    structlog.get_logger().info("ledger open", entries=3)

    line = json.loads(sys.stderr.getvalue())
    assert (line["event"], line["entries"], line["level"]) == ("ledger open", 3, "info")


def test_a_log_that_cannot_be_written_stops_nobody(monkeypatch):
    configure_logs()
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)

    structlog.get_logger().error("the disk is full")
