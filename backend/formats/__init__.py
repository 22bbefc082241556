"""What checkpoint files say before any weight is read: names, shapes, kinds, and which tensors together are one quantised weight.

The broker describes files with this, and ranks read them by it. No torch here.
"""
