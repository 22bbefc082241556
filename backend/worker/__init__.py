"""One rank of a worker group: the torchrun entry, the trajectory loop and the control exchange."""
