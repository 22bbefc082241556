"""Starts the worker group, watches it, restarts it within a budget and leaves no orphan. Never imports torch in the daemon."""
