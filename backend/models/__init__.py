"""The families we run: how a checkpoint becomes a network, and how ComfyUI's inputs become the network's.

Each family states what is split and which attentions are joint; :mod:`tutti.backend.parallel` does it.
"""
