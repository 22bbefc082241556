"""Compressed exchange: tensors of one model call travel as differences to what both ends know from the call before.

What is encoded is a *matrix* ``[N, C]``: tokens (of all batch rows) by channels (heads times head_dim). Each end of a transfer keeps a *residual state* of it
(:mod:`.state`); a *codec* (:mod:`.codecs`) says what a payload holds, and updates the state by decoding it; a *channel* (:mod:`.channel`) is what always
travels together, with a sequence number and a hash of the bases in front; a *store* (:mod:`.store`) holds the channels of all trajectories within a
bound of bytes.

**Both ends decode the same bytes with the same function**, and whoever sends works with what it decodes, not with what it had: all ranks compute with the
very same numbers, and whose token it was does not show in the picture.
"""
