"""Solvers on (x, sigma) -> denoised, flow maths and guidance. Knows no model, no transport and no process group."""
