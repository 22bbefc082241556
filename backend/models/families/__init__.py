"""One file per family: see :mod:`tutti.backend.models.family` for what each of them declares."""
