"""Images as the tokens of a codebook: what a policy of a model that makes images so is made of."""
