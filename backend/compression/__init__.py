"""Compressed exchange: tensors of one model call travel as differences to what both ends know from the call before.

What is encoded is a *matrix* ``[N, C]``: tokens (of all batch rows) by channels (heads times head_dim). Each end of a transfer keeps a *residual state* of it
(:mod:`.state`); a *codec* (:mod:`.codecs`) says what a payload holds, and updates the state by decoding it; a *channel* (:mod:`.channel`) is what always
travels together, with a sequence number and a hash of the bases in front; a *store* (:mod:`.store`) holds the channels of all trajectories within a
bound of bytes.

**Both ends decode the same bytes with the same function**, so bases are the same bits on all ranks, and whatever a payload lost comes back in the next one.
"""
