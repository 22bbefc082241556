"""Operations that torch does in too many passes: one folder each, with the specification in torch and a Triton kernel.

Nothing of ours is imported here. Each folder's ``__init__`` has the public functions, which choose between ``reference`` (torch,
any device: the specification) and ``triton`` (CUDA); see :mod:`.choice`.
"""
