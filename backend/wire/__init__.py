"""The wire format: messages, codec, limits and job states. A leaf: stdlib, msgpack and backend.errors only."""
