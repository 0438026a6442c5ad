"""What loggers for experiment trackers share: configs without secrets, tables of samples, pictures, traces."""
