"""Solvers on (x, sigma) -> denoised. Knows no transport and no process group."""
