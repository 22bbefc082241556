"""Admission, ledger, queue and turns: a state machine without I/O, and the thin server around it. Never imports torch."""
