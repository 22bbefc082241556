"""What runs inside ComfyUI: the nodes, the weightless MODEL and the client."""
