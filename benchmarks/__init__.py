"""One module per question; each prints a table and, with --json FILE, JSON lines."""
