"""How a worker group splits one model call: plans, meshes, transports and the USP attention.

Only :mod:`.plan` is free of torch (the broker and the command line use it); this package imports nothing by itself.
"""
