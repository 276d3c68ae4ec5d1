"""Telemetry: log lines, metrics and traces. It is told what happens; nothing here asks or waits."""
