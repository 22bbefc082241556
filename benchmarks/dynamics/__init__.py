"""How activations change from step to step: what residual compression has to work with."""
