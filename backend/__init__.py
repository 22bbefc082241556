"""The distributed back end: wire format, broker, supervisor, worker group, models and their parallel execution."""
