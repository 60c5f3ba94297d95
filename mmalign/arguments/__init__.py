"""What functions are called with: what their signatures take, ranges and old names of settings, and calls that are remembered."""
