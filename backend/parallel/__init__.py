"""Plan, mesh, partition, transports and the USP attention op: how a model call is split over ranks."""
