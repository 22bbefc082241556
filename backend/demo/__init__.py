"""``tutti demo``: a daemon, a worker group and a sheet of pictures from the model that ships, from nothing to PNG, with every part timed."""
