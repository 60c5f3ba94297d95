"""What a pipeline is to mmalign, found by trying."""
