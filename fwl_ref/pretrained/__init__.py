"""Models that other people trained: read from their files into parameters of ``fwl_ref.lm``."""
