"""Networks that no library has, apart from the sources that name them: they need PyTorch at once."""
