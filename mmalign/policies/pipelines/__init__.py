"""The seam of diffusers: what a policy of a pipeline is made of."""
