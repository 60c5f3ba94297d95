"""What a policy of a language or vision-language model is made of."""
