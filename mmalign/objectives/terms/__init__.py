"""What a loss is made of besides its comparison or surrogate."""
