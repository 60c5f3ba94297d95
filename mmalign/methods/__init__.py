"""Published methods, one file each: a sentence of objectives and a docstring. The folder is the registry."""
