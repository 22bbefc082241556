"""LoRAs and their relatives: what a file says, which weights it changes, and the changed weights.

Weights have the names of the original checkpoint here, because files and ComfyUI's own patches have them; the network's parameters are parts
of them.
"""
