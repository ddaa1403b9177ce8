"""Past the paper: the second study (``params/beyond.yaml``), for notebook ``08_beyond``."""
