"""What a policy of a language or vision-language model is made of; each room knows those before it.

``models``: loaded, and run. ``prompts``: words, images and videos as token ids. ``drawing``: completions, token by token or turn by turn.
``scoring``: what is said of completions that are there. ``codes``: images that a language model writes as tokens.
"""
